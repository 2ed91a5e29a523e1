"""A job that the facility lost is submitted again by the task that waits for it, once for each loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import TaskDeferralTimeout
from hypothesis import given
from hypothesis import strategies as st

from facilities.errors import InfrastructureError, ResourcesError, TimeLimitError, UserError
from facilities.superfacility.job_script import SlurmResources
from facilities.superfacility.operators import SfapiSubmitJobOperator
from facilities.superfacility.sensors import ResubmittingSlurmJobSensor
from facilities.superfacility.slurm import SlurmState
from facilities.superfacility.triggers import SlurmJobTrigger
from standin.testing import until
from support.superfacility import CONN_ID, RESOURCES, Store, Task, job_of, submits

QUICK: dict[str, Any] = {
    "min_poll_interval": 0.05,
    "max_poll_interval": 0.2,
    "confirm": 0.3,
    "settle": 0.5,
    "timeout": 60.0,
    "resubmit": 3,
}
LOSSES = {"NODE_FAIL": "node_failure", "PREEMPTED": "preempt", "BOOT_FAIL": "boot_fail"}


@pytest.fixture
def waiting(task: Task, monkeypatch: pytest.MonkeyPatch) -> Task:
    """A task whose job is to be waited for; the trigger looks at once."""

    def quick(**kwargs: Any) -> SlurmJobTrigger:
        return SlurmJobTrigger(**kwargs, first_pause=0.01)

    monkeypatch.setattr("facilities.superfacility.sensors.SlurmJobTrigger", quick)
    return task


def submit(task: Task, script: str, **resources: Any) -> str:
    """Submit as the submit task does; the sensor's task begins with a store of its own."""
    job_id = str(task.finish(task.submit(script, resources=resources)))
    task.pulled["job"] = dict(task.ti.xcoms["job"])
    task.store = Store()
    return job_id


def sensor(job_id: str, **changes: Any) -> Callable[[], ResubmittingSlurmJobSensor]:
    """Makes the sensor that follows the submit task."""

    def make() -> ResubmittingSlurmJobSensor:
        with DAG("d", schedule=None):
            first = SfapiSubmitJobOperator(
                task_id="submit", resources=RESOURCES, script="true", superfacility_conn_id=CONN_ID
            )
            made = ResubmittingSlurmJobSensor(
                task_id="wait",
                job_id=first.output,
                superfacility_conn_id=CONN_ID,
                **QUICK | changes,
            )
        made.job_id = job_id  # as Airflow renders it
        return made

    return make


def lose(task: Task, job_id: str, verb: str) -> None:
    until(lambda: job_of(task.facility, job_id)["state"] == "RUNNING")
    task.facility.control("nersc", verb, job_id=job_id, requeue=False)


@pytest.mark.parametrize(("state", "verb"), LOSSES.items())
def test_a_lost_job_is_submitted_again_and_its_successor_is_the_result(
    waiting: Task, state: str, verb: str
) -> None:
    marker = waiting.facility.nersc / f"{waiting.ti.run_id}.go"
    first = submit(waiting, f"until [ -e '{marker}' ]; do sleep 0.05; done")
    lose(waiting, first, verb)
    marker.touch()
    result = waiting.finish(sensor(first))
    assert result["state"] == "COMPLETED"
    assert result["job_id"] != first
    assert sorted(job["state"] for job in waiting.books()) == sorted([state, "COMPLETED"])
    assert [job["name"][-3:] for job in waiting.books()] == ["-g0", "-g1"]


def test_a_job_is_not_submitted_again_for_ever(waiting: Task) -> None:
    first = submit(waiting, "sleep 60")
    outcome = waiting.start(sensor(first, resubmit=1))
    lose(waiting, first, "node_failure")
    outcome = waiting.resume(sensor(first, resubmit=1), outcome, waiting.fire(outcome))
    second = outcome.trigger.remote_id
    assert second != first
    lose(waiting, second, "node_failure")
    with pytest.raises(InfrastructureError, match="NODE_FAIL") as caught:
        waiting.resume(sensor(first, resubmit=1), outcome, waiting.fire(outcome))
    assert caught.value.remote_id == second
    assert len(waiting.books()) == 2


