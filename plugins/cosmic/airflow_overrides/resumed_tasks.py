"""Drops executor events that would fail a task which has deferred and waits for its next worker.

A task that defers and is resumed runs in two or more workers, all with the same key and try. In Airflow 3.3.2
`process_executor_events` of `airflow.jobs.scheduler_job_runner` fails the task ("state mismatch") when the
exit of an earlier worker is processed late (https://github.com/apache/airflow/issues/72716, 71580, 67287):

* **after the next worker has the task**, because the LocalExecutor does not know what it has given out.
  Executors that know (Celery's) are not affected; `cosmic.airflow_overrides.local_executor` numbers what it
  gives out.
* **after the trigger has fired, before the next worker**, if that exit was a failure (of the process, after
  the task had deferred), or the task waited by rescheduling. This module is for that, with any executor.

What the exit of a worker is for: a worker that dies without having reported leaves its task queued or
running. A task in a state that no worker can be at work in has been reported by the worker that exits, or by
whoever has put it into this state since. So its event says nothing new, and the scheduler goes on with what
the database says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from airflow.executors.base_executor import BaseExecutor
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select

if TYPE_CHECKING:
    from airflow.executors.base_executor import EventBufferValueType
    from airflow.executors.workloads.types import WorkloadKey

EXITS = frozenset({TaskInstanceState.SUCCESS, TaskInstanceState.FAILED})
WITHOUT_WORKER = (
    TaskInstanceState.DEFERRED,
    TaskInstanceState.UP_FOR_RESCHEDULE,
    TaskInstanceState.AWAITING_INPUT,
    TaskInstanceState.SCHEDULED,
)


class KeepsResumedTasks(BaseExecutor):
    """Mixin for an executor: no event says that a task has ended which waits to be started again."""

    def get_event_buffer(self, dag_ids: list[str] | None = None) -> dict[WorkloadKey, EventBufferValueType]:
        """Hand over the events, without those of workers that have left a task to be started again."""
        events = super().get_event_buffer(dag_ids)
        exits = [
            key for key, (state, _) in events.items() if state in EXITS and isinstance(key, TaskInstanceKey)
        ]
        for key in _without_worker(exits):
            state, _ = events.pop(key)
            self.log.info("A worker has left %s, which waits for its next (exit: %s)", key, state)
        return events


def _without_worker(keys: Iterable[TaskInstanceKey]) -> list[TaskInstanceKey]:
    """Those of these tries that no worker can have at the moment."""
    those = TaskInstance.filter_for_tis(keys)
    if those is None:
        return []
    ti = TaskInstance
    columns = (ti.dag_id, ti.task_id, ti.run_id, ti.try_number, ti.map_index)
    with create_session(scoped=False) as session:  # the scheduler uses the other one around this call
        rows = session.execute(select(*columns).where(those, ti.state.in_(WITHOUT_WORKER)))
        found = {TaskInstanceKey(*row) for row in rows}
    return [key for key in keys if key in found]
