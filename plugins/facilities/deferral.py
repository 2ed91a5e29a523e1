"""The base of operators that submit remote work, or wait for it, deferred."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowSensorTimeout, TaskDeferralTimeout
from pydantic import TypeAdapter, ValidationError

from facilities.cancellation import Cancellation, task_is_over, timed_out
from facilities.errors import FacilityError, InfrastructureError, TimeLimitError, TransientError
from facilities.waiting import OutageTrigger, RemoteTrigger, WaitTrigger

T = TypeVar("T")
log = logging.getLogger(__name__)

STATE_KEY = "remote_wait"

_MAX_FIRST_PAUSE = 300.0  # seconds
_MAX_HOLDS_COUNTED = 10


class StateStore(Protocol):
    """What is needed of Airflow's task state store, which outlives a task's tries."""

    def get(self, key: str) -> Any: ...
    def set(self, key: str, value: Any) -> None: ...
    def delete(self, key: str) -> None: ...


def read_kept(kind: type[T], store: StateStore | None, key: str) -> T | None:
    """The dataclass that a store keeps as `asdict` gives it; None when it keeps nothing that fits."""
    try:
        return None if store is None else TypeAdapter(kind).validate_python(store.get(key))
    except ValidationError:
        return None


@dataclass(frozen=True)
class Wait:
    """The wait for one job or transfer, kept so that its limits count from the first try on.

    Triggers start anew when the triggerer does, and tasks when they are retried.

    :param deadline: its end, in seconds since 1970.
    :param details: what else the service's trigger wants to have kept.
    """

    remote_id: str
    deadline: float
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, store: StateStore | None, remote_id: str) -> Wait | None:
        """The wait that has begun for this work; None for one of other work."""
        kept = read_kept(cls, store, STATE_KEY)
        return kept if kept is not None and kept.remote_id == remote_id else None

    def save(self, store: StateStore | None) -> Wait:
        """Write it down; when the store fails, a later try begins the count again."""
        try:
            if store is not None:
                store.set(STATE_KEY, asdict(self))
        except Exception:
            log.exception("Could not keep since when %s is waited for.", self.remote_id)
        return self


def end_wait(store: StateStore | None) -> None:
    """The wait is over: another one, for the same work too, counts from its own beginning."""
    if store is not None:
        store.delete(STATE_KEY)


def defer_timeout(deadline: float) -> timedelta:
    """Airflow's own limit of a wait: later than its trigger's, in case that no triggerer runs."""
    return timedelta(seconds=max(deadline - time.time(), 0.0), minutes=5)


class RemoteWorkOperator(BaseOperator):
    """Submits remote work, or waits for it.

    A subclass finds or submits its work in `run_try`. It calls `announce` when it knows the work's id,
    `wait_for` to wait for the work, and `hold` when the service does not answer::

        def run_try(self, context, **holds):
            try:
                job_id = self.hook.submit(self.script)
            except TransientError as error:
                self.hold(context, error, **holds)
            self.announce(context, job_id)
            return self.wait_for(context, MyJobTrigger(remote_id=job_id, deadline=time.time() + 3600))

        def execute_complete(self, context, event):
            return read_event(event)["result"]

    :param hold: longest wait for the service to answer when it cannot be reached.
    :param deferrable: wait in the triggerer; otherwise a worker slot is held.
    """

    service: ClassVar[str]
    status_page: ClassVar[str]
    first_pause = 10.0
    """Seconds before the first look whether a silent service answers."""

    def __init__(self, *, hold: timedelta, deferrable: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.longest_hold = hold
        self.deferrable = deferrable
        self.remote_id = ""
        self._kill_requested = False
        self._ti: Any = None

    # What a subclass defines

    @abstractmethod
    def run_try(self, context: Context, **kwargs: Any) -> Any:
        """Find or submit the work, and wait for it; called again, with what `hold` gives, after an outage."""

    def execute_complete(self, context: Context, event: object) -> Any:
        """Go on when a `WaitTrigger` has ended its wait; of operators that call `wait_for`."""
        raise NotImplementedError

    @abstractmethod
    def outage_trigger(
        self, context: Context, reason: str, deadline: float, first_pause: float
    ) -> OutageTrigger:
        """What waits until the service answers."""

    @abstractmethod
    def cancel_known(self, *, urgent: bool) -> Cancellation:
        """Cancel the work of id `remote_id`.

        :param urgent: called in a signal handler: there are few seconds, and no lock may be waited for that
            the interrupted code may hold.
        """

    @abstractmethod
    def cancel_unknown(self, context: Context) -> str:
        """Cancel what an earlier part of this task may have submitted, found by its name.

        :return: what was done, for an error; empty for nothing.
        """

    # For a subclass to call

    def announce(self, context: Context, remote_id: str) -> None:
        """Note the id of the work, for `on_kill`.

        :raises InfrastructureError: the task was ended meanwhile; the work has been cancelled.
        """
        self.remote_id = remote_id
        if self._kill_requested and task_is_over(context["ti"]):
            note = self.cancel_known(urgent=True).note
            raise InfrastructureError(
                "The task was ended during its submit", remote_id=remote_id, details=note
            )

    def wait_for(self, context: Context, trigger: WaitTrigger[Any]) -> Any:
        """Wait, and go on with `execute_complete`."""
        if self.deferrable:
            self.defer_to(trigger, trigger.deadline, "execute_complete")
        return self.execute_complete(context, asyncio.run(trigger.wait()))

    def hold(
        self,
        context: Context,
        error: TransientError,
        *,
        hold_until: float | None = None,
        holds: int = 0,
        **kwargs: Any,
    ) -> NoReturn:
        """Wait, deferred, until the service answers, and go on with `run_try`.

        A task that is not deferrable leaves it to its retries.

        :param hold_until: end of the wait, of an earlier hold of the same try.
        :param holds: how many there have been in a row; each waits twice as long before it looks.
        :param kwargs: handed to `run_try`, with the two above.
        """
        if not self.deferrable:
            raise error
        now = time.time()
        hold_until = hold_until or now + self.longest_hold.total_seconds()
        if now >= hold_until:
            raise self.outage_error(context, error) from error
        pause = max(min(self.first_pause * 2.0**holds, _MAX_FIRST_PAUSE), error.retry_after or 0.0)
        kwargs |= {"hold_until": hold_until, "holds": min(holds + 1, _MAX_HOLDS_COUNTED)}
        kwargs["cause"] = error.to_fields()
        trigger = self.outage_trigger(context, str(error), hold_until, pause)
        self.defer_to(trigger, hold_until, "resume_after_outage", **kwargs)

    def outage_error(self, context: Context, cause: FacilityError) -> TimeLimitError:
        """The error when the service could not be used for too long; cancels what may have been submitted.

        :param cause: the last; the error names it, and what to do about it.
        """
        step = cause.next_step or f"look at {self.status_page}."
        error = TimeLimitError(
            f"{self.service} could not be used within {self.longest_hold}, the limit of the wait. Last: "
            f"{cause.what}",
            remote_id=cause.remote_id,
            state=cause.state,
            next_step=f"{step} Then clear the task.",
            details=cause.details,
        )
        error.add_details(self.cancel_unknown(context))
        return error

    def defer_to(self, trigger: RemoteTrigger, deadline: float, method_name: str, **kwargs: Any) -> NoReturn:
        """Defer."""
        self.defer(trigger=trigger, method_name=method_name, kwargs=kwargs, timeout=defer_timeout(deadline))
        raise AssertionError("defer raises")

    # Airflow's entries

    def execute(self, context: Context) -> Any:
        """Find or submit the work, and wait for it."""
        self._ti = context["ti"]
        return self.run_try(context)

    def resume_after_outage(
        self, context: Context, event: object, *, cause: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        """Go on when an `OutageTrigger` has ended its wait.

        :param cause: why the wait began.
        """
        self._ti = context["ti"]
        outcome: Mapping[str, Any] = event if isinstance(event, Mapping) else {}
        if outcome.get("outcome") == "answers":
            return self.run_try(context, **kwargs)
        last = outcome.get("error") or cause or {"what": f"{self.service} does not answer"}
        raise self.outage_error(context, FacilityError.from_fields(last))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Cancel the remote work when Airflow itself has ended the wait: it calls nothing else then."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except (TaskDeferralTimeout, AirflowSensorTimeout) as error:
            if TaskDeferralTimeout not in (type(error), type(error.__cause__)):
                raise
            cancelled = self.cancel_unknown(context)
            raise TimeLimitError(
                f"The wait for {self.service} reached its limit while no triggerer looked at it",
                remote_id=self.remote_id or None,
                next_step="check that a triggerer runs, then clear the task.",
                details=cancelled,
            ) from error

    def on_kill(self) -> None:
        """Cancel the remote work when this task was ended, or has run out of its execution_timeout.

        Runs inside a signal handler or an exception's. While a submit is on its way nothing is known yet: the
        interrupted code sees the flag and cancels as soon as it has the id (`announce`).
        """
        self._kill_requested = True
        if self.remote_id and (timed_out() or task_is_over(self._ti)):
            self.log.info("The task was ended. %s", self.cancel_known(urgent=True).note)
