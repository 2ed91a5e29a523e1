"""Exactly once, under any sequence of crashes, lost replies, purges and retries: a state machine.

The Globus here is a few lines that keep its rules: a submission id makes one task, and a living task's
paths refuse another. What is tested is ours.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from facilities.errors import LostReplyError, NotFoundError, TransientError
from facilities.globus.errors import SubmissionConflictError
from facilities.globus.hook import GlobusHook
from facilities.globus.model import LIVING, TaskSnapshot, TaskStatus
from facilities.globus.submission import Request, Submission, TransferRequest
from support.globus import Store

REQUEST = TransferRequest(
    source_collection=str(uuid.uuid4()),
    source_path="/a",
    destination_collection=str(uuid.uuid4()),
    destination_path="/a",
    label="scan-0123456789ab",
)


class CrashError(BaseException):
    """The worker was killed."""


@dataclass
class Task:
    submission_id: str
    snapshot: TaskSnapshot


class Globus(GlobusHook):
    """Globus's rules about submissions, and faults at will."""

    def __init__(self) -> None:
        super().__init__("unused")
        self.tasks: dict[str, Task] = {}
        self.faults: list[str] = []
        self.lists_lag = False

    def _fault(self, place: str) -> None:
        if self.faults and self.faults[0].startswith(place):
            kind = self.faults.pop(0).removeprefix(place)
            raise CrashError if kind == "crash" else LostReplyError("lost")

    def new_submission_id(self) -> str:
        self._fault("id ")
        return str(uuid.uuid4())

    def submit(self, request: Request, submission_id: str) -> str:
        self._fault("before ")
        known = [task for task in self.tasks.values() if task.submission_id == submission_id]
        if not known and any(not task.snapshot.is_final for task in self.tasks.values()):
            raise SubmissionConflictError("identical paths")
        if not known:
            snapshot = TaskSnapshot(str(uuid.uuid4()), "ACTIVE", TaskStatus.ACTIVE, label=request.label)
            known = [Task(submission_id, snapshot)]
            self.tasks[snapshot.task_id] = known[0]
        self._fault("after ")
        return known[0].snapshot.task_id

    def get_task(self, task_id: str) -> TaskSnapshot:
        self._fault("read ")
        if task_id not in self.tasks:
            raise NotFoundError("unknown")
        return self.tasks[task_id].snapshot

    def find_tasks(self, label: str, kind: str) -> list[TaskSnapshot]:
        self._fault("find ")
        if self.lists_lag:
            return []
        found = [task.snapshot for task in self.tasks.values() if task.snapshot.label == label]
        return found[::-1]


class CrashingStore(Store):
    """A state store; the worker may be killed right before or after it writes."""

    crash = ""

    def set(self, key: str, value: Any) -> None:
        crash, self.crash = self.crash, ""
        if crash == "before":
            raise CrashError
        super().set(key, value)
        if crash == "after":
            raise CrashError


FAULTS = [
    f"{place} {kind}" for place in ("id", "before", "after", "read", "find") for kind in ("crash", "lost")
]


class ExactlyOnce(RuleBasedStateMachine):
    @initialize(memory=st.sampled_from(["saved state", "label", "either"]))
    def begin(self, memory: str) -> None:
        self.memory = memory  # what a later try can rely on
        self.globus = Globus()
        self.store = CrashingStore()
        self.tries = 0
        self.remembers = True
        self.submitted_after: list[list[TaskStatus | None]] = []

    @rule(
        faults=st.lists(st.sampled_from(FAULTS), max_size=3),
        crash=st.sampled_from(["", "", "before", "after"]),
        has_store=st.booleans(),
        lists_lag=st.booleans(),
    )
    def try_the_task(self, faults: list[str], crash: str, has_store: bool, lists_lag: bool) -> None:
        self.tries += 1
        self.globus.faults, self.store.crash = faults, crash
        has_store = {"saved state": True, "label": False}.get(self.memory, has_store)
        # One of the two memories is enough; without either nobody could know.
        self.remembers = self.remembers and has_store
        self.globus.lists_lag = self.remembers and (lists_lag or self.memory == "saved state")
        before = [task.snapshot.status for task in self.globus.tasks.values()]
        try:
            submission = Submission(
                self.globus, self.store if has_store else None, REQUEST, retried=self.tries > 1
            )
            task = submission.take_up()
            if task is None:
                task = submission.submit()
            assert task.task_id in self.globus.tasks
        except (CrashError, TransientError):
            pass
        self.globus.faults, self.store.crash, self.globus.lists_lag = [], "", False
        if len(self.globus.tasks) > len(before):
            self.submitted_after.append(before)

    @rule(status=st.sampled_from([TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.INACTIVE]))
    def a_task_changes(self, status: TaskStatus) -> None:
        for task in self.globus.tasks.values():
            if not task.snapshot.is_final:
                old = task.snapshot
                task.snapshot = TaskSnapshot(old.task_id, status.value, status, label=old.label)

    @precondition(lambda self: self.tries > 0 and self.memory != "saved state")
    @rule()
    def the_store_is_purged(self) -> None:
        self.store.clear()
        self.remembers = False

    @precondition(lambda self: self.tries > 0 and self.memory != "saved state")
    @rule()
    def the_store_is_damaged(self) -> None:
        self.store["globus_task"] = {"task_id": None}
        self.remembers = False

    @invariant()
    def never_more_than_one_lives_or_has_succeeded(self) -> None:
        good = [task for task in self.globus.tasks.values() if task.snapshot.status is not TaskStatus.FAILED]
        assert len(good) <= 1
        assert sum(task.snapshot.status in LIVING for task in self.globus.tasks.values()) <= 1

    @invariant()
    def a_new_task_only_follows_failed_ones(self) -> None:
        assert all(status is TaskStatus.FAILED for before in self.submitted_after for status in before)

    def teardown(self) -> None:
        """Without faults a task is had with the next try; with one more if that one has failed meanwhile."""
        for _ in range(2):
            submission = Submission(self.globus, self.store, REQUEST, retried=True)
            task = submission.take_up() or submission.submit()
        assert self.globus.tasks[task.task_id].snapshot.status is not TaskStatus.FAILED


TestExactlyOnce = ExactlyOnce.TestCase
TestExactlyOnce.settings = settings(max_examples=150, stateful_step_count=12)
