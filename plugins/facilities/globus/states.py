"""Globus's states as closed sets.

Source: the Transfer API's task document, and the list of fault codes that Globus's staff published for
events and `nice_status`. The API has no status for a cancelled task: it is FAILED with the fatal
error CANCELED.
"""

from __future__ import annotations

from enum import StrEnum

from facilities.errors import FailureClass


class TaskStatus(StrEnum):
    """Status of a transfer or delete task."""

    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


LIVING = frozenset({TaskStatus.ACTIVE, TaskStatus.INACTIVE})
"""The task may still move bytes; INACTIVE waits for somebody to renew a credential."""

SUCCEEDED = frozenset({TaskStatus.SUCCEEDED})
FAILED = frozenset({TaskStatus.FAILED})

FINE = frozenset({"", "OK", "QUEUED"})
"""Values of `nice_status` that are no trouble."""

CANCELLED_CODE = "CANCELED"
EXPIRED_CODE = "EXPIRED"

_USER_CODES = frozenset(
    {
        CANCELLED_CODE,
        "EXTERNAL_CHECKSUM_MISMATCH",
        "FILE_NOT_FOUND",
        "FILE_SIZE_CHANGED",
        "IS_A_DIRECTORY",
        "NOT_A_DIRECTORY",
        "NO_SPACE_LEFT",
        "PERMISSION_DENIED",
        "QUOTA_EXCEEDED",
    }
)
_CREDENTIAL_CODES = frozenset({"AUTH", "NO_CREDENTIALS"})

_NEXT_STEPS = {
    "CANCELED": "somebody cancelled it at Globus; clear the task to transfer again.",
    "EXTERNAL_CHECKSUM_MISMATCH": "the file was changed; check the source and clear the task.",
    "FILE_NOT_FOUND": "check that the path exists on the source collection, then clear the task.",
    "FILE_SIZE_CHANGED": "the file was still being written; clear the task when it is complete.",
    "IS_A_DIRECTORY": "the path is a folder where a file was named; check the paths.",
    "NOT_A_DIRECTORY": "the path is a file where a folder was named; check the paths.",
    "NO_SPACE_LEFT": "make room on the destination, then clear the task.",
    "PERMISSION_DENIED": "give the Globus client's identity access to the path, then clear the task.",
    "QUOTA_EXCEEDED": "make room in the quota of the destination, then clear the task.",
}


def failure_class_of(code: str) -> FailureClass:
    """Class of a fault code; codes that say nothing about who is at fault are infrastructure."""
    code = code.upper()
    if code in _USER_CODES:
        return "user"
    if code in _CREDENTIAL_CODES:
        return "credentials"
    if code == EXPIRED_CODE:
        return "resources"
    return "infrastructure"


def next_step_for(code: str) -> str:
    """What a reader should do about a fault code, one sentence."""
    step = _NEXT_STEPS.get(code.upper())
    if step is not None:
        return step
    if failure_class_of(code) == "credentials":
        return "renew the collection's credentials or consent at Globus, then clear the task."
    return "look at the task's event log at Globus and at the state of both collections."
