"""Finding scans that were not processed: the task bodies of `find_missed_scans`."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict
from zoneinfo import ZoneInfo

from airflow.sdk import get_current_context

from cosmic import runs
from cosmic.beamline import Beamline, beamline
from cosmic.comparison import WANTED, ScanFile, Verdict, Which, judge, next_generation
from cosmic.folders import list_beamline, list_nersc, shorten
from cosmic.processing import engines_of, parameters_of
from cosmic.start_runs import DayToStart
from facilities.errors import UserError
from facilities.globus.hook import GlobusHook

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

_MOST_DAYS = 366
_PLAN_KEY = "reprocessing"  # in the task's state store
_PLAN_PART = 2000  # scans per value: 30 kB of the 64 that a value may have


class DayRow(TypedDict):
    """A line of the table: numbers of scans."""

    day: str
    on_disk: int
    processed: int
    running: int
    failed: int
    missing: int
    left_alone: int  # still being written, or too young
    odd_names: int  # .cxi files that are not named as scans of the day
    started: int


def days_to_look_at(context: Context, params: Mapping[str, Any]) -> list[date]:
    """The days of a run: those asked for, or those of its data interval, or yesterday and today.

    The interval's days are read off its dates in UTC: the interval from midnight to midnight of
    2023-02-16 stands for the folder 230216, whose day is the beamline's own (see `cosmic.timetable`).

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
    if not 0 < count <= _MOST_DAYS:
        raise UserError(
            f"{first} to {last} is not a range of 1 to {_MOST_DAYS} days",
            next_step="trigger again with first_day before last_day; for long ranges use a backfill.",
        )
    return [first + timedelta(days=n) for n in range(count)]


def compare(params: Mapping[str, Any]) -> dict[str, Any]:
    """List, compare and choose; one XCom for the table (`rows`) and one for what to start (`days`)."""
    context = get_current_context()
    site = beamline()
    days = days_to_look_at(context, params)
    # All settings are checked before anything is listed or started.
    parameters = {day: parameters_of(site, day) for day in days}
    with closing(GlobusHook(site.connections.globus)) as hook:
        compared = [_compare_day(hook, site, day, parameters[day], params) for day in days]
    chosen = [day for day, _ in compared if day["scans"]]
    if params["which"] == "everything":
        chosen = _keep_to_plan(context["task_state_store"], params, chosen, [seen for _, seen in compared])
    rows = [seen.row for _, seen in compared]
    log.info("What there is, before anything is started:\n%s", table(rows))
    for day in chosen:
        log.info("%s, to be started: %s", day["day"], shorten(path for path, _ in day["scans"]))
    return {"rows": rows, "days": [] if params["dry_run"] else chosen, "would_start": _by_day(chosen)}


def report(rows: Sequence[DayRow], would_start: Mapping[str, int], started: Mapping[str, int] | None) -> Any:
    """The table with what was started: the run's result.

    :param started: what the start task returned; None in a dry run, which starts nothing.
    """
    if started is None:
        log.info("Dry run: nothing was started. It would be: %s", dict(would_start) or "nothing")
    full = [DayRow(**{**row, "started": (started or {}).get(row["day"], 0)}) for row in rows]
    log.info("\n%s", table(full))
    return full


def table(rows: Sequence[DayRow]) -> str:
    """The rows as text, with a line of sums."""
    names = [name for name in DayRow.__annotations__ if name != "day"]
    total = {name: sum(int(row[name]) for row in rows) for name in names}  # type: ignore[literal-required]
    lines = [["day", *(name.replace("_", " ") for name in names)]]
    lines += [[row["day"], *(str(row[name]) for name in names)] for row in rows]  # type: ignore[literal-required]
    if len(rows) > 1:
        lines.append(["total", *(str(total[name]) for name in names)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(text.rjust(width) if n else text.ljust(width) for n, (text, width) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )
