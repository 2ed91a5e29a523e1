"""The clean-up cancels what nobody will take up again, once, and nothing else."""

from __future__ import annotations

from itertools import product

import pytest

import facilities.globus.orphans
import facilities.superfacility.orphans  # noqa: F401 - both register what finds their work
from facilities.errors import CredentialsError
from facilities.globus.hook import GlobusHook
from facilities.globus.submission import make_label
from facilities.orphans import CleanupResult, OrphanCleanup, OwningTasks
from facilities.ownership import Owner, this_airflow
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.job_script import SlurmResources, job_script
from standin.testing import Facility, until
from support.airflow_says import AirflowSays
from support.globus import CONN_ID as GLOBUS
from support.globus import Place, transfer_request
from support.superfacility import CONN_ID as NERSC
from support.superfacility import RESOURCES, job_of

DAG = "transfer_auto_recon"
OWNING_TASKS: OwningTasks = {
    DAG: [("copy_to_nersc",), ("ptychocam.submit", "ptychocam.wait")],
    "other": [("copy",)],
}
LIVING_TASK = [
    None,
    "scheduled",
    "queued",
    "running",
    "deferred",
    "up_for_retry",
    "up_for_reschedule",
    "restarting",
]
SUBMITTED = Owner(DAG, "scan__1", "ptychocam.submit")
COPIED = Owner(DAG, "scan__1", "copy_to_nersc")


def start_job(facility: Facility, owner: Owner | None = SUBMITTED) -> str:
    """A job that runs, of that owner."""
    script = job_script(SlurmResources(**RESOURCES), "job-0123456789abcdef-g0", "sleep 600\n", owner=owner)
    hook = SuperfacilityHook(NERSC)
    task_id = hook.submit(script, machine="perlmutter")
    job_id: str = until(lambda: hook.submitted_job(task_id) or "")
    until(lambda: job_of(facility, job_id)["state"] == "RUNNING")
    hook.close()
    return job_id


def start_transfer(facility: Facility, owner: Owner = COPIED) -> str:
    """A transfer that takes for ever, of that owner."""
    facility.control("globus", "bandwidth", bytes_per_second=1)
    place = Place(facility, f"/{owner.digest}.cxi").write(b"x" * 100_000)
    hook = GlobusHook(GLOBUS)
    request = transfer_request(place, label=make_label(owner.run_id, owner, "0123456789"))
    task_id = hook.submit(request, hook.new_submission_id())
    hook.close()
    return task_id


def clean_up() -> CleanupResult:
    """One run of the clean-up's task."""
    cleanup = OrphanCleanup(OWNING_TASKS)
    cleanup.cancel_orphans("superfacility", NERSC, machine="perlmutter")
    cleanup.cancel_orphans("globus", GLOBUS)
    return cleanup.result


def living(jobs: int, transfers: int) -> dict[str, int]:
    return {"Slurm jobs": jobs, "Globus tasks": transfers}


def cancels(facility: Facility) -> list[str]:
    """Requests that cancel something."""
    sent = [
        one for one in facility.requests() if one["method"] == "DELETE" or one["path"].endswith("/cancel")
    ]
    return [one["path"].rsplit("/", 2)[1 if one["path"].endswith("/cancel") else 2] for one in sent]


@pytest.mark.parametrize("state", ["failed", "success"])
def test_what_a_run_that_is_over_left_behind_is_cancelled_once(
    both: Facility, airflow_says: AirflowSays, state: str
) -> None:
    job, transfer = start_job(both), start_transfer(both)
    airflow_says.runs[DAG, "scan__1"] = state
    airflow_says.tasks[DAG, "scan__1"] = {"copy_to_nersc": state}
    done = clean_up()
    assert done["living"] == living(1, 1)
    assert [line.split(":")[-1] for line in done["cancelled"]] == [f" the run is over ({state})"] * 2
    until(lambda: job_of(both, job)["state"] == "CANCELLED")
    assert both.transfers()[0]["fatal_error"]["code"] == "CANCELED"
    assert clean_up()["cancelled"] == []
    assert sorted(cancels(both)) == sorted([job, transfer])


def test_what_waits_is_cleared_or_between_two_tries_is_left_alone(
    both: Facility, airflow_says: AirflowSays
) -> None:
    job, transfer = start_job(both), start_transfer(both)
    for state, task in product(["queued", "running"], LIVING_TASK):
        airflow_says.runs[DAG, "scan__1"] = state
        for submit, wait in ((task, None), ("success", task), ("failed", task)):
            tasks = {"copy_to_nersc": task, "ptychocam.submit": submit, "ptychocam.wait": wait}
            airflow_says.tasks[DAG, "scan__1"] = tasks
            done = clean_up()
            assert (done["living"], done["cancelled"]) == (living(1, 1), []), tasks
    assert job_of(both, job)["state"] == "RUNNING"
    assert next(task for task in both.transfers() if task["task_id"] == transfer)["status"] == "ACTIVE"
    assert cancels(both) == []


@pytest.mark.parametrize(
    ("submit", "wait"), [("failed", "upstream_failed"), ("success", "failed"), ("success", "skipped")]
)
def test_work_is_abandoned_when_all_that_looked_after_it_is_over(
    both: Facility, airflow_says: AirflowSays, submit: str, wait: str
) -> None:
    job = start_job(both)
    airflow_says.runs[DAG, "scan__1"] = "running"  # with another engine
    airflow_says.tasks[DAG, "scan__1"] = {"ptychocam.submit": submit, "ptychocam.wait": wait}
    (done,) = clean_up()["cancelled"]
    assert f"Slurm job {job} (RUNNING) of {DAG}.ptychocam.submit of run scan__1" in done
    assert f"ptychocam.submit is {submit}, ptychocam.wait is {wait}" in done


