"""The main job through a running Airflow while Slurm does what it does to jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from support.live import Pipeline
from support.nersc import Nersc, cancel
from support.scheduling import fill, lost_node

pytestmark = [pytest.mark.slurm, pytest.mark.live]


@pytest.fixture
def user(pipeline: Pipeline) -> Iterator[Nersc]:
    """The user at NERSC, who acts on jobs behind Airflow's back."""
    user = Nersc(pipeline.facility)
    yield user
    user.close()


def test_a_job_that_a_node_took_with_it_is_started_again_by_slurm(pipeline: Pipeline, user: Nersc) -> None:
    scan = pipeline.new_scan("hold")
    run_id = pipeline.start(scan)
    pipeline.wait_for(lambda: pipeline.job_states(scan) == ["RUNNING"], "the job runs")
    (job,) = pipeline.jobs_of(scan)
    with lost_node(user, job["job_id"]):
        pipeline.wait_for(lambda: pipeline.job_states(scan) == ["NODE_FAIL"], "the job is lost")
    pipeline.let_go(scan)
    assert pipeline.finish(run_id, 180) == "success"
    (again,) = pipeline.jobs_of(scan)
    assert (again["job_id"], again["state"]) == (job["job_id"], "COMPLETED")
    assert len(pipeline.transfers_of(run_id)) == 1


def test_a_held_job_is_waited_for_and_the_log_says_what_to_do(pipeline: Pipeline, user: Nersc) -> None:
    others = fill(user)
    scan = pipeline.new_scan()
    run_id = pipeline.start(scan)
    pipeline.wait_for(lambda: pipeline.job_states(scan) == ["PENDING"], "the job waits")
    (job,) = pipeline.jobs_of(scan)
    user.control("hold", job_id=job["job_id"])
    for other in others:
        cancel(user, other)
    said = f"scontrol release {job['job_id']}"
    pipeline.wait_for(
        lambda: said in pipeline.rest.log(DAG_ID, run_id, "ptychocam.wait"), "the log says so", 200
    )
    user.control("release", job_id=job["job_id"])
    assert pipeline.finish(run_id) == "success"
    assert pipeline.job_states(scan) == ["COMPLETED"]


def test_a_job_that_somebody_cancels_fails_and_is_not_submitted_again(
    pipeline: Pipeline, user: Nersc
) -> None:
    scan = pipeline.new_scan("hold")
    run_id = pipeline.start(scan)
    pipeline.wait_for(lambda: pipeline.job_states(scan) == ["RUNNING"], "the job runs")
    (job,) = pipeline.jobs_of(scan)
    cancel(user, job["job_id"])
    assert pipeline.finish(run_id) == "failed"
    assert "CANCELLED" in pipeline.rest.log(DAG_ID, run_id, "ptychocam.wait")
    assert pipeline.job_states(scan) == ["CANCELLED"]
