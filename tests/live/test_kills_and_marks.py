"""What happens to the remote work when Airflow dies, when a person marks a task, when one is cleared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from support.live import FINISHED_JOBS, Live, Pipeline

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def begun(live_airflow: Live, engines: None) -> Iterator[dict[str, list[tuple[str, str]]]]:
    """Scans by what their jobs do, and their runs, all begun at once; each test takes its own.

    Those that hold wait to be let go.
    """
    pipeline = Pipeline(live_airflow)
    behaviours = ["hold"] * 5 + ["fail 1"]
    runs: dict[str, list[tuple[str, str]]] = {behaviour: [] for behaviour in behaviours}
    for behaviour in behaviours:
        scan = pipeline.new_scan(behaviour)
        runs[behaviour].append((scan, pipeline.start(scan)))
    held = list(runs["hold"])
    yield runs
    for scan, _ in held:
        pipeline.let_go(scan)


@pytest.fixture
def holding(pipeline: Pipeline, begun: dict[str, list[tuple[str, str]]]) -> tuple[str, str]:
    """A scan and its run, which waits for a job that runs until it is let go.

    It is the first whose job runs: they may start in any order, and on Slurm not all at once.
    """

    def runs() -> Iterator[tuple[str, str]]:
        return (one for one in begun["hold"] if pipeline.job_states(one[0]) == ["RUNNING"])

    pipeline.wait_for(lambda: any(runs()), "a job runs")
    scan, run_id = next(runs())
    begun["hold"].remove((scan, run_id))
    (job,) = pipeline.jobs_of(scan)
    pipeline.wait_until_polled(run_id, "ptychocam.wait", job["job_id"])
    return scan, run_id


@pytest.mark.parametrize("component", ["triggerer", "scheduler"])
def test_a_component_killed_in_mid_wait_changes_nothing(
    pipeline: Pipeline, holding: tuple[str, str], component: str
) -> None:
    scan, run_id = holding
    pipeline.airflow.kill(component)
    pipeline.let_go(scan)
    pipeline.wait_for(lambda: pipeline.job_states(scan) == ["COMPLETED"], "the job ends meanwhile")
    pipeline.airflow.start(component)
    pipeline.airflow.wait_ready()

    assert pipeline.finish(run_id, 180) == "success"
    assert len(pipeline.jobs_of(scan)) == 1
    assert len(pipeline.transfers_of(run_id)) == 1
    assert pipeline.jobs_of(scan)[0]["state"] == "COMPLETED"


@pytest.mark.parametrize("state", [pytest.param("failed", marks=pytest.mark.both), "success"])
def test_marking_a_waiting_job_cancels_it_at_the_facility(
    pipeline: Pipeline, holding: tuple[str, str], state: str
) -> None:
    scan, run_id = holding
    pipeline.rest.set_task_state(DAG_ID, run_id, "ptychocam.wait", state)
    pipeline.wait_for(lambda: pipeline.job_states(scan) == ["CANCELLED"], "the job is cancelled")
    assert pipeline.finish(run_id) == "failed"
    if state == "success":
        said = "ptychocam.wait was marked as success before its job had ended, which cancelled the job"
        assert said in pipeline.rest.log(DAG_ID, run_id, "ptychocam.collect")
        pipeline.facility.control("nersc", "set", sacct_lag=0.0)  # or the next look is ten seconds later
        try:
            pipeline.rest.clear(DAG_ID, run_id, ["ptychocam.submit"])  # as it advises
            pipeline.let_go(scan)
            assert pipeline.finish(run_id) == "success"
        finally:
            pipeline.facility.control("nersc", "set", sacct_lag=1.0)
        assert sorted(pipeline.job_states(scan)) == ["CANCELLED", "COMPLETED"]


def test_clearing_a_waiting_job_takes_up_the_living_one(pipeline: Pipeline, holding: tuple[str, str]) -> None:
    scan, run_id = holding
    tries = pipeline.rest.task_instances(DAG_ID, run_id)["ptychocam.wait"]["try_number"]

    pipeline.rest.clear(DAG_ID, run_id, ["ptychocam.submit"])
    pipeline.wait_for(
        lambda: (
            pipeline.rest.task_instances(DAG_ID, run_id)["ptychocam.wait"]["try_number"] > tries
            and pipeline.state(run_id, "ptychocam.wait") == "deferred"
        ),
        "the cleared task waits again",
    )
    pipeline.let_go(scan)
    assert pipeline.finish(run_id) == "success"
    (job,) = pipeline.jobs_of(scan)
    assert job["state"] == "COMPLETED"


def test_clearing_a_failed_job_submits_a_new_one(
    pipeline: Pipeline, begun: dict[str, list[tuple[str, str]]]
) -> None:
    scan, run_id = begun["fail 1"].pop()
    assert pipeline.finish(run_id) == "failed"
    pipeline.live.scan(scan, b"ok\n")
    pipeline.rest.clear(DAG_ID, run_id, ["copy_to_nersc"])
    assert pipeline.finish(run_id) == "success"
    assert sorted(job["state"] for job in pipeline.jobs_of(scan)) == ["COMPLETED", "FAILED"]
    assert all(job["state"] in FINISHED_JOBS for job in pipeline.jobs_of(scan))


@pytest.mark.parametrize("state", ["failed", "success"])
def test_ending_a_run_between_submit_and_wait_cancels_its_job(pipeline: Pipeline, state: str) -> None:
    scan = pipeline.new_scan("hold")
    run_id = pipeline.start(scan)
    pipeline.wait_for_task(run_id, "ptychocam.submit", "success")
    pipeline.rest.call("PATCH", f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}", {"state": state})
    # None when the wait had begun already: then its end cancels the job.
    assert all(f"the run is over ({state})" in line for line in pipeline.clean_up(run_id))
    pipeline.wait_for(lambda: pipeline.job_states(scan) == ["CANCELLED"], "the job is cancelled")
    assert len(pipeline.jobs_of(scan)[0]["cancels"]) == 1


@pytest.fixture(scope="module")
def copying(live_airflow: Live) -> Iterator[list[str]]:
    """Runs whose transfers take minutes, begun at once; each test takes one."""
    pipeline = Pipeline(live_airflow)
    pipeline.facility.control("globus", "bandwidth", bytes_per_second=100)
    yield [pipeline.start(pipeline.new_scan("ok\n" + "x" * 10_000)) for _ in range(2)]
    pipeline.facility.control("globus", "bandwidth", bytes_per_second=None)


@pytest.mark.parametrize("state", ["failed", "success"])
def test_marking_a_waiting_transfer_cancels_it_at_the_facility(
    pipeline: Pipeline, copying: list[str], state: str
) -> None:
    run_id = copying.pop()
    pipeline.wait_for(lambda: pipeline.transfers_of(run_id), "the transfer is there")
    (transfer,) = pipeline.transfers_of(run_id)
    pipeline.wait_until_polled(run_id, "copy_to_nersc", transfer["task_id"])
    pipeline.rest.set_task_state(DAG_ID, run_id, "copy_to_nersc", state)
    pipeline.wait_for(lambda: pipeline.transfers_of(run_id)[0]["status"] == "FAILED", "it is cancelled")
    assert pipeline.transfers_of(run_id)[0]["fatal_error"]["code"] == "CANCELED"
