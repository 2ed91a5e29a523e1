"""Submits one Globus task for one Airflow task, whatever breaks.

The submission id is saved before the submit and the task's id after it. What comes later (a retry, a
cleared task, the same task on another machine) finds one of them and takes the task up again: Globus answers
a submission id that it has seen with the same task. Without the saved state the label, which is the same for
the same run and work, leads to the task.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast, get_args

import globus_sdk

from facilities.deferral import StateStore, read_kept
from facilities.errors import NotFoundError, UserError
from facilities.globus.errors import SubmissionConflictError, SubmissionIdError
from facilities.globus.model import TaskSnapshot, TaskStatus
from facilities.ownership import Owner

if TYPE_CHECKING:
    from facilities.globus.hook import GlobusHook

SyncLevel = Literal["exists", "size", "mtime", "checksum"]

STATE_KEY = "globus_task"

_MAX_LABEL = 128
_NOT_LABEL = re.compile(r"[^A-Za-z0-9._ -]+")

log = logging.getLogger(__name__)


# What is submitted


@dataclass(frozen=True)
class TransferRequest:
    """A file or folder to be copied. Every field has been checked."""

    source_collection: str
    source_path: str
    destination_collection: str
    destination_path: str
    label: str
    recursive: bool | None = None  # None: not known yet
    sync_level: SyncLevel = "checksum"

    kind: ClassVar[Literal["TRANSFER"]] = "TRANSFER"

    @property
    def document(self) -> globus_sdk.TransferData:
        """Document for POST /transfer, but for the submission id.

        No deadline is sent: Globus's own moves on while bytes arrive, and does not depend on our clock. A
        full quota fails the task instead of leaving it to hang. Nobody reads the client's mail.
        """
        data = globus_sdk.TransferData(
            self.source_collection,
            self.destination_collection,
            label=self.label,
            sync_level=self.sync_level,
            verify_checksum=True,
            preserve_timestamp=True,
            skip_source_errors=False,
            fail_on_quota_errors=True,
            notify_on_succeeded=False,
            notify_on_failed=False,
            notify_on_inactive=False,
        )
        recursive = globus_sdk.MISSING if self.recursive is None else self.recursive
        data.add_item(self.source_path, self.destination_path, recursive=recursive)
        return data

    @property
    def fingerprint(self) -> str:
        """Same for the same work, whatever the label."""
        return _digest(
            self.kind,
            self.source_collection,
            self.source_path,
            self.destination_collection,
            self.destination_path,
            self.sync_level,
        )

    def __str__(self) -> str:
        return (
            f"{self.source_path} on {self.source_collection} to "
            f"{self.destination_path} on {self.destination_collection}"
        )


@dataclass(frozen=True)
class DeleteRequest:
    """A file or folder to be removed. Every field has been checked."""

    collection: str
    path: str
    label: str
    recursive: bool = False
    ignore_missing: bool = True

    kind: ClassVar[Literal["DELETE"]] = "DELETE"

    @property
    def document(self) -> globus_sdk.DeleteData:
        """Document for POST /delete, but for the submission id."""
        data = globus_sdk.DeleteData(
            self.collection,
            label=self.label,
            recursive=self.recursive,
            ignore_missing=self.ignore_missing,
            interpret_globs=False,
            notify_on_succeeded=False,
            notify_on_failed=False,
            notify_on_inactive=False,
        )
        data.add_item(self.path)
        return data

    @property
    def fingerprint(self) -> str:
        """Same for the same work, whatever the label."""
        return _digest(self.kind, self.collection, self.path, str(self.recursive))

    def __str__(self) -> str:
        return f"{self.path} on {self.collection}"


Request = TransferRequest | DeleteRequest


def check_sync_level(value: object) -> SyncLevel:
    """Return a sync level.

    :raises UserError: when Globus has no such level.
    """
    if value in get_args(SyncLevel):
        return cast("SyncLevel", value)
    raise UserError(
        f"sync_level {value!r} is unknown", next_step=f"choose one of {', '.join(get_args(SyncLevel))}."
    )


def make_label(base: str, owner: Owner, fingerprint: str) -> str:
    """Label of at most 128 plain characters that is the same for the same owner and work, and for no other.

    Plain, because Globus's filters give `/`, `:`, `,`, `~`, `=` and `!` a meaning. It ends in the owner's
    hash and the work's.
    """
    end = f"-{owner.digest}-{fingerprint[:8]}"
    plain = _NOT_LABEL.sub("_", base).strip()[: _MAX_LABEL - len(end)].strip()
    return (plain or "task") + end


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


# Submitting it once


@dataclass(frozen=True)
class Record:
    """What is saved about a task."""

    fingerprint: str
    submission_id: str
    task_id: str  # empty until Globus has answered the submit


@dataclass
class Submission:
    """Finds or makes the Globus task of one Airflow task.

    :param store: the task state store; None when Airflow has none.
    :param retried: this is not the first try of the task.
    """

    hook: GlobusHook
    store: StateStore | None
    request: Request
    retried: bool

    def __post_init__(self) -> None:
        self._record = read_kept(Record, self.store, STATE_KEY)

    def take_up(self) -> TaskSnapshot | None:
        """The task of an earlier try that lives or has succeeded, if there is one."""
        record = self._record
        if record is None:
            # On a first try with a working store there cannot be an earlier task.
            return self._by_label() if self.retried or self.store is None else None
        if record.fingerprint != self.request.fingerprint:
            log.warning("The task's arguments have changed since its last try.")
            self._stop(record)
            self._record = None
            return None
        if not record.task_id:
            return self._by_label()
        task = self._read(record.task_id)
        if task is not None and task.status is not TaskStatus.FAILED:
            log.info("Taking up Globus task %s again; it is %s.", task.task_id, task.state)
            return task
        log.warning(
            "Globus task %s has %s: submitting a new one.", record.task_id, "failed" if task else "gone"
        )
        self._record = None
        return None

    def submit(self) -> TaskSnapshot:
        """Submit, or submit again what may have been submitted, under one submission id.

        :raises SubmissionConflictError: when a task that is not ours moves the same paths.
        """
        record = self._record or self._save(self.hook.new_submission_id())
        try:
            task_id = self.hook.submit(self.request, record.submission_id)
        except SubmissionConflictError:
            task = self._by_label()
            if task is None:
                raise
            return task
        except SubmissionIdError:
            log.warning("Globus does not accept submission id %s: taking a new one.", record.submission_id)
            record = self._save(self.hook.new_submission_id())
            task_id = self.hook.submit(self.request, record.submission_id)
        self._save(record.submission_id, task_id)
        log.info("Globus task %s: %s of %s", task_id, self.request.kind.lower(), self.request)
        return TaskSnapshot(task_id, TaskStatus.ACTIVE.value, TaskStatus.ACTIVE, label=self.request.label)

    def forget(self) -> None:
        """Drop the earlier task, so that `submit` makes a new one: its result is not there any more."""
        self._record = None

    def _save(self, submission_id: str, task_id: str = "") -> Record:
        self._record = Record(self.request.fingerprint, submission_id, task_id)
        if self.store is not None:
            self.store.set(STATE_KEY, asdict(self._record))
        return self._record

    def _by_label(self) -> TaskSnapshot | None:
        """Our newest task of this label that has not failed; living ones first."""
        found = [
            task
            for task in self.hook.find_tasks(self.request.label, self.request.kind)
            if task.status is not TaskStatus.FAILED
        ]
        found.sort(key=lambda task: task.is_final)  # stable: the newest of each kind stays first
        if not found:
            return None
        log.info("Found Globus task %s by its label; it is %s.", found[0].task_id, found[0].state)
        self._save(self._record.submission_id if self._record else "", found[0].task_id)
        return found[0]

    def _read(self, task_id: str) -> TaskSnapshot | None:
        try:
            return self.hook.get_task(task_id)
        except NotFoundError:
            return None

    def _stop(self, record: Record) -> None:
        task = self._read(record.task_id) if record.task_id else None
        if task is not None and not task.is_final:
            log.warning("Cancelling Globus task %s, which was for the old arguments.", task.task_id)
            self.hook.cancel(task.task_id)
