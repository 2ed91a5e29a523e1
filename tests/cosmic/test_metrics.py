"""Metrics: what is sent, over UDP, when a real run ends."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.listeners.listener import get_listener_manager as scheduler_listeners
from airflow.models.dagrun import DagRun
from airflow.observability import stats as scheduler_stats
from airflow.observability.metrics import stats_utils as scheduler_stats_utils
from airflow.sdk.listener import get_listener_manager as task_listeners
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils
from airflow.sdk.timezone import utcnow
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState

from cosmic import metrics
from cosmic.dag_constants import (
    CANCEL_ABANDONED_WORK,
    FIND_MISSED_SCANS,
    FLIGHT_CHECK,
    GLOBUS_CONN_ID,
    PROCESS_NEWFILE,
    REPORT_TASK,
    TRANSFER_AUTO_RECON,
)
from deployment.standin_settings import standin_beamline, standin_seed
from facilities.errors import BY_CLASS, TimeLimitError
from standin.testing import Facility

DAGS = Path(__file__).resolve().parents[2] / "dags"
Heard = Callable[[], list[str]]
STATS: tuple[tuple[Any, Any], ...] = ((stats, stats_utils), (scheduler_stats, scheduler_stats_utils))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    """A StatsD server, Airflow's metrics pointed at it, and the listener registered; gives what it heard."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(0.2)
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_PORT", str(listener.getsockname()[1]))
        managers = (task_listeners(), scheduler_listeners())
        with _connected(monkeypatch):
            for manager in managers:
                manager.add_listener(metrics)  # type: ignore[no-untyped-call]
            yield lambda: list(_receive(listener))
            for manager in managers:
                manager.pm.unregister(metrics)


@contextmanager
def _connected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Airflow's two metrics modules, of tasks and of the scheduler, send to where the environment says."""
    clients: list[Any] = []
    for module, utils in STATS:
        clients.append(utils.get_stats_factory()())
        module.initialize(factory=partial(clients.__getitem__, -1), export_legacy_names=False)
        module.incr("connected")  # which takes the client
    try:
        yield
    finally:
        for client in clients:
            client.statsd.close()
        monkeypatch.undo()
        for module, utils in STATS:
            module.initialize(factory=utils.get_stats_factory(), export_legacy_names=False)


def _receive(listener: socket.socket) -> Iterator[str]:
    while True:
        try:
            line = listener.recv(65536).decode()
        except TimeoutError:
            return
        if ".cosmic." in line:
            yield line


@pytest.fixture
def dag(airflow_database: None, facility: Facility, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The bundle's transfer DAG, pointed at a stand-in."""
    connection = standin_seed(facility.description)["connections"][GLOBUS_CONN_ID]
    monkeypatch.setenv("AIRFLOW_CONN_GLOBUS_DEFAULT", json.dumps(connection))
    site = standin_beamline(facility.description, tmp_path / "beamline.yaml", tmp_path / "scripts")
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(site))
    bag = DagBag(dag_folder=str(DAGS / f"{PROCESS_NEWFILE}.py"))
    assert bag.import_errors == {}
    return bag.dags[PROCESS_NEWFILE]


@pytest.mark.filterwarnings("ignore")  # of the Airflow server that runs in this process
def test_a_run_tells_what_it_moved_and_how_long_it_took(dag: Any, heard: Heard, facility: Facility) -> None:
    path = facility.collection("data7012") / "2023" / "x.cxi"
    path.parent.mkdir()
    path.write_bytes(b"x" * 1234)
    run = dag.test(run_conf={"file_path": "2023/x.cxi"})
    assert run.state == "success"
    lines = heard()
    assert "airflow.cosmic.transfer.bytes:1234|c" in lines
    assert "airflow.cosmic.transfer.files:1|c" in lines
    assert "airflow.cosmic.scan.success.process_newfile_7012_ptycho4:1|c" in lines
    names = [line.partition(":")[0] for line in lines]
    assert sorted(set(names)) == sorted(names)  # each once
    assert {"airflow.cosmic.transfer.time", "airflow.cosmic.transfer.rate"} <= set(names)
    (latency,) = [line for line in lines if ".scan.latency.process_newfile_7012_ptycho4:" in line]
    value, kind = latency.partition(":")[2].split("|")
    assert kind == "ms"
    assert 0 < float(value) < 120_000


@pytest.mark.filterwarnings("ignore")
def test_a_failed_run_tells_the_class(dag: Any, heard: Heard) -> None:
    assert dag.test(run_conf={"file_path": "2023/nothing.cxi"}).state == "failed"
    lines = heard()
    assert "airflow.cosmic.failures.user:1|c" in lines
    assert "airflow.cosmic.scan.failed.process_newfile_7012_ptycho4:1|c" in lines
    assert not [line for line in lines if "transfer" in line.replace("process_newfile", "")]


def test_a_jobs_figures(heard: Heard) -> None:
    result = {"queue_seconds": 12.0, "run_seconds": 90.5, "node_hours": 0.025}
    end_of("ResubmittingSlurmJobSensor", result)
    assert heard() == [
        "airflow.cosmic.job.queue_time:12000.000000|ms",
        "airflow.cosmic.job.run_time:90500.000000|ms",
        "airflow.cosmic.job.node_seconds:90|c",
    ]


