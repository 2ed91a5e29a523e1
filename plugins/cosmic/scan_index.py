"""All scans with their runs and figures, in the memory of an API server, for its pages.

Airflow's database knows runs; people ask for scans, by day, proposal, state or text. The index is read once,
and then brought up to date when somebody asks, at most every two seconds, with a fixed number of queries that
read what may have changed. Who looks is given a snapshot, which costs no query and no waiting, however many
look and however many runs there are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any

from airflow.models.asset import AssetEvent, AssetModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import Select, and_, func, select
from sqlalchemy.orm import Session

from cosmic.beamline import beamline, local_zone
from cosmic.cancellations import cancellations
from cosmic.dag_constants import FIND_MISSED_SCANS, REPORT_TASK, TRANSFER_AUTO_RECON
from cosmic.parameters import ENGINES
from cosmic.runs import ACTIVE
from cosmic.scan_records import LONGEST, NOTHING, Run, Scan, place_of, result_of, scan_of
from cosmic.scan_snapshot import Comparison, Snapshot
from facilities.errors import UserError
from facilities.failures import ERROR_KEY
from facilities.progress import Progress, read_progress

RESULTS = "cosmic_reconstructions"
"""The asset whose events have the figures of results."""

_DOING = ("scheduled", "queued", "running", "deferred", "restarting", "up_for_retry", "up_for_reschedule")
_REFRESH_AFTER = 2.0  # seconds
_EDITS_AFTER = 60.0  # seconds between two looks for what was changed or removed by hand
_LATE = 200  # rows whose transactions may have ended after those of later ones
_LATE_FOR = timedelta(minutes=2)
_MANY = 1000  # ids in a condition
_IN_PARTS: Any = {"execution_options": {"yield_per": 2000}}
_EXPLAINED_WITHIN = timedelta(minutes=5)  # after a run's end its reason may still be written


class ScanIndex:
    """The index. While one thread brings it up to date, others are given the snapshot before.

    Example::

        scans = index.refresh(session)
        for scan in scans.page(Filters(state="failed"), 1).scans:
            print(scan.name, [file.run.error for file in scan.files])
    """

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self._lock = threading.RLock()  # of all else
        self._refreshed = self._edits_read = float("-inf")
        self._changed: set[str] = set()  # names of scans that are to be made anew from their runs
        self._compared: dict[date, Comparison] = {}  # those that the snapshot has not
        self._runs: dict[int, Run] = {}
        self._ids: dict[str, int] = {}
        self._active: set[int] = set()
        self._unexplained: set[int] = set()  # failed, and it is not known why
        self._of_scan: dict[str, set[int]] = {}
        self._last_event = 0
        self._last_change = self._last_table = datetime(1970, 1, 1, tzinfo=UTC)

    def refresh(self, session: Session, *, at_once: bool = False) -> Snapshot:
        """Read what has changed, unless that was done within the last two seconds or is being done.

        :param at_once: read in any case: a reader asks for what is not there (yet).
        """
        first = self._refreshed == float("-inf")
        recent = time.monotonic() - self._refreshed < _REFRESH_AFTER and not at_once
        if recent or not self._lock.acquire(blocking=first or at_once):
            return self.snapshot
        try:
            now = time.monotonic()
            if now - self._refreshed < _REFRESH_AFTER and not at_once:
                return self.snapshot
            first = self._refreshed == float("-inf")
            self._read_runs(session, all_of_them=first)
            if first or now - self._edits_read >= _EDITS_AFTER:
                self._read_edits(session)
                self._edits_read = now
            self._read_results(session)
            self._read_active(session)
            self._explain(session)
            self._read_comparisons(session)
            self._publish()
            self._refreshed = time.monotonic()
        finally:
            self._lock.release()
        return self.snapshot

    def remove_deleted(self, session: Session) -> Snapshot:
        """Take out at once what was deleted: a reader has met a run that is gone."""
        with self._lock:
            self._read_edits(session)
            self._publish()
        return self.snapshot

    def _publish(self) -> None:
        zone = local_zone()
        changed = {name: self._scan_of(name, zone) for name in self._changed}
        self.snapshot = self.snapshot.changed(changed, self._compared)
        self._changed, self._compared = set(), {}

    def _scan_of(self, name: str, zone: tzinfo) -> Scan | None:
        ids = self._of_scan.get(name)
        if not ids:
            self._of_scan.pop(name, None)
            return None
        return scan_of(name, [self._runs[run_id] for run_id in sorted(ids, reverse=True)], zone)

    def _change(self, run: Run, **values: Any) -> None:
        changed = replace(run, **values)
        if self._runs.get(run.id) != changed:
            self._runs[run.id] = changed
            self._changed.add(run.place.scan)

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

    def _read_edits(self, session: Session) -> None:
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
        run, state, posted = self._runs.get(row.id), str(row.state), row.created_at or row.run_after
        # SQLite gives a deleted run's number to the next.
        if run is not None and (run.run_id, run.posted) != (row.run_id, posted):
            self._remove(run.id)
            run = None
        if run is not None and (run.state, run.started, run.ended) == (state, row.start_date, row.end_date):
            return
        if run is None:
            conf = row.conf if isinstance(row.conf, dict) else {}
            place = place_of(row.run_id, conf.get("file_path"), forms)
            asked_for = any(str(conf.get(f"do_{engine}")).lower() in ("1", "true") for engine in ENGINES)
            run = Run(row.id, row.run_id, place, asked_for, state, posted, row.start_date, row.end_date)
            self._ids[row.run_id] = row.id
            self._of_scan.setdefault(run.place.scan, set()).add(row.id)
        nothing = {"error": "", "stopped_by": "", "tasks": NOTHING, "progress": NOTHING}
        self._change(run, state=state, started=row.start_date, ended=row.end_date, **nothing)
        for group, states in ((self._active, ACTIVE), (self._unexplained, {"failed"})):
            (group.add if state in states else group.discard)(run.id)

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
                self._change(run, results={**run.results, engine: result})

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
                self._change(run, tasks=of_run, progress=progress_of_run)

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
        by_hand: list[Any] = [DagRun.dag_id == TRANSFER_AUTO_RECON]
        if len(failed) <= _MANY:
            errors = errors.where(XComModel.dag_run_id.in_(failed))
            by_hand.append(DagRun.id.in_(failed))
        # The first task that failed counts: it comes last. Of a cleared run there may be errors from before.
        for run_id, error, when, its_task_failed in session.execute(
            errors.order_by(has_failed, XComModel.timestamp.desc())
        ):
            run = failed.get(run_id)
            text = str(error.get("what") or "") if isinstance(error, dict) else ""
            if run and text and (its_task_failed or run.started is None or when >= run.started):
                self._change(self._runs[run_id], error=text[:LONGEST])
        for name, cancellation in cancellations(session, *by_hand).items():
            run_id = self._ids.get(name, 0)
            if run_id in failed:
                self._change(self._runs[run_id], stopped_by=cancellation.who[:LONGEST])
        recently = datetime.now(UTC) - _EXPLAINED_WITHIN
        self._unexplained = {
            run.id
            for run in map(self._runs.__getitem__, failed)
            if not run.error and run.ended and run.ended > recently
        }

    def _read_comparisons(self, session: Session) -> None:
        """The days that `find_missed_scans` has compared."""
        tables = select(XComModel.task_id, XComModel.timestamp, XComModel.value).where(
            XComModel.dag_id == FIND_MISSED_SCANS,
            XComModel.task_id.in_((REPORT_TASK, "compare")),
            XComModel.key.in_(("return_value", "rows")),
            XComModel.timestamp > self._last_table - _LATE_FOR,
        )
        for _, when, rows in session.execute(tables.order_by(XComModel.timestamp)):
            self._last_table = max(self._last_table, when)
            for row in rows if isinstance(rows, list) else ():
                day = _day_of(row)
                known = day and (self._compared.get(day) or self.snapshot.comparisons.get(day))
                if day and (not known or known.when < when):
                    self._compared[day] = Comparison(when, row)


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


def _day_of(row: object) -> date | None:
    try:
        return date.fromisoformat(str(row["day"])) if isinstance(row, Mapping) else None
    except (KeyError, ValueError):
        return None
