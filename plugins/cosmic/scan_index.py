"""All scans with their runs and figures, in the memory of an API server, for its pages.

Airflow's database knows runs; people ask for scans, by day, proposal, state or text. The index is read once,
and then brought up to date when somebody asks, at most every two seconds, with a fixed number of queries that
read what may have changed. What is asked of it costs no query, however many look and however many runs there
are.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any

from airflow.models.asset import AssetEvent, AssetModel
from airflow.models.dagrun import DagRun
from airflow.models.log import Log
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import Select, and_, func, select
from sqlalchemy.orm import Session

from cosmic.beamline import beamline, local_zone
from cosmic.dag_constants import FIND_MISSED_SCANS, REPORT_TASK, TRANSFER_AUTO_RECON
from cosmic.parameters import ENGINES
from cosmic.run_summary import ENDED_BY_HAND, sets_failed
from cosmic.runs import ACTIVE
from cosmic.scan_records import (
    LONGEST,
    NOTHING,
    DayCount,
    Filters,
    Page,
    Run,
    Scan,
    by_age,
    number,
    place_of,
    result_of,
    scan_of,
)
from facilities.errors import UserError
from facilities.failures import ERROR_KEY
from facilities.progress import Progress, read_progress

RESULTS = "cosmic_reconstructions"
"""The asset whose events have the figures of results."""

PER_PAGE = 50
_DOING = ("scheduled", "queued", "running", "deferred", "restarting", "up_for_retry", "up_for_reschedule")
_REFRESH_AFTER = 2.0  # seconds
_SWEEP_AFTER = 60.0  # seconds between two looks for what was changed or removed by hand
_LATE = 200  # rows whose transactions may have ended after those of later ones
_LATE_FOR = timedelta(minutes=2)
_MANY = 1000  # ids in a condition
_IN_PARTS: Any = {"execution_options": {"yield_per": 2000}}
_EXPLAINED_WITHIN = timedelta(minutes=5)  # after a run's end its reason may still be written


class ScanIndex:
    """The index. While one thread brings it up to date, others are shown what it was before.

    Example::

        index.refresh(session)
        for scan in index.page(Filters(state="failed"), 1).scans:
            print(scan.name, [file.run.error for file in scan.files])
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.version = 0  # another one whenever anything has changed
        self._refreshed = self._swept = float("-inf")
        self._changed: set[str] = set()  # names of scans that are to be made anew from their runs
        self._runs: dict[int, Run] = {}
        self._ids: dict[str, int] = {}
        self._active: set[int] = set()
        self._unexplained: set[int] = set()  # failed, and it is not known why
        self._of_scan: dict[str, set[int]] = {}
        self._scans: dict[str, Scan] = {}
        self._order: list[str] = []
        self._of_day: dict[date, set[str]] = {}
        self._missed: dict[date, tuple[datetime, Mapping[str, Any]]] = {}
        self._last_event = 0
        self._last_change = self._last_table = datetime(1970, 1, 1, tzinfo=UTC)

    # Reading

    def page(self, filters: Filters, number: int) -> Page:
        """A page of the scans that are asked for, the newest first."""
        with self._lock:
            if filters == Filters():
                names: Sequence[str] = self._order
            elif filters.day is not None:
                of_day = self._of_day.get(filters.day, ())
                some = [scan for name in of_day if filters.match(scan := self._scans[name])]
                names = [scan.name for scan in sorted(some, key=by_age)]
            else:
                names = [name for name in self._order if filters.match(self._scans[name])]
            pages = max(-(-len(names) // PER_PAGE), 1)
            number = min(max(number, 1), pages)
            shown = names[(number - 1) * PER_PAGE : number * PER_PAGE]
            return Page([self._scans[name] for name in shown], number, pages, len(names))

    def scan(self, name: str) -> Scan | None:
        """A scan by its name."""
        with self._lock:
            return self._scans.get(name)

    def day_counts(self, days: Iterable[date]) -> list[DayCount]:
        """The files of some days."""
        with self._lock:
            return [self._count(day) for day in days]

    def proposals(self) -> list[str]:
        """All proposals, the newest first."""
        with self._lock:
            found = dict.fromkeys(self._scans[name].proposal for name in self._order)
            return [proposal for proposal in found if proposal]

    def _count(self, day: date) -> DayCount:
        files = [file for name in self._of_day.get(day, ()) for file in self._scans[name].files]
        count = Counter(file.run.outcome for file in files)
        counted = DayCount(day, count["done"], count["active"], count["failed"], count["stopped"])
        if day not in self._missed:
            return counted
        when, row = self._missed[day]
        # What was started since is not missing any more.
        missing = max(_count(row, "missing") - _count(row, "started"), 0)
        return replace(counted, on_disk=_count(row, "on_disk"), missing=missing, compared=when)

    # Bringing it up to date

    def refresh(self, session: Session) -> None:
        """Read what has changed, unless that was done within the last two seconds or is being done."""
        first = self._refreshed == float("-inf")
        if time.monotonic() - self._refreshed < _REFRESH_AFTER or not self._lock.acquire(blocking=first):
            return
        try:
            now = time.monotonic()
            if now - self._refreshed < _REFRESH_AFTER:
                return
            first = self._refreshed == float("-inf")
            self._read_runs(session, all_of_them=first)
            if first or now - self._swept >= _SWEEP_AFTER:
                self._sweep(session)
                self._swept = now
            self._read_results(session)
            self._read_active(session)
            self._explain(session)
            tables = self._read_tables(session)
            self.version += bool(self._changed) or tables
            self._rebuild()
            self._refreshed = time.monotonic()
        finally:
            self._lock.release()

    def remove_deleted(self, session: Session) -> None:
        """Take out at once what was deleted: a reader has met a run that is gone."""
        with self._lock:
            self._sweep(session)
            self.version += bool(self._changed)
            self._rebuild()

    def _read_runs(self, session: Session, *, all_of_them: bool) -> None:
        """Runs that are new, active, or were active."""
        forms = _forms()
        if all_of_them:
            for row in session.execute(_runs(), **_IN_PARTS):
                self._take(row, forms)
            return
        latest = max(self._runs, default=0)
        rows = {row.id: row for row in session.execute(_runs(DagRun._state.in_(ACTIVE)))}
        rows |= {row.id: row for row in session.execute(_runs(DagRun.id > latest - _LATE))}
        over = self._active - rows.keys()
        rows |= {row.id: row for row in session.execute(_runs(DagRun.id.in_(over)))}
        for gone in over - rows.keys():
            self._remove(gone)
        for row in rows.values():
            self._take(row, forms)

    def _sweep(self, session: Session) -> None:
        """Runs that somebody has changed after their end; and those that were removed are removed here."""
        since, forms = self._last_change - _LATE_FOR, _forms()
        for row in session.execute(_runs(DagRun.updated_at > since)):
            self._take(row, forms)
        of_dag = DagRun.dag_id == TRANSFER_AUTO_RECON
        if session.scalar(select(func.count()).select_from(DagRun).where(of_dag)) != len(self._runs):
            there = set(session.scalars(select(DagRun.id).where(of_dag)))
            for gone in self._runs.keys() - there:
                self._remove(gone)

    def _take(self, row: Any, forms: Sequence[str]) -> None:
        """Take in a run's row."""
        self._last_change = max(self._last_change, row.updated_at or row.created_at or row.run_after)
        run, state = self._runs.get(row.id), str(row.state)
        if run is not None and run.run_id != row.run_id:  # SQLite gives a deleted run's number to the next
            self._remove(run.id)
            run = None
        if run is not None and (run.state, run.started, run.ended) == (state, row.start_date, row.end_date):
            return
        if run is None:
            posted = row.created_at or row.run_after
            conf = row.conf if isinstance(row.conf, dict) else {}
            place = place_of(row.run_id, conf.get("file_path"), forms)
            asked_for = any(str(conf.get(f"do_{engine}")).lower() in ("1", "true") for engine in ENGINES)
            run = Run(row.id, row.run_id, place, asked_for, state, posted, row.start_date, row.end_date)
            self._runs[row.id] = run
            self._ids[row.run_id] = row.id
            self._of_scan.setdefault(run.place.scan, set()).add(row.id)
        else:
            run.state, run.started, run.ended = state, row.start_date, row.end_date
            run.error = run.stopped_by = ""
            run.tasks = run.progress = NOTHING
        for group, states in ((self._active, ACTIVE), (self._unexplained, {"failed"})):
            (group.add if state in states else group.discard)(run.id)
        self._changed.add(run.place.scan)

    def _remove(self, run_id: int) -> None:
        run = self._runs.pop(run_id)
        if self._ids.get(run.run_id) == run_id:  # not when the file was posted again meanwhile
            del self._ids[run.run_id]
        self._active.discard(run_id)
        self._unexplained.discard(run_id)
        self._of_scan[run.place.scan].discard(run_id)
        self._changed.add(run.place.scan)

    def _read_results(self, session: Session) -> None:
        """The figures of results that are new."""
        asset = select(AssetModel.id).where(AssetModel.name == RESULTS).scalar_subquery()
        events = session.execute(
            select(
                AssetEvent.id,
                AssetEvent.source_run_id,
                AssetEvent.source_task_id,
                AssetEvent.timestamp,
                AssetEvent.extra,
            )
            .where(
                AssetEvent.asset_id == asset,
                AssetEvent.id > self._last_event - _LATE,
                AssetEvent.source_dag_id == TRANSFER_AUTO_RECON,
            )
            .order_by(AssetEvent.id),
            **_IN_PARTS,
        )
        for event_id, run_id, task_id, when, extra in events:
            self._last_event = max(self._last_event, event_id)
            run = self._runs.get(self._ids.get(run_id, 0))
            engine = str(task_id).partition(".")[0]
            if run is None or engine not in ENGINES or when < run.posted:  # of a deleted run of that id
                continue
            result = result_of(engine, when, extra)
            known = run.results.get(engine)
            if known is None or known.when < when:
                run.results = {**run.results, engine: result}
                self._changed.add(run.place.scan)

    def _read_active(self, session: Session) -> None:
        """What the active runs are at."""
        tasks: dict[str, dict[str, str]] = {}
        found = session.execute(
            select(TaskInstance.run_id, TaskInstance.task_id, TaskInstance.state).where(
                TaskInstance.dag_id == TRANSFER_AUTO_RECON, TaskInstance.state.in_(_DOING)
            )
        )
        for run_id, task_id, state in found:
            tasks.setdefault(run_id, {})[task_id] = str(state)
        waits: dict[str, dict[str, Progress]] = {}
        for wait, progress in read_progress().items():
            if wait.dag_id == TRANSFER_AUTO_RECON:
                waits.setdefault(wait.run_id, {})[wait.task_id] = progress
        for run in map(self._runs.__getitem__, self._active):
            of_run, progress_of_run = tasks.get(run.run_id, NOTHING), waits.get(run.run_id, NOTHING)
            if (run.tasks, run.progress) != (of_run, progress_of_run):
                run.tasks, run.progress = of_run, progress_of_run
                self._changed.add(run.place.scan)

    def _explain(self, session: Session) -> None:
        """Why runs failed, or who has ended them."""
        failed = {run_id: self._runs[run_id] for run_id in self._unexplained}
        has_failed = TaskInstance.state == "failed"
        errors = (
            select(XComModel.dag_run_id, XComModel.value, XComModel.timestamp, has_failed)
            .join(
                TaskInstance,
                and_(
                    TaskInstance.dag_id == XComModel.dag_id,
                    TaskInstance.run_id == XComModel.run_id,
                    TaskInstance.task_id == XComModel.task_id,
                    TaskInstance.map_index == XComModel.map_index,
                ),
            )
            .where(XComModel.key == ERROR_KEY, XComModel.dag_id == TRANSFER_AUTO_RECON)
        )
        by_hand = select(Log.run_id, Log.dttm, Log.owner, Log.owner_display_name, Log.extra).where(
            Log.dag_id == TRANSFER_AUTO_RECON, Log.event.in_(ENDED_BY_HAND)
        )
        if len(failed) <= _MANY:
            errors = errors.where(XComModel.dag_run_id.in_(failed))
            by_hand = by_hand.where(Log.run_id.in_([run.run_id for run in failed.values()]))
        # The first task that failed counts: it comes last. Of a cleared run there may be errors from before.
        for run_id, error, when, its_task_failed in session.execute(
            errors.order_by(has_failed, XComModel.timestamp.desc())
        ):
            run = failed.get(run_id)
            text = str(error.get("what") or "") if isinstance(error, dict) else ""
            if run and text and (its_task_failed or run.started is None or when >= run.started):
                run.error = text[:LONGEST]
                self._changed.add(run.place.scan)
        for name, when, owner, display_name, extra in session.execute(by_hand.order_by(Log.dttm)):
            run = failed.get(self._ids.get(name or "", 0))
            since_start = run and when and (run.started is None or when >= run.started)
            if run and since_start and not run.stopped_by and sets_failed(extra):
                run.stopped_by = str(display_name or owner or "somebody")[:LONGEST]
                self._changed.add(run.place.scan)
        recently = datetime.now(UTC) - _EXPLAINED_WITHIN
        self._unexplained = {
            run_id for run_id, run in failed.items() if not run.error and run.ended and run.ended > recently
        }

    def _read_tables(self, session: Session) -> bool:
        """The days that `find_missed_scans` has compared; True when something is new."""
        tables = select(XComModel.task_id, XComModel.timestamp, XComModel.value).where(
            XComModel.dag_id == FIND_MISSED_SCANS,
            XComModel.task_id.in_((REPORT_TASK, "compare")),
            XComModel.key.in_(("return_value", "rows")),
            XComModel.timestamp > self._last_table - _LATE_FOR,
        )
        new = False
        for _, when, rows in session.execute(tables.order_by(XComModel.timestamp)):
            self._last_table = max(self._last_table, when)
            for row in rows if isinstance(rows, list) else ():
                day = _day_of(row)
                if day is not None and (day not in self._missed or self._missed[day][0] < when):
                    self._missed[day] = (when, row)
                    new = True
        return new

    # Scans of runs

    def _rebuild(self) -> None:
        """Make the scans anew whose runs have changed."""
        before = {name: self._scans[name].posted for name in self._changed if name in self._scans}
        zone = local_zone()
        for name in self._changed:
            self._rebuild_scan(name, zone)
        if before != {name: self._scans[name].posted for name in self._changed if name in self._scans}:
            self._order = [scan.name for scan in sorted(self._scans.values(), key=by_age)]
        self._changed = set()

    def _rebuild_scan(self, name: str, zone: tzinfo) -> None:
        old = self._scans.pop(name, None)
        if old is not None:
            self._of_day[old.day].discard(name)
        ids = self._of_scan.get(name)
        if not ids:
            self._of_scan.pop(name, None)
            return
        scan = scan_of(name, [self._runs[run_id] for run_id in sorted(ids, reverse=True)], zone)
        self._scans[name] = scan
        self._of_day.setdefault(scan.day, set()).add(name)


index = ScanIndex()
"""The index of this process."""


def _runs(*conditions: Any) -> Select[Any]:
    return select(
        DagRun.id,
        DagRun.run_id,
        DagRun._state.label("state"),
        DagRun.created_at,
        DagRun.run_after,
        DagRun.start_date,
        DagRun.end_date,
        DagRun.updated_at,
        # Whole: SQLite itself reads no row when one of them has a NaN, which Airflow takes from who posts it.
        DagRun.conf,
    ).where(DagRun.dag_id == TRANSFER_AUTO_RECON, *conditions)


def _forms() -> Sequence[str]:
    """Further forms of files' names, as in the site's settings."""
    try:
        return beamline().collections.source.scan_names
    except UserError:  # its settings are wrong, which the failed tasks say
        return ()


def _count(row: Mapping[str, Any], key: str) -> int:
    return int(number(row.get(key)) or 0)


def _day_of(row: object) -> date | None:
    try:
        return date.fromisoformat(str(row["day"])) if isinstance(row, Mapping) else None
    except (KeyError, ValueError):
        return None