def test_what_is_not_known_is_not_sent(heard: Heard) -> None:
    end_of("ResubmittingSlurmJobSensor", {"queue_seconds": None, "run_seconds": None, "node_hours": None})
    end_of("ResubmittingSlurmJobSensor", None)
    end_of("_PythonDecoratedOperator", {"bytes": 1})
    already_there = {"bytes": 0, "files": 0, "seconds": None, "rate": 0.0}
    end_of("GlobusTransferOperator", already_there)
    assert heard() == ["airflow.cosmic.transfer.bytes:0|c", "airflow.cosmic.transfer.files:0|c"]


def end_of(task_type: str, result: Any, *, dag_id: str = "d", task_id: str = "t") -> None:
    """Tell the listener that a task has ended well."""
    ti = SimpleNamespace(
        task=SimpleNamespace(task_type=task_type),
        dag_id=dag_id,
        task_id=task_id,
        map_index=-1,
        xcom_pull=lambda **_arguments: result,
    )
    metrics.on_task_instance_success(previous_state="running", task_instance=ti)


def test_failures_by_class(heard: Heard) -> None:
    for kind in BY_CLASS.values():
        metrics.on_task_instance_failed("running", SimpleNamespace(), kind("x"))
    for error in (TimeLimitError("x"), ValueError("x"), "text", None):
        metrics.on_task_instance_failed("running", SimpleNamespace(), error)
    classes = [line.split(".")[3].partition(":")[0] for line in heard()]
    assert classes == [*BY_CLASS, "resources", "other", "other", "other"]


def test_what_the_checks_have_found(heard: Heard) -> None:
    unreachable = ["Slurm jobs: no answer"]
    end_of("", {"unreachable": []}, dag_id=CANCEL_ABANDONED_WORK, task_id="cancel_abandoned")
    end_of("", {"unreachable": unreachable}, dag_id=CANCEL_ABANDONED_WORK, task_id="cancel_abandoned")
    assert heard() == [
        "airflow.cosmic.up.globus:1|g",
        "airflow.cosmic.up.nersc:1|g",
        "airflow.cosmic.up.globus:1|g",
        "airflow.cosmic.up.nersc:0|g",
    ]
    end_of("", [{"missing": 2}, {"missing": 3}], dag_id=FIND_MISSED_SCANS, task_id=REPORT_TASK)
    end_of("", None, dag_id=FLIGHT_CHECK, task_id="check_nersc")  # the date is not known
    assert heard() == ["airflow.cosmic.scan.missed:5|c"]
    end_of("", 2.0, dag_id=FLIGHT_CHECK, task_id="check_nersc")
    (line,) = heard()
    name, _, value = line.partition(":")
    assert name == "airflow.cosmic.nersc.client_expires"
    assert int(value.removesuffix("|g")) == pytest.approx(time.time() + 2 * 86400, abs=120)


def end_of_run(dag_id: str, state: str) -> None:
    """Tell the listener that a run has ended."""
    run: Any = SimpleNamespace(dag_id=dag_id, queued_at=None, start_date=None, end_date=None)
    {"success": metrics.on_dag_run_success, "failed": metrics.on_dag_run_failed}[state](run, "")


def test_the_flight_check_is_green_or_red(heard: Heard) -> None:
    end_of_run(FLIGHT_CHECK, "success")
    end_of_run(FLIGHT_CHECK, "failed")
    assert heard() == ["airflow.cosmic.flight_check:1|g", "airflow.cosmic.flight_check:0|g"]


def test_runs_that_are_not_over(airflow_database: None, heard: Heard) -> None:
    now = utcnow()
    ages = {"queued": 300, "running": 900, "success": 5000, "failed": 5000}
    runs = [
        DagRun(
            TRANSFER_AUTO_RECON,
            run_id=state,
            run_type="manual",
            state=DagRunState(state),
            run_after=now,
            queued_at=now - timedelta(seconds=age),
        )
        for state, age in ages.items()
    ]
    later = DagRun(PROCESS_NEWFILE, run_id="later", run_type="manual", run_after=now + timedelta(days=1))
    later.state, later.queued_at = DagRunState.QUEUED, now - timedelta(days=1)
    end_of_run(CANCEL_ABANDONED_WORK, "success")
    before = heard()
    assert "airflow.cosmic.scan.active:0|g" in before
    assert "airflow.cosmic.scan.waiting_age:0|g" in before
    assert "airflow.cosmic.failures.credentials:0|c" in before  # so that its first increase can be seen
    with create_session(scoped=False) as session:
        session.add_all([*runs, later])
        session.commit()
        try:
            end_of_run(CANCEL_ABANDONED_WORK, "failed")
        finally:
            for run in [*runs, later]:
                session.delete(run)
    lines = heard()
    assert "airflow.cosmic.scan.active:2|g" in lines
    (age,) = [line for line in lines if "waiting_age" in line]
    assert 900 <= int(age.partition(":")[2].removesuffix("|g")) < 960


def test_off_by_default() -> None:
    assert metrics.enabled() is False
