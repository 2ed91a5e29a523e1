"""Was the task really ended? `on_kill` alone does not say so.

Airflow calls `on_kill` when somebody ends a task (marks it failed, success or skipped, fails its
run), but also when a task is cleared, after its next try has begun, and when a frozen triggerer
wakes up whose triggers another one has taken over. Remote work is cancelled in the first case only;
in the others the task lives on and takes its work up again.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

from airflow.sdk.exceptions import AirflowTaskTimeout

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger

log = logging.getLogger(__name__)

OVER = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
"""States of a task instance in which nobody takes its remote work up again by itself."""


class TaskInstanceId(Protocol):
    """What identifies a task instance; both of Airflow's classes for it have these."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int | None


async def really_killed(trigger: BaseTrigger) -> bool:
    """Tell whether the task that a trigger waits for is over; for a trigger's `on_kill`.

    False, with a warning in the task's log, when the state cannot be read: work that is left running
    can be found again, a wrong cancellation cannot be undone.
    """
    ti: Any = trigger.task_instance
    if ti is None:
        log.warning("Not cancelling: the trigger does not know its task, so its state cannot be read.")
        return False
    return await asyncio.to_thread(_is_over, ti)


def task_is_over(ti: TaskInstanceId, *, within: float = 3.0) -> bool:
    """Tell whether a task is over; for an operator's `on_kill`, which runs inside a signal handler.

    The question goes through the connection to the task's supervisor, which the interrupted code may
    be holding: so a thread asks, and the answer is "no" (with a warning) when none came `within` that
    many seconds. Airflow kills the process 5 s after the signal.
    """
    answer: list[bool] = []
    asker = threading.Thread(target=lambda: answer.append(_is_over(ti)), name="task-state", daemon=True)
    asker.start()
    asker.join(within)
    if not answer:
        log.warning("Not cancelling: no answer about the state of %s within %.0f s.", _name(ti), within)
    return bool(answer and answer[0])


def timed_out() -> bool:
    """Tell whether `on_kill` was called because of `execution_timeout`: its exception is being handled."""
    return isinstance(sys.exc_info()[1], AirflowTaskTimeout)


def _is_over(ti: TaskInstanceId) -> bool:
    try:
        states = _read_states(ti)
    except Exception:
        log.warning("Not cancelling: the state of %s could not be read.", _name(ti), exc_info=True)
        return False
    if not states:
        log.info("%s is gone, with its run.", _name(ti))
        return True
    state = next(iter(states.values()))
    over = getattr(state, "value", state) in OVER
    if not over:
        log.info("Not cancelling: %s is %s, so it was cleared, retried or moved.", _name(ti), state)
    return over


def _read_states(ti: TaskInstanceId) -> dict[str, Any]:
    """Read {key: state} of one task instance; empty when it does not exist any more."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance  # noqa: PLC0415 - keeps DAG parsing light

    index = ti.map_index if ti.map_index is not None and ti.map_index >= 0 else None
    by_run = RuntimeTaskInstance.get_task_states(
        dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=index
    )
    return dict(by_run.get(ti.run_id, {}))


def _name(ti: TaskInstanceId) -> str:
    index = "" if ti.map_index is None or ti.map_index < 0 else f"[{ti.map_index}]"
    return f"task {ti.dag_id}.{ti.task_id}{index} of run {ti.run_id}"
