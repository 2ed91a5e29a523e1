"""The failures of remote services, by class.

Every message names what failed, the id, the last state seen and what to do next. The class of an
exception decides whether trying again can help (see `facilities.retries`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypedDict

FailureClass = Literal["transient", "infrastructure", "resources", "user", "credentials"]


class ErrorFields(TypedDict):
    """A `FacilityError` in plain values, for a trigger's event."""

    kind: str  # name of its class
    failure_class: FailureClass
    what: str
    remote_id: str | None
    state: str | None
    next_step: str
    details: str


class FacilityError(Exception):
    """Base of all failures of a remote service.

    Example::

        raise UserError(
            "The job failed with exit code 3",
            remote_id="80",
            state="FAILED",
            next_step="look at the end of its log below.",
        )

    :param what: what failed, in one sentence, without a full stop.
    :param remote_id: id of the remote thing (Globus task, Slurm job, path), if there is one.
    :param state: last state that the service reported.
    :param next_step: what the reader should do, one sentence.
    :param details: further lines (a service's own message, the tail of a log).
    :param retry_after: seconds after which the service wants to be asked again.
    """

    failure_class: ClassVar[FailureClass] = "user"

    def __init__(
        self,
        what: str,
        *,
        remote_id: str | None = None,
        state: str | None = None,
        next_step: str = "",
        details: str = "",
        retry_after: float | None = None,
    ) -> None:
        self.what = what
        self.remote_id = remote_id
        self.state = state
        self.next_step = next_step
        self.details = details
        self.retry_after = retry_after
        super().__init__(self._message())

    def _message(self) -> str:
        parts = [self.what]
        if self.remote_id:
            parts.append(f"id {self.remote_id}")
        if self.state:
            parts.append(f"last state {self.state}")
        message = "; ".join(parts) + "."
        if self.next_step:
            message += f"\nWhat to do: {self.next_step}"
        if self.details:
            message += f"\n{self.details}"
        return message

    def add_details(self, *lines: str) -> None:
        """Add lines to the message; empty ones are left out."""
        self.details = "\n".join(line for line in (self.details, *lines) if line)
        self.args = (self._message(),)

    def to_fields(self) -> ErrorFields:
        """Plain values that `from_fields` makes an error of again."""
        return ErrorFields(
            kind=type(self).__name__,
            failure_class=self.failure_class,
            what=self.what,
            remote_id=self.remote_id,
            state=self.state,
            next_step=self.next_step,
            details=self.details,
        )

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> FacilityError:
        """The error that `to_fields` took apart; of a class that is not from here, the next of its kind."""
        kind = _BY_NAME.get(str(fields.get("kind"))) or BY_CLASS.get(
            fields.get("failure_class", "infrastructure"), InfrastructureError
        )
        return kind(
            str(fields.get("what")),
            remote_id=fields.get("remote_id"),
            state=fields.get("state"),
            next_step=str(fields.get("next_step") or ""),
            details=str(fields.get("details") or ""),
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(cls: type[FacilityError], fields: dict[str, object]) -> FacilityError:
    error = cls.__new__(cls)
    error.__dict__.update(fields)
    Exception.__init__(error, error._message())
    return error


class TransientError(FacilityError):
    """The service did not answer, or cannot at the moment: the same call may work later."""

    failure_class = "transient"


class LostReplyError(TransientError):
    """A request may have been acted on, but its reply was lost: look before sending it again."""


class InfrastructureError(FacilityError):
    """The facility lost the work (node failure, preemption, boot failure): the same work may run again."""

    failure_class = "infrastructure"


class ResourcesError(FacilityError):
    """The work ran out of time or memory: it needs more of it to succeed."""

    failure_class = "resources"


class TimeLimitError(ResourcesError):
    """The task's own limit of waiting was reached."""


class UserError(FacilityError):
    """What was asked for cannot work (missing file, wrong account, failed program): do not try again."""


class NotFoundError(UserError):
    """The service does not know the thing that was named."""


class CredentialsError(FacilityError):
    """Wrong, expired or unreadable credentials: somebody must renew them."""

    failure_class = "credentials"


BY_CLASS: dict[FailureClass, type[FacilityError]] = {
    kind.failure_class: kind
    for kind in (TransientError, InfrastructureError, ResourcesError, UserError, CredentialsError)
}
"""What to raise for a failure of a class."""

_BY_NAME: dict[str, type[FacilityError]] = {
    kind.__name__: kind for kind in (*BY_CLASS.values(), LostReplyError, TimeLimitError, NotFoundError)
}
