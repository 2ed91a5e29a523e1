"""Finding scans that were not processed: the task bodies of `find_missed_scans`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict
from zoneinfo import ZoneInfo

from airflow.sdk import get_current_context

from cosmic import reprocessing, runs
from cosmic.beamline import Beamline, beamline
from cosmic.comparison import WANTED, DayAtNersc, ScanFile, Verdict, judge, next_generation
from cosmic.folders import list_beamline, list_nersc, shorten
from cosmic.processing import engines_of, parameters_of
from cosmic.scans import ScanPath
from cosmic.start_runs import DayToStart
from facilities.errors import UserError
from facilities.globus.hook import GlobusHook

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

MOST_DAYS = 366
MOST_NAMES = 10_000  # in the log of a dry run


class DayRow(TypedDict):
    """A line of the table: numbers of scans."""

    day: str  # ISO
    on_disk: int
    processed: int
    running: int
    failed: int
    missing: int
    left_alone: int  # still being written, or too young
    odd_names: int  # .cxi files that are not named as scans of the day
    started: int


@dataclass(frozen=True)
class _Day:
    """A day that was compared."""

    day: date
    parameters: dict[str, Any]
    verdicts: dict[ScanPath, Verdict]
    next_generations: dict[ScanPath, int]
    runs: Mapping[ScanPath, Mapping[int, str]]
    odd_names: list[str] = field(default_factory=list)

    def row(self) -> DayRow:
        count = Counter(self.verdicts.values())
        return DayRow(
            day=self.day.isoformat(),
            on_disk=len(self.verdicts),
            processed=count[Verdict.PROCESSED],
            running=count[Verdict.RUNNING],
            failed=count[Verdict.FAILED],
            missing=count[Verdict.MISSING],
            left_alone=count[Verdict.LEFT_ALONE],
            odd_names=len(self.odd_names),
            started=0,
        )


def days_to_look_at(context: Context, params: Mapping[str, Any]) -> list[date]:
    """The days of a run: those asked for, or those of its data interval, or yesterday and today.

    The interval's days are read off its dates in UTC: from midnight to midnight of 2023-02-16 stands for
    the folder 230216, whose day is the beamline's own (see `cosmic.timetable`).

    :raises UserError: the days asked for are not a range, or too many.
    """
    if params["first_day"] or params["last_day"]:
        first = date.fromisoformat(params["first_day"] or params["last_day"])
        last = date.fromisoformat(params["last_day"] or params["first_day"])
    elif (start := context.get("data_interval_start")) and (end := context.get("data_interval_end")):
        first = start.astimezone(UTC).date()
        last = max(first, (end.astimezone(UTC) - timedelta(microseconds=1)).date())
    else:
        last = datetime.now(ZoneInfo(beamline().time_zone)).date()
        first = last - timedelta(days=1)
    count = (last - first).days + 1
    if not 0 < count <= MOST_DAYS:
        raise UserError(
            f"{first} to {last} is not a range of 1 to {MOST_DAYS} days",
            next_step="trigger again with first_day before last_day; for long ranges use a backfill.",
        )
    return [first + timedelta(days=n) for n in range(count)]


def compare(params: Any = None) -> dict[str, Any]:
    """List, compare and choose (Airflow gives the parameters).

    One XCom for the table (`rows`) and one for what to start (`days`).
    """
    context = get_current_context()
    site = beamline()
    days = days_to_look_at(context, params)
    # All settings are checked before anything is listed or started.
    parameters = {day: parameters_of(site, day) for day in days}
    min_age = timedelta(minutes=params["min_age_minutes"])
    with closing(GlobusHook(site.connections.globus)) as hook:
        compared = [_compare_day(hook, site, day, parameters[day], min_age) for day in days]
    chosen = _choose(compared, params, context["task_state_store"])
    rows = [day.row() for day in compared]
    log.info("What there is, before anything is started:\n%s", table(rows))
    for day in chosen:
        log.info("%s: %d to be started with %s", day["day"], len(day["scans"]), day["parameters"])
        names = (f"{path} (as r{number})" if number > 1 else path for path, number in day["scans"])
        log.info("  %s", shorten(names, MOST_NAMES if params["dry_run"] else 10))
    return {"rows": rows, "days": chosen}


def start_or_not(days: Sequence[DayToStart], params: Any = None) -> str:
    """Id of the task that the run goes on with: nothing to start does not wait for those who start."""
    if params["dry_run"]:
        log.info("Dry run: nothing is started.")
        return "report"
    return "start_runs" if days else "report"


def report(rows: Sequence[DayRow], started: Mapping[str, int] | None) -> list[DayRow]:
    """The table with what was started: the run's result.

    :param started: runs by day, or None when nothing was to be started.
    """
    full: list[DayRow] = [{**row, "started": (started or {}).get(row["day"], 0)} for row in rows]
    log.info("Numbers of scans:\n%s", table(full))
    return full


def table(rows: Sequence[DayRow]) -> str:
    """The rows as text, with a line of sums."""
    names = [name for name in DayRow.__annotations__ if name != "day"]
    cells: list[Mapping[str, Any]] = [*rows]
    if len(rows) > 1:
        cells.append({"day": "total", **{name: sum(int(row[name]) for row in cells) for name in names}})
    lines = [["day", *(name.replace("_", " ") for name in names)]]
    lines += [[str(row["day"]), *(str(row[name]) for name in names)] for row in cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines
    )


def _compare_day(
    hook: GlobusHook, site: Beamline, day: date, parameters: dict[str, Any], min_age: timedelta
) -> _Day:
    source, destination = site.collections.source, site.collections.destination
    at_beamline = list_beamline(hook, source, day)
    if at_beamline.odd_names:
        names = shorten(map(repr, at_beamline.odd_names))
        log.warning("%s: not named as scans of the day, so left alone: %s", day, names)
    # Runs before NERSC's folder: see `judge`.
    states = runs.states_by_generation([scan.path for scan in at_beamline.scans])
    at_nersc = list_nersc(hook, destination, day) if at_beamline.scans else DayAtNersc({}, {})
    engines = engines_of(parameters)
    now = datetime.now(UTC)
    verdicts = {
        scan.path: judge(
            scan,
            states.get(scan.path, {}),
            at_nersc,
            engines=engines,
            is_finished=scan.is_finished(now, min_age),
        )
        for scan in at_beamline.scans
    }
    _leave_alone_what_changes(hook, site, day, at_beamline.scans, verdicts)
    generations = {
        scan.path: next_generation(scan, states.get(scan.path, {}), at_nersc, verdicts[scan.path])
        for scan in at_beamline.scans
    }
    return _Day(day, parameters, verdicts, generations, states, at_beamline.odd_names)


def _leave_alone_what_changes(
    hook: GlobusHook,
    site: Beamline,
    day: date,
    scans: Sequence[ScanFile],
    verdicts: dict[ScanPath, Verdict],
) -> None:
    """Look once more: a copy that keeps its old time, or a clock that is wrong, hides a growing file."""
    if not set(verdicts.values()) & WANTED["failed"]:
        return
    again = {scan.path: scan for scan in list_beamline(hook, site.collections.source, day).scans}
    for scan in scans:
        if verdicts[scan.path] in WANTED["everything"] and again.get(scan.path) != scan:
            log.info("%s is being written: left alone.", scan.path.relative)
            verdicts[scan.path] = Verdict.LEFT_ALONE


def _choose(
    compared: Sequence[_Day], params: Mapping[str, Any], store: reprocessing.Store
) -> list[DayToStart]:
    wanted = {
        path: day.next_generations[path]
        for day in compared
        for path, verdict in day.verdicts.items()
        if verdict in WANTED[params["which"]]
    }
    if params["which"] == "everything" and not params["dry_run"]:
        asked = {key: params[key] for key in ("which", "first_day", "last_day")}
        known = {path: states for day in compared for path, states in day.runs.items()}
        wanted = reprocessing.settle(store, asked, wanted, known)
    chosen = []
    for day in compared:
        scans = [(str(path.relative), wanted[path]) for path in day.verdicts if path in wanted]
        if scans:
            chosen.append(DayToStart(day=day.day.isoformat(), parameters=day.parameters, scans=scans))
    return chosen
