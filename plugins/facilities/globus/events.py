"""What triggers tell operators, and how an operator turns it into an error of the right class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, cast

from facilities.errors import BY_CLASS, FacilityError, FailureClass, InfrastructureError, TimeLimitError
from facilities.globus.watching import Outcome

Cancelled = Literal["yes", "no", "not asked"]


class TaskEvent(TypedDict):
    """Why the wait for a Globus task has ended. The task's own state is read again by the operator."""

    outcome: Outcome
    task_id: str
    state: str  # last state that Globus reported, empty when it never answered
    reason: str
    failure_class: FailureClass
    next_step: str
    report: str  # Globus's report about the trouble
    cancelled: Cancelled
    stuck_seconds: float  # since when the task, in trouble, has made no progress
    moved: list[int]  # bytes and files until then


def read_event(event: object) -> TaskEvent:
    """Check an event.

    :raises InfrastructureError: when it is not one of ours: the wait starts again with the next try.
    """
    texts = [key for key in TaskEvent.__annotations__ if key not in ("stuck_seconds", "moved")]
    if not isinstance(event, Mapping) or any(not isinstance(event.get(key), str) for key in texts):
        raise InfrastructureError(
            "The trigger ended without a proper event",
            state=str(event)[:200],
            next_step="clear the task: it takes the transfer up again.",
        )
    progress = {"stuck_seconds": event.get("stuck_seconds", 0.0), "moved": event.get("moved", [0, 0])}
    return cast("TaskEvent", {key: event[key] for key in texts} | progress)


def error_of(event: TaskEvent, url: str) -> FacilityError:
    """The error that an event stands for."""
    cancelled = {
        "yes": "The Globus task was cancelled.",
        "no": "The Globus task could NOT be cancelled and may go on.",
        "not asked": "The Globus task was not cancelled.",
    }[event["cancelled"]]
    kind: type[FacilityError] = BY_CLASS.get(event["failure_class"], InfrastructureError)
    if event["outcome"] == "timeout":
        kind = TimeLimitError
    fields: dict[str, Any] = {
        "remote_id": event["task_id"],
        "state": event["state"] or None,
        "next_step": event["next_step"],
        "details": "\n".join(part for part in (event["report"], cancelled, url) if part),
    }
    reason = event["reason"]
    return kind(reason[:1].upper() + reason[1:], **fields)
