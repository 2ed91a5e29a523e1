"""Makes one attempt at a transfer: looks up the items, copies what is left, reports the outcome."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from standin.globus import copying
from standin.globus.collections import Collection
from standin.globus.errors import TaskFaultError, fault_from_os_error
from standin.globus.listing import part_name
from standin.globus.model import Task
from standin.globus.planning import Move, Plan, Planner, extra_files
from standin.globus.store import GlobusStore

FILES_AT_ONCE = 4
FAULT_EVENTS = 10  # of one attempt; the rest are only counted


@dataclass
class Workshop:
    """What all runs share."""

    store: GlobusStore
    pool: ThreadPoolExecutor
    throttle: copying.Throttle
    spoil: Callable[[Path], None]


class Run:
    """One attempt at a task. `stop` ends it early; the outcome is then None."""

    def __init__(self, task: Task, shop: Workshop) -> None:
        self.task = task
        self.shop = shop
        self.stopped = threading.Event()
        self.faults = 0

    def stop(self) -> None:
        """End the attempt as soon as can be."""
        self.stopped.set()

    def guard(self) -> None:
        """Called by the threads between pieces of work."""
        if self.stopped.is_set():
            raise copying.StoppedError

    async def execute(self) -> None:
        """Do the work; faults are counted in `faults`.

        :raises TaskFaultError: one that ends the task.
        :raises StoppedError: when it was stopped.
        """
        raise TypeError("a run is of a kind")

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run blocking work in the pool; waits for it even when this coroutine is cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self.shop.pool, function, *arguments)

    def note_fault(self, fault: TaskFaultError) -> None:
        """Count a fault and show it; the task goes on, unless the fault is fatal."""
        task = self.task
        self.faults += 1
        task.faults += 1
        task.trouble, task.trouble_details = fault.code, fault.details
        if self.faults <= FAULT_EVENTS:
            self.shop.store.add_event(
                task.task_id, fault.code, fault.details, is_error=True, description=fault.description
            )
        if fault.fatal:
            raise fault


class TransferRun(Run):
    """One attempt at a transfer."""

    def __init__(self, task: Task, shop: Workshop, source: Collection, target: Collection) -> None:
        super().__init__(task, shop)
        self._source = source
        self._target = target
        self._numbers: Iterator[int] = iter(range(10**9))

    async def execute(self) -> None:
        """Copy everything that is not copied yet."""
        try:
            self._require_usable()
            plan: Plan = await self.in_thread(Planner(self.task.document, self._source, self.guard).plan)
        except TaskFaultError as fault:
            self.note_fault(fault)
            return
        counts = self.task.counts
        counts.files, counts.directories, counts.symlinks = len(plan.files), len(plan.folders), plan.symlinks
        counts.looked_up = plan.looked_up
        counts.retrying = 0
        self._note_problems(plan)
        await self._make_folders(plan)
        await self._copy_files(plan)
        if self.task.document.get("delete_destination_extra") and not self.faults:
            await self._delete_extra(plan)

    def _require_usable(self) -> None:
        self._source.require_usable()
        self._target.require_usable()

    def _note_problems(self, plan: Plan) -> None:
        for problem in plan.problems:
            fault = problem.fault
            if self._skips(fault):
                self._skip(problem.source, problem.target, fault, is_directory=problem.is_directory)
            else:
                self.task.counts.retrying += 1
                self.note_fault(fault)

    def _skips(self, fault: TaskFaultError) -> bool:
        return fault.skippable and bool(self.task.document.get("skip_source_errors"))

    def _skip(self, source: str, target: str, fault: TaskFaultError, *, is_directory: bool = False) -> None:
        task_id = self.task.task_id
        if not self.shop.store.knows_file(task_id, source, target):
            self.task.counts.skipped_errors += 1
        self.shop.store.add_file(
            task_id,
            "skipped_error",
            source,
            target,
            error_code=fault.code,
            error_details=fault.details,
            is_directory=is_directory,
        )

    async def _make_folders(self, plan: Plan) -> None:
        def make() -> None:
            for path in plan.folders:
                self.guard()
                try:
                    self._target.require(path, "write")
                    self._target.local(path).mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise self._fault(error, path) from error

        try:
            await self.in_thread(make)
        except TaskFaultError as fault:
            self.note_fault(fault)

    async def _copy_files(self, plan: Plan) -> None:
        """Copy with a few workers; the first that fails for good, or is stopped, ends the others."""
        done = self.shop.store.files_done(self.task.task_id)
        left = iter([move for move in plan.files if (move.source, move.target) not in done])

        async def worker() -> None:
            for move in left:
                self.guard()
                await self._one(move)

        workers = [asyncio.create_task(worker()) for _ in range(FILES_AT_ONCE)]
        try:
            await asyncio.gather(*workers)
        except BaseException:
            self.stop()
            raise
        finally:
            await asyncio.gather(*workers, return_exceptions=True)

    async def _one(self, move: Move) -> None:
        sent = _Sent(self.task)
        try:
            self._require_usable()
            await self._copy_one(move, self._order(move), sent)
        except (TaskFaultError, OSError) as error:
            self._failed(
                move, error if isinstance(error, TaskFaultError) else self._fault(error, move.target)
            )
        finally:
            sent.undo()

    async def _copy_one(self, move: Move, order: copying.Order, sent: _Sent) -> None:
        """Copy to a part file, put it into place, and count it: a kill in between is settled at start."""
        task_id, store = self.task.task_id, self.shop.store
        store.add_partial(task_id, order.part, move.source, move.target)
        try:
            result: copying.Result = await self.in_thread(self._copy, order, sent)
            columns = _columns(move, result)
            if result.outcome == "moved":
                store.partial_complete(task_id, order.part, columns)
                await self.in_thread(self._put_into_place, order, result.size)
            store.add_file(task_id, result.outcome, move.source, move.target, **columns)
        finally:
            store.drop_partial(task_id, order.part)
        self._count(result)

    def _order(self, move: Move) -> copying.Order:
        asked = self.task.document
        self._source.require(move.source, "read")
        self._target.require(move.target, "write")
        target = self._target.local(move.target)
        return copying.Order(
            source=self._source.local(move.source),
            target=target,
            part=target.parent / part_name(self.task.task_id, next(self._numbers)),
            shown_source=move.source,
            shown_target=move.target,
            sync_level=asked.get("sync_level"),
            verify=bool(asked.get("verify_checksum")),
            preserve_timestamp=bool(asked.get("preserve_timestamp")),
            algorithm=move.algorithm,
            external_checksum=move.external_checksum,
        )

    def _copy(self, order: copying.Order, sent: _Sent) -> copying.Result:
        """Runs in a thread."""

        def guard() -> None:
            self.guard()
            self._require_usable()

        def on_bytes(size: int) -> None:
            sent.add(size)
            if not self.faults:
                self.task.trouble = None  # it works again

        order.source.stat()  # a missing source leaves no folders behind
        order.target.parent.mkdir(parents=True, exist_ok=True)
        means = copying.Means(
            throttle=self.shop.throttle,
            guard=guard,
            on_bytes=on_bytes,
            charge=self._target.charge,
            refund=self._target.refund,
            spoil=self.shop.spoil,
        )
        return copying.copy(order, means)

    def _put_into_place(self, order: copying.Order, size: int) -> None:
        """Runs in a thread."""
        try:
            order.part.replace(order.target)
        except OSError:
            order.part.unlink(missing_ok=True)
            self._target.refund(size)
            raise

    def _fault(self, error: OSError, path: str) -> TaskFaultError:
        fault = fault_from_os_error(error, path)
        if fault.code == "QUOTA_EXCEEDED" and self.task.document.get("fail_on_quota_errors"):
            fault.fatal = True
        return fault

    def _failed(self, move: Move, fault: TaskFaultError) -> None:
        if self._skips(fault):
            self._skip(move.source, move.target, fault)
        else:
            self.task.counts.retrying += 1
            self.note_fault(fault)

    def _count(self, result: copying.Result) -> None:
        counts = self.task.counts
        counts.bytes_checksummed += result.checksummed
        if result.outcome == "moved":
            counts.files_transferred += 1
            counts.bytes_transferred += result.size
        else:
            counts.files_skipped += 1

    async def _delete_extra(self, plan: Plan) -> None:
        wanted = {move.target for move in plan.files} | set(plan.folders)

        def delete() -> None:
            for path, local in list(extra_files(self._target, plan.trees, wanted)):
                self.guard()
                try:
                    self._target.require(path, "write")
                    if local.is_dir() and not local.is_symlink():
                        local.rmdir()
                    else:
                        local.unlink()
                except OSError as error:
                    raise fault_from_os_error(error, path) from error

        try:
            await self.in_thread(delete)
        except TaskFaultError as fault:
            self.note_fault(fault)


def _columns(move: Move, result: copying.Result) -> dict[str, Any]:
    return {
        "size": result.size,
        "checksummed": result.checksummed,
        "checksum": result.checksum,
        "algorithm": move.algorithm.upper() if result.checksum else None,
    }


class _Sent:
    """Bytes of one file on their way, shown in the task until the file is done."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._sum = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self._sum += size
        self._task.add_in_flight(size)

    def undo(self) -> None:
        with self._lock:
            self._task.add_in_flight(-self._sum)
            self._sum = 0


