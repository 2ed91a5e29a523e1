"""Metrics of the beamline, besides Airflow's own: a listener for the ends of tasks and runs.

They go where `[metrics]` says (StatsD or OpenTelemetry); where that is off, the listener is not registered.
Names, without Airflow's prefix (by default `airflow.`); times are StatsD timings, in milliseconds:

- `cosmic.scan.latency.<dag_id>`: from the post of a scan (or the clear of its run) to its success
- `cosmic.scan.success.<dag_id>`, `cosmic.scan.failed.<dag_id>`: counters of runs
- `cosmic.scan.active`, `cosmic.scan.waiting_age`: gauges: runs that are not over, and the seconds since the
  oldest of them was posted
- `cosmic.scan.missed`: counter of scans without a run that `find_missed_scans` has found
- `cosmic.transfer.bytes`, `cosmic.transfer.files`: counters of what Globus moved
- `cosmic.transfer.time`; `cosmic.transfer.rate`: gauge, bytes per second of the last transfer
- `cosmic.job.queue_time`, `cosmic.job.run_time`
- `cosmic.job.node_seconds`: counter; divided by 3600 it is node-hours
- `cosmic.failures.<class>`: counter of failed tries of tasks, by the class of `facilities.errors`, or `other`
- `cosmic.up.globus`, `cosmic.up.nersc`: gauges, whether the service answers: 1 or 0
- `cosmic.flight_check`: gauge, whether the last flight check was green: 1 or 0
- `cosmic.nersc.client_expires`: gauge, Unix time

How many scans wait is Airflow's own `pool.deferred_slots.globus` (for their transfer) and
`pool.deferred_slots.nersc` (for their job), every five seconds. The gauges of scans and services are sent
every two minutes, with `cancel_abandoned_work`, and with them zero for each counter: without it nobody could
see its first increase.

An error in a metric never fails a scan: Airflow logs what a listener raises, and continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from airflow.listeners import hookimpl
from airflow.observability import stats as scheduler_stats
from airflow.sdk.observability import stats
from airflow.sdk.timezone import utcnow

from cosmic.dag_constants import (
    CANCEL_ABANDONED_WORK,
    FIND_MISSED_SCANS,
    FLIGHT_CHECK,
    PROCESS_NEWFILE,
    REPORT_TASK,
    TRANSFER_AUTO_RECON,
)
from facilities.errors import BY_CLASS, FacilityError

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun

SCAN_DAGS = frozenset({TRANSFER_AUTO_RECON, PROCESS_NEWFILE})


def enabled() -> bool:
    """Whether Airflow sends metrics anywhere."""
    return conf.getboolean("metrics", "statsd_on") or conf.getboolean("metrics", "otel_on")


@hookimpl
def on_task_instance_success(previous_state: object, task_instance: Any) -> None:  # noqa: ARG001 - Airflow's
    """Runs in the worker, at the end of a task's last stay there."""
    emit = _BY_TASK.get((task_instance.dag_id, task_instance.task_id)) or _BY_TYPE.get(
        getattr(task_instance.task, "task_type", "")
    )
    if emit is None:
        return
    index = task_instance.map_index
    result = task_instance.xcom_pull(
        task_ids=task_instance.task_id, map_indexes=None if index is None or index < 0 else index
    )
    if result is not None:
        emit(result)


@hookimpl
def on_task_instance_failed(
    previous_state: object,  # noqa: ARG001 - Airflow's
    task_instance: Any,  # noqa: ARG001 - Airflow's
    error: object,
) -> None:
    """Runs in the worker, after each try that failed."""
    failure_class = error.failure_class if isinstance(error, FacilityError) else "other"
    stats.incr(f"cosmic.failures.{failure_class}")


@hookimpl
def on_dag_run_success(dag_run: DagRun, msg: str) -> None:  # noqa: ARG001 - Airflow's
    """Runs in the scheduler."""
    _end_of_run(dag_run, "success")
    posted, ended = dag_run.queued_at or dag_run.start_date, dag_run.end_date
    if dag_run.dag_id in SCAN_DAGS and posted is not None and ended is not None:
        scheduler_stats.timing(f"cosmic.scan.latency.{dag_run.dag_id}", ended - posted)


