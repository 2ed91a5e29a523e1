"""Waiting for a job: the results, the failures and their story, kills, limits, and what it costs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowTaskTimeout, TaskDeferralTimeout, TaskDeferred

from facilities.errors import (
    CredentialsError,
    FacilityError,
    InfrastructureError,
    NotFoundError,
    ResourcesError,
    TimeLimitError,
    UserError,
)
from facilities.superfacility import sensors
from facilities.superfacility.operators import SfapiSubmitJobOperator
from facilities.superfacility.sensors import SlurmJobSensor
from facilities.superfacility.triggers import SlurmJobTrigger, SubmitTrigger
from standin.testing import Facility, until
from support.globus import first_event
from support.superfacility import CONN_ID, RESOURCES, Logged, Task, eventually, job_of

LONG = "sleep 60"
Deferrable = pytest.mark.parametrize("deferrable", [True, False])


@pytest.fixture
def waiting(nersc: Facility, task: Task, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr("facilities.superfacility.sensors.SlurmJobTrigger", _quick)
    return task


def _quick(**kwargs: Any) -> SlurmJobTrigger:
    return SlurmJobTrigger(**kwargs, first_pause=0.01)


def _running(task: Task, script: str = LONG, **resources: Any) -> str:
    job_id = str(task.finish(task.submit(script, resources=resources)))
    task.retry()
    until(lambda: job_of(task.facility, job_id)["state"] == "RUNNING")
    return job_id


def _ended(task: Task, script: str, **resources: Any) -> str:
    job_id = str(task.finish(task.submit(script, resources=resources)))
    until(lambda: not job_of(task.facility, job_id)["active"])
    return job_id


@Deferrable
def test_a_completed_job_gives_a_typed_result(waiting: Task, deferrable: bool) -> None:
    job_id = waiting.finish(waiting.submit("sleep 0.2"))
    result = waiting.finish(waiting.wait(job_id, deferrable=deferrable))
    assert result["job_id"] == job_id
    assert (result["state"], result["nodes"], result["machine"]) == ("COMPLETED", 1, "perlmutter")
    assert result["run_seconds"] >= 10  # of the stand-in's quick seconds
    assert result["node_hours"] == pytest.approx(result["run_seconds"] / 3600)
    assert result["queue_seconds"] >= 0
    assert result["stdout"] == str(waiting.log)
    assert result["submitted"] is not None
    json.dumps(result)
    assert waiting.ti.xcoms["_link_SlurmJobLink"].startswith("https://")


@Deferrable
def test_a_failed_job_tells_its_own_story(waiting: Task, deferrable: bool) -> None:
    script = 'for i in $(seq 100); do echo "line $i"; done; echo "no GPU found" >&2; exit 3'
    error_file = str(waiting.log) + ".err"
    job_id = _ended(waiting, script, error=error_file)
    with pytest.raises(UserError) as caught:
        waiting.finish(waiting.wait(job_id, deferrable=deferrable, stderr=error_file))
    said = str(caught.value)
    assert (caught.value.remote_id, caught.value.state) == (job_id, "FAILED")
    for part in (
        "exit code 3, signal 0",
        "of 3600 s",
        "nodes nid",
        "no GPU found",
        error_file,
        str(waiting.log),
    ):
        assert part in said
    assert caught.value.what.startswith("no GPU found. The Slurm job ")
    assert "ended as FAILED" in caught.value.what
    assert "line 100" in said
    assert "line 71" in said
    assert "line 70\n" not in said
    assert "when its input was mended start a new run" in said
    assert "clear the submit task" in said


def test_a_job_that_wrote_nothing_is_told_apart_from_one_whose_log_cannot_be_read(
    waiting: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "_TAIL_PATIENCE", 0.1)
    job_id = _ended(waiting, "exit 1")
    waiting.log.unlink()
    with pytest.raises(UserError, match="has not written this file"):
        waiting.finish(waiting.wait(job_id))
    waiting.facility.fault(kind="status", status=500, path="/utilities/")
    with pytest.raises(UserError, match="could not be read: Listing"):
        waiting.finish(waiting.wait(job_id))


def test_the_output_is_asked_for_again_while_the_api_is_away(
    waiting: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "_TAIL_PAUSE", 0.1)
    job_id = _ended(waiting, "echo no GPU found; exit 3")
    waiting.facility.fault(kind="status", status=503, path="/utilities/", times=9)
    with pytest.raises(UserError, match="no GPU found"):
        waiting.finish(waiting.wait(job_id))
    assert waiting.facility.faults()[0]["hits"] == 9


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("TIMEOUT", ResourcesError),
        ("OUT_OF_MEMORY", ResourcesError),
        ("NODE_FAIL", InfrastructureError),
        ("BOOT_FAIL", InfrastructureError),
        ("PREEMPTED", InfrastructureError),
        ("CANCELLED", UserError),
        ("DEADLINE", UserError),
        ("REVOKED", UserError),
    ],
)
def test_each_end_has_its_class(waiting: Task, state: str, kind: type[FacilityError]) -> None:
    job_id = _ended(waiting, "true")
    waiting.facility.control("nersc", "force_state", job_id=job_id, state=state)
    with pytest.raises(kind) as caught:
        waiting.finish(waiting.wait(job_id))
    assert caught.type is kind
    assert caught.value.state == state
    assert caught.value.next_step


def test_a_time_limit_that_really_passes(waiting: Task) -> None:
    job_id = waiting.finish(waiting.submit("sleep 60", resources={"time_limit": "00:00:10"}))
    with pytest.raises(ResourcesError, match="TIMEOUT"):
        waiting.finish(waiting.wait(job_id))


def test_a_missing_output_folder_is_named_as_the_cause(waiting: Task) -> None:
    job_id = _ended(waiting, "true", output=str(waiting.facility.nersc / "gone" / "%j.out"))
    with pytest.raises(UserError, match="does not exist: make it"):
        waiting.finish(waiting.wait(job_id))


def test_a_requeued_job_is_waited_for_to_its_real_end(
    waiting: Task, caplog: pytest.LogCaptureFixture
) -> None:
    flag = str(waiting.log) + ".flag"
    script = f"if [ -e {flag} ]; then exit 0; fi; touch {flag}; sleep 60"
    job_id = _running(waiting, script, requeue=True)
    deferral = waiting.start(waiting.wait(job_id))
    until(Path(flag).exists)
    waiting.facility.control("nersc", "node_failure", job_id=job_id)
    assert waiting.resume(waiting.wait(job_id), deferral, waiting.fire(deferral))["state"] == "COMPLETED"
    assert job_of(waiting.facility, job_id)["runs"] == 2


def test_a_job_that_slurm_never_knew(waiting: Task) -> None:
    with pytest.raises(NotFoundError, match="sacct -j 4711"):
        waiting.finish(waiting.wait("4711"))


def test_accounting_that_lags_does_not_matter(waiting: Task) -> None:
    waiting.facility.control("nersc", "set", sacct_lag=1.0)
    job_id = waiting.finish(waiting.submit("true"))
    assert waiting.finish(waiting.wait(job_id, grace=5.0))["state"] == "COMPLETED"


@pytest.mark.parametrize("job_id", ["", "None", "12; rm -rf /", "1,2", "../1"])
def test_what_is_no_job_id_is_refused(waiting: Task, job_id: str) -> None:
    with pytest.raises(UserError, match="Not a Slurm job id"):
        waiting.finish(waiting.wait(job_id))


def test_an_outage_while_waiting_holds_and_is_told_with_its_end(
    waiting: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = waiting.finish(waiting.submit("sleep 0.5"))
    deferral = waiting.start(waiting.wait(job_id))
    logged = Logged(capsys)

    async def through_an_outage() -> Any:
        def control(verb: str, **body: Any) -> Any:
            return asyncio.to_thread(waiting.facility.control, "nersc", verb, **body)

        planned = await control("maintenance", seconds=3600, description="Slurm upgrade")
        event = asyncio.create_task(first_event(waiting.trigger(deferral)))
        await eventually(lambda: "has not answered" in logged)
        until = datetime.fromisoformat(planned["end_at"]).astimezone(UTC)
        assert f"until {until:%Y-%m-%dT%H:%M}" in logged
        assert "Slurm upgrade" in logged
        await control("end_maintenance")
        return await asyncio.wait_for(event, 30)

    event = asyncio.run(through_an_outage())
    assert waiting.resume(waiting.wait(job_id), deferral, event)["state"] == "COMPLETED"
    assert "answers again" in logged


@Deferrable
def test_a_client_that_expires_while_waiting_fails_the_task_and_not_the_job(
    waiting: Task, deferrable: bool
) -> None:
    job_id = _running(waiting)
    waiting.facility.control("nersc", "expire_client")
    with pytest.raises(CredentialsError, match="Iris"):
        waiting.finish(waiting.wait(job_id, deferrable=deferrable))
    assert job_of(waiting.facility, job_id)["active"]


def test_tokens_that_are_revoked_while_waiting_are_renewed(waiting: Task) -> None:
    job_id = waiting.submit_held()
    deferral = waiting.start(waiting.wait(job_id))

    def revoke() -> None:
        waiting.facility.clear_requests()
        waiting.facility.control("nersc", "revoke_tokens")

    def renewed() -> bool:
        """Refused, a new token, answered: only then the next revocation, or the new token is refused too."""
        replies = [one["status"] for one in waiting.facility.requests("nersc")]
        return 403 in replies and 200 in replies[replies.index(403) :][2:]

    async def revoke_again_and_again() -> Any:
        event = asyncio.create_task(first_event(waiting.trigger(deferral)))
        for _ in range(5):
            await asyncio.to_thread(revoke)
            await eventually(renewed)
        waiting.let_go()
        return await asyncio.wait_for(event, 60)

    event = asyncio.run(revoke_again_and_again())
    assert waiting.resume(waiting.wait(job_id), deferral, event)["state"] == "COMPLETED"


@Deferrable
def test_the_limit_of_the_wait_cancels_the_job(waiting: Task, deferrable: bool) -> None:
    job_id = _running(waiting)
    with pytest.raises(TimeLimitError, match=f"Job {job_id} was cancelled"):
        waiting.finish(waiting.wait(job_id, deferrable=deferrable, timeout=0.5))
    until(lambda: not job_of(waiting.facility, job_id)["active"])
    assert len(job_of(waiting.facility, job_id)["cancels"]) == 1


def test_airflows_own_timeout_cancels_too(waiting: Task) -> None:
    job_id = _running(waiting)
    deferral = waiting.start(waiting.wait(job_id))
    sensor = waiting.wait(job_id)()
    sensor.execute_complete = _raise(TaskDeferralTimeout("no triggerer"))  # type: ignore[method-assign]
    with pytest.raises(TimeLimitError, match="check that a triggerer runs"):
        sensor.resume_execution(deferral.method_name, {"event": None}, waiting.context())
    until(lambda: not job_of(waiting.facility, job_id)["active"])


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_defer_has_a_timeout_later_than_the_triggers_own(waiting: Task) -> None:
    deferral = waiting.start(waiting.wait("4711", timeout=100.0))
    assert isinstance(deferral, TaskDeferred)
    assert deferral.timeout.total_seconds() > 100
    assert deferral.trigger.deadline - time.time() == pytest.approx(100, abs=5)


@pytest.mark.parametrize(
    "event", [None, {}, "success", {"outcome": "ended", "job_id": "4711"}, {"job_id": "1"}]
)
def test_a_strange_event_fails_loudly(waiting: Task, event: Any) -> None:
    deferral = waiting.start(waiting.wait("4711"))
    with pytest.raises(InfrastructureError, match="without a proper event"):
        waiting.resume(waiting.wait("4711"), deferral, event)


# Kills


@pytest.mark.parametrize(
    ("state", "killed"), [("failed", 1), ("success", 1), ("skipped", 1), ("deferred", 0)]
)
def test_killing_the_waiting_task_cancels_once_and_clearing_does_not(
    waiting: Task, task_state: Callable[[str], None], state: str, killed: int
) -> None:
    job_id = _running(waiting)
    deferral = waiting.start(waiting.wait(job_id))
    task_state(state)
    trigger = waiting.trigger(deferral)
    asyncio.run(trigger.on_kill())
    asyncio.run(trigger.cleanup())
    assert len(job_of(waiting.facility, job_id)["cancels"]) == killed


def test_on_kill_stays_within_its_time_when_nersc_does_not_answer(
    waiting: Task, task_state: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facilities.superfacility.hook.EMERGENCY_TIMEOUT", 0.2)
    job_id = _running(waiting)
    deferral = waiting.start(waiting.wait(job_id))
    task_state("failed")
    waiting.facility.fault(kind="delay", delay=15.0, service="nersc", method="DELETE")
    began = time.monotonic()
    asyncio.run(waiting.trigger(deferral).on_kill())
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("state", "killed"), [("failed", 1), ("running", 0)])
def test_killing_a_worker_that_waits(
    waiting: Task, task_state: Callable[[str], None], state: str, killed: int
) -> None:
    job_id = _running(waiting)
    task_state(state)
    sensor = waiting.wait(job_id)()
    sensor._ti, sensor.remote_id = waiting.ti, job_id
    sensor.on_kill()
    assert len(job_of(waiting.facility, job_id)["cancels"]) == killed


def test_an_execution_timeout_in_the_worker_cancels(waiting: Task, task_state: Callable[[str], None]) -> None:
    job_id = _running(waiting)
    task_state("running")
    sensor = waiting.wait(job_id)()
    sensor._ti, sensor.remote_id = waiting.ti, job_id
    try:
        raise AirflowTaskTimeout("8 s")
    except AirflowTaskTimeout:
        sensor.on_kill()
    assert len(job_of(waiting.facility, job_id)["cancels"]) == 1


@pytest.mark.parametrize(("state", "killed"), [("failed", 1), ("deferred", 0)])
def test_killing_a_task_whose_submit_is_in_doubt_cancels_the_job_by_its_name(
    task: Task, task_state: Callable[[str], None], state: str, killed: int
) -> None:
    task.facility.fault(kind="drop_reply", times=1, method="POST", path="/compute/jobs/")
    held = task.start(task.submit(LONG, settle=60.0))
    assert isinstance(held.trigger, SubmitTrigger)
    [job] = task.books()
    task_state(state)
    asyncio.run(task.trigger(held).on_kill())
    assert len(job_of(task.facility, job["job_id"])["cancels"]) == killed


def test_a_kill_during_the_submit_cancels_what_was_submitted(
    task: Task, task_state: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = task.submit(LONG)()
    submit = operator.hook.submit

    def killed_meanwhile(script: str, *, machine: str) -> str:
        task_state("failed")
        operator.on_kill()
        return submit(script, machine=machine)

    monkeypatch.setattr(operator.hook, "submit", killed_meanwhile)
    with pytest.raises(InfrastructureError, match="ended during its submit"):
        operator.execute(task.context())
    [job] = task.books()
    assert len(job["cancels"]) == 1


def test_a_kill_before_the_submit_submits_nothing(task: Task, task_state: Callable[[str], None]) -> None:
    operator = task.submit(LONG)()
    operator.on_kill()
    task_state("failed")
    with pytest.raises(InfrastructureError, match="before its job was submitted"):
        operator.execute(task.context())
    assert task.books() == []


# What it costs, and what is kept


def test_fifty_waiting_tasks_share_one_request_an_interval(waiting: Task) -> None:
    facility = waiting.facility
    job_id = _running(waiting)
    deferral = waiting.start(waiting.wait(job_id, min_poll_interval=0.5, max_poll_interval=0.5))
    facility.clear_requests()

    async def wait_for_all() -> list[Any]:
        tasks = [asyncio.create_task(first_event(waiting.trigger(deferral))) for _ in range(50)]
        began = time.monotonic()
        polls = 0
        while polls < 6:
            seen = await asyncio.to_thread(facility.requests, "nersc")
            polls = sum("/compute/jobs/" in one["path"] for one in seen)
        assert polls <= 4 + (time.monotonic() - began) / 0.4
        await asyncio.to_thread(facility.control, "nersc", "end_all")
        return await asyncio.gather(*tasks)

    events = asyncio.run(wait_for_all())
    assert [event["outcome"] for event in events] == ["ended"] * 50


def test_nothing_secret_is_in_trigger_arguments_or_xcoms(waiting: Task) -> None:
    job_id = waiting.finish(waiting.submit("true"))
    deferral = waiting.start(waiting.wait(job_id))
    key = (waiting.facility.settings.credentials / "sfapi_key.pem").read_text().splitlines()[1]
    path, kwargs = deferral.trigger.serialize()
    assert path == "facilities.superfacility.triggers.SlurmJobTrigger"
    kept = json.dumps(kwargs) + json.dumps(waiting.ti.xcoms)
    assert key not in kept
    assert "PRIVATE" not in kept
    assert set(kwargs) == {
        "superfacility_conn_id", "machine", "remote_id", "deadline", "min_poll_interval",
        "max_poll_interval", "confirm", "grace", "first_pause",
    }  # fmt: skip


def test_the_log_files_are_those_that_the_submit_task_names(waiting: Task) -> None:
    job_id = _ended(waiting, "echo from the submit task; exit 1")
    waiting.pulled["job"] = dict(waiting.ti.xcoms["job"])
    waiting.facility.clear_requests()
    with DAG("d", schedule=None):
        submit = SfapiSubmitJobOperator(
            task_id="submit", resources=RESOURCES, script="true", superfacility_conn_id=CONN_ID
        )
        sensor = SlurmJobSensor(
            task_id="wait",
            job_id=submit.output,
            superfacility_conn_id=CONN_ID,
            min_poll_interval=0.05,
            deferrable=False,
        )
    assert sensor.upstream_task_ids == {"submit"}
    sensor.job_id = job_id  # as Airflow renders it
    with pytest.raises(UserError, match="from the submit task"):
        sensor.execute(waiting.context())
    assert not [one for one in waiting.facility.requests("nersc") if "/account" in one["path"]]
