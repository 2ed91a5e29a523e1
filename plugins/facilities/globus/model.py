"""Models what Globus's documents hold: tasks, files, fault codes, ids and paths, checked and typed.

A field that is missing or of another type falls back to "unknown"; only a document without an id or a status
is refused, because nothing can be decided on it. The API has no status for a cancelled task: it is FAILED
with the fatal error CANCELED. The fault codes are those that Globus's staff published for events and
`nice_status`.
"""

from __future__ import annotations

import json
import posixpath
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from facilities.errors import FailureClass, TransientError, UserError

_MAX_PATH = 4096  # bytes
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # and what has no UTF-8


class TaskStatus(StrEnum):
    """Status of a transfer or delete task."""

    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


LIVING = frozenset({TaskStatus.ACTIVE, TaskStatus.INACTIVE})
"""The task may still move bytes; INACTIVE waits for somebody to renew a credential."""


FINE = frozenset({"", "OK", "QUEUED"})
"""Values of `nice_status` that are no trouble."""

CANCELLED_CODE = "CANCELED"
ENDINGS = frozenset({CANCELLED_CODE, "EXPIRED"})
"""Codes of events that end a task and do not say what kept it from its work."""


_LOOK = "look at the task's event log at Globus and at the state of both collections."
_ASK_MANAGER = "ask the manager of the collection that is named below, then clear the task."


class Fault(NamedTuple):
    """What a fault code means, and what a reader should do about it."""

    meaning: str
    next_step: str = _LOOK
    failure_class: FailureClass = "infrastructure"

    @classmethod
    def of(cls, code: str) -> Fault:
        """The meaning of any code."""
        return _FAULTS.get(code.upper()) or cls(code.replace("_", " ").lower())


def _user(meaning: str, next_step: str) -> Fault:
    return Fault(meaning, next_step, "user")


_LOGIN_REFUSED = Fault(
    "a collection refuses the client's login",
    "have the collection's manager give the client's identity access, then clear the task.",
    "credentials",
)
_FAULTS: Mapping[str, Fault] = {
    "AUTH": _LOGIN_REFUSED,
    "NO_CREDENTIALS": _LOGIN_REFUSED,
    "CANCELED": _user("canceled", "somebody cancelled it at Globus; clear the task to transfer again."),
    "EXTERNAL_CHECKSUM_MISMATCH": _user(
        "external checksum mismatch", "the file was changed; check the source and clear the task."
    ),
    "FILE_NOT_FOUND": _user(
        "a file is missing at the source",
        "check that the path exists on the source collection, then clear the task.",
    ),
    "FILE_SIZE_CHANGED": _user(
        "file size changed", "the file was still being written; clear the task when it is complete."
    ),
    "IS_A_DIRECTORY": _user(
        "is a directory", "the path is a folder where a file was named; check the paths."
    ),
    "NOT_A_DIRECTORY": _user(
        "not a directory", "the path is a file where a folder was named; check the paths."
    ),
    "NO_SPACE_LEFT": _user("no space left", "make room on the destination, then clear the task."),
    "PERMISSION_DENIED": _user(
        "a collection denies the client access to the path",
        "give the Globus client's identity access to the path, then clear the task.",
    ),
    "QUOTA_EXCEEDED": _user(
        "the quota of the destination is exceeded",
        "make room in the quota of the destination, then clear the task.",
    ),
    "EXPIRED": Fault(
        "it made no progress until Globus gave it up",
        "correct what Globus's last error below names, then clear the task.",
        "resources",
    ),
    "CONNECT_FAILED": Fault("Globus cannot connect to a collection", _ASK_MANAGER),
    "ENDPOINT_ERROR": Fault("a collection reports an error", _ASK_MANAGER),
    "ENDPOINT_TOO_BUSY": Fault("a collection is too busy"),
    "GC_NOT_CONNECTED": Fault(
        "Globus Connect of a collection is not connected",
        "start Globus Connect on the collection that is named below, then clear the task.",
    ),
    "GC_PAUSED": Fault("Globus Connect of a collection is paused"),
    "PAUSED": Fault(
        "a collection's manager has paused it",
        "ask the collection's manager when it goes on, then clear the task.",
    ),
    "VERIFY_CHECKSUM": Fault("a copy differs from its source and is made again"),
}


