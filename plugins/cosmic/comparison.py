"""What became of a day's scans: the beamline's folder against NERSC's and against the runs that exist.

Nothing here talks to anybody; `cosmic.missed_scans` asks, and knows in which order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from cosmic.beamline import ENGINES, Engine
from cosmic.scans import ScanPath

Which = Literal["missing", "failed", "everything"]

LIVING_RUN_STATES = frozenset({"queued", "running"})  # anything else is over

_RESULT_NAME = re.compile(
    rf"(?P<stem>.+)_(?P<engine>{'|'.join(ENGINES)})(?:_r(?P<generation>\d{{1,9}}))?\.(?P<kind>json|cxi)"
)


class Verdict(StrEnum):
    """What became of one scan."""

    PROCESSED = "processed"
    RUNNING = "running"
    FAILED = "failed"
    MISSING = "missing"
    LEFT_ALONE = "left alone"  # still being written, or too young


# What a run of find_missed_scans starts.
WANTED: Mapping[Which, frozenset[Verdict]] = {
    "missing": frozenset({Verdict.MISSING}),
    "failed": frozenset({Verdict.MISSING, Verdict.FAILED}),
    "everything": frozenset({Verdict.MISSING, Verdict.FAILED, Verdict.PROCESSED}),
}


@dataclass(frozen=True)
class ScanFile:
    """A scan on the beamline's collection."""

    path: ScanPath
    size: int | None  # bytes
    modified: datetime | None

    def is_finished(self, now: datetime, min_age: timedelta) -> bool:
        """Whether nobody has written to it for `min_age`; an empty file is not finished."""
        return bool(self.size) and self.modified is not None and now - self.modified >= min_age


@dataclass(frozen=True)
class DayAtNersc:
    """A day's folder at NERSC."""

    sizes: Mapping[str, int]  # bytes, by file name
    results: Mapping[str, Mapping[Engine, frozenset[int]]]  # generations that are whole, by stem and engine

    @classmethod
    def from_sizes(cls, sizes: Mapping[str, int]) -> DayAtNersc:
        """Find the results in a listing: data and figures that are both there and not empty."""
        kinds: dict[tuple[str, Engine, int], set[str]] = {}
        for name, size in sizes.items():
            match = _RESULT_NAME.fullmatch(name)
            if match and size:
                engine = next(e for e in ENGINES if e == match["engine"])
                key = (match["stem"], engine, int(match["generation"] or 1))
                kinds.setdefault(key, set()).add(match["kind"])
        results: dict[str, dict[Engine, frozenset[int]]] = {}
        for (stem, engine, generation), seen in kinds.items():
            if len(seen) == 2:
                by_engine = results.setdefault(stem, {})
                by_engine[engine] = by_engine.get(engine, frozenset()) | {generation}
        return cls(sizes, results)

    def holds(self, scan: ScanFile) -> bool:
        """Whether the scan itself is there, whole."""
        return self.sizes.get(scan.path.relative.name) == scan.size

    def generations(self, scan: ScanFile) -> frozenset[int]:
        """Which generations of the scan have a result of any engine."""
        return frozenset().union(*self.results.get(scan.path.stem, {}).values())

    def is_processed(self, scan: ScanFile, engines: Sequence[Engine]) -> bool:
        """Whether there is what a run with these engines leaves; without engines that is the copy."""
        if not engines:
            return self.holds(scan)
        return set(engines) <= self.results.get(scan.path.stem, {}).keys()


def judge(
    scan: ScanFile,
    runs: Mapping[int, str],
    at_nersc: DayAtNersc,
    *,
    engines: Sequence[Engine],
    is_finished: bool,
) -> Verdict:
    """What became of a scan.

    :param runs: states of its runs by generation. They must have been read before NERSC's folder was
        listed: a run that ends in between is then still "running", and not one that left nothing.
    :param engines: what the parameters of its day ask for; decides when no run is known.
    """
    if LIVING_RUN_STATES & set(runs.values()):
        return Verdict.RUNNING
    if not is_finished:
        return Verdict.LEFT_ALONE
    if not runs:
        return Verdict.PROCESSED if at_nersc.is_processed(scan, engines) else Verdict.MISSING
    if runs[max(runs)] != "success":
        return Verdict.FAILED
    # A run that succeeded had its results checked; without even the copy, somebody has removed both.
    return Verdict.PROCESSED if scan.path.relative.name in at_nersc.sizes else Verdict.MISSING


def next_generation(scan: ScanFile, runs: Mapping[int, str], at_nersc: DayAtNersc, verdict: Verdict) -> int:
    """The identity of a scan's next run: one that no run has had, and whose results overwrite nobody's."""
    newest_run = max(runs, default=0)
    if verdict is Verdict.PROCESSED:
        return max(newest_run, max(at_nersc.generations(scan), default=1)) + 1
    return newest_run + 1


def scans_in(files: Iterable[ScanFile]) -> list[ScanFile]:
    """The scans among a folder's `.cxi` files: not the reconstructions that somebody has copied back."""
    by_name = {file.path.relative.name: file for file in files}

    def is_result(name: str) -> bool:
        match = _RESULT_NAME.fullmatch(name)
        return match is not None and f"{match['stem']}.cxi" in by_name

    return [file for name, file in sorted(by_name.items()) if not is_result(name)]
