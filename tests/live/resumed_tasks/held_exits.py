"""Executors that hold back the exits of workers until the tasks that they have left are with others again.

That is what a scheduler does that is slow at the wrong moment. Imported by a running Airflow of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from airflow.executors.local_executor import LocalExecutor
from airflow.triggers.base import BaseTrigger, TriggerEvent

from cosmic.airflow_overrides.local_executor import KillProofLocalExecutor

FOLDER = Path(os.environ["RESUMED_TASKS_FOLDER"])
TASKS = {"protected": int(os.environ["RESUMED_TASKS"]), "plain": 2}


class HeldResults:
    """A result queue that is empty until it has a result of each task and each is with a worker again."""

    def __init__(self, queue: Any, tasks: int) -> None:
        self._queue = queue
        self._tasks = tasks
        self._results: list[Any] = []
        self.given_out = 0
        self.is_open = False

    def empty(self) -> bool:
        while not self._queue.empty():
            self._results.append(self._queue.get())
        if self.given_out == 2 * self._tasks and len(self._results) == self._tasks:
            self.is_open = True
        return not (self.is_open and self._results)

    def get(self) -> Any:
        return self._results.pop(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


class HoldsExits(LocalExecutor):
    """Mixin: see HeldResults. The file NAME.go is there once the scheduler has processed the exits."""

    kind: str
    _processed = False

    def start(self) -> None:
        super().start()
        self.result_queue: Any = HeldResults(self.result_queue, TASKS[self.kind])

    def _process_workloads(self, workload_list: Sequence[Any]) -> None:
        super()._process_workloads(workload_list)  # type: ignore[no-untyped-call]
        self.result_queue.given_out += len(workload_list)

    def heartbeat(self) -> None:
        if self.result_queue.is_open:  # since the last heartbeat; events are processed after each
            (FOLDER / f"{self.kind}.go").touch()
        super().heartbeat()


class Protected(HoldsExits, KillProofLocalExecutor):
    kind = "protected"


class Plain(HoldsExits):
    kind = "plain"


class FileIsThere(BaseTrigger):
    """Fires when a file is there."""

    def __init__(self, path: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path = path

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "held_exits.FileIsThere", {"path": self.path}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        while not await asyncio.to_thread(Path(self.path).exists):  # noqa: ASYNC110 - another process's file
            await asyncio.sleep(0.5)
        yield TriggerEvent("there")  # type: ignore[no-untyped-call]
