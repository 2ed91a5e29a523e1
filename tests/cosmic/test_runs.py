"""What a task knows of a scan's runs, and of how many are active."""

from __future__ import annotations

import pytest
from airflow.sdk.execution_time import task_runner

from cosmic import runs
from cosmic.dag_constants import CHECK_TASK, COPY_TASK, TRANSFER_AUTO_RECON
from cosmic.scans import ScanPath, parse_scan_path
from support.airflow_says import AirflowSays


class Airflow(AirflowSays):
    """The runs of the DAG."""

    def add(
        self, run_id: str, state: str = "running", check: str | None = "success", copy: str | None = None
    ) -> None:
        """Add a run with the states of its first two tasks."""
        self.runs[TRANSFER_AUTO_RECON, run_id] = state
        self.tasks[TRANSFER_AUTO_RECON, run_id] = {CHECK_TASK: check, COPY_TASK: copy}

    def enter(self, scan: ScanPath, run_id: str) -> None:
        """What the first task of a run does whose id is not made from its scan."""
        added = self.events.setdefault(runs.OTHER_RUNS.name, [])
        added.append((run_id, {"scan": str(scan.relative)}))


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Airflow:
    fake = Airflow()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", fake, raising=False)
    return fake


def scan(number: int) -> ScanPath:
    return parse_scan_path(f"2023/02/230216/NS_230216{number:03}_ccdframes_0_0.cxi")


def test_all_runs_of_a_scan_are_found_whatever_their_ids(airflow: Airflow) -> None:
    airflow.add(scan(1).run_id(), "success")
    airflow.add(scan(1).run_id(2), "failed")
    airflow.add(scan(1).run_id(4), "queued")  # somebody has deleted the third
    airflow.add("by_hand", "running")
    airflow.enter(scan(2), "by_hand")
    airflow.enter(scan(2), "deleted")
    airflow.enter(scan(9), "of_a_scan_that_is_not_asked_for")
    scans = [scan(1), scan(2), scan(3)]
    assert runs.states_by_generation(scans) == {
        scan(1): {1: "success", 2: "failed", 4: "queued"},
        scan(2): {runs.OTHER: "running"},
    }
    assert runs.with_a_run(scans) == {scan(1), scan(2)}


@pytest.mark.parametrize(
    ("states", "together"),
    [
        (["failed", "running", "success"], "running"),
        (["success", "queued"], "running"),
        (["failed", "success"], "success"),
        (["failed", "failed"], "failed"),
    ],
)
def test_other_runs_of_a_scan_have_one_state_together(
    airflow: Airflow, states: list[str], together: str
) -> None:
    airflow.add(scan(1).run_id(), "failed")
    for number, state in enumerate(states):
        airflow.add(f"by_hand_{number}", state)
        airflow.enter(scan(1), f"by_hand_{number}")
        airflow.enter(scan(1), f"by_hand_{number}")  # its task was cleared
    assert runs.states_by_generation([scan(1)]) == {scan(1): {1: "failed", runs.OTHER: together}}


def test_a_run_that_cannot_begin_is_not_active(airflow: Airflow) -> None:
    assert runs.activity([]) == (0, 0)
    airflow.add("over", "success", copy="success")
    airflow.add("copies", copy="deferred")
    airflow.add("reconstructs", copy="success")
    airflow.add("begins", check="queued")
    airflow.add("logical_date_in_2099", check=None)
    airflow.add("run_after_2099", "queued", check=None)
    assert runs.activity([]) == (3, 2)
    # What the caller has started itself counts from the first moment, though the DAG may be paused.
    airflow.add("just_started", "queued", check=None)
    assert runs.activity(["just_started", "reconstructs", *(f"older_{n}" for n in range(100))]) == (4, 3)
