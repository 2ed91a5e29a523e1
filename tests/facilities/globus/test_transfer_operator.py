"""The transfer operator with its trigger, end to end against the stand-in."""

from __future__ import annotations

import asyncio
import json
import re
import threading
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
    NotFoundError,
    TimeLimitError,
    TransientError,
    UserError,
)
from facilities.globus.hook import GlobusHook
from facilities.globus.links import GlobusTaskLink
from facilities.globus.operators import GlobusDeleteOperator, GlobusTransferOperator
from facilities.globus.submission import STATE_KEY
from facilities.globus.triggers import GlobusAnswersTrigger, GlobusTaskTrigger
from facility.testing import Facility
from support.globus import CONN_ID, Place, Run, Store, first_event, use_connection

Make = Callable[[], GlobusTransferOperator]


def making(place: Place, **changes: Any) -> Make:
    def make() -> GlobusTransferOperator:
        operator = GlobusTransferOperator(**place.arguments(**changes))
        operator.hook.first_pause = 0.01
        return operator

    return make


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        threading.Event().wait(0.02)


def deferred(outcome: Any) -> TaskDeferred:
    assert isinstance(outcome, TaskDeferred), outcome
    return outcome


# What is moved


def test_a_file_is_copied_once_and_described(run: Run, place: Place) -> None:
    result = run.finish(making(place))
    assert place.at_destination.read_bytes() == place.at_source.read_bytes()
    assert result == {
        "task_id": run.ti.xcoms["globus_task_id"],
        "bytes": 600,
        "files": 1,
        "files_skipped": 0,
        "faults": 0,
        "seconds": result["seconds"],
        "rate": result["rate"],
        "source_path": place.path,
        "destination_path": place.path,
    }
    assert result["seconds"] >= 0
    assert json.loads(json.dumps(result)) == result
    assert len(place.books()) == 1
    assert len(run.deferrals) == 1
    assert place.at_destination.stat().st_mtime == pytest.approx(place.at_source.stat().st_mtime, abs=1)


def test_a_folder_is_found_to_be_one(run: Run, place: Place) -> None:
    folder = place.at_source.parent
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "x").write_bytes(b"x" * 10)
    path = place.path.rsplit("/", 1)[0]
    place.path = path
    result = run.finish(making(place))
    assert (result["files"], result["bytes"]) == (2, 610)
    assert (place.facility.collection("nersc7012") / path[1:] / "deep" / "er" / "x").read_bytes() == b"x" * 10


def test_a_file_that_is_there_already_is_not_moved(run: Run, place: Place) -> None:
    run.finish(making(place))
    result = Run().finish(making(place))
    assert (result["bytes"], result["files"], result["files_skipped"]) == (0, 0, 1)


@pytest.mark.parametrize(
    "name", ["with blank.cxi", "it's.cxi", 'say "x".cxi', "$(touch x).cxi", "a;b&c|d.cxi", "ä%2F#?.cxi"]
)
def test_odd_names_arrive_as_they_are(run: Run, standin: Facility, name: str) -> None:
    place = Place(standin, f"/odd/{uuid.uuid4().hex}/{name}").write()
    run.finish(making(place))
    assert place.at_destination.read_bytes() == place.at_source.read_bytes()


