"""Who has ended runs by hand, by Airflow's audit log.

Airflow enters a request into its audit log before it is carried out; one about a task even before it is
looked whether its user may do that. So an entry counts only when what it asked for has happened that
moment: the run, or the task, that it names has ended as failed, and not by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from airflow.models.dagrun import DagRun
from airflow.models.log import Log
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from cosmic.task_names import step_name

_OF_RUN = "patch_dag_run"
_OF_TASKS = "patch_task_instance", "patch_task_group_instances"
_BY_ITSELF = "failed"  # what a worker enters that reports its task's end
_TAKES = timedelta(minutes=1)  # a request at most, from its entry to its effect


@dataclass(frozen=True)
class Cancellation:
    """Somebody has ended a run, or a task of it.

    :param what: `the run`, a step's name, or that of an engine whose tasks were ended together.
    """

    who: str
    when: datetime
    what: str


def cancellations(session: Session, *runs: Any) -> dict[str, Cancellation]:
    """The last one of each run that has failed, by the run's id, since the run last began.

    :param runs: conditions on `DagRun`.
    """
    query = (
        select(
            DagRun.run_id,
            func.coalesce(DagRun.start_date, DagRun.queued_at).label("began"),
            DagRun.end_date,
            Log.event,
            Log.dttm,
            Log.owner,
            Log.owner_display_name,
            Log.task_id,
            Log.extra,
            TaskInstance.task_id.label("failed_task"),
            TaskInstance.end_date.label("task_ended"),
            TaskInstance.updated_at.label("task_changed"),
        )
        .join(Log, and_(Log.dag_id == DagRun.dag_id, Log.run_id == DagRun.run_id))
        .outerjoin(
            TaskInstance,
            and_(
                TaskInstance.dag_id == DagRun.dag_id,
                TaskInstance.run_id == DagRun.run_id,
                TaskInstance.state == "failed",
            ),
        )
        .where(
            DagRun._state == "failed",
            Log.event.in_((_OF_RUN, *_OF_TASKS, _BY_ITSELF)),
            Log.dttm.is_not(None),
            *runs,
        )
        .order_by(Log.dttm)
    )
    entries = session.execute(query).all()
    own_ends = {(entry.run_id, entry.task_id): entry.dttm for entry in entries if entry.event == _BY_ITSELF}
    found = {}
    for entry in entries:
        own_end = own_ends.get((entry.run_id, entry.failed_task))
        what = _ended(entry, own_end)
        if what and (entry.began is None or entry.began <= entry.dttm):
            who = entry.owner_display_name or entry.owner or "somebody"
            found[entry.run_id] = Cancellation(who, entry.dttm, what)
    return found


def _ended(entry: Any, own_end: datetime | None) -> str:
    """What the request has ended, of the run and the task of this row; empty: neither.

    :param own_end: when the task has last ended as failed by itself.
    """
    fields = _fields(entry.extra)
    if (fields.get("state") or fields.get("new_state")) != "failed":
        return ""
    if entry.event == _OF_RUN:
        return "the run" if _at_once(entry.dttm, entry.end_date) else ""
    task, group = entry.failed_task or "", str(fields.get("group_id") or "")
    what = (
        group if task.startswith(f"{group}.") else step_name(task) if task and task == entry.task_id else ""
    )
    # Of a task that was tried before, Airflow leaves the end of that try.
    is_now = _at_once(entry.dttm, entry.task_ended, entry.task_changed) and not _at_once(entry.dttm, own_end)
    return what if is_now else ""


def _at_once(asked: datetime, *moments: datetime | None) -> bool:
    return any(moment is not None and asked <= moment <= asked + _TAKES for moment in moments)


def _fields(extra: str | None) -> Mapping[str, Any]:
    try:
        fields = json.loads(extra or "")
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
