"""Metrics of the beamline, besides Airflow's own: a listener for the ends of tasks and runs.

They go where `[metrics]` says (StatsD or OpenTelemetry); where that is off, the listener is not registered.
Names, without Airflow's prefix (by default `airflow.`); times are StatsD timings, in milliseconds:

- `cosmic.scan.latency.<dag_id>`: from the post of a scan (or the clear of its run) to its success
- `cosmic.scan.success.<dag_id>`, `cosmic.scan.failed.<dag_id>`: counters of runs
- `cosmic.transfer.bytes`, `cosmic.transfer.files`: counters of what Globus moved
- `cosmic.transfer.time`; `cosmic.transfer.rate`: gauge, bytes per second of the last transfer
- `cosmic.job.queue_time`, `cosmic.job.run_time`
- `cosmic.job.node_seconds`: counter; divided by 3600 it is node-hours
- `cosmic.failures.<class>`: counter of failed tries of tasks, by the class of `facilities.errors`, or `other`

How many scans wait is Airflow's own `pool.deferred_slots.globus` (for their transfer) and
`pool.deferred_slots.nersc` (for their job), every five seconds.

An error in a metric never fails a scan: Airflow logs what a listener raises, and continues.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from airflow.listeners import hookimpl
from airflow.observability import stats as scheduler_stats
from airflow.sdk.observability import stats

from cosmic.dag_constants import PROCESS_NEWFILE, TRANSFER_AUTO_RECON
from facilities.errors import FacilityError

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun

SCAN_DAGS = frozenset({TRANSFER_AUTO_RECON, PROCESS_NEWFILE})


def enabled() -> bool:
    """Whether Airflow sends metrics anywhere."""
    return conf.getboolean("metrics", "statsd_on") or conf.getboolean("metrics", "otel_on")


@hookimpl
def on_task_instance_success(previous_state: object, task_instance: Any) -> None:  # noqa: ARG001 - Airflow's
    """Runs in the worker, at the end of a task's last stay there."""
    emit = _RESULTS.get(getattr(task_instance.task, "task_type", ""))
    if emit is None:
        return
    index = task_instance.map_index
    result = task_instance.xcom_pull(
        task_ids=task_instance.task_id, map_indexes=None if index is None or index < 0 else index
    )
    if isinstance(result, Mapping):
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
    if dag_run.dag_id not in SCAN_DAGS:
        return
    scheduler_stats.incr(f"cosmic.scan.success.{dag_run.dag_id}")
    posted, ended = dag_run.queued_at or dag_run.start_date, dag_run.end_date
    if posted is not None and ended is not None:
        scheduler_stats.timing(f"cosmic.scan.latency.{dag_run.dag_id}", ended - posted)


@hookimpl
def on_dag_run_failed(dag_run: DagRun, msg: str) -> None:  # noqa: ARG001 - Airflow's
    """Runs in the scheduler."""
    if dag_run.dag_id in SCAN_DAGS:
        scheduler_stats.incr(f"cosmic.scan.failed.{dag_run.dag_id}")


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


_RESULTS = {"GlobusTransferOperator": _transfer, "ResubmittingSlurmJobSensor": _job}
