"""The wait that both facilities share: what is kept over tries, what an event must be, when a wait ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from facilities.cancellation import Cancellation
from facilities.deferral import STATE_KEY, Wait, end_wait
from facilities.errors import (
    CredentialsError,
    FacilityError,
    InfrastructureError,
    NotFoundError,
    TransientError,
    UserError,
)
from facilities.polling import Answer, BlockingSource, PollFailed, SharedPoller
from facilities.waiting import (
    OutageTrigger,
    WaitEnd,
    WaitTrigger,
    format_duration,
    read_event,
)
from support.globus import Store


class AwayStore(Store):
    def set(self, key: str, value: Any) -> None:
        raise ConnectionError("the database is away")


@dataclass(eq=False, kw_only=True)
class Counting(WaitTrigger[int]):
    """Waits for work that has ended when its number reaches ten."""

    service = "The service"
    work = "work"
    source: Any = None
    had_ended: bool = False

    def poller(self) -> SharedPoller[int]:
        return SharedPoller(self.source)

    def assess(self, value: int | None, now: float) -> WaitEnd | None:
        if value is None:
            return WaitEnd("lost", NotFoundError("It is gone", remote_id=self.remote_id))
        self.state = str(value)
        self.wants_report = value == 3
        return WaitEnd("ended", result={"number": value}) if value >= 10 else None

    def read_report(self) -> str:
        return "three is an odd number"

    def read_url(self) -> str:
        return "https://service.example/1"

    def cancel(self) -> Cancellation:
        return Cancellation(True, "The work was cancelled.", self.had_ended)


def counting(numbers: list[int | Exception], **arguments: Any) -> Counting:
    """A trigger whose service answers with these numbers, and then with the last one."""

    def look(ids: frozenset[str]) -> Mapping[str, int]:
        number = numbers.pop(0) if len(numbers) > 1 else numbers[0]
        if isinstance(number, Exception):
            raise number
        return dict.fromkeys(ids, number)

    fields: dict[str, Any] = {
        "remote_id": "1",
        "deadline": 4e9,
        "min_poll_interval": 0.001,
        "max_poll_interval": 0.001,
    }
    return Counting(source=BlockingSource(look), **fields | arguments)


def test_a_wait_is_kept_for_its_work_only() -> None:
    store = Store()
    wait = Wait("1", 100.0, {"expected": 5}).save(store)
    assert Wait.load(store, "1") == wait
    assert Wait.load(store, "2") is None
    assert Wait.load(None, "1") is None
    end_wait(store)
    assert Wait.load(store, "1") is None


@pytest.mark.parametrize("kept", [None, "x", {}, {"remote_id": "1"}, {"remote_id": "1", "deadline": "soon"}])
def test_what_is_no_wait_is_none(kept: Any) -> None:
    assert Wait.load(Store({STATE_KEY: kept}), "1") is None


def test_a_store_that_is_away_costs_only_the_count() -> None:
    assert Wait("1", 100.0).save(AwayStore()) == Wait("1", 100.0)
    assert Wait("1", 100.0).save(None) == Wait("1", 100.0)


@pytest.mark.parametrize("event", [None, "ended", {}, {"outcome": "ended"}, {"outcome": 1, "remote_id": "1"}])
def test_an_event_that_is_none_of_ours_is_refused(event: Any) -> None:
    with pytest.raises(InfrastructureError, match="without a proper event"):
        read_event(event)


def test_an_event_about_other_work_is_refused() -> None:
    event = asyncio.run(counting([10]).wait())
    assert read_event(event, "1") == event
    with pytest.raises(InfrastructureError, match="id 2"):
        read_event(event, "2")


def test_a_wait_goes_on_until_the_work_has_ended() -> None:
    event = asyncio.run(counting([1, TransientError("down"), 3, 10]).wait())
    assert (event["outcome"], event["result"], event["error"]) == ("ended", {"number": 10}, None)
    assert event["cancelled"] == "not asked"


def test_the_deadline_cancels_and_the_error_has_all_that_is_known() -> None:
    event = asyncio.run(counting([3], deadline=0.0).wait())
    assert (event["outcome"], event["cancelled"]) == ("timeout", "yes")
    assert event["error"] is not None
    text = str(FacilityError.from_fields(event["error"]))
    for part in (
        "had not ended",
        "last state 3",
        "three is an odd number",
        "was cancelled",
        "https://service",
    ):
        assert part in text


def test_work_that_ended_just_before_it_was_cancelled_has_ended() -> None:
    event = asyncio.run(counting([1], deadline=0.0, had_ended=True).wait())
    assert (event["outcome"], event["error"]) == ("ended", None)


@pytest.mark.parametrize(("error", "needed"), [(CredentialsError("no"), 3), (UserError("no"), 5)])
def test_a_refusal_that_stays_ends_the_wait_and_leaves_the_work_alone(
    error: FacilityError, needed: int
) -> None:
    trigger = counting([1])
    trigger.begin(100.0, 0.0)
    failed = PollFailed(error, 1, 0.0)
    assert [trigger.take(failed, 0.0) for _ in range(needed - 1)] == [None] * (needed - 1)
    assert trigger.take(Answer(1), 0.0) is None  # one answer in between, and the count begins again
    ends = [trigger.take(failed, 0.0) for _ in range(needed)]
    assert ends[:-1] == [None] * (needed - 1)
    assert ends[-1] is not None
    assert (ends[-1].outcome, ends[-1].cancel) == ("refused", False)
    assert type(ends[-1].error) is type(error)


@dataclass(eq=False, kw_only=True)
class Silent(OutageTrigger):
    """Waits for a service that answers as the list says."""

    service = "The service"
    work = "work"
    answers: Any = None

    def connection_key(self) -> tuple[str, ...]:
        return ("conn",)

    def check(self) -> None:
        error = self.answers.pop(0)
        if error is not None:
            raise error

    def cancel(self) -> Cancellation:
        return Cancellation(True, "")


@pytest.mark.parametrize("last", [None, CredentialsError("refused")])
def test_a_hold_ends_when_the_service_answers_and_be_it_with_a_refusal(last: Exception | None) -> None:
    answers = [TransientError("down"), last]
    trigger = Silent(answers=answers, reason="HTTP 503", deadline=4e9, first_pause=0.001)
    assert asyncio.run(trigger.wait()) == {"outcome": "answers"}
    assert answers == []


def test_a_hold_ends_at_its_deadline() -> None:
    trigger = Silent(answers=[], reason="HTTP 503", deadline=0.0, first_pause=0.001)
    assert asyncio.run(trigger.wait()) == {"outcome": "timeout"}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (59, "59 s"), (60, "0:01:00"), (90_061, "25:01:01")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
