"""What a person ends in Airflow before anything is there to be told is cancelled at the facility, once."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
from airflow.models.dagbag import DBDagBag
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType, DagRunType

from facilities import sweeping
from facilities.globus.hook import GlobusHook
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.job_script import SlurmResources, job_script
from facilities.sweeping import WORK_KEY, RemoteWork, abandoned, cancel_living, sweep
from standin.testing import Facility, until
from support.globus import CONN_ID as GLOBUS
from support.globus import Place, transfer_request
from support.superfacility import CONN_ID as NERSC
from support.superfacility import RESOURCES, job_of

DAG_ID = "transfer_auto_recon"
DAG_FILE = Path(__file__).resolve().parents[2] / "dags" / f"{DAG_ID}.py"
pytestmark = pytest.mark.filterwarnings("ignore")  # of the Airflow server that runs in this process


@pytest.fixture(scope="module")
def dag(airflow_database: None) -> Any:
    """The main DAG as the scheduler has it."""
    bag = DagBag(dag_folder=str(DAG_FILE), bundle_name="dags-folder")
    DagBundlesManager().sync_bundles_to_db()
    with create_session() as session:
        sync_bag_to_db(bag, "dags-folder", None, session=session)
    with create_session() as session:
        return DBDagBag().get_latest_version_of_dag(DAG_ID, session=session)


class Run:
    """A run in Airflow's database, with what its tasks have left there."""

    def __init__(self, dag: Any) -> None:
        self.run_id = f"scan__{uuid.uuid4().hex}"
        with create_session() as session:
            dag.create_dagrun(
                run_id=self.run_id,
                run_after=datetime.now(UTC),
                conf={"file_path": "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"},
                run_type=DagRunType.MANUAL,
                triggered_by=DagRunTriggeredByType.TEST,
                state="running",
                session=session,
            )

    def leaves(self, task_id: str, work: RemoteWork) -> None:
        """A task has left what it set going or waits for."""
        with create_session() as session:
            XComModel.set(
                WORK_KEY, dict(work), task_id=task_id, dag_id=DAG_ID, run_id=self.run_id, session=session
            )

    def state(self, state: str | None = None, **tasks: str | None) -> None:
        """The run and its tasks (`__` for a dot) come to be in these states."""
        from airflow.models.dagrun import DagRun
        from sqlalchemy import select

        with create_session() as session:
            run = session.scalar(select(DagRun).where(DagRun.dag_id == DAG_ID, DagRun.run_id == self.run_id))
            assert run is not None
            run._state = state or run._state
            for name, value in tasks.items():
                ti = run.get_task_instance(name.replace("__", "."), session=session)
                assert ti is not None
                ti.state = value


def job(remote_id: str = "1") -> RemoteWork:
    return RemoteWork(kind="slurm", remote_id=remote_id, conn_id=NERSC, machine="perlmutter")


def transfer(remote_id: str = str(uuid.UUID(int=1))) -> RemoteWork:
    return RemoteWork(kind="globus", remote_id=remote_id, conn_id=GLOBUS)


@pytest.mark.parametrize("state", ["failed", "success"])
def test_all_work_of_a_run_that_is_over_is_abandoned(dag: Any, state: str) -> None:
    run = Run(dag)
    run.leaves("copy_to_nersc", transfer())
    run.leaves("ptychocam.submit", job("7"))
    assert abandoned(DAG_ID, run.run_id, None) == []
    run.state(state)
    assert sorted(work["remote_id"] for work in abandoned(DAG_ID, run.run_id, None)) == [
        transfer()["remote_id"],
        "7",
    ]
    run.state("queued")  # somebody has cleared it
    assert abandoned(DAG_ID, run.run_id, None) == []
    assert abandoned(DAG_ID, "deleted", None) == []


@pytest.mark.parametrize("state", ["failed", "success", "skipped"])
def test_of_a_marked_task_its_own_work_and_what_was_submitted_for_it(dag: Any, state: str) -> None:
    run = Run(dag)
    run.leaves("copy_to_nersc", transfer())
    run.leaves("ptychocam.submit", job("7"))
    run.leaves("cdtools.submit", job("8"))
    run.state(ptychocam__submit="success", ptychocam__wait=state)
    assert [work["remote_id"] for work in abandoned(DAG_ID, run.run_id, "ptychocam.wait")] == ["7"]
    run.leaves("ptychocam.wait", job("9"))  # the job that took 7's place
    assert {work["remote_id"] for work in abandoned(DAG_ID, run.run_id, "ptychocam.wait")} == {"7", "9"}


@pytest.mark.parametrize("state", [None, "scheduled", "running", "deferred", "up_for_retry"])
def test_a_task_that_lives_has_abandoned_nothing(dag: Any, state: str | None) -> None:
    run = Run(dag)
    run.leaves("ptychocam.submit", job("7"))
    run.state(ptychocam__wait=state)
    assert abandoned(DAG_ID, run.run_id, "ptychocam.wait") == []


