"""Which scans of a listing are new and finished, and which of them somebody still has to be told about."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from cosmic.comparison import ScanFile
from cosmic.scans import ScanPath

_FIRST_REPEAT = timedelta(minutes=5)
_LAST_REPEAT = timedelta(hours=1)


def fingerprint(path: ScanPath) -> str:
    """A scan in few characters: a day's memory must fit into one value of 64 kB."""
    return hashlib.sha256(str(path.relative).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Listing:
    """What one look at the beamline's collection showed."""

    time: datetime
    min_age: timedelta
    scans: Mapping[date, list[ScanFile]]


@dataclass
class _Told:
    time: datetime
    repeat: timedelta


@dataclass
class Noticing:
    """What one trigger knows of the scans that it has seen.

    A scan counts as dealt with when it has a run, not when somebody was told of it: an event can be lost
    with the process that made it. One that nobody acts on is told again, ever less often.
    """

    done: dict[date, set[str]] = field(default_factory=dict)  # fingerprints of scans with a run, by day
    _before: dict[ScanPath, ScanFile] = field(default_factory=dict)
    _told: dict[ScanPath, _Told] = field(default_factory=dict)

    def due(self, listing: Listing) -> list[ScanPath]:
        """Scans that are finished, have no run as far as we know, and are not just being told."""
        before, self._before = self._before, {s.path: s for day in listing.scans.values() for s in day}
        self._told = {path: told for path, told in self._told.items() if path in self._before}
        return [
            scan.path
            for day, scans in sorted(listing.scans.items())
            for scan in scans
            # Unchanged since the last look, too: a clock that is wrong makes a growing file look old.
            if before.get(scan.path) == scan
            and scan.is_finished(listing.time, listing.min_age)
            and fingerprint(scan.path) not in self.done.get(day, ())
            and self._is_to_be_told(scan.path, listing.time)
        ]

    def told(self, paths: Iterable[ScanPath], time: datetime) -> None:
        """Remember that somebody was told of these scans."""
        for path in paths:
            last = self._told.get(path)
            repeat = min(last.repeat * 2, _LAST_REPEAT) if last else _FIRST_REPEAT
            self._told[path] = _Told(time, repeat)

    def settle(self, paths: Iterable[ScanPath], days: Collection[date]) -> set[date]:
        """Remember that these scans have a run, and forget days that are not looked at any more.

        Returns the days whose memory changed.
        """
        changed = set()
        for path in paths:
            self._told.pop(path, None)
            if path.day is not None:
                self.done.setdefault(path.day, set()).add(fingerprint(path))
                changed.add(path.day)
        for day in set(self.done) - set(days):
            del self.done[day]
            changed.add(day)
        return changed

    def _is_to_be_told(self, path: ScanPath, now: datetime) -> bool:
        last = self._told.get(path)
        return last is None or now - last.time >= last.repeat
