"""Airflow's LocalExecutor, made to survive the SIGKILL of its workers (the kernel's, when memory is short).

The workers of Airflow 3.3.2 take their work from a pipe under a lock, and an idle worker holds that lock
while it waits. When it is killed no worker ever gets work again: tasks stay queued, the scheduler looks well,
and only a restart helps. Here they share a socket that keeps messages apart by itself: no lock to lose.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections import deque
from datetime import UTC, datetime
from multiprocessing.queues import SimpleQueue
from typing import TYPE_CHECKING, Self, TypeVar, cast

from airflow.executors.local_executor import LocalExecutor

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

    from airflow.models.taskinstance import TaskInstance

T = TypeVar("T")
MESSAGE = 1 << 20  # bytes; more than the kernel takes for one message (a task's workload has a few thousand)


class PacketQueue(SimpleQueue[T]):
    """A queue between processes without a lock; the kernel hands each message to one reader, whole.

    Made before the processes that share it are forked. `put` blocks in those, and never in the process that
    made it: what the kernel does not take at once is kept, and sent with the next `put` or `empty`.
    """

    def __init__(self) -> None:
        self._maker = os.getpid()
        self._read_end, self._write_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._unsent: deque[bytes] = deque()

    def put(self, item: T) -> None:
        """Send a message."""
        message = pickle.dumps(item)
        if os.getpid() != self._maker:
            self._write_end.sendall(message)
            return
        self._unsent.append(message)
        self._send()

    def get(self) -> T:
        """Wait for a message.

        :raises EOFError: the process that made the queue has closed it, or has died.
        """
        if os.getpid() != self._maker:
            self._write_end.close()  # or readers would keep each other from seeing the end
        message = self._read_end.recv(MESSAGE)
        if not message:
            raise EOFError
        return cast("T", pickle.loads(message))  # noqa: S301 - from our own processes

    def empty(self) -> bool:
        """Whether no message waits for a reader."""
        self._send()
        try:
            self._read_end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return not self._unsent
        return False

    def close(self) -> None:
        """Close this process's ends."""
        self._read_end.close()
        self._write_end.close()

    def _send(self) -> None:
        while self._unsent:
            try:
                self._write_end.send(self._unsent[0], socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            self._unsent.popleft()


class _SomeUnread:
    """In place of the executor's count of unread messages, which has a lock, too: "look into the queue"."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def value(self) -> int:
        return 1

    @value.setter
    def value(self, _: int) -> None:
        pass


class KillProofLocalExecutor(LocalExecutor):
    """Runs tasks in processes below the scheduler; a killed one takes nothing with it but its own task."""

    _last_death: datetime | None = None

    def start(self) -> None:
        """Open the queues and start the workers."""
        if not self.is_mp_using_fork:  # macOS, which has no such sockets either
            super().start()
            return
        self.activity_queue = PacketQueue()
        self.result_queue = PacketQueue()
        self.workers = {}
        self._unread_messages = cast("Synchronized[int]", _SomeUnread())
        self._spawn_workers_with_gc_freeze(self.parallelism)  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Let running tasks end, and take their results while they do: a full queue would hold them up."""
        if not self.is_mp_using_fork:
            super().end()
            return
        self.log.info("Waiting for the tasks that run. Signal again not to wait.")
        for _ in self.workers:
            self.activity_queue.put(None)
        self.activity_queue.close()
        for process in self.workers.values():
            while process.is_alive():
                self._read_results()  # type: ignore[no-untyped-call]
                process.join(0.1)
            process.close()
        self._read_results()  # type: ignore[no-untyped-call]
        self.result_queue.close()

    def revoke_task(self, *, ti: TaskInstance) -> None:
        """Forget a task that has stayed queued, so that it is queued again: a killed worker took it along.

        :raises NotImplementedError: no worker has died since, so one still has it; Airflow then leaves it.
        """
        queued = ti.queued_dttm
        if (
            self._last_death is None
            or (queued and queued > self._last_death)
            or not self.activity_queue.empty()
        ):
            raise NotImplementedError
        self.queued_tasks.pop(ti.key, None)
        self.running.discard(ti.key)

    def _check_workers(self) -> None:
        for pid, process in self.workers.items():
            if process.exitcode:
                self._last_death = datetime.now(UTC)
                self.log.warning(
                    "Worker %d has died (exit code %d; -9: killed, perhaps for want of memory). Its task is "
                    "tried again once its heartbeat has been missing for long enough.",
                    pid,
                    process.exitcode,
                )
        super()._check_workers()  # type: ignore[no-untyped-call]
