"""Composes one message of all events: a subject for 3 a.m., and a text with what to do.

Names and causes hold text of others. `plain` leaves of them one line of printable characters, so that nothing
can become a header of a mail, a mention of everybody, or text that runs backwards; markup is text, which is
escaped by Apprise for each receiver.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from cosmic.notifications.book import Event, Kind

MAX_SUBJECT = 150  # characters
MAX_CAUSES = 8  # by kind, in one message
MAX_NAMES = 10  # by cause
_LINE = 400  # characters
_WHOLE = 4000  # characters
_PARTICULAR = re.compile(r"(?<!\S)\S*[/\d]\S*")  # tried once a word, or long words take minutes
_MENTION = re.compile(r"@(?=(everyone|here|channel|all)\b)", re.IGNORECASE)


class Message(NamedTuple):
    """A message; `good` when nothing in it is bad news."""

    subject: str
    text: str
    good: bool


def plain(text: object, limit: int = _LINE) -> str:
    """One line of printable characters.

    >>> plain("a\\r\\nBcc: b@example.org")
    'a Bcc: b@example.org'
    """
    kept = (character for character in str(text) if unicodedata.category(character) not in ("Cf", "Cs", "Co"))
    printable = (character if unicodedata.category(character) != "Cc" else " " for character in kept)
    line = _MENTION.sub("@ ", " ".join("".join(printable).split()))
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def compose(events: Sequence[Event]) -> Message:
    """One message about all events.

    Example: three scans that ran out of time become `COSMIC: 3 scans failed: The job ran out of time`.
    """
    by_kind = {kind: found for kind in _SECTIONS if (found := [i for i in events if i["kind"] == kind])}
    headlines = [_SECTIONS[kind](found) for kind, found in by_kind.items()]
    sections = [
        f"{headline}\n\n{_section(by_kind[kind])}" for kind, headline in zip(by_kind, headlines, strict=True)
    ]
    return Message(
        subject=plain(f"COSMIC: {'; '.join(_short(headlines))}", MAX_SUBJECT),
        text="\n\n\n".join(sections),
        good=by_kind.keys() <= {"back"},
    )


def _short(headlines: Sequence[str]) -> list[str]:
    """Headlines that leave room for each other."""
    return [plain(headline, max(MAX_SUBJECT // len(headlines), 40)) for headline in headlines]


def _section(events: Sequence[Event]) -> str:
    """The events of one kind, those with the same cause together, the most frequent cause first."""
    causes: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        causes.setdefault((_alike(event["what"]), _alike(event["advice"])), []).append(event)
    largest_first = sorted(causes.values(), key=len, reverse=True)
    paragraphs = [_paragraph(same) for same in largest_first[:MAX_CAUSES]]
    rest = sum(len(same) for same in largest_first[MAX_CAUSES:])
    return "\n\n".join([*paragraphs, *([f"And {rest} more, for other reasons."] if rest else [])])


def _paragraph(events: Sequence[Event]) -> str:
    what, advice = _common(events, "what"), _common(events, "advice")
    lines = [f"{len(events)} times: {what}" if len(events) > 1 else what] if what else []
    lines += [f"What to do: {advice}"] if advice else []
    if len(events) == 1 and events[0]["command"]:
        lines += [f"To run it again: {plain(events[0]['command'])}"]
    for event in events[:MAX_NAMES]:
        lines += [f"- {plain(event['subject'])}" + (f": {event['url']}" if event["url"] else "")]
    lines += [f"- and {len(events) - MAX_NAMES} more"] if len(events) > MAX_NAMES else []
    return "\n".join(lines)


def _alike(text: str) -> str:
    """The text without names, paths, numbers and times, by which it differs from run to run."""
    return plain(_PARTICULAR.sub("…", plain(text, _WHOLE)))


def _common(events: Sequence[Event], name: Literal["what", "advice"]) -> str:
    """The text of the events, which are alike; what differs is left out."""
    first = plain(events[0][name])
    return first if all(plain(event[name]) == first for event in events) else _alike(events[0][name])


# Headlines by kind, in the order in which they stand in a message.


def _with_cause(headline: str, events: Sequence[Event]) -> str:
    alike = {_alike(event["what"]) for event in events}
    cause = _common(events, "what") if len(alike) == 1 else ""
    return f"{headline}: {cause.rstrip('.')}" if cause else headline


def _failed(many: str) -> Callable[[Sequence[Event]], str]:
    def headline(events: Sequence[Event]) -> str:
        subjects = {plain(event["subject"]) for event in events}
        count = "" if len(events) == 1 else f" {len(events)} times"
        who = f"{subjects.pop()} failed{count}" if len(subjects) == 1 else f"{len(events)} {many} failed"
        return _with_cause(who, events)

    return headline


def _outage(events: Sequence[Event]) -> str:
    names = " and ".join(plain(event["subject"]) for event in events)
    return _with_cause(f"{names} {'is' if len(events) == 1 else 'are'} out", events)


def _back(events: Sequence[Event]) -> str:
    names = " and ".join(plain(event["subject"]) for event in events)
    return f"{names} {'is' if len(events) == 1 else 'are'} back"


def _missed(events: Sequence[Event]) -> str:
    if len(events) == 1:
        return f"{plain(events[0]['subject'])}: {plain(events[0]['what']).rstrip('.')}"
    return f"missed scans found on {len(events)} days"


def _late(events: Sequence[Event]) -> str:
    if len(events) == 1:
        return _with_cause(f"{plain(events[0]['subject'])} is late", events)
    return f"{len(events)} scans are late"


def _client(events: Sequence[Event]) -> str:
    return f"{plain(events[-1]['subject'])} {plain(events[-1]['what'])}"


_SECTIONS: Mapping[Kind, Callable[[Sequence[Event]], str]] = {
    "outage": _outage,
    "check": _failed("flight checks"),
    "client": _client,
    "scan": _failed("scans"),
    "late": _late,
    "missed": _missed,
    "program": _failed("runs of the beamline's own programs"),
    "back": _back,
}
