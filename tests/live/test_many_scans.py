"""Fifty scans at once with two worker slots."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from dev.local_airflow.rest import FINISHED
from dev.local_airflow.stack import wait_until
from support.live import Pipeline, install_engines, start_live

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(1500)]
SCANS = 50


def test_fifty_scans_at_once_with_two_slots(tmp_path: Path) -> None:
    settings = {"AIRFLOW__CORE__PARALLELISM": "2"}
    for live in start_live(tmp_path, extra=settings, slots=SCANS):
        install_engines(live.facility)
        pipeline = Pipeline(live)
        scans = [pipeline.new_scan("hold") for _ in range(SCANS)]
        runs = {pipeline.start(scan): scan for scan in scans}

        def states(task_id: str, runs: dict[str, str] = runs, pipeline: Pipeline = pipeline) -> list[str]:
            found = pipeline.rest.call(
                "POST",
                "/api/v2/dags/~/dagRuns/~/taskInstances/list",
                {"dag_ids": [DAG_ID], "task_ids": [task_id], "page_limit": 200},
            )
            return [task["state"] for task in found["task_instances"] if task["dag_run_id"] in runs]

        # All fifty wait at the same time, though only two tasks can run: waiting holds no slot.
        assert wait_until(lambda: states("ptychocam.wait").count("deferred") == SCANS, 600, every=1)
        for scan in scans:
            pipeline.let_go(scan)

        def ended(runs: dict[str, str] = runs, pipeline: Pipeline = pipeline) -> bool:
            found = pipeline.rest.call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns?limit=100")["dag_runs"]
            return sum(run["state"] in FINISHED for run in found if run["dag_run_id"] in runs) == SCANS

        assert wait_until(ended, 600, every=1)
        found = pipeline.rest.call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns?limit=100")["dag_runs"]
        assert [run["state"] for run in found].count("success") == SCANS
        assert sorted(len(pipeline.jobs_of(scan)) for scan in scans) == [1] * SCANS
        assert sorted(len(pipeline.transfers_of(run)) for run in runs) == [1] * SCANS
