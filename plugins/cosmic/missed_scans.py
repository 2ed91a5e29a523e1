"""Finds scans without a result: the tasks of `find_missed_scans` and `watch_scans`."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypedDict, cast
from zoneinfo import ZoneInfo

from airflow.sdk import Context, get_current_context, task

from cosmic import runs
from cosmic.beamline import Beamline, beamline
from cosmic.comparison import WANTED, Day, ScanStatus, compare_day, leave_alone_what_changes, shorten
from cosmic.dag_constants import GLOBUS_CONN_ID, REPORT_TASK, WATCH_SCANS
from cosmic.parameters import MISSED_SCANS, NEW_SCANS, read_parameters
from cosmic.runs import DayToStart
from cosmic.scans import ScanPath
from facilities.errors import UserError
from facilities.globus.hook import GlobusHook

log = logging.getLogger(__name__)

MAX_DAYS = 366
MAX_NAMES = 10_000  # in the log of a dry run
_PLAN_KEY = "reprocessing"
_SCANS_PER_VALUE = 2000  # 30 kB; a value may have 64
SECOND_LISTING_AFTER = 3.0  # seconds; a file that changes in between is still being written


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


@task(pool="globus", multiple_outputs=True)
def compare(params: Any = None) -> dict[str, Any]:
    """Compare the run's days and choose what to start.

    One XCom for the table (`rows`) and one for what to start (`days`).
    """
    context = get_current_context()
    values = read_parameters(MISSED_SCANS, params)
    site = beamline()
    days = days_to_compare(context, values)
    compared = _compare(site, days, timedelta(minutes=values["min_age_minutes"]))
    chosen = _choose(compared, values, context["task_state_store"])
    rows = [_row(day) for day in compared]
    log.info("Before anything is started:\n%s", table(rows))
    for day in chosen:
        log.info("%s: %d to start with %s", day["day"], len(day["scans"]), day["parameters"])
        names = (f"{path} (as r{number})" if number > 1 else path for path, number in day["scans"])
        log.info("  %s", shorten(names, MAX_NAMES if values["dry_run"] else 10))
    return {"rows": rows, "days": chosen}


@task.branch
def start_or_not(days: Sequence[DayToStart], params: Any = None) -> str:
    """Skip `start_runs` when there is nothing to start: it may have to wait for its pool."""
    if params["dry_run"]:
        log.info("Dry run: nothing is started.")
        return REPORT_TASK
    return "start_runs" if days else REPORT_TASK


@task(trigger_rule="none_failed_min_one_success")
def report(rows: Sequence[DayRow], started: Mapping[str, int] | None) -> list[DayRow]:
    """The table with what was started: the run's result.

    :param started: runs by day, or None when nothing was to be started.
    """
    full: list[DayRow] = [{**row, "started": (started or {}).get(row["day"], 0)} for row in rows]
    log.info("Numbers of scans:\n%s", table(full))
    return full


@task(pool="globus")
def start_new_scans(params: Any = None) -> list[str]:
    """Start a run for each finished scan of yesterday and today that has none; returns their paths."""
    min_age = timedelta(minutes=read_parameters(NEW_SCANS, params)["min_age_minutes"])
    site = beamline()
    compared = _compare(site, _yesterday_and_today(site), min_age, only_without_run=True)
    started = []
    for start in runs.runs_to_start(_days_to_start(compared, _wanted(compared, "missing"))):
        if runs.start(start.run_id, start.conf, f"Started by {WATCH_SCANS}"):
            started.append(start.conf["file_path"])
    log.info("%d runs started. %s", len(started), shorten(started))
    return started


def days_to_compare(context: Context, params: Mapping[str, Any]) -> list[date]:
    """The days of a run: those asked for, or those of its data interval, or yesterday and today.

    The interval's days are its dates in UTC: from midnight to midnight of 2023-02-16 stands for the folder
    230216, whose day is the beamline's own (see `cosmic.timetable`).

    :raises UserError: the days asked for are not a range, or too many.
    """
    if params["first_day"] or params["last_day"]:
        first = date.fromisoformat(params["first_day"] or params["last_day"])
        last = date.fromisoformat(params["last_day"] or params["first_day"])
    elif (start := context.get("data_interval_start")) and (end := context.get("data_interval_end")):
        first = start.astimezone(UTC).date()
        last = max(first, (end.astimezone(UTC) - timedelta(microseconds=1)).date())
    else:
        return _yesterday_and_today(beamline())
    count = (last - first).days + 1
    if not 0 < count <= MAX_DAYS:
        raise UserError(
            f"{first} to {last} is not a range of 1 to {MAX_DAYS} days",
            next_step="trigger again with first_day before last_day; for long ranges use a backfill.",
        )
    return [first + timedelta(days=n) for n in range(count)]


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


def _yesterday_and_today(site: Beamline) -> list[date]:
    # A scan of the last minutes before midnight lies in yesterday's folder.
    today = datetime.now(ZoneInfo(site.time_zone)).date()
    return [today - timedelta(days=1), today]


def _compare(
    site: Beamline, days: Sequence[date], min_age: timedelta, *, only_without_run: bool = False
) -> list[Day]:
    # All settings are checked before anything is listed or started.
    parameters = {day: site.parameters_for(day) for day in days}
    with closing(GlobusHook(GLOBUS_CONN_ID)) as hook:
        compared = [
            compare_day(
                hook, site.collections, day, parameters[day], min_age, only_without_run=only_without_run
            )
            for day in days
        ]
        if any(set(day.statuses.values()) & WANTED["failed"] for day in compared):
            time.sleep(SECOND_LISTING_AFTER)
            leave_alone_what_changes(hook, site.collections.source, compared)
    return compared


def _row(day: Day) -> DayRow:
    count = Counter(day.statuses.values())
    row: dict[str, Any] = {"day": day.day.isoformat(), "on_disk": len(day.statuses)}
    row |= {status.value: count[status] for status in ScanStatus}
    return cast("DayRow", row | {"odd_names": len(day.odd_names), "started": 0})


def _choose(compared: Sequence[Day], params: Mapping[str, Any], store: Any) -> list[DayToStart]:
    wanted = _wanted(compared, params["which"])
    if params["which"] == "everything" and not params["dry_run"]:
        request = {key: params[key] for key in ("which", "first_day", "last_day")}
        existing = {path: states for day in compared for path, states in day.runs.items()}
        wanted = keep_to_plan(store, request, wanted, existing)
    return _days_to_start(compared, wanted)


def _wanted(compared: Sequence[Day], which: str) -> dict[ScanPath, int]:
    return {
        path: day.next_generations[path]
        for day in compared
        for path, status in day.statuses.items()
        if status in WANTED[which]
    }


def _days_to_start(compared: Sequence[Day], wanted: Mapping[ScanPath, int]) -> list[DayToStart]:
    days = []
    for day in compared:
        scans = [(str(path.relative), wanted[path]) for path in day.statuses if path in wanted]
        if scans:
            days.append(DayToStart(day=day.day.isoformat(), parameters=day.parameters, scans=scans))
    return days


def keep_to_plan(
    store: Any,
    request: Mapping[str, Any],
    wanted: Mapping[ScanPath, int],
    existing: Mapping[ScanPath, Mapping[int, str]],
) -> dict[ScanPath, int]:
    """Which of the wanted scans to start, and as which generation, when everything is reprocessed.

    "One more generation of each scan" is another one each time it is worked out. A run that is interrupted
    and started again must keep to its first plan, or scans would be processed twice.

    :param store: Airflow's task state store, which survives retries, clears and a backfill's reprocessing.
    :param request: what makes two requests the same.
    :param wanted: the scans to reprocess, each with its next generation.
    :param existing: states of the runs that exist, by generation.
    """
    fingerprint = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    planned: dict[str, int] = {}
    head = store.get(_PLAN_KEY) or {}
    if head.get("fingerprint") == fingerprint:
        for number in range(head["parts"]):
            planned |= store.get(f"{_PLAN_KEY}-{number}") or {}
    left = {
        scan: generation
        for scan in wanted
        if (generation := planned.get(_name(scan), 0)) and generation not in existing.get(scan, {})
    }
    if not left:  # all of it was started, or there was no plan
        planned = {}
    new = {scan: generation for scan, generation in wanted.items() if _name(scan) not in planned}
    entries = [*planned.items(), *((_name(scan), generation) for scan, generation in new.items())]
    parts = [dict(entries[n : n + _SCANS_PER_VALUE]) for n in range(0, len(entries), _SCANS_PER_VALUE)]
    for number, part in enumerate(parts):
        store.set(f"{_PLAN_KEY}-{number}", part)
    # Last: without it the parts mean nothing.
    store.set(_PLAN_KEY, {"fingerprint": fingerprint, "parts": len(parts)})
    return left | new


def _name(scan: ScanPath) -> str:
    return hashlib.sha256(str(scan.relative).encode()).hexdigest()[:8]