@pytest.mark.parametrize("wait", ["removed", None])
def test_an_upgrade_that_renames_a_task_cancels_nothing_while_the_run_goes_on(
    both: Facility, airflow_says: AirflowSays, caplog: pytest.LogCaptureFixture, wait: str | None
) -> None:
    job = start_job(both)
    airflow_says.runs[DAG, "scan__1"] = "running"
    tasks: dict[str, str | None] = {"ptychocam.submit": "success"}
    tasks |= {"ptychocam.wait": wait} if wait else {}
    airflow_says.tasks[DAG, "scan__1"] = tasks | {"ptychocam.follow": "deferred"}
    assert clean_up()["cancelled"] == []
    assert job_of(both, job)["state"] == "RUNNING"
    assert f"Work of {SUBMITTED} is left alone" in caplog.text
    airflow_says.runs[DAG, "scan__1"] = "failed"
    assert len(clean_up()["cancelled"]) == 1


def test_work_of_a_task_that_the_clean_up_does_not_know_is_left_alone_with_a_warning(
    both: Facility, airflow_says: AirflowSays, caplog: pytest.LogCaptureFixture
) -> None:
    start_job(both, Owner(DAG, "scan__1", "ptychocam.send"))
    airflow_says.runs[DAG, "scan__1"] = "running"
    airflow_says.tasks[DAG, "scan__1"] = {"ptychocam.send": "success"}
    assert clean_up()["cancelled"] == []
    assert "ptychocam.send" in caplog.text
    assert "is left alone" in caplog.text


def test_a_deleted_run_has_abandoned_its_job_unless_it_may_be_another_airflows(
    both: Facility, airflow_says: AirflowSays, monkeypatch: pytest.MonkeyPatch
) -> None:
    this_airflow()  # stays what it is for this test
    job = start_job(both)
    for address in ("http://localhost:8080", "http://127.0.0.1:9", ""):
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", address)
        assert clean_up()["cancelled"] == []
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example")
    (done,) = clean_up()["cancelled"]
    assert done.endswith("the run was deleted")
    until(lambda: job_of(both, job)["state"] == "CANCELLED")


def test_what_is_not_ours_is_left_alone(both: Facility, airflow_says: AirflowSays) -> None:
    start_job(both, None)  # by hand, or by another Airflow
    start_transfer(both, Owner(DAG, "a run that Airflow does not have", "copy_to_nersc"))
    done = clean_up()
    assert done == CleanupResult(living=living(0, 0), cancelled=[], not_cancelled=[], unreachable=[])
    assert cancels(both) == []


def test_a_mapped_task_is_judged_by_its_own_instance(both: Facility, airflow_says: AirflowSays) -> None:
    dead, living = (start_transfer(both, Owner("other", "r", "copy", index)) for index in (0, 1))
    airflow_says.runs["other", "r"] = "running"
    airflow_says.tasks["other", "r"] = {"copy_0": "failed", "copy_1": "deferred"}
    assert len(clean_up()["cancelled"]) == 1
    assert cancels(both) == [dead]
    assert living not in cancels(both)


def test_a_task_that_is_cleared_at_the_last_moment_keeps_its_job(
    both: Facility, airflow_says: AirflowSays, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_job(both)
    airflow_says.runs[DAG, "scan__1"] = "failed"
    look = SuperfacilityHook.jobs

    def cleared_meanwhile(self: SuperfacilityHook, *arguments: object) -> object:
        airflow_says.runs[DAG, "scan__1"] = "queued"
        return look(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SuperfacilityHook, "jobs", cleared_meanwhile)
    assert clean_up()["cancelled"] == []
    assert cancels(both) == []


def test_a_job_that_has_ended_meanwhile_is_not_cancelled(both: Facility, airflow_says: AirflowSays) -> None:
    job = start_job(both)
    airflow_says.runs[DAG, "scan__1"] = "success"
    both.control("nersc", "end_job", job_id=job, state="COMPLETED")
    assert clean_up()["cancelled"] == []
    assert cancels(both) == []


def test_a_service_that_is_away_is_done_and_the_other_looked_at(
    both: Facility, airflow_says: AirflowSays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facilities.superfacility.session._FIRST_WAIT", 0.01)
    start_job(both)
    transfer = start_transfer(both)
    airflow_says.runs[DAG, "scan__1"] = "failed"
    airflow_says.tasks[DAG, "scan__1"] = {"copy_to_nersc": "failed"}
    both.control("nersc", "api_down")
    done = clean_up()
    assert [line.split(":")[0] for line in done["unreachable"]] == ["Slurm jobs"]
    assert cancels(both) == [transfer]
    both.control("nersc", "api_up")
    assert len(clean_up()["cancelled"]) == 1


def test_a_cancel_that_is_not_taken_is_done_and_comes_again(
    both: Facility, airflow_says: AirflowSays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facilities.superfacility.session._FIRST_WAIT", 0.01)
    job = start_job(both)
    airflow_says.runs[DAG, "scan__1"] = "failed"
    both.fault(service="nersc", method="DELETE", kind="status", status=503)
    done = clean_up()
    assert done["cancelled"] == []
    assert job in done["not_cancelled"][0]
    both.clear_faults()
    assert len(clean_up()["cancelled"]) == 1


def test_refused_credentials_fail_the_task(both: Facility, airflow_says: AirflowSays) -> None:
    both.control("nersc", "expire_client")
    with pytest.raises(CredentialsError, match="client"):
        clean_up()
