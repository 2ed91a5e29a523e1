"""What a run asks Slurm for."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, TaskGroup
from airflow.sdk.exceptions import AirflowSkipException, DownstreamTasksSkipped
from airflow.sdk.execution_time.context import set_current_context

from cosmic import plan
from cosmic.beamline import beamline
from cosmic.parameters import RECONSTRUCTION, read_parameters
from cosmic.scans import parse_scan_path
from facilities.superfacility.job_script import SlurmResources

BEAMLINE = Path(__file__).resolve().parents[2] / "include" / "beamline.yaml"
SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"


@pytest.mark.parametrize(
    ("qos", "cpus"), [(None, None), ("regular", None), ("shared", 64)], ids=["default", "regular", "shared"]
)
def test_a_job_on_a_shared_node_asks_for_its_gpus_share_of_the_cpus(
    monkeypatch: pytest.MonkeyPatch, qos: str | None, cpus: int | None
) -> None:
    """Where whole nodes are given a job has all CPUs of its node."""
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(BEAMLINE))
    values = read_parameters(RECONSTRUCTION, {"file_path": SCAN, "n_gpu": 2, "qos": qos})
    run = SimpleNamespace(run_id="one", run_after=datetime(2023, 2, 16, tzinfo=UTC))
    asked = plan._job(beamline(), parse_scan_path(SCAN), "cdtools", values, run)["cdtools_resources"]
    resources = SlurmResources.of(asked)
    assert (resources.qos, resources.gpus, resources.cpus_per_task) == (qos or "regular", 2, cpus)


@pytest.mark.parametrize(
    ("chosen", "skipped"),
    [
        (("ptychocam", "cdtools"), set()),
        (("cdtools",), {"ptychocam.submit", "ptychocam.wait"}),
        ((), {"ptychocam.submit", "ptychocam.wait", "cdtools.submit", "cdtools.wait"}),
    ],
    ids=["both engines", "one engine", "no engine"],
)
def test_the_check_leaves_its_plan_and_skips_what_was_not_chosen(
    monkeypatch: pytest.MonkeyPatch, chosen: tuple[str, ...], skipped: set[str]
) -> None:
    """What it skips stands in the XCom by which Airflow skips it again when it is cleared."""
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(BEAMLINE))
    with DAG("any") as dag:
        checked: Any = plan.check_scan()
        checked >> EmptyOperator(task_id="copy_to_nersc")
        for engine in ("ptychocam", "cdtools"):
            with TaskGroup(engine):
                checked >> [EmptyOperator(task_id="submit"), EmptyOperator(task_id="wait")]
    left: dict[str, Any] = {}
    ti = SimpleNamespace(xcom_push=lambda key, value: left.update({key: value}), map_index=-1)
    run = SimpleNamespace(run_id="NS_230216033_0_0", run_after=datetime(2023, 2, 16, tzinfo=UTC))
    context: Any = {"ti": ti, "task": dag.get_task("check_scan"), "dag_run": run}
    params = {"file_path": SCAN} | {f"do_{engine}": engine in chosen for engine in ("ptychocam", "cdtools")}
    with set_current_context(context):
        if skipped:
            with pytest.raises(DownstreamTasksSkipped) as ended:
                plan.check_scan.function(params)
            assert set(ended.value.tasks) == skipped
            assert set(left.pop("skipmixin_key")["skipped"]) == skipped
        else:
            left = plan.check_scan.function(params)
    assert set(left["engines"]) == set(chosen)
    assert {engine for engine in ("ptychocam", "cdtools") if engine in left} == set(chosen)
    assert left["source_path"].endswith(SCAN)


@pytest.mark.parametrize("resources", [None, {"account": "als_g"}])
def test_a_submit_without_a_plan_is_skipped(resources: Any) -> None:
    """As in runs whose check was made by a version that left the choice to another task."""
    context = {"task": SimpleNamespace(slurm_resources=resources)}
    if resources:
        plan.skip_without_plan(context)
        return
    with pytest.raises(AirflowSkipException):
        plan.skip_without_plan(context)
