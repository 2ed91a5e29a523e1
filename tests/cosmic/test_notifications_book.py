"""Each event is sent to each receiver once, in few messages, whatever fails and whenever."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cosmic.notifications.book import (
    OVERLAP,
    Book,
    Event,
    Kind,
    Look,
    due,
    duration,
    enter,
    observe,
    outage_events,
    read_book,
    since,
)

INTERVAL = 1800.0
LOOK = 120.0  # seconds from look to look
START = 1_800_000_000.0
UP, OUT = Look(out="", certain=False), Look(out="NERSC does not answer.", certain=False)
ANNOUNCED = Look(out="Perlmutter is unavailable, until Thu 14:00 PDT.", certain=True)


def event(number: int, at: float, kind: Kind = "scan") -> Event:
    """One that differs from others by its number."""
    return Event(
        id=f"{kind} {number}",
        kind=kind,
        at=at,
        subject="s",
        what="w",
        advice="a",
        command="",
        url="",
        pictures=[],
    )


class Night:
    """Looks at runs that fail, and what two receivers get of it."""

    def __init__(self) -> None:
        self.now = START
        self.failed: list[Event] = []
        self.kept: Any = None
        self.got: dict[str, list[tuple[float, list[str]]]] = {"mail": [], "slack": []}

    def look(self, up: dict[str, bool], *, dies: bool = False) -> None:
        """One run of `notify`; when it dies, the last message that it sent is not in the book."""
        book = read_book(json.loads(json.dumps(self.kept)), self.got, self.now)
        listed = [one for one in self.failed if one["at"] >= since(book, self.now)]
        for name, receiver in book["receivers"].items():
            events = due(receiver, listed, self.now, INTERVAL)
            if events and not up[name]:
                continue
            if events:
                self.got[name].append((self.now, [one["id"] for one in events]))
                if dies:
                    return
            enter(receiver, listed, events, self.now)
            self.kept = copy.deepcopy(book)
        self.kept = copy.deepcopy(book)


STEPS = st.lists(
    st.tuples(
        st.integers(0, 3),  # failures since the last look
        st.floats(0, OVERLAP / 2),  # seconds for which the database hides them
        st.fixed_dictionaries({"mail": st.booleans(), "slack": st.booleans()}),
        st.sampled_from(["scan", "check"]),
    ),
    max_size=60,
)


@given(steps=STEPS)
def test_each_event_is_sent_once_to_each_receiver_and_seldom(
    steps: list[tuple[int, float, dict[str, bool], Kind]],
) -> None:
    night = Night()
    night.look({"mail": True, "slack": True})
    hidden: list[tuple[float, Event]] = []
    for failures, hiding, up, kind in steps:
        night.now += LOOK
        for _ in range(failures):
            new = event(len(night.failed) + len(hidden), night.now - 1, kind)
            hidden.append((night.now + hiding, new))
        night.failed += [one for when, one in hidden if when <= night.now]
        hidden = [entry for entry in hidden if entry[0] > night.now]
        night.look(up)
    night.failed += [one for _, one in hidden]
    for _ in range(int(INTERVAL / LOOK) + 2):
        night.now += LOOK
        night.look({"mail": True, "slack": True})
    everything = sorted(one["id"] for one in night.failed)
    for messages in night.got.values():
        assert sorted(sent for _, ids in messages for sent in ids) == everything
        # Two kinds: never more than two messages in one interval.
        times = [when for when, _ in messages]
        assert all(later - earlier >= INTERVAL for earlier, later in zip(times, times[2:], strict=False))


def test_two_hundred_failures_in_a_night_are_few_messages_and_the_first_comes_at_once() -> None:
    night = Night()
    up = {"mail": True, "slack": True}
    night.look(up)
    for look in range(240):  # eight hours
        night.now += LOOK
        if look < 200:
            night.failed.append(event(look, night.now - 5))
        night.look(up)
    (first, ids), *others = night.got["mail"]
    assert (first, ids) == (START + LOOK, ["scan 0"])
    assert len(others) == 14
    assert sum(len(ids) for _, ids in others) == 199


def test_what_failed_at_one_moment_is_one_message() -> None:
    night = Night()
    night.look({"mail": True, "slack": True})
    night.now += LOOK
    night.failed = [event(number, night.now - number / 100) for number in range(200)]
    night.look({"mail": True, "slack": True})
    ((_, ids),) = night.got["mail"]
    assert len(ids) == 200


def test_a_receiver_that_is_down_gets_it_later_and_the_other_one_nothing_twice() -> None:
    night = Night()
    night.look({"mail": True, "slack": True})
    night.now += LOOK
    night.failed = [event(1, night.now)]
    for _ in range(300):
        night.look({"mail": True, "slack": False})
        night.now += LOOK
    night.look({"mail": True, "slack": True})
    assert [ids for _, ids in night.got["mail"]] == [["scan 1"]]
    assert [ids for _, ids in night.got["slack"]] == [["scan 1"]]


def test_only_a_death_between_sending_and_entering_sends_twice() -> None:
    night = Night()
    night.look({"mail": True, "slack": True})
    night.now += LOOK
    night.failed = [event(1, night.now)]
    night.look({"mail": True, "slack": True}, dies=True)
    night.now += LOOK
    night.look({"mail": True, "slack": True})
    assert [ids for _, ids in night.got["mail"]] == [["scan 1"], ["scan 1"]]
    assert [ids for _, ids in night.got["slack"]] == [["scan 1"]]


def test_a_new_receiver_hears_nothing_of_the_past() -> None:
    book = read_book(None, ["mail"], START)
    receiver = book["receivers"]["mail"]
    assert due(receiver, [event(1, START - 1), event(2, START + 1)], START + 2, INTERVAL) == [
        event(2, START + 1)
    ]


def test_a_book_that_somebody_has_broken_begins_anew() -> None:
    broken: Any
    for broken in ("x", [], {"receivers": []}, {"receivers": {"mail": {"told": 3}}, "outages": {"NERSC": 1}}):
        assert read_book(broken, ["mail"], START) == read_book(None, ["mail"], START)


def test_the_book_does_not_grow() -> None:
    night = Night()
    for look in range(2000):
        night.now += LOOK
        night.failed = [*night.failed[-50:], event(look, night.now)]
        night.look({"mail": True, "slack": True})
    assert len(json.dumps(night.kept)) < 4000


# Outages


def outages(*looks: Look) -> tuple[Book, list[list[Kind]]]:
    """The events after each look."""
    book = read_book(None, [], START)
    seen = []
    for number, look in enumerate(looks):
        now = START + number * LOOK
        observe(book, {"NERSC": look}, now)
        seen.append([one["kind"] for one in outage_events(book, now, {})])
    return book, seen


def test_one_lost_answer_is_no_outage() -> None:
    assert outages(OUT, UP, OUT, UP)[1] == [[], [], [], []]


def test_an_outage_is_one_event_and_its_end_another() -> None:
    book, seen = outages(OUT, OUT, OUT, ANNOUNCED, UP, UP)
    assert seen == [[], ["outage"], ["outage"], ["outage"], ["back"], ["back"]]
    (back,) = outage_events(book, START, {"NERSC": "https://example.org"})
    assert (back["what"], back["url"]) == ("It was out for 8 min.", "https://example.org")


def test_an_announced_outage_is_an_event_at_once() -> None:
    book, seen = outages(ANNOUNCED)
    assert seen == [["outage"]]
    assert outage_events(book, START, {})[0]["what"] == ANNOUNCED["out"]


@given(looks=st.lists(st.sampled_from([UP, OUT, ANNOUNCED]), max_size=40))
def test_who_was_sent_an_outage_is_sent_its_end_once(looks: list[Look]) -> None:
    book = read_book(None, ["mail"], START - 1)
    receiver = book["receivers"]["mail"]
    kinds = []
    for number, look in enumerate([*looks, UP]):
        now = START + number * LOOK
        observe(book, {"NERSC": look}, now)
        listed = outage_events(book, now, {})
        events = due(receiver, listed, now, 0)
        enter(receiver, listed, events, now)
        kinds += [one["kind"] for one in events]
    assert kinds == ["outage", "back"] * (len(kinds) // 2)


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (5, 90, 3600, 12_000, 100_000)] == [
        "1 min",
        "2 min",
        "1 h",
        "3 h 20 min",
        "27 h",
    ]
