"""The status of each scan of a day: the beamline's folder against the runs and against NERSC's folder.

`find_missed_scans` and `watch_scans` share this comparison.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any

from cosmic import runs
from cosmic.beamline import Collection, Collections, SourceCollection
from cosmic.parameters import ENGINES, Engine, chosen_engines
from cosmic.scan_names import day_folder, is_result
from cosmic.scans import ScanPath, parse_safe_path, parse_scan_path
from facilities.errors import NotFoundError, UserError
from facilities.globus.hook import GlobusHook
from facilities.globus.model import FileEntry

log = logging.getLogger(__name__)

_RESULT_NAME = re.compile(
    rf"(?P<stem>.+)_(?P<engine>{'|'.join(ENGINES)})"
    r"(?:_r(?P<generation>[0-9]{1,9})|_(?P<other>[0-9a-f]{8}))?\.(?P<kind>json|cxi)"
)


class ScanStatus(StrEnum):
    """What became of a scan."""

    PROCESSED = "processed"
    RUNNING = "running"
    FAILED = "failed"
    MISSING = "missing"
    LEFT_ALONE = "left_alone"  # still being written, or too young


# What a run of find_missed_scans starts, by its parameter `which`.
WANTED: Mapping[str, frozenset[ScanStatus]] = {
    "missing": frozenset({ScanStatus.MISSING}),
    "failed": frozenset({ScanStatus.MISSING, ScanStatus.FAILED}),
    "everything": frozenset({ScanStatus.MISSING, ScanStatus.FAILED, ScanStatus.PROCESSED}),
}


@dataclass(frozen=True)
class ScanFile:
    """A scan on the beamline's collection."""

    path: ScanPath
    size: int | None  # bytes
    modified: datetime | None

    def is_finished(self, now: datetime, min_age: timedelta) -> bool:
        """Whether it has not changed for `min_age`; an empty file is not finished."""
        return bool(self.size) and self.modified is not None and now - self.modified >= min_age


@dataclass(frozen=True)
class DayAtNersc:
    """A day's folder at NERSC."""

    sizes: Mapping[str, int]  # bytes, by file name
    results: Mapping[str, set[tuple[str, int]]]  # engine and generation (0: other) of complete ones, by stem

    @classmethod
    def from_sizes(cls, sizes: Mapping[str, int]) -> DayAtNersc:
        """Find the results in a listing: data and figures that are both there and not empty."""
        found: dict[str, set[tuple[str, str, int]]] = {"json": set(), "cxi": set()}
        for name, size in sizes.items():
            if size and (match := _RESULT_NAME.fullmatch(name)):
                generation = runs.OTHER if match["other"] else int(match["generation"] or 1)
                found[match["kind"]].add((match["stem"], match["engine"], generation))
        results: dict[str, set[tuple[str, int]]] = {}
        for stem, engine, generation in found["json"] & found["cxi"]:
            results.setdefault(stem, set()).add((engine, generation))
        return cls(sizes, results)

    def generations(self, scan: ScanFile) -> set[int]:
        """Which generations of the scan have a result of any engine."""
        return {generation for _, generation in self.results.get(scan.path.stem, ())}

    def is_processed(self, scan: ScanFile, engines: Sequence[Engine]) -> bool:
        """Whether there is what a run with these engines leaves; without engines that is a complete copy."""
        if not engines:
            return self.sizes.get(scan.path.relative.name) == scan.size
        return set(engines) <= {engine for engine, _ in self.results.get(scan.path.stem, ())}


@dataclass
class Day:
    """A day that was compared."""

    day: date
    parameters: dict[str, Any]  # of the runs to start
    files: list[ScanFile]
    odd_names: list[str]  # .cxi files that are not named as scans of the day
    runs: Mapping[ScanPath, Mapping[int, str]]  # states by generation; see `runs.states_by_generation`
    statuses: dict[ScanPath, ScanStatus]
    next_generations: dict[ScanPath, int]


def compare_day(
    hook: GlobusHook,
    collections: Collections,
    day: date,
    parameters: dict[str, Any],
    min_age: timedelta,
    *,
    only_without_run: bool = False,
) -> Day:
    """List a day's folders, ask Airflow about the runs, and work out the status of each scan.

    :param parameters: of the day; their engines' results are looked for.
    :param only_without_run: leave scans that have a run out of the comparison, which is quicker.
    """
    files, odd_names = list_beamline(hook, collections.source, day)
    if odd_names:
        log.warning(
            "%s: not named as scans of the day, so left alone: %s", day, shorten(map(repr, odd_names))
        )
    if only_without_run:
        known = runs.with_a_run([scan.path for scan in files])
        files = [scan for scan in files if scan.path not in known]
    # Before NERSC's folder: see `status_of`.
    states = runs.states_by_generation([scan.path for scan in files])
    at_nersc = list_nersc(hook, collections.destination, day) if files else DayAtNersc({}, {})
    engines, now = chosen_engines(parameters), datetime.now(UTC)
    compared = Day(day, parameters, files, odd_names, states, {}, {})
    for scan in files:
        of_scan = states.get(scan.path, {})
        status = status_of(
            scan, of_scan, at_nersc, engines=engines, is_finished=scan.is_finished(now, min_age)
        )
        compared.statuses[scan.path] = status
        compared.next_generations[scan.path] = next_generation(scan, of_scan, at_nersc, status)
    return compared