# What is refused before anything is sent


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source_path": "/a/../b"}, "source_path '/a/../b' climbs out with '..'"),
        ({"destination_path": "/a\nb"}, "destination_path '/a\\nb' has control characters"),
        ({"source_path": ""}, "source_path is empty"),
        ({"source_collection": "data7012"}, "source_collection 'data7012' is not a Globus collection's id"),
        ({"destination_collection": None}, "destination_collection None is not a Globus collection's id"),
        ({"sync_level": "md5"}, "sync_level 'md5' is unknown"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_sent(
    run: Run, place: Place, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        run.start(making(place, **changes))
    assert place.facility.requests("globus") == []


def test_a_missing_source_is_told_at_once(run: Run, place: Place) -> None:
    place.at_source.unlink()
    with pytest.raises(NotFoundError) as raised:
        run.start(making(place))
    assert str(raised.value).startswith(
        f"There is no {place.path} on the source collection; id {place.source}."
    )
    assert "Nothing was submitted." in str(raised.value)
    assert place.books() == []


def test_an_unreadable_source_is_told_at_once(run: Run, place: Place) -> None:
    place.facility.control("globus", "deny", collection="data7012", path=place.path)
    with pytest.raises(UserError, match="permission denied"):
        run.start(making(place))
    assert place.books() == []


def test_an_unknown_collection_is_told_at_once(run: Run, place: Place) -> None:
    with pytest.raises(NotFoundError, match="What to do"):
        run.start(making(place, destination_collection=str(uuid.uuid4())))
    assert place.books() == []


def test_recursive_must_fit_the_source(run: Run, place: Place) -> None:
    with pytest.raises(UserError, match="is a file, but recursive is True"):
        run.start(making(place, recursive=True))
    with pytest.raises(UserError, match="is a folder, but the source is a file"):
        run.start(making(place, destination_path="/folder/"))
    assert place.books() == []


def test_wrong_credentials_fail_at_once(run: Run, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    use_connection(place.facility, monkeypatch, password="wrong")
    with pytest.raises(CredentialsError, match="put a valid client id and secret"):
        run.start(making(place))
    assert place.books() == []


# Exactly once: every window


def test_killed_before_the_submit(run: Run, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(GlobusHook, "submit", die)
        with pytest.raises(KeyboardInterrupt):
            run.start(making(place))
    assert run.store is not None
    submission_id = run.store[STATE_KEY]["submission_id"]
    run.retry()
    run.finish(making(place))
    assert [task["submission_id"] for task in place.books()] == [submission_id]


def test_killed_between_the_reply_and_the_saved_id(
    run: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = GlobusHook.submit

    def submit_and_die(self: GlobusHook, *args: Any) -> str:
        submit(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(GlobusHook, "submit", submit_and_die)
        with pytest.raises(KeyboardInterrupt):
            run.start(making(place))
    run.retry()
    run.finish(making(place))
    assert len(place.books()) == 1
    assert place.books()[0]["files_moved"] == 1


@pytest.mark.parametrize("kind", ["drop_reply", "reset", "truncate", "drop_before"])
def test_a_lost_reply(run: Run, place: Place, kind: str) -> None:
    act = {"act": True} if kind == "reset" else {}
    place.facility.fault(kind=kind, method="POST", path="/transfer$", times=1, **act)
    run.finish(making(place))
    assert [task["files_moved"] for task in place.books()] == [1]


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_an_error_instead_of_a_reply(run: Run, place: Place, status: int) -> None:
    place.facility.fault(kind="status", method="POST", path="/transfer$", status=status, times=2)
    run.finish(making(place))
    assert [task["files_moved"] for task in place.books()] == [1]


def test_an_outage_during_the_submit_holds_the_task(run: Run, place: Place) -> None:
    place.facility.fault(kind="drop_reply", method="POST", path="/transfer$", times=4)
    held = deferred(run.start(making(place)))
    assert held.method_name == "resume_held"
    assert held.timeout is not None
    assert run.fire(held) == {"outcome": "answers"}
    assert run.follow(making(place), run.resume(making(place), held, {"outcome": "answers"}))["bytes"] == 600
    assert [task["files_moved"] for task in place.books()] == [1]


def test_an_outage_is_held_until_globus_answers(run: Run, place: Place, task_log: Callable[[], str]) -> None:
    place.facility.fault(kind="status", path="v0.10", status=503)
    held = deferred(run.start(making(place)))
    timer = threading.Timer(0.6, place.facility.clear_faults)
    timer.start()
    assert run.fire(held) == {"outcome": "answers"}
    timer.join()
    log = task_log()
    assert "Holding until Globus answers" in log
    assert "HTTP 503" in log
    outcome = run.follow(making(place), run.resume(making(place), held, {"outcome": "answers"}))
    assert outcome["files"] == 1


def test_fifty_held_tasks_ask_once(run: Run, place: Place) -> None:
    place.facility.fault(kind="status", path="v0.10", status=503)
    held = deferred(run.start(making(place)))
    kwargs = held.trigger.serialize()[1]
    triggers = [GlobusAnswersTrigger(**{**kwargs, "label": f"t{number}"}) for number in range(50)]
    place.facility.clear_faults()
    place.facility.clear_requests()

    async def all_events() -> list[Any]:
        return await asyncio.gather(*map(first_event, triggers))

    assert asyncio.run(all_events()) == [{"outcome": "answers"}] * 50
    assert len(place.facility.requests("globus")) <= 10


def test_an_outage_that_lasts_ends_with_a_clear_error(run: Run, place: Place) -> None:
    place.facility.fault(kind="status", path="v0.10", status=503)
    make = making(place, hold=timedelta(seconds=0.5))
    held = deferred(run.start(make))
    assert run.fire(held) == {"outcome": "timeout"}
    with pytest.raises(TimeLimitError, match=r"could not be used within 0:00:00.5") as raised:
        run.resume(make, held, {"outcome": "timeout"})
    assert "https://status.globus.org" in str(raised.value)


def test_a_held_task_that_is_ended_leaves_nothing_behind(
    run: Run, place: Place, task_state: Callable[[str], None]
) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    place.facility.fault(kind="drop_reply", method="POST", path="/transfer$", times=4)
    held = deferred(run.start(making(place)))
    trigger = run.trigger(held)
    asyncio.run(trigger.on_kill())
    assert [task["status"] for task in place.books()] == ["ACTIVE"]
    task_state("failed")
    asyncio.run(trigger.on_kill())
    assert [(task["status"], task["canceled_by"]) for task in place.books()] == [("FAILED", "user")]


def test_a_retry_takes_the_living_transfer_up_again(run: Run, place: Place) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    first = deferred(run.start(making(place)))
    run.retry()
    second = deferred(run.start(making(place)))
    assert first.trigger.serialize()[1]["task_id"] == second.trigger.serialize()[1]["task_id"]
    place.facility.control("globus", "bandwidth", bytes_per_second=None)
    run.resume(making(place), second, run.fire(second))
    assert [task["files_moved"] for task in place.books()] == [1]


def test_a_cleared_task_returns_the_finished_result(run: Run, place: Place) -> None:
    first = run.finish(making(place))
    place.facility.clear_requests()
    run.retry()
    second = run.start(making(place))
    assert second == first
    assert len(place.books()) == 1
    assert run.ti.xcoms["globus_task_id"] == first["task_id"]


def test_a_finished_result_that_is_gone_is_made_anew(run: Run, place: Place) -> None:
    first = run.finish(making(place))
    place.at_destination.unlink()
    run.retry()
    second = run.finish(making(place))
    assert second["task_id"] != first["task_id"]
    assert place.at_destination.exists()


def test_after_a_failed_transfer_a_new_one_is_submitted(run: Run, place: Place) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    first = deferred(run.start(making(place)))
    task_id = first.trigger.serialize()[1]["task_id"]
    place.facility.control("globus", "cancel", task_id=task_id)
    with pytest.raises(UserError, match="failed with CANCELED"):
        run.resume(making(place), first, run.fire(first))
    place.facility.control("globus", "bandwidth", bytes_per_second=None)
    run.retry()
    assert run.finish(making(place))["task_id"] != task_id
    assert [task["status"] for task in place.books()] == ["FAILED", "SUCCEEDED"]


def test_without_a_state_store_the_label_leads_to_the_transfer(run: Run, place: Place) -> None:
    run.store = None
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    first = deferred(run.start(making(place)))
    run.retry()
    second = deferred(run.start(making(place)))
    assert first.trigger.serialize()[1]["task_id"] == second.trigger.serialize()[1]["task_id"]
    assert len(place.books()) == 1


@pytest.mark.parametrize("kept", [{}, {STATE_KEY: "junk"}, {STATE_KEY: {"task_id": 7}}])
def test_a_purged_state_store_costs_nothing(run: Run, place: Place, kept: dict[str, Any]) -> None:
    result = run.finish(making(place))
    run.store = Store(kept)
    run.retry()
    assert run.finish(making(place)) == result
    assert len(place.books()) == 1


def test_a_conflict_with_our_own_lost_transfer_takes_it_up(run: Run, place: Place) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    first = deferred(run.start(making(place)))
    run.store = Store()  # a first try without any memory: the run was deleted and posted again
    second = deferred(run.start(making(place)))
    assert first.trigger.serialize()[1]["task_id"] == second.trigger.serialize()[1]["task_id"]
    assert len(place.books()) == 1


def test_a_conflict_with_somebody_elses_transfer_waits(run: Run, place: Place) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    deferred(Run().start(making(place)))
    held = deferred(run.start(making(place)))
    assert held.method_name == "resume_held"
    assert "identical paths has not yet completed" in held.trigger.serialize()[1]["reason"]
    place.facility.control("globus", "bandwidth", bytes_per_second=None)
    wait_until(lambda: place.books()[0]["status"] == "SUCCEEDED")
    outcome = run.follow(making(place), held)
    assert (outcome["files"], outcome["files_skipped"]) == (0, 1)


def test_a_rejected_submission_id_is_replaced(run: Run, place: Place) -> None:
    body = {"code": "ClientError.BadRequest", "message": "submission_id is unknown or has expired"}
    place.facility.fault(kind="status", method="POST", path="/transfer$", status=400, body=body, times=1)
    run.finish(making(place))
    assert len(place.books()) == 1


def test_changed_arguments_stop_the_old_transfer(run: Run, place: Place) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    deferred(run.start(making(place)))
    run.retry()
    other = place.path + ".other"
    make = making(place, destination_path=other)
    outcome = deferred(run.start(make))
    place.facility.control("globus", "bandwidth", bytes_per_second=None)
    result = run.follow(make, outcome)
    assert result["destination_path"] == other
    assert [task["status"] for task in place.books()] == ["FAILED", "SUCCEEDED"]


def test_labels_carry_the_run(run: Run, place: Place) -> None:
    run.finish(making(place, label="{{ run_id }}"))
    make = making(place, label=run.ti.run_id)
    Run().finish(make)
    labels = [task["label"] for task in place.books()]
    assert labels[1].startswith(f"{run.ti.run_id}-")
    assert len(set(labels)) == 2


# Waiting


def test_the_trigger_is_stored_without_secrets_and_comes_back(run: Run, place: Place) -> None:
    waiting = deferred(run.start(making(place, timeout=timedelta(hours=3))))
    path, kwargs = waiting.trigger.serialize()
    assert path == "facilities.globus.triggers.GlobusTaskTrigger"
    secret = place.facility.description["globus"]["client_secret"]
    assert secret not in json.dumps([kwargs, run.ti.xcoms, run.store])
    assert run.trigger(waiting).serialize() == (path, kwargs)
    assert kwargs["expected_bytes"] == 600
    assert waiting.timeout == timedelta(hours=3, minutes=5)
    assert kwargs["deadline"] == pytest.approx(time.time() + 3 * 3600, abs=30)


def test_the_link_is_there_while_the_task_waits(run: Run, place: Place) -> None:
    waiting = deferred(run.start(making(place)))
    task_id = waiting.trigger.serialize()[1]["task_id"]
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
    assert {event["outcome"] for event in events} == {"finished"}
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
    task_id = waiting.trigger.serialize()[1]["task_id"]
    if place.books()[0]["status"] == "SUCCEEDED":
        pytest.fail("the transfer was too quick for this test")
    place.facility.control("globus", "retry", task_id=task_id)
    event = run.fire(waiting)
    assert (event["outcome"], event["cancelled"], event["failure_class"]) == ("stuck", "yes", "user")
    assert "FILE_NOT_FOUND" in task_log()
    with pytest.raises(UserError, match=r"made no progress for .* because of FILE_NOT_FOUND") as raised:
        run.resume(make, waiting, event)
    assert "check that the path exists on the source collection" in str(raised.value)
    assert "The Globus task was cancelled." in str(raised.value)
    assert [(task["status"], task["canceled_by"]) for task in place.books()] == [("FAILED", "user")]


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
    assert event["outcome"] == "finished"
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
    assert (event["outcome"], event["cancelled"]) == ("credentials", "not asked")
    with pytest.raises(CredentialsError, match="refuses us while its task runs on"):
        run.resume(making(place), waiting, event)
    place.facility.control("globus", "client", enabled=True)
    place.facility.control("globus", "bandwidth", bytes_per_second=None)
    run.retry()
    run.finish(making(place))
    assert len(place.books()) == 1


def test_a_task_that_globus_forgot(run: Run, place: Place) -> None:
    trigger = GlobusTaskTrigger(
        globus_conn_id=CONN_ID,
        task_id=str(uuid.uuid4()),
        deadline=time.time() + 60,
        pace_least=0.01,
        pace_most=0.02,
        give_up_after=60,
        give_up_outage_after=60,
    )
    payload = asyncio.run(first_event(trigger))
    assert payload["outcome"] == "lost"
    with pytest.raises(InfrastructureError, match="does not list the task any more"):
        making(place)().execute_complete(run.context(), payload)


@pytest.mark.parametrize("event", [None, "success", {}, {"outcome": "finished"}, {"outcome": 5}])
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
    assert run.fire(waiting)["outcome"] == "finished"


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


# Results that are not there


def test_a_result_of_another_size_is_an_error(run: Run, place: Place) -> None:
    waiting = deferred(run.start(making(place)))
    event = run.fire(waiting)
    place.at_destination.write_bytes(b"half")
    with pytest.raises(InfrastructureError, match="has 4 bytes, its source has 600"):
        run.resume(making(place), waiting, event)
    run.retry()
    run.finish(making(place))
    assert place.at_destination.read_bytes() == place.at_source.read_bytes()


def test_a_missing_result_is_an_error(run: Run, place: Place) -> None:
    waiting = deferred(run.start(making(place)))
    event = run.fire(waiting)
    place.at_destination.unlink()
    with pytest.raises(InfrastructureError, match="reports success, but there is no"):
        run.resume(making(place), waiting, event)


def test_a_source_that_was_tidied_away_is_no_error(run: Run, place: Place) -> None:
    waiting = deferred(run.start(making(place)))
    event = run.fire(waiting)
    place.at_source.unlink()
    assert run.resume(making(place), waiting, event)["files"] == 1


def test_files_that_were_left_out_are_an_error(run: Run, place: Place) -> None:
    folder = place.path.rsplit("/", 1)[0]
    (place.at_source.parent / "closed").mkdir()
    (place.at_source.parent / "closed" / "x").write_bytes(b"x")
    place.facility.control("globus", "deny", collection="data7012", path=f"{folder}/closed")
    changes = {"source_path": folder, "destination_path": folder, "skip_source_errors": True}
    with pytest.raises(UserError, match="left out 1 of its files") as raised:
        run.finish(making(place, **changes))
    assert f"{folder}/closed: PERMISSION_DENIED" in str(raised.value)
    result = Run().finish(making(place, **changes, fail_on_skipped=False))
    assert result["task_id"]


# Removing


def test_a_file_is_removed(run: Run, place: Place) -> None:
    run.finish(making(place))

    def make() -> GlobusDeleteOperator:
        return GlobusDeleteOperator(
            task_id="remove",
            globus_conn_id=CONN_ID,
            collection=place.destination,
            path=place.path,
            poll_least=0.05,
        )

    result = Run().finish(make)
    assert result["path"] == place.path
    assert not place.at_destination.exists()
    assert Run().finish(make)["task_id"] != result["task_id"]


@pytest.mark.parametrize("path", ["/", "", "~/..", "/.", "/~/"])
def test_the_root_is_never_removed(run: Run, place: Place, path: str) -> None:
    operator = GlobusDeleteOperator(
        task_id="remove", globus_conn_id=CONN_ID, collection=place.destination, path=path, recursive=True
    )
    with pytest.raises(UserError):
        operator.execute(run.context())
    assert place.facility.requests("globus") == []


def test_a_folder_is_removed_only_when_asked(run: Run, place: Place) -> None:
    folder = place.path.rsplit("/", 1)[0]
    run.finish(making(place))

    def making_delete(**changes: Any) -> Callable[[], GlobusDeleteOperator]:
        return lambda: GlobusDeleteOperator(
            task_id="remove",
            globus_conn_id=CONN_ID,
            collection=place.destination,
            path=folder,
            poll_least=0.05,
            **changes,
        )

    with pytest.raises(FacilityError):
        Run().finish(making_delete(timeout=timedelta(seconds=1)))
    assert place.at_destination.exists()
    Run().finish(making_delete(recursive=True))
    assert not place.at_destination.parent.exists()
