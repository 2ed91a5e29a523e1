"""The subject is for 3 a.m., the text has what to do, and nothing in either can do harm."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmic.notifications.book import Event, Kind
from cosmic.notifications.message import MAX_SUBJECT, compose, plain


def event(kind: Kind = "scan", subject: str = "scan NS_230216033_0_0", **fields: Any) -> Event:
    """A scan that ran out of time, unless the keywords differ."""
    made: dict[str, Any] = {
        "id": f"{kind} {subject}",
        "kind": kind,
        "at": 0.0,
        "subject": subject,
        "what": "The job ran out of time",
        "advice": "run it again with more.",
        "command": "submit_scan.py reprocess x.cxi",
        "url": "https://cosmic.example.org/cosmic/dags/d/runs/r",
        "pictures": [],
    }
    return Event(**{**made, **fields})  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("events", "subject"),
    [
        ([event()], "COSMIC: scan NS_230216033_0_0 failed: The job ran out of time"),
        (
            [event(subject=f"scan {n}") for n in range(200)],
            "COSMIC: 200 scans failed: The job ran out of time",
        ),
        ([event(), event(subject="scan b", what="It is gone")], "COSMIC: 2 scans failed"),
        (
            [event("outage", "NERSC", what="perlmutter is unavailable, until Thu 26 Nov 14:00 PST.")],
            "COSMIC: NERSC is out: perlmutter is unavailable, until Thu 26 Nov 14:00 PST",
        ),
        ([event("back", "NERSC", what="It was out for 3 h.")], "COSMIC: NERSC is back"),
        ([event("outage", "NERSC"), event("outage", "Globus", what="x")], "COSMIC: NERSC and Globus are out"),
        (
            [event("client", "NERSC's client", what="expires in 6 days")],
            "COSMIC: NERSC's client expires in 6 days",
        ),
        (
            [event("check", "flight check", what="Globus refuses us")],
            "COSMIC: flight check failed: Globus refuses us",
        ),
        (
            [event("missed", "2023-02-16", what="12 of 40 scans were missed")],
            "COSMIC: 2023-02-16: 12 of 40 scans were missed",
        ),
        (
            [event("late", "scan x", what="not done after 24 h")],
            "COSMIC: scan x is late: not done after 24 h",
        ),
        (
            [event("program", "watch_scans", what="Globus refuses us") for _ in range(15)],
            "COSMIC: watch_scans failed 15 times: Globus refuses us",
        ),
        (
            [event("program", "watch_scans"), event("program", "find_missed_scans", what="b")],
            "COSMIC: 2 runs of the beamline's own programs failed",
        ),
        (
            [event(), event("check", "flight check", what="Globus refuses us")],
            "COSMIC: flight check failed: Globus refuses us; "
            "scan NS_230216033_0_0 failed: The job ran out of time",
        ),
    ],
)
def test_subjects(events: list[Event], subject: str) -> None:
    assert compose(events).subject == subject


def test_a_text_has_cause_advice_and_address() -> None:
    assert compose([event()]).text == (
        "scan NS_230216033_0_0 failed: The job ran out of time\n\n"
        "The job ran out of time\n"
        "What to do: run it again with more.\n"
        "To run it again: submit_scan.py reprocess x.cxi\n"
        "- scan NS_230216033_0_0: https://cosmic.example.org/cosmic/dags/d/runs/r"
    )


def test_two_hundred_failures_are_a_short_text_by_cause() -> None:
    events = [event(subject=f"scan {n}", what="It is gone" if n < 20 else "Out of time") for n in range(200)]
    text = compose(events).text
    assert "180 times: Out of time" in text
    assert text.index("180 times: Out of time") < text.index("20 times: It is gone")
    assert "- scan 29:" in text
    assert "- scan 30:" not in text
    assert "- and 170 more" in text
    assert len(text) < 3000


def test_causes_that_differ_by_names_and_numbers_are_one() -> None:
    events = [
        event(subject=f"scan {n}", what=f"There is no /2023/{n}.cxi at data7012", advice=f"post {n} again.")
        for n in range(200)
    ]
    message = compose(events)
    assert message.subject == "COSMIC: 200 scans failed: There is no … at …"
    assert "200 times: There is no … at …\nWhat to do: post … again.\n- scan 0: " in message.text
    assert "There is no /2023/7.cxi at data7012" in compose(events[7:8]).text


def test_two_hundred_causes_are_a_short_text() -> None:
    text = compose(
        [event(what=f"Cause {chr(0x4E00 + n)} " + "x" * 5000, advice="y" * 5000) for n in range(200)]
    ).text
    assert "And 192 more, for other reasons." in text
    assert len(text) < 10_000


def test_only_good_news_is_good() -> None:
    assert compose([event("back", "NERSC")]).good
    assert not compose([event("back", "NERSC"), event()]).good


HOSTILE = st.one_of(
    st.text(max_size=3000),
    st.sampled_from(
        [
            "a\r\nBcc: everyone@example.org\r\n\r\n<script>alert(1)</script>",
            "a\n\n\nX-Header: b",
            "\u202e4321.gpj",
            "@everyone @HERE @channel",
            "\x00\x1b[31m\x7f\x85\u2028\u2029",
            "\ud800",
        ]
    ),
)


@given(subject=HOSTILE, what=HOSTILE, advice=HOSTILE, kind=st.sampled_from([*Kind.__args__]))  # type: ignore[attr-defined]
def test_what_others_wrote_stays_in_its_line(subject: str, what: str, advice: str, kind: Kind) -> None:
    message = compose([event(kind, subject, what=what, advice=advice, url="https://example.org/")])
    assert len(message.subject) <= MAX_SUBJECT
    assert message.subject.startswith("COSMIC:")
    assert not {unicodedata.category(c) for c in message.subject} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert "@everyone" not in message.text
    # One line each, at most: headline, nothing, cause, advice, command, name with address.
    assert len(message.text.splitlines()) <= 6
    assert message.text.endswith("https://example.org/")
    message.text.encode()


def test_plain_text_is_left_as_it_is() -> None:
    assert plain("Größe 12 µm, 日本, x < y & z@example.org") == "Größe 12 µm, 日本, x < y & z@example.org"
    assert plain("a" * 500, 10) == "aaaaaaaaa…"
