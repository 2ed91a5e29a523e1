"""What is known of a scan: its files, the runs of each, and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, tzinfo
from types import MappingProxyType
from typing import Any, NamedTuple

from cosmic.parameters import ENGINES
from cosmic.runs import ACTIVE
from cosmic.scan_names import folder_day, parse_path
from cosmic.scans import parse_scan_path
from facilities.errors import UserError
from facilities.progress import Progress

STATES = ("active", "done", "warnings", "failed", "stopped")
"""What a scan can be filtered by: one of its files is that."""

LONGEST = 300
"""Characters of a text that is shown in a list."""


class Result(NamedTuple):
    """An engine's result, by its asset event; all None when an older version has left it.

    :param kept: its pictures and figures are kept for pages.
    :param error: the final one, as the engine defines it.
    """

    engine: str
    when: datetime
    kept: bool = False
    proposal: str | None = None
    sample: str | None = None
    energy_ev: float | None = None
    error: float | None = None
    resolution_m: float | None = None
    warnings: int = 0


class Place(NamedTuple):
    """What a run is about.

    :param path: of the file, relative to the beamline's collection; empty when it was asked for none.
    :param scan: name of the scan that the file belongs to.
    """

    path: str
    scan: str
    energy: int = 0
    region: int = 0


NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Run:
    """A run of `transfer_auto_recon`, as it was at one moment.

    :param asked_for: whether a reconstruction was.
    :param state: Airflow's.
    :param results: by engine.
    :param error: why it failed, one sentence; `stopped_by`: who has ended it by hand.
    :param tasks: state of each task that it is at, while it is active.
    :param progress: of those that wait, by task.
    """

    id: int
    run_id: str
    place: Place
    asked_for: bool
    state: str
    posted: datetime
    started: datetime | None
    ended: datetime | None
    results: Mapping[str, Result] = field(default_factory=lambda: NOTHING)
    error: str = ""
    stopped_by: str = ""
    tasks: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    progress: Mapping[str, Progress] = field(default_factory=lambda: NOTHING)

    @property
    def outcome(self) -> str:
        """One of active, done, failed, stopped."""
        if self.state in ACTIVE:
            return "active"
        if self.state == "success":
            return "done"
        return "stopped" if self.stopped_by and not self.error else "failed"

    @property
    def lacks_result(self) -> bool:
        """Whether it is done without the result that it was to have."""
        return self.outcome == "done" and self.asked_for and not self.results


@dataclass(frozen=True, slots=True)
class File:
    """A file of a scan, and its runs, the newest first."""

    path: str
    energy: int
    region: int
    runs: tuple[Run, ...]

    @property
    def run(self) -> Run:
        """Its newest run, which says what became of it."""
        return self.runs[0]

    @property
    def results(self) -> Mapping[str, Result]:
        """The newest result of each engine, of any of its runs."""
        return {engine: found[1] for engine in ENGINES if (found := self.newest(engine))}

    def newest(self, engine: str) -> tuple[Run, Result] | None:
        """The newest result of an engine, with its run."""
        return next(((run, run.results[engine]) for run in self.runs if engine in run.results), None)


@dataclass(frozen=True, slots=True)
class Scan:
    """A scan: all files (energies, regions) that had a run.

    :param name: of the whole scan, such as NS_230216033; of the file, when it belongs to none.
    :param day: whose folder it is in, else the day of its first run, at the beamline.
    :param posted: when its newest run was made.
    :param outcomes: of its files, of `STATES`.
    """

    name: str
    day: date
    posted: datetime
    files: tuple[File, ...]
    outcomes: frozenset[str]
    proposal: str | None
    sample: str | None
    searched: str

    @property
    def picture(self) -> tuple[str, str, datetime] | None:
        """Run, engine and time of the newest result whose pictures are kept."""
        kept = [
            (result.when, run.run_id, engine)
            for file in self.files
            for run in file.runs
            for engine, result in run.results.items()
            if result.kept
        ]
        when, run_id, engine = max(kept, default=(None, "", ""))
        return (run_id, engine, when) if when else None


def place_of(run_id: str, given: object, forms: Sequence[str]) -> Place:
    """What a run is about; a file that belongs to no scan is one by itself, and so is a run of none."""
    try:
        path = parse_scan_path(given)
    except UserError:
        return Place("", run_id)
    file = parse_path(str(path.relative), forms)
    if file is None:
        return Place(str(path.relative), path.name)
    return Place(str(path.relative), file.scan.name, file.energy, file.region or 0)


def scan_of(name: str, runs: Sequence[Run], zone: tzinfo) -> Scan:
    """A scan of its runs, the newest first; `zone` is the beamline's."""
    of_file: dict[str, list[Run]] = {}
    for run in runs:
        of_file.setdefault(run.place.path or run.run_id, []).append(run)
    files = [
        File(path, some[0].place.energy, some[0].place.region, tuple(some)) for path, some in of_file.items()
    ]
    files.sort(key=lambda file: (file.energy, file.region, file.path))
    results = sorted(
        (result for run in runs for result in run.results.values()), key=lambda r: r.when, reverse=True
    )
    outcomes = {file.run.outcome for file in files}
    if any(result.warnings for file in files for result in file.results.values()):
        outcomes.add("warnings")
    proposal = next((result.proposal for result in results if result.proposal), None)
    sample = next((result.sample for result in results if result.sample), None)
    day = folder_day(runs[0].place.path.rpartition("/")[0]) or runs[-1].posted.astimezone(zone).date()
    texts = [name, proposal or "", sample or ""]
    texts += [text for file in files for text in (file.path, file.run.error, file.run.stopped_by)]
    return Scan(
        name,
        day,
        max(run.posted for run in runs),
        tuple(files),
        frozenset(outcomes),
        proposal,
        sample,
        "\n".join(dict.fromkeys(texts)).casefold(),
    )


def result_of(engine: str, when: datetime, extra: object) -> Result:
    values: Mapping[str, Any] = extra if isinstance(extra, Mapping) else {}
    return Result(
        engine,
        when,
        "scan" in values,
        _text(values.get("proposal")),
        _text(values.get("sample")),
        number(values.get("energy_ev")),
        number(values.get("error")),
        number(values.get("resolution_m")),
        int(number(values.get("warnings")) or 0),
    )


def _text(value: object) -> str | None:
    return value[:LONGEST] if isinstance(value, str) and value.strip() else None


def number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
