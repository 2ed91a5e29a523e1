"""The wait: what is shared, said, given up and cancelled, and what a killed task leaves behind."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferralTimeout, TaskDeferred

from facilities.errors import (
    CredentialsError,
    FacilityError,
    InfrastructureError,
    TimeLimitError,
    TransientError,
    UserError,
)
from facilities.globus.hook import GlobusHook
from facilities.globus.operators import GlobusTransferOperator
from facilities.globus.task_operator import GlobusTaskLink
from facilities.globus.trigger import GlobusTaskTrigger
from standin.testing import Facility
from support.globus import (
    CONN_ID,
    Place,
    Run,
    deferred,
    first_event,
    making,
)

# Waiting


def test_the_trigger_is_stored_without_secrets_and_comes_back(run: Run, place: Place) -> None:
    waiting = deferred(run.start(making(place, timeout=timedelta(hours=3))))
    path, kwargs = waiting.trigger.serialize()
    assert path == "facilities.globus.trigger.GlobusTaskTrigger"
    secret = place.facility.description["globus"]["client_secret"]
    assert secret not in json.dumps([kwargs, run.ti.xcoms, run.store])
    assert run.trigger(waiting).serialize() == (path, kwargs)
    assert kwargs["expected_bytes"] == 600
    assert waiting.timeout.total_seconds() == pytest.approx(3 * 3600 + 300, abs=30)
    assert kwargs["deadline"] == pytest.approx(time.time() + 3 * 3600, abs=30)


def test_the_link_is_there_while_the_task_waits(run: Run, place: Place) -> None:
    waiting = deferred(run.start(making(place)))
    task_id = waiting.trigger.serialize()[1]["remote_id"]
    url = run.ti.xcoms[GlobusTaskLink().xcom_key]
    assert url == f"https://app.globus.org/activity/{task_id}"
    assert GlobusTransferOperator.operator_extra_links[0].name == "Globus task"


def test_fifty_waits_share_their_requests(standin: Facility) -> None:
    standin.control("globus", "bandwidth", bytes_per_second=2000)
    places = [Place(standin, f"/many/{uuid.uuid4().hex}").write(b"x" * 100) for _ in range(50)]
    runs = [Run() for _ in places]
    waits = [deferred(run.start(making(place))) for run, place in zip(runs, places, strict=True)]
    standin.clear_requests()

    async def all_events() -> list[Any]:
        triggers = [run.trigger(wait) for run, wait in zip(runs, waits, strict=True)]
        return await asyncio.gather(*map(first_event, triggers))

    began = time.monotonic()
    events = asyncio.run(all_events())
    seconds = time.monotonic() - began
    assert {event["outcome"] for event in events} == {"ended"}
    lists = sum(entry["path"].endswith("/task_list") for entry in standin.requests("globus"))
    assert lists <= seconds / 0.05 + 2
    assert len(standin.requests("globus")) <= lists + 5


def test_progress_is_in_the_log(run: Run, place: Place, task_log: Callable[[], str]) -> None:
    place.write(b"x" * 4000)
    place.facility.control("globus", "bandwidth", bytes_per_second=8000)
    run.finish(making(place))
    log, task_id = task_log(), run.ti.xcoms["globus_task_id"]
    assert f"Globus task {task_id} is ACTIVE" in log
    assert re.search(r"of 4 kB moved, .*B/s", log)
    assert f"https://app.globus.org/activity/{task_id}" in log


def test_a_stuck_transfer_is_told_and_given_up(run: Run, place: Place, task_log: Callable[[], str]) -> None:
    make = making(place, give_up_after=timedelta(seconds=1))
    place.facility.control("globus", "bandwidth", bytes_per_second=1)
    waiting = deferred(run.start(make))
    place.at_source.unlink()
    place.facility.control("globus", "bandwidth", bytes_per_second=None)
    task_id = waiting.trigger.serialize()[1]["remote_id"]
    if place.books()[0]["status"] == "SUCCEEDED":
        pytest.fail("the transfer was too quick for this test")
    place.facility.control("globus", "retry", task_id=task_id)
    event = run.fire(waiting)
    assert (event["outcome"], event["cancelled"], event["error"]["failure_class"]) == ("stuck", "yes", "user")
    assert "FILE_NOT_FOUND" in task_log()
    with pytest.raises(UserError, match=r"made no progress for .* because of FILE_NOT_FOUND") as raised:
        run.resume(make, waiting, event)
    assert "check that the path exists on the source collection" in str(raised.value)
    assert "The Globus task was cancelled." in str(raised.value)
    assert [(task["status"], task["canceled_by"]) for task in place.books()] == [("FAILED", "user")]


def test_a_standstill_counts_from_its_beginning_whatever_starts_anew(
    run: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute of it is written down; then neither a new triggerer nor a new try begins the count again."""
    monkeypatch.setattr("facilities.globus.trigger._SAVE_STALL_AFTER", 0.5)
    make = making(place, give_up_after=timedelta(minutes=30), timeout=timedelta(hours=5))
    place.facility.control("globus", "bandwidth", bytes_per_second=1)
    waiting = deferred(run.start(make))
    task_id = waiting.trigger.serialize()[1]["remote_id"]
    place.facility.control("globus", "pause", task_id=task_id)  # or it may have the file open
    place.at_source.unlink()
    place.facility.control("globus", "bandwidth", bytes_per_second=None)
    began = time.time()
    place.facility.control("globus", "resume", task_id=task_id)
    event = run.fire(waiting)
    assert (event["outcome"], event["cancelled"]) == ("stalled", "not asked")
    assert event["result"]["trouble"] in (
        "FILE_NOT_FOUND",
        "UNKNOWN",
    )  # the latter while Globus is trying again
    again = deferred(run.resume(make, waiting, event))
    since = again.trigger.serialize()[1]["stall"]["since"]
    assert began - 1 <= since <= time.time() - 0.5
    run.retry()
    retried = deferred(run.start(make)).trigger.serialize()[1]
    assert (retried["stall"]["since"], retried["remote_id"]) == (since, task_id)
    assert retried["deadline"] == waiting.trigger.serialize()[1]["deadline"]

    run.store["remote_wait"]["details"]["stall"]["since"] = time.time() - 29 * 60 - 59  # type: ignore[index]
    last = deferred(run.start(make))
    assert run.fire(last)["outcome"] == "stuck"
    assert place.books()[0]["canceled_by"] == "user"


