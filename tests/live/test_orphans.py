"""A job that nothing in Airflow knows of any more is found from the facility's side, and cancelled once."""

from __future__ import annotations

import os
import signal
from urllib.parse import urlsplit

import pytest

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from dev.chaos.processes import connected_to, descendants
from support.live import Pipeline

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]


def kill_who_submits(pipeline: Pipeline) -> None:
    """SIGKILL the task that has a submit on its way and waits for the answer."""
    port = urlsplit(pipeline.facility.base_url).port
    assert port is not None
    below = descendants(pipeline.airflow.processes["scheduler"].pid)
    pids = connected_to(port, below)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_a_job_of_a_worker_killed_in_its_submit_is_cancelled_when_its_run_is_over(pipeline: Pipeline) -> None:
    submit = {"service": "nersc", "method": "POST", "path": "/compute/jobs/"}
    pipeline.facility.fault(kind="delay", delay=8.0, times=1, **submit)
    scan = pipeline.new_scan("hold")
    run_id = pipeline.start(scan)
    pipeline.wait_for(lambda: any(fault["hits"] for fault in pipeline.facility.faults()), "it is submitting")
    kill_who_submits(pipeline)
    pipeline.rest.call("PATCH", f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}", {"state": "failed"})
    other = pipeline.new_scan("hold")  # one that must not be touched
    other_run = pipeline.start(other)
    pipeline.wait_for(lambda: pipeline.jobs_of(scan), "NERSC has acted on the submit all the same")
    pipeline.wait_for(lambda: pipeline.jobs_of(scan)[0]["state"] == "RUNNING", "its job runs")
    pipeline.wait_for_task(other_run, "ptychocam.wait", "deferred")

    (line,) = pipeline.clean_up(run_id)
    assert f"{DAG_ID}.ptychocam.submit of run {run_id}: the run is over (failed)" in line
    pipeline.wait_for(lambda: pipeline.jobs_of(scan)[0]["state"] == "CANCELLED", "the job is cancelled")
    assert pipeline.clean_up(run_id) == [line]
    (job,) = pipeline.jobs_of(scan)
    assert len(job["cancels"]) == 1

    pipeline.let_go(other)
    assert pipeline.finish(other_run) == "success"
    assert [job["state"] for job in pipeline.jobs_of(other)] == ["COMPLETED"]
