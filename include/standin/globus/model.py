"""A Transfer task: what was asked for, how far it is, and the document that shows it."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from standin.globus import times

Kind = Literal["TRANSFER", "DELETE"]
Status = Literal["ACTIVE", "INACTIVE", "SUCCEEDED", "FAILED"]

DAY = 86400.0
SHOW_ERROR_FOR = 900.0  # seconds for which a waiting task shows its last error instead of "Queued"


@dataclass
class Counts:
    """Progress of a task, in files and bytes."""

    looked_up: int = 0  # items that were found
    directories: int = 0
    files: int = 0
    symlinks: int = 0
    files_skipped: int = 0
    files_transferred: int = 0
    bytes_transferred: int = 0
    bytes_checksummed: int = 0
    skipped_errors: int = 0
    retrying: int = 0  # files whose last attempt went wrong


@dataclass
class Task:
    """One transfer or delete. Everything but the last group is kept in the database."""

    task_id: str
    submission_id: str
    owner_id: str
    kind: Kind
    document: dict[str, Any]  # as submitted, paths normalized
    request_time: float
    deadline: float
    deadline_by_user: bool = False
    label: str | None = None
    status: Status = "ACTIVE"
    started_time: float | None = None
    completion_time: float | None = None
    fatal_error: dict[str, str] | None = None
    is_paused: bool = False
    pause_message: str | None = None
    paused_by_rule: bool = False  # of a collection, not by a manager for this task
    canceled_by: str | None = None
    canceled_by_admin_message: str | None = None
    faults: int = 0
    trouble: str | None = None  # code of the last fault, until the task works again
    trouble_details: str | None = None
    trouble_time: float = 0.0
    runs: int = 0  # times it was taken up: 1 unless it was interrupted or had faults
    counts: Counts = field(default_factory=Counts)
    # not kept
    running: bool = False
    in_flight: int = 0  # bytes of files that are being copied now
    retry_at: float = 0.0
    consecutive_failures: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add_in_flight(self, size: int) -> None:
        """Count bytes of a file that is being copied; called from several threads."""
        with self._lock:
            self.in_flight += size

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ("SUCCEEDED", "FAILED")

    @property
    def waiting(self) -> bool:
        """Whether it could be taken up, if a place is free."""
        return self.status == "ACTIVE" and not self.is_paused and not self.running

    @property
    def uses(self) -> list[tuple[str, str]]:
        """The collections' ids, and what a pause rule calls what is done there."""
        asked = self.document
        if self.kind == "DELETE":
            return [(asked["endpoint"], "task_delete")]
        return [
            (asked["source_endpoint"], "task_transfer_read"),
            (asked["destination_endpoint"], "task_transfer_write"),
        ]

    def path_pairs(self) -> set[tuple[str, ...]]:
        """What no other unfinished task may be working on."""
        if self.kind == "DELETE":
            return set()
        ends = (self.document["source_endpoint"], self.document["destination_endpoint"])
        return {(*ends, item["source_path"], item["destination_path"]) for item in self.document["DATA"]}

    def to_record(self) -> str:
        """As kept in the database."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_KEPT}
        record["counts"] = asdict(self.counts)
        return json.dumps(record)

    @classmethod
    def from_record(cls, record: str) -> Task:
        """Read back from the database."""
        values = json.loads(record)
        values["counts"] = Counts(**values["counts"])
        return cls(**values)

    def to_book(self) -> dict[str, Any]:
        """This task in the accounting: what it was for and what it really did."""
        items = self.document["DATA"]
        return {
            "task_id": self.task_id,
            "submission_id": self.submission_id,
            "type": self.kind,
            "label": self.label,
            "status": self.status,
            "source_endpoint": self.document.get("source_endpoint"),
            "destination_endpoint": self.document.get("destination_endpoint"),
            "items": [[i.get("source_path", i.get("path")), i.get("destination_path")] for i in items],
            "files_moved": self.counts.files_transferred,
            "bytes_moved": self.counts.bytes_transferred,
            "files_skipped": self.counts.files_skipped,
            "runs": self.runs,
            "faults": self.faults,
            "canceled_by": self.canceled_by,
            "fatal_error": self.fatal_error,
            "request_time": self.request_time,
            "started_time": self.started_time,
            "completion_time": self.completion_time,
        }


_NOT_KEPT = {"running", "in_flight", "retry_at", "consecutive_failures", "counts", "_lock"}


def task_document(task: Task, names: dict[str, str]) -> dict[str, Any]:
    """The task document of the API.

    :param names: display names of the collections, by id.
    """
    now = time.time()
    asked = task.document
    return {
        "DATA_TYPE": "task",
        "task_id": task.task_id,
        "type": task.kind,
        "status": task.status,
        "label": task.label,
        "command": "API 0.10",
        "owner_id": task.owner_id,
        "username": _username(task.owner_id),
        "request_time": times.iso(task.request_time),
        "completion_time": times.iso(task.completion_time),
        "deadline": times.iso(task.deadline),
        "fatal_error": task.fatal_error,
        "is_paused": task.is_paused,
        "history_deleted": False,
        "canceled_by_admin": "SOURCE" if task.canceled_by == "admin" else None,
        "canceled_by_admin_message": task.canceled_by_admin_message,
        **_endpoints(task, names),
        **_nice_status(task, now),
        **_options(asked),
        **_progress(task, now),
        **_subtasks(task),
    }


def _username(owner_id: str) -> str:
    encoded = base64.b32encode(uuid.UUID(owner_id).bytes).decode().rstrip("=").lower()
    return f"u_{encoded}"


def _endpoints(task: Task, names: dict[str, str]) -> dict[str, Any]:
    asked = task.document
    source = asked.get("source_endpoint") or asked.get("endpoint")
    destination = asked.get("destination_endpoint")
    document: dict[str, Any] = {}
    for side, collection_id in (("source", source), ("destination", destination)):
        document[f"{side}_endpoint"] = collection_id and f"u_standin#{collection_id}"
        document[f"{side}_endpoint_id"] = collection_id
        document[f"{side}_endpoint_display_name"] = names.get(collection_id or "")
    return document


def _nice_status(task: Task, now: float) -> dict[str, Any]:
    nice, details, fine = _condition(task, now)
    return {
        "is_ok": fine,
        "nice_status": nice,
        "nice_status_short_description": nice and nice.replace("_", " ").lower(),
        "nice_status_details": details,
        "nice_status_expires_in": None if task.ended else -1,
    }


def _condition(task: Task, now: float) -> tuple[str | None, str | None, bool | None]:
    if task.ended:
        return None, None, None
    if task.status == "INACTIVE":
        return "NO_CREDENTIALS", "Credentials are needed before the task can go on", False
    if task.is_paused:
        return "PAUSED", task.pause_message, False
    if task.trouble and (task.running or now - task.trouble_time < SHOW_ERROR_FOR):
        return task.trouble, task.trouble_details, False
    return ("OK" if task.running else "Queued"), None, True


def _options(asked: dict[str, Any]) -> dict[str, Any]:
    flags = (
        "verify_checksum",
        "preserve_timestamp",
        "encrypt_data",
        "skip_source_errors",
        "fail_on_quota_errors",
        "delete_destination_extra",
    )
    return {
        **{flag: bool(asked.get(flag)) for flag in flags},
        "sync_level": asked.get("sync_level"),
        "filter_rules": asked.get("filter_rules"),
        "recursive_symlinks": "ignore",
        "source_local_user": asked.get("source_local_user"),
        "destination_local_user": asked.get("destination_local_user"),
    }


def _progress(task: Task, now: float) -> dict[str, Any]:
    counts = task.counts
    moved = counts.bytes_transferred + task.in_flight
    seconds = (task.completion_time or now) - task.started_time if task.started_time else 0.0
    return {
        "bytes_transferred": moved,
        "bytes_checksummed": counts.bytes_checksummed,
        "effective_bytes_per_second": int(moved / max(seconds, 0.001)) if task.started_time else 0,
        "directories": counts.directories,
        "files": counts.files,
        "symlinks": counts.symlinks,
        "files_skipped": counts.files_skipped,
        "files_transferred": counts.files_transferred,
        "faults": task.faults,
    }


def _subtasks(task: Task) -> dict[str, int]:
    """One subtask for looking up each item that was asked for, and one for each file found."""
    counts = task.counts
    total = len(task.document["DATA"]) + counts.files + counts.skipped_errors
    if task.status == "SUCCEEDED":
        succeeded = total - counts.skipped_errors
    else:
        succeeded = min(counts.looked_up + counts.files_transferred + counts.files_skipped, total)
    left = max(total - succeeded - counts.skipped_errors, 0)
    code = (task.fatal_error or {}).get("code")
    retrying = 0 if task.ended else min(max(counts.retrying, 0), left)
    return {
        "subtasks_total": total,
        "subtasks_succeeded": succeeded,
        "subtasks_skipped_errors": counts.skipped_errors,
        "subtasks_retrying": retrying,
        "subtasks_pending": 0 if task.ended else left - retrying,
        "subtasks_canceled": left if code == "CANCELED" else 0,
        "subtasks_expired": left if code == "EXPIRED" else 0,
        "subtasks_failed": left if task.status == "FAILED" and code not in ("CANCELED", "EXPIRED") else 0,
    }