def condense(report: str) -> str:
    """One line of an endpoint's report, which Globus passes on in lines with headings.

    Example::

        >>> condense("Error (connect)\\nEndpoint: NERSC (df82)\\nMessage: Could not connect\\nDetails: y")
        'NERSC (df82): Could not connect'
    """
    headings = dict(line.split(": ", 1) for line in report.splitlines() if ": " in line)
    if "Endpoint" in headings and "Message" in headings:
        return f"{headings['Endpoint']}: {headings['Message']}"
    return " ".join(report.split())


@dataclass(frozen=True)
class TaskSnapshot:
    """A transfer or delete task as Globus described it at one moment. Sizes in bytes, rate in bytes/s."""

    task_id: str
    state: str  # as Globus wrote it
    status: TaskStatus | None  # None when the state is not one that we know
    label: str = ""
    is_ok: bool | None = None
    is_paused: bool = False
    nice_status: str = ""
    nice_details: str = ""
    bytes_transferred: int = 0
    files_transferred: int = 0
    files_skipped: int = 0
    faults: int = 0
    rate: float = 0.0
    fatal_code: str = ""
    fatal_description: str = ""
    requested: datetime | None = None
    completed: datetime | None = None

    @property
    def is_final(self) -> bool:
        """The task has ended; an unknown status has not."""
        return self.status is not None and self.status not in LIVING

    @property
    def was_cancelled(self) -> bool:
        """Somebody cancelled the task."""
        return self.status is TaskStatus.FAILED and self.fatal_code.upper() == CANCELLED_CODE

    @property
    def trouble(self) -> str:
        """Code of what keeps a living task from moving, empty when nothing does."""
        if self.is_final:
            return ""
        if self.is_paused:
            return "PAUSED"
        if self.nice_status.upper() not in FINE:
            return self.nice_status.upper()
        if self.status is TaskStatus.INACTIVE:
            return "NO_CREDENTIALS"
        return "UNKNOWN" if self.is_ok is False else ""

    @property
    def seconds(self) -> float | None:
        """Seconds from request to end, both on Globus's clock."""
        if self.requested is None or self.completed is None:
            return None
        return max((self.completed - self.requested).total_seconds(), 0.0)

    @classmethod
    def from_document(cls, document: object) -> TaskSnapshot:
        """Read a task document.

        :raises TransientError: when it is not one; the next reply may be.
        """
        if not isinstance(document, Mapping):
            raise TransientError(f"Globus answered with {type(document).__name__} instead of a task document")
        task_id, state = _text(document, "task_id"), _text(document, "status")
        if not task_id or not state:
            raise TransientError("Globus answered with a task document without an id or a status")
        fatal = document.get("fatal_error")
        fatal = fatal if isinstance(fatal, Mapping) else {}
        is_ok = document.get("is_ok")
        return cls(
            task_id=task_id,
            state=state,
            status=TaskStatus(state) if state in TaskStatus.__members__ else None,
            label=_text(document, "label"),
            is_ok=is_ok if isinstance(is_ok, bool) else None,
            is_paused=document.get("is_paused") is True,
            nice_status=_text(document, "nice_status"),
            nice_details=_text(document, "nice_status_details")
            or _text(document, "nice_status_short_description"),
            bytes_transferred=_count(document, "bytes_transferred"),
            files_transferred=_count(document, "files_transferred"),
            files_skipped=_count(document, "files_skipped"),
            faults=_count(document, "faults"),
            rate=float(_count(document, "effective_bytes_per_second")),
            fatal_code=_text(fatal, "code"),
            fatal_description=_text(fatal, "description"),
            requested=parse_time(document.get("request_time")),
            completed=parse_time(document.get("completion_time")),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a trigger's event."""
        values: dict[str, Any] = TypeAdapter(TaskSnapshot).dump_python(self, mode="json")
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskSnapshot:
        """The task that `to_dict` made plain values of."""
        return TypeAdapter(cls).validate_python(values)


@dataclass(frozen=True)
class FileEntry:
    """A file or folder on a collection."""

    name: str
    type: str  # as Globus wrote it: "file", "dir", or what is neither, such as "pipe"
    size: int | None  # bytes
    last_modified: datetime | None

    @classmethod
    def from_document(cls, document: object) -> FileEntry:
        """Read a file document.

        :raises TransientError: when it is not one.
        """
        if not isinstance(document, Mapping) or not isinstance(document.get("type"), str):
            raise TransientError("Globus answered with something else than a file document")
        size = document.get("size")
        return cls(
            name=_text(document, "name"),
            type=document["type"],
            size=size if isinstance(size, int) and not isinstance(size, bool) else None,
            last_modified=parse_time(document.get("last_modified")),
        )


def pause_reasons(pause: Mapping[str, Any]) -> list[str]:
    """Why a task is paused: messages of its two collections' managers, and of their rules."""
    messages = [value for key, value in pause.items() if "pause_message" in key]
    of_tasks = [f"paused: {message}" for message in messages if isinstance(message, str) and message]
    return describe_pause_rules(pause.get("pause_rules")) + of_tasks


def describe_pause_rules(rules: object) -> list[str]:
    """One line for each pause rule: whose manager paused what, and why."""
    documents = [rule for rule in rules if isinstance(rule, Mapping)] if isinstance(rules, list) else []
    return [
        f"paused by the manager of {_text(rule, 'endpoint_display_name') or _text(rule, 'endpoint_id')}: "
        f"{_text(rule, 'message')}"
        for rule in documents
    ]


def describe_event(document: object) -> str:
    """One line about an event of a task; empty for what is none."""
    if not isinstance(document, Mapping):
        return ""
    details = document.get("details")
    text = details if isinstance(details, str) else json.dumps(details)
    return (
        f"{document.get('code')} at {document.get('time')}: {document.get('description')}; {condense(text)}"
    )


def parse_time(value: object) -> datetime | None:
    """Read one of Globus's times; a time without a zone is UTC. None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) else ""


def _count(document: Mapping[str, Any], key: str) -> int:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        return 0
    return int(value) if value != float("inf") else 0


def check_collection(value: object, name: str) -> str:
    """Return a collection's id in its usual form.

    :raises UserError: when it is no UUID.
    """
    try:
        return str(uuid.UUID(str(value).strip()))
    except ValueError:
        raise UserError(
            f"{name} {value!r} is not a Globus collection's id",
            next_step="give the UUID that the collection's page at https://app.globus.org shows.",
        ) from None


def check_task_id(value: object) -> str:
    """Return a task's id, safe to be put into a URL.

    :raises UserError: when it is no UUID.
    """
    try:
        return str(uuid.UUID(str(value)))
    except ValueError:
        raise UserError(f"{value!r} is not a Globus task's id", next_step="give a task's UUID.") from None


def check_path(value: object, name: str) -> str:
    """Return a path on a collection, normalized, from the collection's root (or its home, `/~/`).

    A slash at the end, which marks a folder, is kept.

    :raises UserError: when it is empty, climbs with `..`, has control characters or is too long.
    """
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name} is empty", next_step="give a path on the collection.")
    if _CONTROL.search(value):
        raise UserError(f"{name} {value!r} has control characters", next_step="give a printable path.")
    if ".." in value.split("/"):
        raise UserError(f"{name} {value!r} climbs out with '..'", next_step="give the path without '..'.")
    if len(value.encode()) > _MAX_PATH:
        raise UserError(f"{name} is longer than {_MAX_PATH} bytes", next_step="give a shorter path.")
    path = "/" + posixpath.normpath(value).lstrip("/")
    if path == "/.":
        path = "/"
    return path + "/" if value.endswith("/") and not path.endswith("/") else path