# At the facilities


@pytest.fixture
def start_job(both: Facility) -> Callable[[], RemoteWork]:
    """Starts a job that runs."""

    def start() -> RemoteWork:
        hook = SuperfacilityHook(NERSC)
        script = job_script(SlurmResources(**RESOURCES), "job-0123456789abcdef-g0", "sleep 600\n")
        task_id = hook.submit(script, machine="perlmutter")
        job_id = until(lambda: hook.submitted_job(task_id) or "")
        until(lambda: job_of(both, job_id)["state"] == "RUNNING")
        hook.close()
        return job(job_id)

    return start


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What another test has cancelled is forgotten."""
    sweeping._cancelled.clear()
    yield
    sweeping._cancelled.clear()


def cancels(facility: Facility) -> list[str]:
    return [one["path"] for one in facility.requests("nersc") if one["method"] == "DELETE"]


def test_a_living_job_is_cancelled_and_its_end_is_nothing_to_cancel(
    both: Facility, start_job: Callable[[], RemoteWork], caplog: pytest.LogCaptureFixture
) -> None:
    work = start_job()
    assert cancel_living(work)
    until(lambda: job_of(both, work["remote_id"])["state"] == "CANCELLED")
    assert not cancel_living(work)
    assert len(cancels(both)) == 1
    assert not cancel_living(job("4711"))  # Slurm has forgotten it


def test_a_run_and_its_task_that_are_ended_together_cancel_their_job_once(
    both: Facility, start_job: Callable[[], RemoteWork], dag: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looks come at once, and the queue still shows the job for some seconds as if nothing had been."""
    run, work = Run(dag), start_job()
    run.leaves("ptychocam.submit", work)
    run.state("failed", ptychocam__wait="failed")
    both.control("nersc", "force_state", job_id=work["remote_id"], state="RUNNING", view="squeue")
    monkeypatch.setattr(sweeping, "LOOKS", (0.0, 0.2))
    looks = [
        sweeping._look_later(DAG_ID, run.run_id, task_id)
        for task_id in (None, "ptychocam.wait", "ptychocam.wait")
    ]
    for look in looks:
        look.join(20)
    assert len(cancels(both)) == 1


def test_a_second_cancel_follows_when_the_first_had_no_effect(
    both: Facility, start_job: Callable[[], RemoteWork], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = start_job()
    both.control("nersc", "force_state", job_id=work["remote_id"], state="RUNNING", view="squeue")
    assert sweep(work, "run 1")
    assert not sweep(work, "run 1")
    monkeypatch.setattr(sweeping, "QUEUE_LAG", 0.0)  # that much time has passed
    assert sweep(work, "run 1")
    assert len(cancels(both)) == 2


def test_a_job_that_is_being_cleared_away_is_not_cancelled_again(
    both: Facility, start_job: Callable[[], RemoteWork]
) -> None:
    work = start_job()
    both.control("nersc", "force_state", job_id=work["remote_id"], state="COMPLETING", view="squeue")
    assert not cancel_living(work)
    assert cancels(both) == []


def test_a_living_transfer_is_cancelled(both: Facility) -> None:
    both.control("globus", "bandwidth", bytes_per_second=1)
    place = Place(both, "/a.cxi").write(b"x" * 10_000)
    hook = GlobusHook(GLOBUS)
    work = transfer(hook.submit(transfer_request(place), hook.new_submission_id()))
    hook.close()
    assert sweep(work, "run 1")
    assert both.transfers()[0]["fatal_error"]["code"] == "CANCELED"
    assert not cancel_living(work)


def test_a_facility_that_is_away_is_told_and_kept_for_the_next_look(
    both: Facility,
    start_job: Callable[[], RemoteWork],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("facilities.superfacility.session._FIRST_WAIT", 0.01)
    work = start_job()
    both.control("nersc", "api_down")
    with caplog.at_level(logging.ERROR):
        assert not sweep(work, "run 1 of d")
    assert f"Whether slurm {work['remote_id']} of run 1 of d lives is not known" in caplog.text
    both.control("nersc", "api_up")
    assert sweep(work, "run 1 of d")


def test_a_task_that_ended_by_itself_in_its_worker_starts_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    monkeypatch.setattr(sweeping, "_look_later", lambda *which: looked.append(which))
    worker_side = SimpleNamespace(dag_id="d", run_id="r", task_id="t")
    sweeping.on_task_instance_failed(None, worker_side, None)
    sweeping.on_task_instance_success(None, worker_side)
    sweeping.on_dag_run_success(SimpleNamespace(dag_id="d", run_id="r"), "success")
    assert looked == []
    sweeping.on_dag_run_success(SimpleNamespace(dag_id="d", run_id="r"), "manually set")
    sweeping.on_dag_run_failed(SimpleNamespace(dag_id="d", run_id="r"), "timed out")
    assert looked == [("d", "r", None)] * 2
