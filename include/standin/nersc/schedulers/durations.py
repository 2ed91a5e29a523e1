"""Reads and writes times and sizes as Slurm does."""

from __future__ import annotations

import re
from datetime import datetime
from zoneinfo import ZoneInfo

UNLIMITED = 365 * 86400.0
_MEMORY = re.compile(r"(\d+)([KMGT]?)B?", re.IGNORECASE)
_UNITS_MB = {"K": 1 / 1024, "": 1.0, "M": 1.0, "G": 1024.0, "T": 1024.0 * 1024}


def parse_time_limit(text: str) -> float:
    """Seconds of a `--time`: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s; seconds round up to a minute.

    :raises ValueError: for anything else.
    """
    text = text.strip()
    if text.upper() in ("UNLIMITED", "INFINITE", "-1"):
        return UNLIMITED
    match = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", text, re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is not a time")
    days, *rest = match.groups()
    first, second, third = (int(part or 0) for part in rest)
    if days is not None:
        seconds = int(days) * 86400 + first * 3600 + second * 60 + third
    elif rest[2] is not None:
        seconds = first * 3600 + second * 60 + third
    else:
        seconds = first * 60 + second
    return min(float(-(-seconds // 60) * 60), UNLIMITED)


def parse_memory(text: str) -> int:
    """Megabytes of a `--mem`; 0 means all of a node.

    :raises ValueError: for anything that is not a number with K, M, G or T.
    """
    match = _MEMORY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size")
    return round(int(match[1]) * _UNITS_MB[match[2].upper()])


def elapsed(seconds: float) -> str:
    """[d-]hh:mm:ss, as sacct writes it."""
    days, rest = divmod(int(max(seconds, 0)), 86400)
    clock = f"{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def short_elapsed(seconds: float) -> str:
    """[d-hh:][h:]m:ss, as squeue writes it."""
    days, rest = divmod(int(max(seconds, 0)), 86400)
    hours, minutes, secs = rest // 3600, rest % 3600 // 60, rest % 60
    if days:
        return f"{days}-{hours:02}:{minutes:02}:{secs:02}"
    if hours:
        return f"{hours}:{minutes:02}:{secs:02}"
    return f"{minutes}:{secs:02}"


def limit(seconds: float, short: bool) -> str:
    """A time limit as sacct (or, `short`, squeue) writes it."""
    if seconds >= UNLIMITED:
        return "UNLIMITED"
    return short_elapsed(seconds) if short else elapsed(seconds)


def moment(when: float | None, zone: ZoneInfo, missing: str) -> str:
    """A naive local time, or `missing`."""
    if when is None:
        return missing
    return datetime.fromtimestamp(when, zone).strftime("%Y-%m-%dT%H:%M:%S")


def parse_moment(text: str, zone: ZoneInfo, now: float) -> float:
    """A point in time as sbatch and sacct take it: now[+N[unit]], a date, or a date and time.

    :raises ValueError: for anything else.
    """
    text = text.strip()
    if text.lower() == "today":
        return (
            datetime.fromtimestamp(now, zone).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
        )
    match = re.fullmatch(r"now(?:([+-]\d+)(second|minute|hour|day|week)?s?)?", text.lower())
    if match:
        unit = {"minute": 60, "hour": 3600, "day": 86400, "week": 604800}.get(match[2] or "", 1)
        return now + int(match[1] or 0) * unit
    if not re.match(r"\d{4}-\d{2}-\d{2}", text):
        raise ValueError(f"{text!r} is not a time")
    parsed = datetime.fromisoformat(text)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=zone)).timestamp()
