"""A LocalExecutor whose workers may be killed, and that knows which worker's exit counts.

**Killed** (SIGKILL, as the kernel does when memory is short). In Airflow 3.3.2 the workers of
`airflow.executors.local_executor` take their work in `_run_worker` with `input.get()`: a
`multiprocessing.SimpleQueue`, whose read lock an idle worker holds while it waits. A worker that is killed
there never releases it. Then no worker gets any work again: tasks stay queued, the scheduler looks healthy,
and only a restart helps. `put` blocks for good on the same pipe when it is full
(https://github.com/apache/airflow/issues/70526). Here the workers share a socket that keeps messages apart by
itself, so there is no lock, and `put` never blocks the scheduler.

**Exits.** A task that has deferred is given to a worker again, with the same key, and the one that it has
left may report later than that. Airflow's LocalExecutor reports every exit, and takes nothing for its own
that it has given to a worker (its `running` stays empty, so `has_task` says no): the scheduler fails the task
that runs ("state mismatch"; https://github.com/apache/airflow/issues/72716). Here every workload has a
number, and only the exit of the one that was given out last for a key is an event.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections import deque
from contextlib import nullcontext
from datetime import UTC, datetime
from multiprocessing.queues import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar, cast

from airflow.executors.local_executor import LocalExecutor

from cosmic.airflow_overrides.idle_pause import PausesWhenIdle
from cosmic.airflow_overrides.resumed_tasks import KeepsResumedTasks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.sharedctypes import Synchronized

    from airflow.executors.workloads import ExecutorWorkload
    from airflow.executors.workloads.types import WorkloadKey
    from airflow.models.taskinstance import TaskInstance

T = TypeVar("T")
MESSAGE = 1 << 20  # bytes; more than the kernel takes for one message (a task's workload has a few thousand)


class PacketQueue(SimpleQueue[T]):
    """A queue between processes without a lock; the kernel hands each message to one reader, whole.

    Create it before forking the processes that share it. `put` may block in those, and never in the process
    that created it: what the kernel does not take at once is kept, and sent with the next `put` or `empty`.
    """

    def __init__(self) -> None:
        self._creator = os.getpid()
        self._read_end, self._write_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._unsent: deque[bytes] = deque()

    def put(self, item: T) -> None:
        """Send a message."""
        message = pickle.dumps(item)
        if os.getpid() != self._creator:
            self._write_end.sendall(message)
            return
        self._unsent.append(message)
        self._send()

    def get(self) -> T:
        """Wait for a message.

        :raises EOFError: the process that created the queue has closed it, or has died.
        """
        if os.getpid() != self._creator:
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


class WorkQueue(PacketQueue[Any]):
    """Workloads; `number` is that of the last one that this process has put or taken."""

    number = 0

    def put(self, item: object) -> None:
        """Send a workload with the next number."""
        self.number += 1
        super().put((self.number, item))

    def get(self) -> object:
        """Wait for a workload."""
        self.number, workload = super().get()
        return workload


class ResultQueue(PacketQueue[Any]):
    """Results, which are taken out with the number of the workload that they are of."""

    def __init__(self, work: WorkQueue) -> None:
        super().__init__()
        self._work = work

    def put(self, item: Any) -> None:
        """Send a result of the workload that this process has taken last.

        Without its error, which the worker has logged: not each can be sent, or read again.
        """
        key, state, _ = item
        super().put((self._work.number, key, state))


class _SomeUnread(nullcontext[None]):
    """Replaces the executor's count of unread messages, which has a lock, too: 1, "check the queue"."""

    value = property(lambda _: 1, lambda *_: None)


class KillProofLocalExecutor(PausesWhenIdle, KeepsResumedTasks, LocalExecutor):
    """Runs tasks in child processes of the scheduler; killing one ends its own task and nothing else.

    Use: `AIRFLOW__CORE__EXECUTOR=cosmic.airflow_overrides.local_executor.KillProofLocalExecutor`.
    """

    _last_death: datetime | None = None

    def start(self) -> None:
        """Open the queues and start the workers."""
        if not self.is_mp_using_fork:  # macOS, which has no such sockets either
            super().start()
            return
        self.activity_queue = WorkQueue()
        self.result_queue = ResultQueue(self.activity_queue)
        self._given_out: dict[WorkloadKey, int] = {}
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
                self._read_results()
                process.join(0.1)
            process.close()
        self._read_results()
        self.result_queue.close()

    def revoke_task(self, *, ti: TaskInstance) -> None:
        """Drop a task that has stayed queued because its worker was killed; the scheduler queues it again.

        :raises NotImplementedError: no worker has died since it was queued, so one still has it; Airflow then
            leaves it queued.
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
        self._given_out.pop(ti.key, None)

    def _process_workloads(self, workload_list: Sequence[ExecutorWorkload]) -> None:
        if self.is_mp_using_fork:
            first = cast("WorkQueue", self.activity_queue).number + 1
            self._given_out |= {workload.key: first + n for n, workload in enumerate(workload_list)}
        super()._process_workloads(workload_list)  # type: ignore[no-untyped-call]

    def _read_results(self) -> None:
        if not self.is_mp_using_fork:
            super()._read_results()  # type: ignore[no-untyped-call]
            return
        while not self.result_queue.empty():
            number, key, state = cast("ResultQueue", self.result_queue).get()
            if self._given_out.get(key) != number:
                self.log.info("A worker has left %s, which another has or had since (exit: %s)", key, state)
                continue
            if state != "running":
                del self._given_out[key]
            self.change_state(key, state)

    def _check_workers(self) -> None:
        for pid, process in self.workers.items():
            if process.exitcode:
                self._last_death = datetime.now(UTC)
                self.log.warning(
                    "Worker %d has died (exit code %d; -9: killed, perhaps because memory ran out). Its task "
                    "is retried after its heartbeat timeout.",
                    pid,
                    process.exitcode,
                )
        super()._check_workers()  # type: ignore[no-untyped-call]
