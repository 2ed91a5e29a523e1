"""Reads the CPU seconds of a process with all that it started, from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")


class Cpu(NamedTuple):
    """CPU seconds of a process alone, and of all that it started."""

    own: float
    others: float

    @property
    def all(self) -> float:
        """Both."""
        return self.own + self.others


class _Stat(NamedTuple):
    """What /proc/PID/stat has of a process: `ended` are the seconds of its children that have ended."""

    parent: int
    session: int
    own: float
    ended: float


def cpu_of(leader: int) -> Cpu:
    """CPU seconds of a process, and of its descendants and its session, those that have ended included.

    The session has those whose parents have ended, when the process leads one.
    """
    stats = dict(_processes())
    inside = {pid for pid, stat in stats.items() if leader in (pid, stat.session)}
    wave = inside
    while wave:
        wave = {pid for pid, stat in stats.items() if stat.parent in wave} - inside
        inside |= wave
    own = stats[leader].own if leader in stats else 0.0
    return Cpu(own, sum(stats[pid].own + stats[pid].ended for pid in inside) - own)


def cores(seconds: Callable[[], dict[str, float]], window: float) -> dict[str, float]:
    """Cores that each part uses in a window of seconds, on average.

    :param seconds: the CPU seconds of each part so far.
    """
    began, before = time.monotonic(), seconds()
    time.sleep(window)
    after, took = seconds(), time.monotonic() - began
    return {part: (after[part] - before[part]) / took for part in before}


def parse_stat(text: str) -> _Stat:
    """The text of /proc/PID/stat, whose second field, the program's name, may hold anything.

    >>> parse_stat("7 (a) b) S 5 6 4 0 -1 0 0 0 0 0 100 50 25 25 20 0 1 0 9").parent
    5
    """
    fields = text.rpartition(")")[2].split()
    user, system, ended_user, ended_system = (int(field) / _TICKS for field in fields[11:15])
    return _Stat(int(fields[1]), int(fields[3]), user + system, ended_user + ended_system)


def _processes() -> Iterator[tuple[int, _Stat]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                yield int(entry.name), parse_stat(Path(entry.path, "stat").read_text(encoding="latin-1"))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
