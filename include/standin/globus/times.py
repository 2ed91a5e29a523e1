"""Reads and writes times as Transfer does."""

from __future__ import annotations

from datetime import UTC, datetime


def iso(seconds: float | None) -> str | None:
    """A time as in a task document: 2021-09-02T18:04:49+00:00."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(int(seconds), UTC).isoformat()


def listing_time(seconds: float) -> str:
    """A time as in a file document: 2021-09-02 18:04:49+00:00."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat(sep=" ")


def parse(text: str) -> float:
    """Seconds since the epoch of a date or time; one without a zone is in UTC.

    :raises ValueError: when it is neither.
    """
    moment = datetime.fromisoformat(text.strip())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC).timestamp()
    except OverflowError as error:
        raise ValueError(f"{text!r} is out of range") from error