def status_of(
    scan: ScanFile,
    states: Mapping[int, str],
    at_nersc: DayAtNersc,
    *,
    engines: Sequence[Engine],
    is_finished: bool,
) -> ScanStatus:
    """What became of a scan.

    :param states: of its runs, by generation. They must have been read before NERSC's folder was listed: a
        run that ends in between is then still "running", and not one that left nothing.
    :param engines: what the parameters of its day ask for; decides when no run is known.
    """
    if runs.ACTIVE & set(states.values()):
        return ScanStatus.RUNNING
    if not is_finished:
        return ScanStatus.LEFT_ALONE
    if not states:
        return ScanStatus.PROCESSED if at_nersc.is_processed(scan, engines) else ScanStatus.MISSING
    if "success" not in (states[max(states)], states.get(runs.OTHER)):
        return ScanStatus.FAILED
    # A run that succeeded had its results checked; without even the copy, somebody has removed both.
    return ScanStatus.PROCESSED if scan.path.relative.name in at_nersc.sizes else ScanStatus.MISSING


def next_generation(
    scan: ScanFile, states: Mapping[int, str], at_nersc: DayAtNersc, status: ScanStatus
) -> int:
    """Number of a scan's next run: one that no run has had, and whose results overwrite none."""
    newest = max(states, default=0)
    if status is ScanStatus.PROCESSED:
        newest = max(newest, 1, *at_nersc.generations(scan))
    return newest + 1


def leave_alone_what_changes(hook: GlobusHook, source: SourceCollection, compared: Iterable[Day]) -> None:
    """List once more and leave alone what has changed: a file that is written under an old time.

    A copy that keeps its source's time, or a clock that is wrong, makes a growing file look finished.
    """
    for day in compared:
        if not set(day.statuses.values()) & WANTED["failed"]:
            continue
        again = {scan.path: scan for scan in list_beamline(hook, source, day.day)[0]}
        for scan in day.files:
            if day.statuses[scan.path] in WANTED["everything"] and again.get(scan.path) != scan:
                log.info("%s is being written: left alone.", scan.path.relative)
                day.statuses[scan.path] = ScanStatus.LEFT_ALONE


def list_beamline(hook: GlobusHook, source: SourceCollection, day: date) -> tuple[list[ScanFile], list[str]]:
    """A day's scans on the beamline's collection, and the names of `.cxi` files that are none of that day's.

    No folder means no scans.

    :raises NotFoundError: the collection itself does not have its root.
    """
    files: list[ScanFile] = []
    odd_names: list[str] = []
    for entry in _entries(hook, source, day, "~*.cxi"):
        if is_result(entry.name):  # that somebody has copied back
            continue
        try:
            path = parse_scan_path(f"{day_folder(day)}/{entry.name}")
        except UserError:
            path = None
        if path is None or not path.is_named(source.scan_names):
            odd_names.append(entry.name)
        else:
            files.append(ScanFile(path, entry.size, entry.last_modified))
    return sorted(files, key=lambda file: file.path.relative.name), odd_names


def list_nersc(hook: GlobusHook, destination: Collection, day: date) -> DayAtNersc:
    """What is at NERSC of a day; no folder means nothing.

    :raises NotFoundError: the collection itself does not have its root.
    """
    return DayAtNersc.from_sizes({entry.name: entry.size or 0 for entry in _entries(hook, destination, day)})


def shorten(texts: Iterable[str], count: int = 10) -> str:
    """The first `count` of many, and how many more there are: `a, b and 3 more`."""
    shown = list(texts)
    more = f" and {len(shown) - count} more" if len(shown) > count else ""
    return ", ".join(shown[:count]) + more


def _entries(
    hook: GlobusHook, collection: Collection, day: date, name_filter: str | None = None
) -> Iterator[FileEntry]:
    folder = parse_safe_path(day_folder(day)).under(collection.path)
    try:
        for entry in hook.list_folder(str(collection.id), folder, name_filter=name_filter):
            if entry.type == "file":
                yield entry
    except NotFoundError:
        # A day without beam has no folder. A wrong root has none on any day, and must not pass for that.
        next(iter(hook.list_folder(str(collection.id), collection.path, page_size=1)), None)
        log.info("%s: there is no folder %s on %s.", day, folder, collection.name)