@pytest.mark.parametrize(
    ("switch", "kind", "says"),
    [
        (("endpoint", {"condition": "gc_not_connected"}), InfrastructureError, "GC_NOT_CONNECTED"),
        (("endpoint", {"condition": "endpoint_error"}), InfrastructureError, "ENDPOINT_ERROR"),
        (("deny", {"path": "/", "rights": ["write"]}), UserError, "PERMISSION_DENIED"),
    ],
)
def test_a_destination_that_does_not_take_files(
    run: Run, place: Place, switch: tuple[str, dict[str, Any]], kind: type[FacilityError], says: str
) -> None:
    verb, body = switch
    patience = timedelta(seconds=0.5)
    make = making(place, give_up_after=patience, give_up_outage_after=patience)
    place.facility.control("globus", verb, collection="nersc7012", **body)
    waiting = deferred(run.start(make))
    with pytest.raises(kind, match=f"because of {says}"):
        run.resume(make, waiting, run.fire(waiting))
    assert [task["canceled_by"] for task in place.books()] == ["user"]


def test_a_full_quota_fails_the_transfer(run: Run, place: Place) -> None:
    place.facility.control("globus", "quota", collection="nersc7012", bytes_left=10)
    with pytest.raises(UserError, match="failed with QUOTA_EXCEEDED") as raised:
        run.finish(making(place))
    assert "make room in the quota" in str(raised.value)
    assert place.path in str(raised.value)


def test_an_outage_while_waiting_is_not_noticed_by_the_transfer(
    run: Run, place: Place, task_log: Callable[[], str]
) -> None:
    waiting = deferred(run.start(making(place)))
    place.facility.fault(kind="status", path="task_list", status=503, times=1)
    event = run.fire(waiting)
    assert event["outcome"] == "ended"
    assert "Globus has not answered for" in task_log()
    assert run.resume(making(place), waiting, event)["files"] == 1


def test_the_time_limit_cancels_the_transfer(run: Run, place: Place) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    make = making(place, timeout=timedelta(seconds=0.4))
    waiting = deferred(run.start(make))
    event = run.fire(waiting)
    assert (event["outcome"], event["cancelled"]) == ("timeout", "yes")
    with pytest.raises(TimeLimitError, match="had not ended when the wait reached its limit") as raised:
        run.resume(make, waiting, event)
    assert "The Globus task was cancelled." in str(raised.value)
    assert [task["canceled_by"] for task in place.books()] == ["user"]


def test_the_time_limit_when_the_cancel_fails_says_so(run: Run, place: Place) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    make = making(place, timeout=timedelta(seconds=0.2))
    waiting = deferred(run.start(make))
    place.facility.fault(kind="status", path="/cancel$", status=500)
    event = run.fire(waiting)
    assert event["cancelled"] == "no"
    with pytest.raises(TimeLimitError, match="could NOT be cancelled"):
        run.resume(make, waiting, event)


def test_airflows_own_timeout_cancels_the_transfer(run: Run, place: Place) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    deferred(run.start(making(place)))
    with pytest.raises(TimeLimitError, match="no triggerer looked at it") as raised:
        making(place)().resume_execution("__fail__", {"error": "Trigger timeout"}, run.context())
    assert isinstance(raised.value.__cause__, TaskDeferralTimeout)
    assert run.ti.xcoms["globus_task_id"] in str(raised.value)
    assert [task["canceled_by"] for task in place.books()] == ["user"]


