"""The runs of a scan, for the buttons: which go on, which is each file's newest, what runs at a facility."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from fastapi import HTTPException, Query
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from cosmic.beamline import beamline
from cosmic.dag_constants import COPY_TASK, TRANSFER_AUTO_RECON
from cosmic.runs import ACTIVE
from cosmic.scan_files import MAX_RUNS
from cosmic.scan_index import index
from cosmic.scan_records import place_of
from cosmic.scans import ScanPath, parse_scan_path
from facilities.errors import UserError

_AT_WORK = frozenset({"running", "deferred", "queued", "scheduled", "up_for_retry", "up_for_reschedule"})
_RUNS_PER_QUERY = 500

OneRun = Annotated[str, Query(max_length=250)]
"""In an address: only this run of the scan; empty for all."""


@dataclass(frozen=True)
class ScanRun:
    """A run; `number` grows with every run that is started."""

    number: int
    run_id: str
    state: str
    conf: Mapping[str, Any]
    run_after: datetime
    file: ScanPath

    @property
    def is_active(self) -> bool:
        """Whether it is not over."""
        return self.state in ACTIVE


@dataclass(frozen=True)
class ScanRuns:
    """All runs of a scan, the oldest first."""

    name: str
    runs: Sequence[ScanRun]

    @property
    def newest_number(self) -> int:
        """Of the runs that there are now; a run that is started later has a higher one."""
        return max(run.number for run in self.runs)

    def active_of(self, run_id: str) -> list[ScanRun]:
        """Those that go on; only the one that is named, unless `run_id` is empty."""
        return [run for run in self.runs if run.is_active and run_id in ("", run.run_id)]

    @property
    def by_file(self) -> dict[str, list[ScanRun]]:
        """Each file's runs, the oldest first, by the file's path."""
        found: dict[str, list[ScanRun]] = {}
        for run in sorted(self.runs, key=lambda run: (_numbers(run.file.name), run.number)):
            found.setdefault(str(run.file.relative), []).append(run)
        return found

    def named(self, run_id: str) -> ScanRun | None:
        """The run with this id, if it is one of the scan's."""
        return next((run for run in self.runs if run.run_id == run_id), None)


@dataclass(frozen=True)
class AtWork:
    """What some runs have at the facilities; `others` is the number of runs that have nothing there."""

    transfers: int
    jobs: int
    others: int

    def __str__(self) -> str:
        counts = [(self.transfers, "transfer"), (self.jobs, "Slurm job")]
        words = [f"{count} {name}{'s' if count > 1 else ''}" for count, name in counts if count]
        if self.others:
            words.append(
                f"{self.others} run{'s' if self.others > 1 else ''} with nothing at Globus or NERSC yet"
            )
        return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "nothing"


def runs_of_scan(session: Session, name: str) -> ScanRuns | None:
    """The runs of a scan; None when it has none.

    :param name: such as `NS_230216033`, or a lone file's: `test.1a2b3c4d`.
    """
    known = index.refresh(session).scan(name)
    # Those with ids of their own. The index may be two seconds behind; the ids of others begin with the name.
    others = [
        run.id
        for file in (known.files if known else ())
        for run in file.runs
        if not run.run_id.startswith(name)
    ]
    rows = session.execute(
        select(DagRun.id, DagRun.run_id, DagRun.state, DagRun.conf, DagRun.run_after)
        .where(
            DagRun.dag_id == TRANSFER_AUTO_RECON,
            or_(DagRun.run_id.startswith(name, autoescape=True), DagRun.id.in_(others)),
        )
        .order_by(DagRun.id.desc())
        .limit(MAX_RUNS)
    ).all()
    runs = [
        run for row in reversed(rows) if (run := _read(*row)) and scan_of_run(run.run_id, run.conf) == name
    ]
    return ScanRuns(name, runs) if runs else None


def find_runs(session: Session, name: str) -> ScanRuns:
    """The runs of a scan.

    :raises HTTPException: 404, it has none.
    """
    runs = runs_of_scan(session, name)
    if runs is None:
        raise HTTPException(404, f"There is no scan {name} with a run.")
    return runs


def read_runs(name: str) -> ScanRuns:
    """The same, with a session of its own."""
    with create_session(scoped=False) as session:
        return find_runs(session, name)


def scan_of_run(run_id: str, conf: Any) -> str:
    """Name of the scan that a run is about; the run's id, when it is about none."""
    try:
        forms = beamline().collections.source.scan_names
    except UserError:  # its settings are wrong, which the failed tasks say
        forms = ()
    return place_of(run_id, conf.get("file_path") if isinstance(conf, dict) else None, forms).scan


def at_work(session: Session, runs: Sequence[ScanRun]) -> AtWork:
    """What some runs have at Globus and NERSC at the moment."""
    kinds = {(run_id, _kind(task_id)) for run_id, task_id in tasks_of(session, runs, _AT_WORK)}
    count = Counter(kind.partition(".")[0] for _, kind in kinds)
    busy = {run_id for run_id, kind in kinds if kind}
    return AtWork(count["transfer"], count["job"], len(runs) - len(busy))


def tasks_of(session: Session, runs: Sequence[ScanRun], states: Iterable[str]) -> set[tuple[str, str]]:
    """The tasks of some runs that are in one of these states: ids of run and task."""
    found: set[tuple[str, str]] = set()
    for first in range(0, len(runs), _RUNS_PER_QUERY):
        query = select(TaskInstance.run_id, TaskInstance.task_id).where(
            TaskInstance.dag_id == TRANSFER_AUTO_RECON,
            TaskInstance.run_id.in_([run.run_id for run in runs[first : first + _RUNS_PER_QUERY]]),
            TaskInstance.state.in_(list(states)),
        )
        found |= {(run_id, task_id) for run_id, task_id in session.execute(query)}
    return found


def _read(number: int, run_id: str, state: Any, conf: Any, run_after: datetime) -> ScanRun | None:
    conf = conf if isinstance(conf, dict) else {}
    try:
        file = parse_scan_path(conf.get("file_path"))
    except UserError:
        return None
    return ScanRun(number, run_id, str(getattr(state, "value", state)), conf, run_after, file)


def _kind(task_id: str) -> str:
    engine, _, step = task_id.rpartition(".")
    if step == COPY_TASK:
        return "transfer"
    return f"job.{engine}" if step in ("submit", "wait") else ""


def _numbers(name: str) -> list[tuple[int, str]]:
    """A key by which `_10_0` comes after `_9_0`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split("_")]
