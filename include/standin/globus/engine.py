"""Runs Transfer tasks in the background: which run, wait, are tried again, or are over.

Lives in the server's event loop; only copying and looking at files happens in threads. Every change
that a client may rely on is in the database before any reply shows it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from standin.globus.collections import Collections
from standin.globus.copying import StoppedError, Throttle
from standin.globus.errors import TaskFaultError
from standin.globus.model import DAY, Kind, Status, Task
from standin.globus.runs import FILES_AT_ONCE, DeleteRun, Run, TransferRun, Workshop
from standin.globus.store import GlobusStore
from standin.settings import Settings

log = logging.getLogger(__name__)

FIRST_RETRY = 0.5  # seconds; doubled with each attempt that went wrong
LAST_RETRY = 10.0
PAUSED_DEADLINE = 90 * DAY
_CANCEL_TIMEOUT = 5.0

CancelCode = Literal["Canceled", "CancelAccepted", "TaskComplete"]


class Engine:
    """All tasks of the facility."""

    def __init__(self, settings: Settings, store: GlobusStore, collections: Collections) -> None:
        self.store = store
        self.tasks: dict[str, Task] = {}
        self.throttle = Throttle(settings.bandwidth)
        self.spoil_left = 0  # copies still to be damaged, on request of a test
        self.active_limit = settings.active_transfers
        self.pending_limit = settings.pending_limit
        self.task_seconds = DAY  # how long a task lives that makes no progress
        self._collections = collections
        self._open: dict[str, Task] = {}  # those that have not ended
        self._by_submission: dict[tuple[str, str], Task] = {}
        self._runs: dict[str, Run] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        threads = settings.active_transfers * (FILES_AT_ONCE + 2) + 4
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="globus")
        self._shop = Workshop(store, self._pool, self.throttle, self._spoil)
        self._wake = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Take up what an earlier server left unfinished."""
        self.store.settle_partials()
        for task in self.store.load():
            self._remember(task)
            if not task.ended and task.canceled_by:
                self._end(task, "FAILED", "CANCELED", "canceled")
        self._loop_task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """Interrupt everything; unfinished tasks are taken up at the next start."""
        self._stopping = True
        self._wake.set()  # not cancelled: wait_for of Python 3.11 may swallow that
        if self._loop_task is not None:
            await self._loop_task
        for run in self._runs.values():
            run.stop()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._pool.shutdown()

    # what clients ask for

    def find_submission(self, owner_id: str, submission_id: str) -> Task | None:
        """The task that was made for a submission id."""
        return self._by_submission.get((owner_id, submission_id))

    def unfinished(self, owner_id: str) -> list[Task]:
        """The owner's tasks that have not ended."""
        return [task for task in self._open.values() if task.owner_id == owner_id]

    def submit(self, task: Task) -> None:
        """Queue a new task; paused, when a collection's rule says so."""
        rules = self.pause_rules(task)
        if rules:
            self._set_paused(task, rules[0]["message"], by_rule=True)
        self.store.save(task)
        self._remember(task)
        self._wake.set()

    async def cancel(self, task: Task, by: str, message: str | None = None) -> CancelCode:
        """Cancel a task; waits a little for what is under way to end."""
        if task.ended:
            return "TaskComplete"
        task.canceled_by = task.canceled_by or by
        task.canceled_by_admin_message = message
        self.store.save(task)
        running = self._interrupt(task)
        if running is None:
            self._end(task, "FAILED", "CANCELED", "canceled")
        else:
            await asyncio.wait([running], timeout=_CANCEL_TIMEOUT)
        return _cancel_code(task)

    async def pause(self, task: Task, message: str) -> None:
        """Pause a task until it is resumed."""
        self._set_paused(task, message, by_rule=False)
        self.store.save(task)
        await self._interrupted(task)

    def _set_paused(self, task: Task, message: str, *, by_rule: bool) -> None:
        task.is_paused, task.pause_message, task.paused_by_rule = True, message, by_rule
        if not task.deadline_by_user:
            task.deadline = time.time() + PAUSED_DEADLINE
        self.store.add_event(task.task_id, "PAUSED", message, is_error=False)

    def pause_rules(self, task: Task) -> list[dict[str, Any]]:
        """The rules of collections that pause a task."""
        used = [(self._collections[collection_id], operation) for collection_id, operation in task.uses]
        return [c.pause_rule for c, operation in used if c.pause_rule and c.pauses(operation)]

    async def apply_pause_rules(self) -> None:
        """Pause the tasks that a rule is for; let those go on that no rule is for any more."""
        for task in list(self._open.values()):
            rules = self.pause_rules(task)
            if rules and not task.is_paused:
                self._set_paused(task, rules[0]["message"], by_rule=True)
                self.store.save(task)
                await self._interrupted(task)
            elif task.paused_by_rule and not rules:
                self.resume(task)

    async def suspend(self, task: Task) -> None:
        """Make a task INACTIVE, as if its credentials had expired, until it is resumed."""
        task.status = "INACTIVE"
        self.store.save(task)
        self.store.add_event(task.task_id, "NO_CREDENTIALS", "credentials have expired", is_error=True)
        await self._interrupted(task)

    def resume(self, task: Task) -> None:
        """Let a paused or suspended task go on."""
        task.is_paused, task.pause_message, task.paused_by_rule = False, None, False
        if not task.ended:
            task.status = "ACTIVE"
        if not task.deadline_by_user:
            task.deadline = time.time() + self.task_seconds
        self.store.save(task)
        self.store.add_event(task.task_id, "UNPAUSED", "resumed", is_error=False)
        self.retry_now(task)

    def retry_now(self, task: Task) -> None:
        """Do not wait any longer before the next attempt."""
        task.retry_at = 0.0
        self._wake.set()

    def changed(self, task: Task) -> None:
        """Save a task whose label or deadline was changed."""
        self.store.save(task)
        self._wake.set()

    # carrying on

    def _remember(self, task: Task) -> None:
        self.tasks[task.task_id] = task
        self._by_submission[task.owner_id, task.submission_id] = task
        if not task.ended:
            self._open[task.task_id] = task

    def _interrupt(self, task: Task) -> asyncio.Task[None] | None:
        run = self._runs.get(task.task_id)
        if run is not None:
            run.stop()
        return self._running.get(task.task_id)

    async def _interrupted(self, task: Task) -> None:
        running = self._interrupt(task)
        if running is not None:
            await asyncio.wait([running], timeout=_CANCEL_TIMEOUT)

    async def _loop(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                self._expire()
                self._take_up()
            except Exception:
                log.exception("Globus's queue could not be looked after; trying again")
            try:
                await asyncio.wait_for(self._wake.wait(), self._pause())
            except TimeoutError:
                continue

    def _pause(self) -> float:
        """Seconds until something is due by itself."""
        now = time.time()
        due = [now + 60.0]
        for task in self._open.values():
            due.append(task.deadline)
            if task.waiting and task.retry_at > now:
                due.append(task.retry_at)
        return max(min(due) - now, 0.01)

    def _expire(self) -> None:
        now = time.time()
        for task in list(self._open.values()):
            self._roll_deadline(task, now)
            if task.deadline > now:
                continue
            if task.running:
                self._interrupt(task)  # ends as expired when it has stopped
            else:
                self._end(task, "FAILED", "EXPIRED", "expired")

    def _roll_deadline(self, task: Task, now: float) -> None:
        """A transfer that waits its turn without errors does not expire."""
        queued = task.waiting and task.kind == "TRANSFER" and not task.trouble
        if queued and not task.deadline_by_user and task.deadline < now + self.task_seconds / 2:
            task.deadline = now + self.task_seconds
            self.store.save(task)

    def _take_up(self) -> None:
        now = time.time()
        for kind in ("TRANSFER", "DELETE"):
            free = self.active_limit - sum(self.tasks[i].kind == kind for i in self._running)
            if free > 0:
                for task in self._next(kind, now)[:free]:
                    self._begin(task)

    def _next(self, kind: Kind, now: float) -> list[Task]:
        ready = [t for t in self._open.values() if t.waiting and t.kind == kind and t.retry_at <= now]
        return sorted(ready, key=lambda task: task.request_time)

    def _begin(self, task: Task) -> None:
        run = self._make_run(task)
        task.runs += 1
        if task.started_time is None:
            task.started_time = time.time()
            self.store.add_event(task.task_id, "STARTED", "started", is_error=False)
        self.store.save(task)
        task.running = True
        self._runs[task.task_id] = run
        self._running[task.task_id] = asyncio.create_task(self._carry_out(task, run))

    def _make_run(self, task: Task) -> Run:
        if task.kind == "DELETE":
            return DeleteRun(task, self._shop, self._collections[task.document["endpoint"]])
        source = self._collections[task.document["source_endpoint"]]
        target = self._collections[task.document["destination_endpoint"]]
        return TransferRun(task, self._shop, source, target)

    async def _carry_out(self, task: Task, run: Run) -> None:
        moved_before = task.counts.files_transferred
        fatal: TaskFaultError | None = None
        stopped = False
        try:
            await run.execute()
        except TaskFaultError as fault:
            fatal = fault
        except StoppedError:
            stopped = True
        except Exception as error:
            # ours, not the client's: a full disk under the database, or a mistake
            log.exception("Globus task %s went wrong inside the stand-in", task.task_id)
            task.trouble, task.trouble_details = "UNKNOWN", f"Internal error: {error!r}"
            run.faults += 1
        finally:
            task.running = False
            task.retry_at = time.time() + LAST_RETRY  # should what follows go wrong too
            self._runs.pop(task.task_id, None)
            self._running.pop(task.task_id, None)
            self._wake.set()
        if task.counts.files_transferred > moved_before:
            self._progress(task)
        self._after(task, run, fatal, stopped)

    def _after(self, task: Task, run: Run, fatal: TaskFaultError | None, stopped: bool) -> None:
        """Decide what follows from an attempt."""
        if fatal is not None:
            self._end(task, "FAILED", fatal.code, fatal.details)
        elif not stopped and not run.faults:
            self._end(task, "SUCCEEDED")
        elif task.canceled_by:
            self._end(task, "FAILED", "CANCELED", "canceled")
        elif run.faults:
            self._try_again_later(task)
        elif not self._stopping:
            self.store.save(task)  # paused, suspended or expired: the queue sees to it

    def _progress(self, task: Task) -> None:
        task.consecutive_failures = 0
        if not task.deadline_by_user and task.kind == "TRANSFER":
            task.deadline = max(task.deadline, time.time() + 3 * self.task_seconds)
        details = f"{task.counts.files_transferred} files, {task.counts.bytes_transferred} bytes"
        self.store.add_event(task.task_id, "PROGRESS", details, is_error=False)

    def _try_again_later(self, task: Task) -> None:
        delay = min(FIRST_RETRY * 2.0 ** min(task.consecutive_failures, 10), LAST_RETRY)
        task.consecutive_failures += 1
        task.trouble_time = time.time()
        task.retry_at = task.trouble_time + delay
        self.store.save(task)

    def _end(self, task: Task, status: Status, code: str = "", details: str = "") -> None:
        task.status = status
        task.completion_time = time.time()
        task.is_paused = task.paused_by_rule = False
        self._open.pop(task.task_id, None)
        if status == "SUCCEEDED":
            task.canceled_by = None  # it was done before the cancel took effect
        else:
            task.fatal_error = {"code": code, "description": details}
        self.store.add_event(task.task_id, code or "SUCCEEDED", details, is_error=status == "FAILED")
        self.store.save(task)

    def _spoil(self, part: Path) -> None:
        """Damage a copy, if a test asked for it. Called from threads; near enough is good enough."""
        if self.spoil_left > 0 and part.stat().st_size:
            self.spoil_left -= 1
            with part.open("r+b") as file:
                first = file.read(1)
                file.seek(0)
                file.write(bytes([first[0] ^ 0xFF]))


def _cancel_code(task: Task) -> CancelCode:
    """What a cancel came to, by what the task is now."""
    if not task.ended:
        return "CancelAccepted"
    return "TaskComplete" if task.status == "SUCCEEDED" else "Canceled"
