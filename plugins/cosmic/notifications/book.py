"""What each receiver was notified of, and which service is out: the book-keeping of `notify`.

A message is entered into the book after it was sent: nothing is lost, and an event is sent twice only when
the task dies between the two.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypedDict, cast

Kind = Literal["scan", "check", "client", "outage", "back", "missed", "late", "program"]

OVERLAP = 600.0  # seconds: a run's end is in the database up to so long after its own time
MAX_AGE = 3 * 86400.0  # seconds: what could not be sent for so long is dropped


class Picture(TypedDict):
    """A reconstruction of which a message has a picture."""

    name: str  # of the attachment; it says of which run and engine it is
    run_id: str
    run_after: str  # with the run's id: where its pictures are kept
    engine: str
    path: str  # at NERSC


class Event(TypedDict):
    """Something that people are to be notified of.

    `what` and `advice` may hold text of others (a job's output, a file's name); `message` makes it harmless.
    """

    id: str  # the same each time it is listed, another one when it happens again
    kind: Kind
    at: float  # seconds since 1970; of what goes on: now
    subject: str  # such as `scan NS_230216033_0_0`
    what: str
    advice: str
    command: str  # that runs it again; empty when there is none
    url: str
    pictures: list[Picture]


class ReceiverBook(TypedDict):
    """One receiver; times in seconds since 1970."""

    began: float  # nothing from before is sent
    since: float  # all from before was sent
    notified: dict[str, float]  # by id of an event: when
    last_message: dict[str, float]  # by kind of event: when a message last had one


class Outage(TypedDict):
    """A service's present or last outage; times in seconds since 1970."""

    since: float
    until: float | None  # None: it goes on
    what: str
    certain: bool  # seen twice in a row, or announced


class Look(TypedDict):
    """One look at a service."""

    out: str  # why it cannot be used, for people; empty: it can
    certain: bool  # by the service's own status page


class Book(TypedDict):
    """All that is kept from look to look."""

    receivers: dict[str, ReceiverBook]
    outages: dict[str, Outage]


def read_book(kept: Any, receivers: Collection[str], now: float) -> Book:
    """The book that was kept, with just these receivers; what cannot be read begins anew.

    :param kept: what `Variable.get` gave.
    """
    sections = kept if isinstance(kept, dict) else {}
    books, outages = (
        section if isinstance(section, dict) else {}
        for section in (sections.get("receivers"), sections.get("outages"))
    )
    return Book(
        receivers={
            name: cast("ReceiverBook", books[name])
            if _is_complete(books.get(name), ReceiverBook.__required_keys__)
            else ReceiverBook(began=now, since=now, notified={}, last_message={})
            for name in receivers
        },
        outages={
            service: cast("Outage", outage)
            for service, outage in outages.items()
            if _is_complete(outage, Outage.__required_keys__)
        },
    )


def _is_complete(value: Any, keys: Collection[str]) -> bool:
    return isinstance(value, dict) and value.keys() == {*keys}


def since(book: Book, now: float) -> float:
    """From when on the ends of runs have to be listed."""
    earliest = min((receiver["since"] for receiver in book["receivers"].values()), default=now)
    return max(earliest, now - MAX_AGE) - OVERLAP


def due(receiver: ReceiverBook, events: Sequence[Event], now: float, interval: float) -> list[Event]:
    """What to send to a receiver now; empty when there is nothing, or a message of its kind was sent lately.

    :param events: all that are listed at `now`.
    :param interval: seconds between two messages about events of the same kind.
    """
    began, notified = receiver["began"], receiver["notified"]
    new = [event for event in events if event["id"] not in notified and event["at"] >= began]
    last = receiver["last_message"]
    return new if any(now - last.get(event["kind"], -interval) >= interval for event in new) else []


def enter(receiver: ReceiverBook, events: Sequence[Event], sent: Sequence[Event], now: float) -> None:
    """Enter what was sent to a receiver, if anything was.

    :param events: all that are listed at `now`: others are forgotten.
    """
    notified = receiver["notified"]
    notified |= {event["id"]: now for event in sent}
    receiver["last_message"] |= {event["kind"]: now for event in sent}
    if all(event["id"] in notified or event["at"] < receiver["began"] for event in events):
        receiver["since"] = now
    listed = {event["id"] for event in events}
    receiver["notified"] = {
        key: when for key, when in notified.items() if key in listed or when > now - 2 * OVERLAP
    }


def observe(book: Book, looks: Mapping[str, Look], now: float) -> None:
    """Take in a look at each service: an answer that is lost once is no outage."""
    for service, look in looks.items():
        known = book["outages"].get(service)
        going_on = known is not None and known["until"] is None
        if look["out"]:
            if known is None or not going_on:
                known = Outage(since=now, until=None, what=look["out"], certain=look["certain"])
            else:
                known["what"], known["certain"] = look["out"], True
            book["outages"][service] = known
        elif known is not None and going_on:
            if known["certain"]:
                known["until"] = now
            else:
                del book["outages"][service]
    for service, outage in [*book["outages"].items()]:
        if (outage["until"] or now) < now - MAX_AGE:
            del book["outages"][service]


def outage_events(book: Book, now: float, pages: Mapping[str, str]) -> list[Event]:
    """The outages to notify of; of one that is over only that it is.

    :param pages: by service: address of its status page.
    """
    return [
        _outage_event(service, outage, now, pages.get(service, ""))
        for service, outage in book["outages"].items()
        if outage["certain"]
    ]


def _outage_event(service: str, outage: Outage, now: float, page: str) -> Event:
    since, until = outage["since"], outage["until"]
    kind: Kind = "outage" if until is None else "back"
    return Event(
        id=f"{kind} {service} {since:.0f}",
        kind=kind,
        at=now if until is None else until,
        subject=service,
        what=outage["what"] if until is None else f"It was out for {duration(until - since)}.",
        advice="nothing: scans wait, and go on by themselves.",
        command="",
        url=page,
        pictures=[],
    )


def duration(seconds: float) -> str:
    """A duration for people, such as `3 h 20 min`.

    >>> duration(12000)
    '3 h 20 min'
    """
    minutes = max(round(seconds / 60), 1)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest and hours < 24 else f"{hours} h"
