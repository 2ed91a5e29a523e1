"""What Globus's documents say, checked and typed.

A field that is missing or of another type falls back to "unknown"; only a document without an id or
a status is refused, because nothing can be decided on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from facilities.errors import TransientError
from facilities.globus.states import CANCELLED_CODE, FINE, LIVING, TaskStatus


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
    files: int = 0
    directories: int = 0
    files_transferred: int = 0
    files_skipped: int = 0
    skipped_errors: int = 0
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
    def is_living(self) -> bool:
        """The task may still move bytes."""
        return not self.is_final

    @property
    def was_cancelled(self) -> bool:
        """Somebody cancelled the task."""
        return self.status is TaskStatus.FAILED and self.fatal_code.upper() == CANCELLED_CODE

    @property
    def trouble(self) -> str:
        """Code of what keeps a living task from moving, empty when nothing does."""
        if not self.is_living:
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
            files=_count(document, "files"),
            directories=_count(document, "directories"),
            files_transferred=_count(document, "files_transferred"),
            files_skipped=_count(document, "files_skipped"),
            skipped_errors=_count(document, "subtasks_skipped_errors"),
            faults=_count(document, "faults"),
            rate=float(_count(document, "effective_bytes_per_second")),
            fatal_code=_text(fatal, "code"),
            fatal_description=_text(fatal, "description"),
            requested=parse_time(document.get("request_time")),
            completed=parse_time(document.get("completion_time")),
        )


FileType = Literal["file", "dir", "other"]


@dataclass(frozen=True)
class FileEntry:
    """A file or folder on a collection."""

    name: str
    type: FileType
    size: int | None  # bytes
    last_modified: datetime | None

    @classmethod
    def from_document(cls, document: object) -> FileEntry:
        """Read a file document.

        :raises TransientError: when it is not one.
        """
        if not isinstance(document, Mapping) or not isinstance(document.get("type"), str):
            raise TransientError("Globus answered with something else than a file document")
        kind = document["type"]
        size = document.get("size")
        return cls(
            name=_text(document, "name"),
            type="file" if kind == "file" else "dir" if kind == "dir" else "other",
            size=size if isinstance(size, int) and not isinstance(size, bool) else None,
            last_modified=parse_time(document.get("last_modified")),
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