class DeleteRun(Run):
    """One attempt at a delete. A path that is missing or denied ends the task."""

    def __init__(self, task: Task, shop: Workshop, collection: Collection) -> None:
        super().__init__(task, shop)
        self._collection = collection

    async def execute(self) -> None:
        """Delete everything that is still there."""
        try:
            self._collection.require_usable()
            await self.in_thread(self._delete_all)
        except TaskFaultError as fault:
            self.note_fault(fault)

    def _delete_all(self) -> None:
        """Runs in a thread."""
        for item in self.task.document["DATA"]:
            for path in self._expand(item["path"]):
                self.guard()
                try:
                    self._delete(path)
                except OSError as error:
                    fault = fault_from_os_error(error, path)
                    fault.fatal = True
                    raise fault from error

    def _expand(self, path: str) -> list[str]:
        if not (self.task.document.get("interpret_globs") and any(c in path for c in "*?[")):
            return [path]
        root = self._collection.root.resolve()
        found = sorted(f"/{match.relative_to(root).as_posix()}" for match in root.glob(path.lstrip("/")))
        if not found and not self.task.document.get("ignore_missing"):
            raise TaskFaultError("FILE_NOT_FOUND", f"Path: {path}; nothing matches", fatal=True)
        return found

    def _delete(self, path: str) -> None:
        asked = self.task.document
        self._collection.require(path, "write")
        if path == "/":
            raise PermissionError(1, "The root of a collection cannot be deleted", path)
        local = self._collection.local(path, follow=False)
        counts = self.task.counts
        if not local.is_symlink() and not local.exists():
            if asked.get("ignore_missing") or self.task.runs > 1:  # an earlier run may have deleted it
                return
            raise FileNotFoundError(2, "No such file or directory", path)
        if local.is_dir() and not local.is_symlink():
            if not asked.get("recursive"):
                raise IsADirectoryError(21, "Is a directory", path)
            counts.directories += 1
            shutil.rmtree(local)
        else:
            counts.files += 1
            local.unlink()