def test_a_secret_that_ends_while_waiting(run: Run, place: Place) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    waiting = deferred(run.start(making(place)))
    place.facility.control("globus", "client", enabled=False)
    place.facility.control("globus", "revoke_tokens")
    event = run.fire(waiting)
    assert (event["outcome"], event["cancelled"]) == ("refused", "not asked")
    with pytest.raises(CredentialsError, match="refuses us while the Globus task runs on"):
        run.resume(making(place), waiting, event)
    place.facility.control("globus", "client", enabled=True)
    place.facility.control("globus", "bandwidth", bytes_per_second=None)
    run.retry()
    run.finish(making(place))
    assert len(place.books()) == 1


def test_a_task_that_globus_forgot(run: Run, place: Place) -> None:
    trigger = GlobusTaskTrigger(
        globus_conn_id=CONN_ID,
        remote_id=str(uuid.uuid4()),
        deadline=time.time() + 60,
        min_poll_interval=0.01,
        max_poll_interval=0.02,
        give_up_after=60,
        give_up_outage_after=60,
    )
    payload = asyncio.run(first_event(trigger))
    assert payload["outcome"] == "lost"
    with pytest.raises(InfrastructureError, match="does not list the task any more"):
        making(place)().execute_complete(run.context(), payload)


@pytest.mark.parametrize("event", [None, "success", {}, {"outcome": "ended"}, {"outcome": 5}])
def test_an_event_that_is_none_of_ours(run: Run, place: Place, event: Any) -> None:
    with pytest.raises(InfrastructureError, match="without a proper event"):
        making(place)().execute_complete(run.context(), event)


# Ending a task


@pytest.mark.parametrize(
    ("state", "cancelled"),
    [
        ("failed", True),
        ("success", True),
        ("skipped", True),
        ("deferred", False),
        ("running", False),
        ("queued", False),
        ("up_for_retry", False),
    ],
)
def test_a_killed_wait_cancels_only_when_the_task_is_over(
    run: Run, place: Place, task_state: Callable[[str], None], state: str, cancelled: bool
) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    waiting = deferred(run.start(making(place)))
    task_state(state)
    asyncio.run(run.trigger(waiting).on_kill())
    assert [task["status"] for task in place.books()] == ["FAILED" if cancelled else "ACTIVE"]


def test_a_trigger_that_is_moved_cancels_nothing(run: Run, place: Place) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    waiting = deferred(run.start(making(place)))

    async def start_and_move() -> None:
        trigger = run.trigger(waiting)
        task = asyncio.create_task(anext(trigger.run()))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await trigger.cleanup()

    asyncio.run(start_and_move())
    assert [task["status"] for task in place.books()] == ["ACTIVE"]
    place.facility.control("globus", "bandwidth", bytes_per_second=None)
    assert run.fire(waiting)["outcome"] == "ended"


def test_a_worker_that_waits_itself(run: Run, place: Place) -> None:
    result = run.start(making(place, deferrable=False))
    assert (result["files"], result["bytes"]) == (1, 600)
    assert run.deferrals == []


def test_a_worker_that_waits_itself_keeps_the_limit(run: Run, place: Place) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    with pytest.raises(TimeLimitError):
        run.start(making(place, deferrable=False, timeout=timedelta(seconds=0.3)))
    assert [task["canceled_by"] for task in place.books()] == ["user"]


def test_a_worker_that_waits_itself_leaves_an_outage_to_its_retries(run: Run, place: Place) -> None:
    place.facility.fault(kind="status", path="v0.10", status=503)
    with pytest.raises(TransientError, match="HTTP 503"):
        run.start(making(place, deferrable=False))


@pytest.mark.parametrize(("state", "cancelled"), [("failed", True), ("running", False)])
def test_a_killed_worker_cancels_only_when_the_task_is_over(
    run: Run, place: Place, task_state: Callable[[str], None], state: str, cancelled: bool
) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    operator = making(place)()
    with pytest.raises(TaskDeferred):
        operator.execute(run.context())
    task_state(state)
    operator.on_kill()
    assert [task["status"] for task in place.books()] == ["FAILED" if cancelled else "ACTIVE"]


def test_a_worker_killed_during_the_submit_leaves_nothing_behind(
    run: Run, place: Place, task_state: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    task_state("failed")
    operator = making(place)()
    submit = GlobusHook.submit

    def killed_meanwhile(self: GlobusHook, *args: Any) -> str:
        task_id = submit(self, *args)
        operator.on_kill()
        return task_id

    monkeypatch.setattr(GlobusHook, "submit", killed_meanwhile)
    with pytest.raises(InfrastructureError, match="was ended during its submit"):
        operator.execute(run.context())
    assert [task["status"] for task in place.books()] == ["FAILED"]
