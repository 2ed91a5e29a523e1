"""Cancels remote work that a person has ended in Airflow before anything was there to be told.

A trigger's `on_kill` cancels the job or transfer of a waiting task. But a task that is marked before its
trigger has started, or a run that is failed between a submit and its wait, ends without any such call. So
this listener looks, some seconds after a task or a run was marked, whether its remote work still lives.

It runs where the mark is made (API server) and where runs end (scheduler), which is where Airflow's database
can be read; the facilities are talked to in a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, Literal, NotRequired, TypedDict

from airflow.listeners import hookimpl

from facilities.errors import FacilityError
from facilities.killing import OVER

log = logging.getLogger(__name__)

WORK_KEY = "remote_work"
"""XCom under which a task leaves what it has set going or waits for."""

# After these seconds: on_kill has had its time, and a cleared task is not "over" any more.
LOOKS = (5.0, 45.0)
QUEUE_LAG = 30.0  # seconds for which the queue may still show a job that was cancelled


_one_at_a_time = threading.Lock()
# A run and its tasks are marked together, each with its looks, and the queue's cached view tells for a while
# that a cancelled job lives: what this process cancelled, and when (monotonic seconds).
_cancelled: dict[str, float] = {}


class RemoteWork(TypedDict):
    """A Slurm job or a Globus task, and the connection that leads to it."""

    kind: Literal["slurm", "globus"]
    remote_id: str
    conn_id: str
    machine: NotRequired[str]


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any, error: Any) -> None:  # noqa: ARG001
    """A task was marked as failed."""
    _task_marked(task_instance)


@hookimpl
def on_task_instance_success(previous_state: Any, task_instance: Any) -> None:  # noqa: ARG001
    """A task was marked as success."""
    _task_marked(task_instance)


@hookimpl
def on_task_instance_skipped(previous_state: Any, task_instance: Any) -> None:  # noqa: ARG001
    """A task was marked as skipped."""
    _task_marked(task_instance)


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:  # noqa: ARG001
    """A run failed, by itself or by a person."""
    _look_later(dag_run.dag_id, dag_run.run_id, None)


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    """A run was marked as success; one that got there by itself has nothing left."""
    if "manually" in (msg or ""):
        _look_later(dag_run.dag_id, dag_run.run_id, None)


def _task_marked(task_instance: Any) -> None:
    from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415 - not in workers

    if isinstance(task_instance, TaskInstance):  # in a worker it is another class: the task ended by itself
        _look_later(task_instance.dag_id, task_instance.run_id, task_instance.task_id)


def _look_later(dag_id: str, run_id: str, task_id: str | None) -> threading.Thread:
    thread = threading.Thread(target=_look, args=(dag_id, run_id, task_id), name="sweep", daemon=True)
    thread.start()
    return thread


def _look(dag_id: str, run_id: str, task_id: str | None) -> None:
    started = time.monotonic()
    for after in LOOKS:
        time.sleep(max(started + after - time.monotonic(), 0))
        with _one_at_a_time:
            try:
                works = abandoned(dag_id, run_id, task_id)
            except Exception:
                log.exception("Could not look for work that run %s of %s left behind.", run_id, dag_id)
                continue
            for work in works:
                sweep(work, f"run {run_id} of {dag_id}")


def abandoned(dag_id: str, run_id: str, task_id: str | None) -> list[RemoteWork]:
    """What the run's tasks had set going, if it is over (or, given `task_id`, if that task is).

    Of one task: what it waits for, and what the tasks right before it have submitted for it.
    """
    from airflow.models.dagbag import DBDagBag  # noqa: PLC0415 - only where the database can be read
    from airflow.models.dagrun import DagRun  # noqa: PLC0415
    from airflow.utils.session import create_session  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415

    with create_session() as session:
        run = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
        if run is None:
            return []
        if task_id is None:
            over = str(getattr(run.state, "value", run.state)) in ("success", "failed")
            return _works(session, dag_id, run_id, None) if over else []
        states = {ti.task_id: ti.state for ti in run.get_task_instances(session=session)}
        if str(getattr(states.get(task_id), "value", states.get(task_id))) not in OVER:
            return []
        dag = DBDagBag().get_dag_for_run(run, session=session)
        upstream = dag.get_task(task_id).upstream_task_ids if dag is not None else set()
        return _works(session, dag_id, run_id, {task_id, *upstream})


def _works(session: Any, dag_id: str, run_id: str, task_ids: Iterable[str] | None) -> list[RemoteWork]:
    from airflow.models.xcom import XComModel  # noqa: PLC0415

    rows = session.scalars(XComModel.get_many(run_id=run_id, key=WORK_KEY, dag_ids=dag_id))
    wanted = None if task_ids is None else set(task_ids)
    works: dict[str, RemoteWork] = {}
    for row in rows:
        value = XComModel.deserialize_value(row)
        if isinstance(value, dict) and (wanted is None or row.task_id in wanted):
            works[value["remote_id"]] = RemoteWork(**value)  # type: ignore[typeddict-item]  # ours
    return list(works.values())


def sweep(work: RemoteWork, whose: str) -> bool:
    """Cancel the work if it lives; tells whether it did."""
    now = time.monotonic()
    for remote_id in [known for known, at in _cancelled.items() if now - at >= QUEUE_LAG]:
        del _cancelled[remote_id]
    if work["remote_id"] in _cancelled:
        return False
    try:
        cancelled = cancel_living(work)
    except FacilityError as error:
        log.error("Whether %s %s of %s lives is not known: %s", work["kind"], work["remote_id"], whose, error)
        return False
    if cancelled:
        _cancelled[work["remote_id"]] = time.monotonic()
        log.warning("Cancelled %s %s: %s is over.", work["kind"], work["remote_id"], whose)
    return cancelled


def cancel_living(work: RemoteWork, still: Callable[[], bool] = lambda: True) -> bool:
    """Cancel the work if it lives; tells whether it did.

    :param still: asked right before, once the work is known to live: whether it has to be cancelled.
    :raises FacilityError: the service does not answer, or refuses.
    """
    cancel = _cancel_job if work["kind"] == "slurm" else _cancel_transfer
    return cancel(work, still)


def _cancel_job(work: RemoteWork, still: Callable[[], bool]) -> bool:
    from facilities.superfacility.hook import SuperfacilityHook  # noqa: PLC0415 - listeners load everywhere
    from facilities.superfacility.states import SlurmState  # noqa: PLC0415 - the same

    machine = work.get("machine", "perlmutter")
    with closing(SuperfacilityHook(work["conn_id"])) as hook:
        job = hook.jobs(machine, [work["remote_id"]], "squeue").get(work["remote_id"])
        # A job that was cancelled is COMPLETING until its processes have ended.
        if job is None or job.final or job.state is SlurmState.COMPLETING or not still():
            return False
        hook.cancel(machine, work["remote_id"])
    return True


def _cancel_transfer(work: RemoteWork, still: Callable[[], bool]) -> bool:
    from facilities.globus.hook import GlobusHook  # noqa: PLC0415 - listeners load everywhere

    with closing(GlobusHook(work["conn_id"])) as hook:
        if not hook.get_task(work["remote_id"]).is_living or not still():
            return False
        hook.cancel(work["remote_id"])
    return True