def test_without_leave_a_lost_job_fails_as_before(waiting: Task) -> None:
    first = submit(waiting, "sleep 60")
    lose(waiting, first, "node_failure")
    with pytest.raises(InfrastructureError, match="NODE_FAIL"):
        waiting.finish(sensor(first, resubmit=0))
    assert len(waiting.books()) == 1


def test_a_failed_program_is_not_submitted_again(waiting: Task) -> None:
    first = submit(waiting, "exit 3")
    with pytest.raises(UserError, match="FAILED"):
        waiting.finish(sensor(first, more_resources=True))
    assert len(waiting.books()) == 1


@pytest.mark.parametrize("kept", [True, False])
def test_a_retried_wait_takes_up_the_successor(waiting: Task, kept: bool) -> None:
    first = submit(waiting, "sleep 60")
    outcome = waiting.start(sensor(first))
    lose(waiting, first, "preempt")
    event = waiting.fire(outcome)
    outcome = waiting.resume(sensor(first), outcome, event)
    second = outcome.trigger.remote_id
    until(lambda: job_of(waiting.facility, second)["state"] == "RUNNING")
    if not kept:
        waiting.store = Store()  # the database of states was lost
    waiting.retry()
    again = waiting.start(sensor(first))
    if again.trigger.remote_id == first:
        again = waiting.resume(sensor(first), again, waiting.fire(again))
    assert again.trigger.remote_id == second
    assert len(waiting.books()) == 2


@pytest.mark.parametrize("kind", ["drop_reply", "reset", "truncate", "drop_before"])
def test_a_lost_reply_to_the_second_submit_makes_no_third_job(waiting: Task, kind: str) -> None:
    first = submit(waiting, "sleep 60")
    outcome = waiting.start(sensor(first))
    lose(waiting, first, "node_failure")
    waiting.facility.fault(
        service="nersc", method="POST", path="/compute/jobs/[^/]+$", kind=kind, times=1, act=True
    )
    outcome = waiting.resume(sensor(first), outcome, waiting.fire(outcome))
    for _ in range(20):
        if isinstance(outcome.trigger, SlurmJobTrigger):
            break
        outcome.trigger.delay = outcome.trigger.first_pause = 0.2
        outcome = waiting.resume(sensor(first), outcome, waiting.fire(outcome))
    books = until(lambda: [job for job in waiting.books() if job["state"] == "RUNNING"])
    assert [job["job_id"] for job in books] == [outcome.trigger.remote_id]
    assert len(waiting.books()) == 2


def test_clearing_the_submit_task_finds_the_successor(waiting: Task) -> None:
    first = submit(waiting, "sleep 60")
    outcome = waiting.start(sensor(first))
    lose(waiting, first, "node_failure")
    outcome = waiting.resume(sensor(first), outcome, waiting.fire(outcome))
    second = outcome.trigger.remote_id
    until(lambda: job_of(waiting.facility, second)["state"] == "RUNNING")
    waiting.clear()
    before = len(submits(waiting.facility))
    assert waiting.finish(waiting.submit("sleep 60")) == second
    assert len(submits(waiting.facility)) == before


def test_a_job_out_of_time_gets_twice_the_time_once_when_that_is_allowed(waiting: Task) -> None:
    first = submit(waiting, "sleep 30", time_limit="00:01:00")
    outcome = waiting.start(sensor(first, more_resources="True"))
    until(lambda: job_of(waiting.facility, first)["state"] == "TIMEOUT")
    outcome = waiting.resume(sensor(first, more_resources="True"), outcome, waiting.fire(outcome))
    second = outcome.trigger.remote_id
    until(lambda: job_of(waiting.facility, second)["state"] == "TIMEOUT")
    assert job_of(waiting.facility, second)["time_limit"] > job_of(waiting.facility, first)["time_limit"]
    with pytest.raises(ResourcesError, match="TIMEOUT"):
        waiting.resume(sensor(first, more_resources="True"), outcome, waiting.fire(outcome))


def test_a_job_out_of_time_fails_at_once_when_it_is_not(waiting: Task) -> None:
    first = submit(waiting, "sleep 30", time_limit="00:01:00")
    with pytest.raises(ResourcesError, match="TIMEOUT"):
        waiting.finish(sensor(first, more_resources="False"))
    assert len(waiting.books()) == 1


