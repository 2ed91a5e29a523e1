"""Decides whether remote work must be cancelled: only when its task has really ended.

Airflow calls `on_kill` when somebody ends a task (marks it failed, success or skipped, fails its run), but
also when a task is cleared, after its next try has begun, and when a frozen triggerer wakes up whose triggers
another one has taken over. Remote work is cancelled in the first case only; in the others the task goes on
and takes its work up again.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.sdk.execution_time import task_runner
from airflow.triggers.base import BaseTrigger

from facilities.ownership import Owner, TaskInstanceId

log = logging.getLogger(__name__)

OVER = frozenset({"success", "failed", "skipped", "upstream_failed"})
"""States of a task instance in which nobody takes its remote work up again by itself.

Not `removed`: an upgrade has taken the task out of its DAG, and an upgrade ends nothing.
"""


@dataclass(frozen=True)
class Cancellation:
    """What became of an attempt to cancel remote work.

    :param note: one sentence for a log or an error.
    :param had_ended: the work had ended by itself before.
    """

    done: bool
    note: str
    had_ended: bool = False


async def trigger_is_over(trigger: BaseTrigger) -> bool:
    """Whether the task that a trigger waits for is over; for a trigger's `on_kill`.

    False, with a warning in the task's log, when the state cannot be read: work that is left running
    can be found again, a wrong cancellation cannot be undone.
    """
    ti: Any = trigger.task_instance
    if ti is None:
        log.warning("Not cancelling: the trigger does not know its task, so its state cannot be read.")
        return False
    return await asyncio.to_thread(_is_over, ti)


def task_is_over(ti: TaskInstanceId, *, within: float = 3.0) -> bool:
    """Whether a task is over; for an operator's `on_kill`, which runs inside a signal handler.

    The question goes through the connection to the task's supervisor, which the interrupted code may
    be holding: so a thread sends it, and the answer is "no" (with a warning) when none came `within` that
    many seconds. Airflow kills the process 5 s after the signal.
    """
    answer: list[bool] = []
    asking = threading.Thread(target=lambda: answer.append(_is_over(ti)), name="task-state", daemon=True)
    asking.start()
    asking.join(within)
    if not answer:
        log.warning(
            "Not cancelling: no answer about the state of task %s within %.0f s.", Owner.of(ti), within
        )
    return bool(answer and answer[0])


def timed_out() -> bool:
    """Whether `on_kill` was called because of `execution_timeout`: its exception is being handled."""
    return isinstance(sys.exc_info()[1], AirflowTaskTimeout)


def task_states(
    dag_id: str, task_ids: Sequence[str], run_id: str, map_index: int | None = None
) -> dict[str, str | None]:
    """States of some tasks of a run, as Airflow has them at the moment; mapped ones are called `task_index`.

    A task or run that does not exist (any more) is left out.
    """
    found = task_runner.RuntimeTaskInstance.get_task_states(
        dag_id=dag_id, task_ids=list(task_ids), run_ids=[run_id], map_index=map_index
    )
    return {
        key: None if state is None else str(getattr(state, "value", state))
        for key, state in found.get(run_id, {}).items()
    }


def _is_over(ti: TaskInstanceId) -> bool:
    owner = Owner.of(ti)
    index = owner.map_index if owner.map_index >= 0 else None
    try:
        states = task_states(owner.dag_id, [owner.task_id], owner.run_id, index)
    except Exception:
        log.warning("Not cancelling: the state of task %s could not be read.", owner, exc_info=True)
        return False
    if not states:
        log.info("Task %s is gone, with its run.", owner)
        return True
    state = next(iter(states.values()))
    over = state in OVER
    if not over:
        log.info("Not cancelling: task %s is %s: cleared, retried, or renamed by an upgrade.", owner, state)
    return over
