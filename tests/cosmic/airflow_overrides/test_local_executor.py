"""A worker that is killed takes nothing with it but its own task; Airflow's executor stops for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.executors.local_executor import LocalExecutor

from cosmic.airflow_overrides.local_executor import KillProofLocalExecutor, PacketQueue
from standin.testing import until

WORKERS = 3


@dataclass
class Work:
    """A workload whose work is a line of Python."""

    key: str
    code: str = ""
    running_state: None = None
    success_state: str = "success"
    failure_state: str = "failed"

    @property
    def display_name(self) -> str:
        return self.key


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[KillProofLocalExecutor]:
    """One with workers that do what their workload says."""
    monkeypatch.setattr(
        "airflow.executors.base_executor.BaseExecutor.run_workload",
        lambda work, **_: exec(work.code, {"os": os}),
    )
    monkeypatch.setattr("airflow.executors.local_executor.setproctitle", lambda *_: None)
    made = KillProofLocalExecutor(parallelism=WORKERS)  # type: ignore[no-untyped-call]
    made.start()
    yield made
    for process in made.workers.values():
        if not process._closed and process.is_alive():  # type: ignore[attr-defined]
            process.kill()
    made.activity_queue.close()
    made.result_queue.close()


def give(executor: KillProofLocalExecutor, *works: Work) -> None:
    queue: Any = executor  # whose keys are Airflow's; any other may stand for them
    for work in works:
        queue.queued_tasks[work.key] = work
        queue.running.add(work.key)
    queue._process_workloads(works)


def done(executor: KillProofLocalExecutor, *keys: str) -> bool:
    executor.sync()
    events: dict[Any, Any] = executor.event_buffer
    return all(events.get(key, (None,))[0] == "success" for key in keys)


def blocked(pid: int) -> bool:
    """Whether a process waits in a system call for something to read (or, with a lock, for the lock)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_work_is_done_though_all_idle_workers_are_killed(executor: KillProofLocalExecutor) -> None:
    """One of them would hold the lock. The last, too: with work there, others are started."""
    for pid, process in list(executor.workers.items()):
        until(partial(blocked, pid))
        os.kill(pid, signal.SIGKILL)
        process.join()
        give(executor, Work(f"after {pid}"))
        until(partial(done, executor, f"after {pid}"))
    assert len(executor.workers) > 0
    assert not executor.running


def test_each_workload_is_done_once(executor: KillProofLocalExecutor, tmp_path: Path) -> None:
    """Far more than the kernel takes at once: `put` does not block, and nothing is lost."""
    keys = [f"{number:03}" for number in range(300)]
    padding = "#" * 4000
    give(executor, *(Work(key, f"open({str(tmp_path / key)!r}, 'x').close() {padding}") for key in keys))
    until(lambda: done(executor, *keys))
    assert sorted(path.name for path in tmp_path.iterdir()) == keys


def test_a_worker_killed_at_its_task_takes_no_other_with_it(
    executor: KillProofLocalExecutor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pid_file = tmp_path / "pid"
    give(
        executor,
        Work("long", f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); __import__('time').sleep(99)"),
    )
    until(lambda: pid_file.exists() and pid_file.read_text())
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGKILL)
    executor.workers[pid].join()
    executor.sync()
    assert f"Worker {pid} has died (exit code -9" in capfd.readouterr().out
    give(executor, *(Work(f"w{number}") for number in range(WORKERS)))
    until(lambda: done(executor, *(f"w{number}" for number in range(WORKERS))))
    assert {*map(str, executor.running)} == {"long"}  # until Airflow misses its heartbeat

    lost = SimpleNamespace(key="long", queued_dttm=datetime.now(UTC) - timedelta(minutes=1))
    later = SimpleNamespace(key="w0", queued_dttm=datetime.now(UTC) + timedelta(minutes=1))
    with pytest.raises(NotImplementedError):
        executor.revoke_task(ti=later)  # type: ignore[arg-type]  # nothing died since
    executor.revoke_task(ti=lost)  # type: ignore[arg-type]
    assert not executor.running


def test_a_queued_task_is_not_taken_back_while_all_workers_live(executor: KillProofLocalExecutor) -> None:
    """It may only be slow to start; a second copy would fail it."""
    slow = SimpleNamespace(key="slow", queued_dttm=datetime.now(UTC) - timedelta(hours=1))
    with pytest.raises(NotImplementedError):
        executor.revoke_task(ti=slow)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        "__import__('httpx').HTTPStatusError('500', request=None, response=None)",  # it is not read again
        "ValueError(__import__('threading').Lock())",  # it is not written
        "ValueError('x' * 5_000_000)",
    ],
)
def test_whatever_error_a_workload_ends_with_its_failure_is_reported(
    executor: KillProofLocalExecutor, error: str
) -> None:
    give(executor, Work("failing", f"raise {error}"))
    events: dict[Any, Any] = executor.event_buffer
    until(lambda: executor.sync() or "failing" in events)  # type: ignore[func-returns-value]
    assert events["failing"][0] == "failed"
    assert executor._last_death is None


def test_the_end_waits_for_running_tasks_and_takes_their_results(executor: KillProofLocalExecutor) -> None:
    give(executor, *(Work(f"w{number}", "raise ValueError('x' * 50_000)") for number in range(WORKERS * 4)))
    executor.end()
    assert {state for state, _ in executor.event_buffer.values()} == {"failed"}
    assert len(executor.event_buffer) == WORKERS * 4


def test_workers_go_when_the_scheduler_is_killed(tmp_path: Path) -> None:
    """Airflow's own stay for ever."""
    pids = tmp_path / "pids"
    code = f"""
        from cosmic.airflow_overrides.local_executor import KillProofLocalExecutor
        executor = KillProofLocalExecutor(parallelism={WORKERS})
        executor.start()
        open({str(pids)!r}, "w").write(" ".join(map(str, executor.workers)) + " .")
        import signal
        signal.pause()
    """
    scheduler = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], env=_environment()
    )
    until(lambda: pids.exists() and pids.read_text().endswith("."))
    workers = [int(pid) for pid in pids.read_text().split()[:-1]]
    assert len(workers) == WORKERS
    scheduler.kill()
    scheduler.wait()
    until(lambda: not any(_lives(pid) for pid in workers))


def _environment() -> dict[str, Any]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_message_larger_than_the_kernel_takes_is_an_error() -> None:
    queue: PacketQueue[bytes] = PacketQueue()
    with pytest.raises(OSError, match="too long"):
        queue.put(b"x" * (1 << 22))
    queue.close()


def test_airflow_still_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, Airflow's own workers survive: delete the override and name LocalExecutor instead."""
    monkeypatch.setattr("airflow.executors.local_executor.setproctitle", lambda *_: None)
    own = LocalExecutor(parallelism=WORKERS)  # type: ignore[no-untyped-call]
    own.start()
    lock = own.activity_queue._rlock  # type: ignore[attr-defined]
    until(lambda: held(lock))
    for process in own.workers.values():
        process.kill()
        process.join()
    assert held(lock)  # by nobody who could release it
    own.activity_queue.close()
    own.result_queue.close()


def held(lock: Any) -> bool:
    if lock.acquire(block=False):
        lock.release()
        return False
    return True
