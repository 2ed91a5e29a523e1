"""One Globus task for one Airflow task, in every window in which something may break."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from facilities.errors import (
    TimeLimitError,
    UserError,
)
from facilities.globus.hook import GlobusHook
from facilities.globus.submission import STATE_KEY
from facilities.globus.trigger import GlobusOutageTrigger
from standin.testing import until
from support.globus import Place, Run, Store, deferred, first_event, making


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
    with monkeypatch.context() as patched:
        patched.setattr(GlobusHook, "submit", _submit_and_die(GlobusHook.submit))
        with pytest.raises(KeyboardInterrupt):
            run.start(making(place))
    run.retry()
    run.finish(making(place))
    assert len(place.books()) == 1
    assert place.books()[0]["files_moved"] == 1


def _submit_and_die(submit: Callable[..., str]) -> Callable[..., str]:
    def submit_and_die(self: GlobusHook, *args: Any) -> str:
        submit(self, *args)
        raise KeyboardInterrupt

    return submit_and_die


@pytest.mark.parametrize("kind", ["drop_reply", "reset", "truncate", "drop_before"])
def test_a_lost_reply(run: Run, place: Place, kind: str) -> None:
    act = {"act": True} if kind == "reset" else {}
    place.facility.fault(kind=kind, method="POST", path="/transfer$", times=1, **act)
    run.finish(making(place))
    assert [task["files_moved"] for task in place.books()] == [1]


@pytest.mark.parametrize("killed", [False, True])
def test_a_submit_that_arrives_when_all_waiting_is_over(
    run: Run, place: Place, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """It has the submission id of the one that was sent in its place, so Globus makes one task of both."""
    place.facility.fault(kind="hold", method="POST", path="/transfer$", times=1)
    if killed:
        with monkeypatch.context() as patched:
            patched.setattr(GlobusHook, "submit", _submit_and_die(GlobusHook.submit))
            with pytest.raises(KeyboardInterrupt):
                run.start(making(place))
        run.retry()
    run.finish(making(place))
    place.facility.clear_faults()
    until(lambda: len(_submits(place)) == 2)
    assert [about.endswith(" again") for about in sorted(_submits(place))] == [False, True]
    assert [task["files_moved"] for task in place.books()] == [1]


def _submits(place: Place) -> list[str]:
    """What the submits were about that have been acted on."""
    sent = [one for one in place.facility.requests("globus") if one["path"].endswith("/transfer")]
    return [one["about"] for one in sent if one["about"]]


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_an_error_instead_of_a_reply(run: Run, place: Place, status: int) -> None:
    place.facility.fault(kind="status", method="POST", path="/transfer$", status=status, times=2)
    run.finish(making(place))
    assert [task["files_moved"] for task in place.books()] == [1]


def test_an_outage_during_the_submit_holds_the_task(run: Run, place: Place) -> None:
    place.facility.fault(kind="drop_reply", method="POST", path="/transfer$", times=4)
    held = deferred(run.start(making(place)))
    assert held.method_name == "resume_after_outage"
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
    assert "Holding until Globus can be used" in log
    assert "HTTP 503" in log
    outcome = run.follow(making(place), run.resume(making(place), held, {"outcome": "answers"}))
    assert outcome["files"] == 1


def test_fifty_held_tasks_ask_once(run: Run, place: Place) -> None:
    place.facility.fault(kind="status", path="v0.10", status=503)
    held = deferred(run.start(making(place)))
    kwargs = held.trigger.serialize()[1]
    triggers = [GlobusOutageTrigger(**{**kwargs, "label": f"t{number}"}) for number in range(50)]
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
    event = run.fire(held)
    assert event["outcome"] == "timeout"
    with pytest.raises(TimeLimitError, match=r"could not be used within 0:00:00.5") as raised:
        run.resume(make, held, event)
    assert "HTTP 503" in str(raised.value)
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
    assert first.trigger.serialize()[1]["remote_id"] == second.trigger.serialize()[1]["remote_id"]
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
    task_id = first.trigger.serialize()[1]["remote_id"]
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
    assert first.trigger.serialize()[1]["remote_id"] == second.trigger.serialize()[1]["remote_id"]
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
    assert first.trigger.serialize()[1]["remote_id"] == second.trigger.serialize()[1]["remote_id"]
    assert len(place.books()) == 1


def test_a_conflict_with_somebody_elses_transfer_waits(run: Run, place: Place) -> None:
    place.facility.control("globus", "bandwidth", bytes_per_second=10)
    deferred(Run().start(making(place)))
    held = deferred(run.start(making(place)))
    assert held.method_name == "resume_after_outage"
    assert "identical paths has not yet completed" in held.trigger.serialize()[1]["reason"]
    place.facility.control("globus", "bandwidth", bytes_per_second=None)
    until(lambda: place.books()[0]["status"] == "SUCCEEDED")
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