def lost_and_followed(task: Task) -> tuple[str, str]:
    """Ids of a job that was lost and of its living successor."""
    first = submit(task, "sleep 60")
    outcome = task.start(sensor(first))
    lose(task, first, "node_failure")
    outcome = task.resume(sensor(first), outcome, task.fire(outcome))
    until(lambda: job_of(task.facility, outcome.trigger.remote_id)["state"] == "RUNNING")
    return first, outcome.trigger.remote_id


def test_airflows_own_timeout_cancels_the_successor(waiting: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = lost_and_followed(waiting)
    made = sensor(first)()

    def time_out(*_: Any, **__: Any) -> None:
        raise TaskDeferralTimeout("no triggerer")

    monkeypatch.setattr(made, "execute_complete", time_out)
    with pytest.raises(TimeLimitError) as caught:
        made.resume_execution("execute_complete", {"event": None}, waiting.context())
    assert caught.value.remote_id == second
    until(lambda: not job_of(waiting.facility, second)["active"])


def test_a_kill_while_it_is_submitted_again_cancels_the_successor(
    waiting: Task, task_state: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = submit(waiting, "sleep 60")
    outcome = waiting.start(sensor(first))
    lose(waiting, first, "node_failure")
    event = waiting.fire(outcome)
    made = sensor(first)()
    submit_again = made.hook.submit

    def killed_meanwhile(script: str, *, machine: str) -> str:
        task_state("failed")
        made.on_kill()
        return submit_again(script, machine=machine)

    monkeypatch.setattr(made.hook, "submit", killed_meanwhile)
    with pytest.raises(InfrastructureError, match="ended during its submit"):
        made.resume_execution(outcome.method_name, {"event": event}, waiting.context())
    assert [len(job["cancels"]) for job in waiting.books()] == [0, 1]


def test_a_resubmission_that_is_given_up_leaves_no_job(waiting: Task) -> None:
    first, second = lost_and_followed(waiting)
    made = sensor(first)()
    with pytest.raises(TimeLimitError, match="NERSC could not be used within"):
        made.resume_after_outage(waiting.context(), {"outcome": "timeout"}, resources=RESOURCES)
    until(lambda: not job_of(waiting.facility, second)["active"])


@given(st.integers(1, 172_800), st.sampled_from(["regular", "debug", "realtime"]))
def test_more_time_is_twice_as_much_up_to_the_queues_limit(seconds: int, qos: str) -> None:
    limit = 1800 if qos == "debug" else 172_800
    time = f"{seconds // 3600:02}:{seconds % 3600 // 60:02}:{seconds % 60:02}"
    more = SlurmResources(**{**RESOURCES, "qos": qos, "time_limit": time}).with_more(SlurmState.TIMEOUT)
    if seconds >= limit:
        assert more is None
        return
    wanted = min(2 * seconds, limit)
    assert more is not None
    assert more.time_limit == f"{wanted // 3600:02}:{wanted % 3600 // 60:02}:{wanted % 60:02}"


@pytest.mark.parametrize(
    ("resources", "more"),
    [
        ({"gpus": 1}, {"gpus": 2}),
        ({"gpus": 3}, {"gpus": 4}),
        ({"gpus": 1, "cpus_per_task": 32}, {"gpus": 2, "cpus_per_task": 64}),
        ({"gpus": 3, "cpus_per_task": 96}, {"gpus": 4, "cpus_per_task": 128}),
        ({"gpus": 4}, None),
        ({"gpus": None}, None),
        ({"gpus": 4, "memory": "16G"}, {"gpus": 4, "memory": "32G"}),
        ({"memory": "999999M"}, None),
    ],
)
def test_more_memory_comes_as_memory_or_with_gpus(
    resources: dict[str, Any], more: dict[str, Any] | None
) -> None:
    found = SlurmResources(**{**RESOURCES, **resources}).with_more(SlurmState.OUT_OF_MEMORY)
    assert found == (None if more is None else SlurmResources(**{**RESOURCES, **more}))


def test_resources_are_the_same_after_a_way_through_an_xcom() -> None:
    resources = SlurmResources(**RESOURCES, memory="16G", requeue=False, output="/a/%j.out")
    assert SlurmResources.of(json.loads(json.dumps(resources.to_mapping()))) == resources