@hookimpl
def on_dag_run_failed(dag_run: DagRun, msg: str) -> None:  # noqa: ARG001 - Airflow's
    """Runs in the scheduler."""
    _end_of_run(dag_run, "failed")


def _end_of_run(dag_run: DagRun, state: str) -> None:
    if dag_run.dag_id in SCAN_DAGS:
        scheduler_stats.incr(f"cosmic.scan.{state}.{dag_run.dag_id}")
    elif dag_run.dag_id == FLIGHT_CHECK:
        scheduler_stats.gauge("cosmic.flight_check", int(state == "success"))
    elif dag_run.dag_id == CANCEL_ABANDONED_WORK:  # every two minutes
        _active_scans()
        for name in _counters():
            scheduler_stats.incr(name, 0)


def _active_scans() -> None:
    from airflow.models.dagrun import DagRun  # noqa: PLC0415 - in the scheduler only
    from airflow.utils.session import create_session  # noqa: PLC0415
    from sqlalchemy import func, select  # noqa: PLC0415

    posted = func.coalesce(DagRun.queued_at, DagRun.run_after)
    active = select(func.count(), func.min(posted)).where(
        DagRun.dag_id.in_(SCAN_DAGS), DagRun.state.in_(("queued", "running")), DagRun.run_after <= utcnow()
    )
    with create_session(scoped=False) as session:  # the scheduler is in the middle of its own
        count, oldest = session.execute(active).one()
    scheduler_stats.gauge("cosmic.scan.active", count)
    age = 0.0 if oldest is None else (utcnow() - oldest).total_seconds()
    scheduler_stats.gauge("cosmic.scan.waiting_age", round(max(age, 0.0)))


def _counters() -> Iterator[str]:
    for dag_id in sorted(SCAN_DAGS):
        yield from (f"cosmic.scan.{state}.{dag_id}" for state in ("success", "failed"))
    yield from (f"cosmic.failures.{failure_class}" for failure_class in (*BY_CLASS, "other"))
    yield from (
        "cosmic.scan.missed",
        "cosmic.transfer.bytes",
        "cosmic.transfer.files",
        "cosmic.job.node_seconds",
    )


def _transfer(result: Mapping[str, Any]) -> None:
    stats.incr("cosmic.transfer.bytes", int(result["bytes"]))
    stats.incr("cosmic.transfer.files", int(result["files"]))
    _timing("cosmic.transfer.time", result["seconds"])
    if result["bytes"]:  # a file that was there already has no rate
        stats.gauge("cosmic.transfer.rate", float(result["rate"]))


def _job(result: Mapping[str, Any]) -> None:
    _timing("cosmic.job.queue_time", result["queue_seconds"])
    _timing("cosmic.job.run_time", result["run_seconds"])
    if result["node_hours"] is not None:
        stats.incr("cosmic.job.node_seconds", round(result["node_hours"] * 3600))


def _timing(name: str, seconds: float | None) -> None:
    if seconds is not None:
        stats.timing(name, timedelta(seconds=seconds))


def _services(result: Mapping[str, Any]) -> None:
    for service, work in (("globus", "Globus tasks"), ("nersc", "Slurm jobs")):
        unreachable = any(line.startswith(f"{work}:") for line in result["unreachable"])
        stats.gauge(f"cosmic.up.{service}", int(not unreachable))


def _client_expires(days_left: float) -> None:
    stats.gauge("cosmic.nersc.client_expires", round(time.time() + days_left * 86400))


def _missed(rows: list[Mapping[str, Any]]) -> None:
    stats.incr("cosmic.scan.missed", sum(row["missing"] for row in rows))


_BY_TYPE: dict[str, Callable[[Any], None]] = {
    "GlobusTransferOperator": _transfer,
    "ResubmittingSlurmJobSensor": _job,
}
_BY_TASK: dict[tuple[str, str], Callable[[Any], None]] = {
    (CANCEL_ABANDONED_WORK, "cancel_abandoned"): _services,
    (FLIGHT_CHECK, "check_nersc"): _client_expires,
    (FIND_MISSED_SCANS, REPORT_TASK): _missed,
}
