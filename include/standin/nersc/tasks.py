"""Runs SFAPI's tasks: work that a request starts and whose result is asked for later."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from standin.nersc.database import Database
from standin.nersc.options import LiveOptions

log = logging.getLogger(__name__)

Request = dict[str, Any]
Result = dict[str, Any]
Worker = Callable[[str, Request], Awaitable[Result]]
LOST = "The API server was restarted while it worked on this; whether it was done is unknown."


class Tasks:
    """All tasks; kept in the database. A worker gets the task's id and request, and returns its result."""

    def __init__(self, database: Database, options: LiveOptions) -> None:
        self._database = database
        self._options = options
        self._workers: dict[str, tuple[Worker, bool]] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def register(self, kind: str, worker: Worker, *, repeatable: bool) -> None:
        """Register the worker for tasks of a kind.

        :param repeatable: doing the same task again after a crash does nothing twice.
        """
        self._workers[kind] = (worker, repeatable)

    async def resume(self) -> None:
        """Do what an earlier server promised; returns when that is done."""
        for row in self._database.rows("SELECT * FROM tasks WHERE status = 'new' ORDER BY created"):
            if self._workers[row["kind"]][1]:
                await self._do(row["id"], row["kind"], json.loads(row["request"]), 0.0)
            else:
                self._finish(row["id"], "failed", {"status": "error", "output": None, "error": LOST})

    async def stop(self) -> None:
        """Abandon what is under way; the next server takes it up."""
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def create(self, kind: str, request: Request) -> str:
        """Begin a task; returns its id."""
        self._forget()
        with self._database.transaction():
            task_id = str(self._database.kept("last_task", 0) + 1)
            self._database.keep("last_task", int(task_id))
            self._database.run(
                "INSERT INTO tasks VALUES (?, ?, ?, 'new', NULL, ?, NULL)",
                task_id, kind, json.dumps(request), time.time(),
            )  # fmt: skip
        work = self._do(task_id, kind, request, self._options.now.task_delay)
        self._running[task_id] = asyncio.create_task(work)
        self._running[task_id].add_done_callback(lambda _: self._running.pop(task_id, None))
        return task_id

    def get(self, task_id: str) -> dict[str, Any] | None:
        """A task's document, or None when it is unknown or finished too long ago."""
        self._forget()
        row = self._database.row("SELECT * FROM tasks WHERE id = ?", task_id)
        return None if row is None else {"id": row["id"], "status": row["status"], "result": row["result"]}

    def all(self) -> list[dict[str, Any]]:
        """Documents of all tasks that are remembered."""
        self._forget()
        rows = self._database.rows("SELECT * FROM tasks ORDER BY created")
        return [{"id": row["id"], "status": row["status"], "result": row["result"]} for row in rows]

    async def cancel(self, task_id: str) -> bool:
        """Cancel a task that is under way; False when it is not."""
        task = self._running.get(task_id)
        if task is None:
            return False
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        row = self._database.row("SELECT status FROM tasks WHERE id = ?", task_id)
        if row is None or row["status"] != "new":
            return False
        self._finish(task_id, "cancelled", None)
        return True

    async def _do(self, task_id: str, kind: str, request: Request, delay: float) -> None:
        if delay:
            await asyncio.sleep(delay)
        try:
            result = await self._workers[kind][0](task_id, request)
        except Exception as error:
            log.exception("Task %s (%s) failed inside the stand-in", task_id, kind)
            self._finish(task_id, "failed", {"status": "error", "output": None, "error": str(error)})
        else:
            self._finish(task_id, "completed", result)

    def _finish(self, task_id: str, status: str, result: Result | None) -> None:
        self._database.run(
            "UPDATE tasks SET status = ?, result = ?, finished = ? WHERE id = ?",
            status, None if result is None else json.dumps(result), time.time(), task_id,
        )  # fmt: skip

    def _forget(self) -> None:
        self._database.run("DELETE FROM tasks WHERE finished < ?", time.time() - self._options.now.task_keep)
