"""What triggers tell the tasks that wait, as plain values, and how a task reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from facilities import errors
from facilities.errors import FacilityError, InfrastructureError
from facilities.superfacility.job import JobSnapshot


class ErrorValues(TypedDict):
    """A `FacilityError` in plain values; `kind` is the name of its class."""

    kind: str
    what: str
    remote_id: str | None
    state: str | None
    next_step: str
    details: str


class JobEvent(TypedDict):
    """Why the wait for a job is over: it is final (`job`), or there is an error that is not the job's."""

    outcome: Literal["final", "error"]
    job_id: str
    job: dict[str, Any] | None
    error: ErrorValues | None


class WaitEvent(TypedDict):
    """Why a hold is over: NERSC can be asked again, or the longest hold has passed."""

    outcome: Literal["again", "given up"]


def error_values(error: FacilityError) -> ErrorValues:
    """Take an error apart."""
    return ErrorValues(
        kind=type(error).__name__,
        what=error.what,
        remote_id=error.remote_id,
        state=error.state,
        next_step=error.next_step,
        details=error.details,
    )


def error_of(values: ErrorValues) -> FacilityError:
    """Put an error together again."""
    kind = getattr(errors, values["kind"], InfrastructureError)
    fields: dict[str, Any] = {
        key: values.get(key) for key in ("remote_id", "state", "next_step", "details") if values.get(key)
    }
    error = kind(values["what"], **fields)
    if not isinstance(error, FacilityError):
        raise TypeError(f"{values['kind']} is not a facility error")
    return error


def read_job_event(event: object, job_id: str) -> JobSnapshot:
    """The final job that an event tells of.

    :raises FacilityError: the one in the event, or, when it is none of ours, an `InfrastructureError`:
        the next try takes the job up again.
    """
    if isinstance(event, Mapping) and event.get("job_id") == job_id:
        if isinstance(event.get("error"), Mapping):
            raise error_of(event["error"])
        if event.get("outcome") == "final" and isinstance(event.get("job"), Mapping):
            return JobSnapshot.from_dict(event["job"])
    raise InfrastructureError(
        "The trigger ended without a proper event",
        remote_id=job_id,
        state=str(event)[:200],
        next_step="clear the task: it waits for the same job again.",
    )
