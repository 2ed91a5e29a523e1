"""The index of scans: what it says of Airflow's runs, what it costs, and that it stays up to date."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.models.asset import AssetEvent
from airflow.models.dagrun import DagRun
from airflow.models.log import Log
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import delete, event, insert, select, update
from sqlalchemy.orm import Session

from cosmic.beamline import DEFAULT_FILE
from cosmic.dag_constants import FIND_MISSED_SCANS
from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from dev.local_airflow import postgres
from facilities.progress import Progress, Wait
from support.many_scans import asset, event_row, facts, run_row, task_row, write_runs, xcom_row

POSTED = datetime(2026, 7, 1, 19, 0, tzinfo=UTC)
TESTS = Path(__file__).parents[1]
PLUGINS = TESTS.parent / "plugins"
DAY = date(2026, 7, 1)
NAME = "NS_260701033"
TOOK = timedelta(minutes=12)


def path(energy: int = 0, name: str = NAME) -> str:
    """A file of the scan."""
    return f"2026/07/260701/{name}_ccdframes_{energy}_0.cxi"


@pytest.fixture
def session(airflow_database: None) -> Iterator[Session]:
    """The session's database, without runs."""
    with create_session() as session:
        _empty(session)
        yield session
        session.rollback()
        _empty(session)


def _empty(session: Session) -> None:
    for table in (XComModel, TaskInstance, AssetEvent, Log, DagRun):
        session.execute(delete(table))
    session.commit()


class Written:
    """Writes what the scheduler and tasks would."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.asset = asset(session)

    def run(self, run_id: str, file: str, state: str, **more: Any) -> int:
        """A run."""
        took = None if state in ("queued", "running") else TOOK
        posted = more.pop("posted", POSTED)
        row = run_row(run_id, file, state, posted, took=took, **more)
        done: Any = self.session.execute(insert(DagRun.__table__), [row])
        return int(done.lastrowid)

    def change(self, run_id: str, **values: Any) -> None:
        """Change a run."""
        self.session.execute(
            update(DagRun).where(DagRun.run_id == run_id).values(**values),
            execution_options={"synchronize_session": False},
        )

    def task(self, run_id: str, task_id: str, state: str) -> None:
        """A task of a run."""
        self.session.execute(insert(TaskInstance.__table__), [task_row(run_id, task_id, state, POSTED)])

    def result(self, run_id: str, engine: str = "ptychocam", *, when: datetime = POSTED, **more: Any) -> None:
        """The event of a result; without `more`, one of an older version."""
        extra = facts(NAME, path(), engine=engine, **more) if more else {}
        self.session.execute(
            insert(AssetEvent.__table__), [event_row(self.asset, run_id, engine, when, extra)]
        )

    def error(self, run_id: str, task_id: str, what: str, when: datetime = POSTED) -> None:
        """Why a task failed."""
        self.task(run_id, task_id, "failed")
        number = self.session.scalar(select(DagRun.id).where(DagRun.run_id == run_id))
        assert number is not None
        row = xcom_row(number, run_id, task_id, when, key="error", value={"what": what, "state": None})
        self.session.execute(insert(XComModel.__table__), [row])

    def log(self, run_id: str, who: str, when: datetime) -> None:
        """Somebody has set a run to failed."""
        entry = Log(event="patch_dag_run", owner=who.lower(), owner_display_name=who)
        entry.dag_id, entry.run_id, entry.dttm, entry.extra = DAG_ID, run_id, when, '{"state": "failed"}'
        self.session.add(entry)
        self.session.flush()


@pytest.fixture
def written(session: Session) -> Written:
    """Writes into the database."""
    return Written(session)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An index that reads whenever it is asked, and no progress."""
    from cosmic import scan_index

    monkeypatch.setattr(scan_index, "_REFRESH_AFTER", 0.0)
    monkeypatch.setattr(scan_index, "read_progress", dict)
    return scan_index.ScanIndex()


@pytest.fixture
def read(index: Any, session: Session) -> Callable[[], dict[str, str]]:
    """Refreshes, and gives each scan's words."""
    from cosmic.progress import state_of
    from cosmic.scan_snapshot import Filters

    def read() -> dict[str, str]:
        index.refresh(session)
        scans = index.snapshot.page(Filters(), 1).scans
        return {scan.name: "".join(map(str, state_of(scan)[1])) for scan in scans}

    return read


def test_each_state_is_said_in_plain_words(
    written: Written, read: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic import scan_index

    steps = {
        "NS_260701001": ("queued", {}, None, "waiting to begin"),
        "NS_260701002": (
            "running", {"copy_to_nersc": "deferred"},
            ("copy_to_nersc", Progress("ACTIVE", 4e8, 1e9, 12e6)), "waiting for the transfer: 40 %, 12 MB/s",
        ),
        "NS_260701011": (
            "running", {"copy_to_nersc": "deferred"},
            ("copy_to_nersc", Progress("ACTIVE", 1e8, 1e9, 18_900.0)),
            "waiting for the transfer: 10 %, 18.9 kB/s",
        ),
        "NS_260701003": (
            "running", {"ptychocam.submit": "deferred"},
            ("ptychocam.submit", Progress(trouble="NERSC does not answer")),
            "waiting for NERSC: NERSC does not answer",
        ),
        "NS_260701004": (
            "running", {"ptychocam.wait": "deferred"},
            ("ptychocam.wait", Progress("PENDING", start_estimate="2026-07-01T12:40:00-07:00")),
            "in Slurm's queue, starts about 2026-07-01 12:40:00-07:00",
        ),
        "NS_260701005": (
            "running", {"ptychocam.wait": "deferred"},
            ("ptychocam.wait", Progress("RUNNING", elapsed=725, limit=14400)), "running, 12 of 240 min",
        ),
        "NS_260701006": ("running", {"ptychocam.wait": "deferred"}, None, "waiting for its Slurm job"),
        "NS_260701007": ("running", {"ptychocam.collect": "running"}, None, "checking the result"),
        "NS_260701008": (
            "running", {"ptychocam.submit": "up_for_retry"}, None,
            "the submission to Slurm failed, it is tried again",
        ),
        "NS_260701009": (
            "running", {"ptychocam.wait": "deferred", "cdtools.wait": "deferred"},
            ("ptychocam.wait", Progress("RUNNING", elapsed=60, limit=120)),
            "cdtools: waiting for its Slurm job; ptychocam: running, 1 of 2 min",
        ),
        "NS_260701010": (
            "running", {"ptychocam.wait": "deferred"},
            ("ptychocam.wait", Progress("PENDING", trouble="held (JobHeldUser)")),
            "in Slurm's queue, held (JobHeldUser)",
        ),
    }  # fmt: skip
    progress = {}
    for name, (state, tasks, far, _) in steps.items():
        run_id = f"{name}_0_0"
        written.run(run_id, path(name=name), state)
        for task_id, task_state in tasks.items():
            written.task(run_id, task_id, task_state)
        if far:
            progress[Wait(DAG_ID, run_id, far[0])] = far[1]
    monkeypatch.setattr(scan_index, "read_progress", lambda: progress)
    assert read() == {name: words for name, (*_, words) in steps.items()}


def test_an_end_is_said_with_its_reason(written: Written, read: Callable[[], dict[str, str]]) -> None:
    for number, state in enumerate(["success"] * 3 + ["failed"] * 4 + ["success"]):
        name = f"NS_26070110{number}"
        conf = {"file_path": path(name=name), "do_ptychocam": number != 2}
        written.run(f"{name}_0_0", "", state, posted=POSTED - timedelta(seconds=number), conf=conf)
    written.result("NS_260701100_0_0", warnings=0)
    written.result("NS_260701101_0_0", warnings=2)
    written.error("NS_260701103_0_0", "ptychocam.wait", "the probe has no support")
    written.error("NS_260701104_0_0", "cdtools.wait", "out of memory")
    written.result("NS_260701104_0_0")
    written.log("NS_260701105_0_0", "Ada", POSTED + TOOK - timedelta(seconds=6))
    assert list(read().items()) == [
        ("NS_260701100", "done"),
        ("NS_260701101", "done, with 2 warnings"),
        ("NS_260701102", "done: copied to NERSC, no reconstruction asked for"),
        ("NS_260701103", "failed: the probe has no support"),
        ("NS_260701104", "failed in part, ptychocam is done: out of memory"),
        ("NS_260701105", "stopped by Ada"),
        ("NS_260701106", "failed: no task has left a reason; its worker may have been ended"),
        (
            "NS_260701107",
            "done, but without a result: it was marked as success by hand, or Airflow's record of the result "
            "was removed",
        ),
    ]


def test_all_files_of_a_scan_are_one_row(
    written: Written, read: Callable[[], dict[str, str]], index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic.scan_snapshot import Filters

    for energy in range(10):
        state = "success" if energy < 4 else "failed" if energy < 6 else "running"
        written.run(f"{NAME}_{energy}_0", path(energy), state)
        if state == "success":
            written.result(f"{NAME}_{energy}_0", energy_ev=700.0 + energy, proposal="ALS-1", sample="rock")
        elif state == "failed":
            written.error(f"{NAME}_{energy}_0", "ptychocam.wait", "the probe has no support")
        else:
            written.task(f"{NAME}_{energy}_0", "copy_to_nersc", "deferred")
    written.run("old", path(4), "failed", posted=POSTED - timedelta(days=1))
    assert read() == {
        NAME: "4 of 10 done, 2 failed (the probe has no support), 4 to go: 4 waiting for the transfer"
    }
    scan = index.snapshot.scan(NAME)
    assert (scan.day, scan.proposal, scan.sample, scan.posted) == (DAY, "ALS-1", "rock", POSTED)
    assert [file.energy for file in scan.files] == list(range(10))
    assert scan.outcomes == {"done", "failed", "active"}
    assert index.snapshot.page(Filters(state="failed"), 1).total == 1


def test_a_run_that_changes_is_seen_at_the_next_look(
    written: Written, read: Callable[[], dict[str, str]], index: Any
) -> None:
    written.run("NS_260701033_0_0", path(), "running")
    assert read() == {NAME: "waiting to begin"}
    version = index.snapshot.version
    assert read()
    assert index.snapshot.version == version, "nothing has changed"

    written.change("NS_260701033_0_0", _state="failed", end_date=POSTED + TOOK)
    assert read() == {NAME: "failed: no task has left a reason; its worker may have been ended"}
    assert index.snapshot.version > version

    written.change("NS_260701033_0_0", _state="running", start_date=POSTED + TOOK, end_date=None)
    assert read() == {NAME: "waiting to begin"}
    written.change("NS_260701033_0_0", _state="success", end_date=POSTED + 2 * TOOK)
    written.result("NS_260701033_0_0", error=0.05)
    assert read() == {NAME: "done"}
    assert index.snapshot.scan(NAME).picture[:2] == ("NS_260701033_0_0", "ptychocam")

    written.run("NS_260701033_0_0__r2", path(), "queued", posted=POSTED + 3 * TOOK)
    assert read() == {NAME: "waiting to begin"}
    assert [run.run_id for run in index.snapshot.scan(NAME).files[0].runs] == [
        "NS_260701033_0_0__r2",
        "NS_260701033_0_0",
    ]
    assert index.snapshot.scan(NAME).picture[:2] == ("NS_260701033_0_0", "ptychocam")


def test_what_a_look_has_read_before_it_failed_is_shown_after_the_next(
    written: Written, read: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic import scan_index

    def fail() -> Any:
        raise OSError("gone")

    assert read() == {}
    written.run("NS_260701033_0_0", path(), "queued")
    with monkeypatch.context() as patch:
        patch.setattr(scan_index, "read_progress", fail)
        with pytest.raises(OSError, match="gone"):
            read()
    assert read() == {NAME: "waiting to begin"}


def test_a_result_of_a_deleted_run_is_not_that_of_the_next_with_its_id(
    written: Written, read: Callable[[], dict[str, str]], index: Any
) -> None:
    written.run("NS_260701033_0_0", path(), "success")
    written.result("NS_260701033_0_0", error=0.05, when=POSTED - TOOK)
    assert "without a result" in read()[NAME]
    assert index.snapshot.scan(NAME).picture is None


def test_a_file_that_is_posted_again_after_its_run_was_deleted_has_its_new_result(
    written: Written, read: Callable[[], dict[str, str]], index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic import scan_index

    first = written.run("NS_260701033_0_0", path(), "failed")
    assert read()
    written.session.execute(delete(DagRun).where(DagRun.id == first))
    again = POSTED + TOOK
    written.run("NS_260701033_0_0", path(), "success", posted=again, id=first + 1)
    assert read()
    monkeypatch.setattr(scan_index, "_EDITS_AFTER", 0.0)
    assert read()
    written.result("NS_260701033_0_0", error=0.05, when=again)
    assert read() == {NAME: "done"}
    assert index.snapshot.scan(NAME).picture[:2] == ("NS_260701033_0_0", "ptychocam")


def test_a_deleted_runs_number_may_be_that_of_another_scans_run(
    written: Written, read: Callable[[], dict[str, str]]
) -> None:
    first = written.run("NS_260701033_0_0", path(), "failed")
    assert list(read()) == [NAME]
    written.session.execute(delete(DagRun).where(DagRun.id == first))
    written.run("NS_260701034_0_0", path(name="NS_260701034"), "queued", id=first)
    assert read() == {"NS_260701034": "waiting to begin"}


def test_a_deleted_runs_number_and_id_may_be_those_of_the_next_run(
    written: Written, read: Callable[[], dict[str, str]], index: Any
) -> None:
    first = written.run("NS_260701033_0_0", path(), "success")
    written.result("NS_260701033_0_0", error=0.05)
    assert read() == {NAME: "done"}
    written.session.execute(delete(DagRun).where(DagRun.id == first))
    written.run("NS_260701033_0_0", path(energy=1), "queued", posted=POSTED + TOOK, id=first)
    assert read() == {NAME: "waiting to begin"}
    (file,) = index.snapshot.scan(NAME).files
    assert (file.path, file.run.posted, dict(file.results)) == (path(energy=1), POSTED + TOOK, {})


def test_a_run_that_was_cleared_fails_for_its_new_reason(
    written: Written, read: Callable[[], dict[str, str]], session: Session
) -> None:
    written.run("NS_260701033_0_0", path(), "failed")
    written.error("NS_260701033_0_0", "ptychocam.wait", "the probe has no support")
    assert read() == {NAME: "failed: the probe has no support"}
    # Airflow keeps what a task has left until it begins again, which this one does not.
    began = POSTED + TOOK
    wait = update(TaskInstance).where(TaskInstance.task_id == "ptychocam.wait")
    session.execute(wait.values(state="upstream_failed"))
    written.change("NS_260701033_0_0", start_date=began, end_date=began + TOOK)
    assert read() == {NAME: "failed: no task has left a reason; its worker may have been ended"}
    written.change("NS_260701033_0_0", end_date=began + 2 * TOOK)
    written.error("NS_260701033_0_0", "copy_to_nersc", "Globus has no permission", began)
    assert read() == {NAME: "failed: Globus has no permission"}
    # Only one engine was cleared: the other's failure is still the reason.
    session.execute(wait.values(state="failed"))
    session.execute(delete(XComModel).where(XComModel.task_id == "copy_to_nersc"))
    written.change("NS_260701033_0_0", end_date=began + 3 * TOOK)
    assert read() == {NAME: "failed: the probe has no support"}


def test_a_reason_that_is_written_after_the_end_is_still_found(
    written: Written, read: Callable[[], dict[str, str]]
) -> None:
    now = datetime.now(UTC)
    written.run("NS_260701033_0_0", path(), "failed", posted=now - TOOK)
    assert "no task has left a reason" in read()[NAME]
    written.error("NS_260701033_0_0", "ptychocam.wait", "the probe has no support", now)
    assert read() == {NAME: "failed: the probe has no support"}


def test_what_is_changed_or_removed_by_hand_is_seen(
    written: Written, read: Callable[[], dict[str, str]], index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic import scan_index
    from cosmic.scan_snapshot import Filters

    written.run("NS_260701033_0_0", path(), "failed")
    written.run("NS_260701034_0_0", path(name="NS_260701034"), "success")
    assert len(read()) == 2
    monkeypatch.setattr(scan_index, "_EDITS_AFTER", 0.0)
    written.change("NS_260701033_0_0", _state="success", updated_at=POSTED + TOOK)
    assert read()[NAME].startswith("done")
    written.session.execute(delete(DagRun).where(DagRun.run_id == "NS_260701034_0_0"))
    assert list(read()) == [NAME]
    assert index.snapshot.scan("NS_260701034") is None
    assert index.snapshot.page(Filters(day=DAY), 1).total == 1


def test_a_run_with_a_number_that_json_has_not_hides_no_other(
    written: Written, read: Callable[[], dict[str, str]]
) -> None:
    conf = {"file_path": path(), "do_ptychocam": True, "propagation_distance": float("nan")}
    written.run(f"{NAME}_0_0", path(), "failed", conf=conf)
    written.run("NS_260701034_0_0", path(name="NS_260701034"), "running")
    assert list(read()) == [NAME, "NS_260701034"]


def test_a_run_of_no_scan_has_a_row_of_its_own(written: Written, read: Callable[[], dict[str, str]]) -> None:
    written.run("manual__1", "../etc/passwd", "failed")
    written.run("manual__2", "test/a.cxi", "running")
    written.run("manual__3", "test/NS_260701033_ccdframes_0_0.cxi", "running")
    written.run("NS_260701033_0_0", path(), "running")
    names = list(read())
    assert len(names) == 4
    assert "manual__1" in names
    assert NAME in names
    assert sum(name.startswith("a.") for name in names) == 1


def test_a_file_of_no_day_belongs_to_the_day_at_the_beamline(
    written: Written, read: Callable[[], dict[str, str]], index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(DEFAULT_FILE))
    evening = datetime(2026, 7, 2, 2, 30, tzinfo=UTC)  # half past seven on the first
    written.run("manual__2", "test/a.cxi", "success", posted=evening)
    (name,) = read()
    assert index.snapshot.scan(name).day == DAY


def test_filters_and_pages(written: Written, read: Callable[[], dict[str, str]], index: Any) -> None:
    from cosmic.scan_snapshot import Filters

    write_runs(written.session, 300, per_day=100, last_day=date(2026, 6, 30))
    read()

    def total(**filters: Any) -> int:
        return int(index.snapshot.page(Filters(**filters), 1).total)

    scans = total()
    assert 100 < scans < 300
    assert index.snapshot.page(Filters(), 1).pages == -(-scans // 50)
    assert len(index.snapshot.page(Filters(), 1).scans) == 50
    assert index.snapshot.page(Filters(), 999).number == index.snapshot.page(Filters(), 1).pages
    posted = [scan.posted for number in (1, 2) for scan in index.snapshot.page(Filters(), number).scans]
    assert posted == sorted(posted, reverse=True)
    by_day = [total(day=date(2026, 6, day)) for day in (28, 29, 30)]
    assert all(by_day)
    assert sum(by_day) == scans
    assert total(proposal="ALS-00006") > 0
    assert total(proposal="ALS-00007") == 0
    assert total(state="failed") == total(text="Probe NO support")
    assert 0 < total(state="failed") < scans
    assert total(state="stopped") == 0
    assert total(text="NS_260630001") == 1
    assert index.snapshot.proposals == ["ALS-00006"]


def test_the_days_as_the_comparison_with_the_disk_has_left_them(
    written: Written, read: Callable[[], dict[str, str]], index: Any
) -> None:
    written.run(f"{NAME}_0_0", path(), "success")
    written.run(f"{NAME}_1_0", path(1), "failed")
    first = written.run("scheduled__1", "", "success", dag_id=FIND_MISSED_SCANS)
    row = {"day": "2026-07-01", "on_disk": 9, "missing": 7, "started": 0}
    for key, task_id, when, value in (
        ("rows", "compare", POSTED, [row]),
        ("return_value", "report", POSTED + TOOK, [row | {"started": 5}, {"day": "x"}, 3]),
    ):
        table = task_row("scheduled__1", task_id, "success", when) | {"dag_id": FIND_MISSED_SCANS}
        xcom = xcom_row(first, "scheduled__1", task_id, when, key=key, value=value) | {
            "dag_id": FIND_MISSED_SCANS
        }
        written.session.execute(insert(TaskInstance.__table__), [table])
        written.session.execute(insert(XComModel.__table__), [xcom | {"dag_id": FIND_MISSED_SCANS}])
    read()
    today, other = index.snapshot.day_counts([DAY, DAY - timedelta(days=1)])
    assert (today.on_disk, today.missing, today.compared) == (9, 2, POSTED + TOOK)
    assert (today.done, today.failed, today.active, today.stopped) == (1, 1, 0, 0)
    assert (other.on_disk, other.missing, other.compared, other.done) == (None, None, None, 0)


@contextmanager
def counted(session: Session) -> Iterator[list[str]]:
    """The statements that are sent to the database."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_the_number_of_queries_does_not_grow_with_runs(
    written: Written, index: Any, session: Session
) -> None:
    from cosmic.scan_index import ScanIndex
    from cosmic.scan_snapshot import Filters

    numbers = []
    for count in (100, 2000):
        _empty(session)
        write_runs(session, count)
        for number in range(10):
            written.run(f"active_{number}", path(number), "running")
        index = ScanIndex()
        with counted(session) as first:
            index.refresh(session)
        with counted(session) as second:
            index.refresh(session)
            for filters in (Filters(), Filters(state="failed"), Filters(text="probe")):
                index.snapshot.page(filters, 1)
        numbers.append((len(first), len(second)))
    assert numbers[0] == numbers[1]
    assert numbers[0][1] <= 8


def test_who_looks_within_two_seconds_costs_no_query(
    written: Written, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic import scan_index

    monkeypatch.setattr(scan_index, "_REFRESH_AFTER", 3600.0)
    index = scan_index.ScanIndex()
    index.refresh(session)
    with counted(session) as statements:
        for _ in range(100):
            index.refresh(session)
    assert statements == []


def test_who_looks_while_it_is_read_is_given_what_was_before(
    written: Written, index: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic import scan_index
    from cosmic.scan_snapshot import Filters

    written.run("NS_260701033_0_0", path(), "running")
    before = index.refresh(session)
    written.change("NS_260701033_0_0", _state="success", end_date=POSTED + TOOK)
    session.commit()
    is_reading, go_on = threading.Event(), threading.Event()

    def slow() -> dict[Wait, Progress]:
        is_reading.set()
        assert go_on.wait(60)
        return {}

    def read() -> None:
        with create_session(scoped=False) as own:
            index.refresh(own)

    monkeypatch.setattr(scan_index, "read_progress", slow)
    with ThreadPoolExecutor(2) as threads:
        reading = threads.submit(read)
        assert is_reading.wait(60)
        look = threads.submit(lambda: index.refresh(session).page(Filters(), 1).scans[0].outcomes)
        try:
            assert look.result(timeout=60) == {"active"}
        finally:
            go_on.set()
        reading.result()
    assert index.snapshot.scan(NAME).outcomes == {"done"}
    assert before.scan(NAME).files[0].run.state == "running", "a snapshot does not change"


def test_each_snapshot_is_as_if_it_had_been_made_at_once(
    written: Written, index: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic import scan_index
    from cosmic.scan_snapshot import Filters

    monkeypatch.setattr(scan_index, "_EDITS_AFTER", 0.0)
    chance = random.Random(1)
    ids: dict[str, int] = {}
    for step in range(60):
        name = f"NS_2607{chance.randrange(1, 4):02}{chance.randrange(10):03}"
        file = f"2026/07/{name[3:9]}/{name}_ccdframes_0_0.cxi"
        if name in ids and chance.random() < 0.5:
            session.execute(delete(DagRun).where(DagRun.id == ids.pop(name)))
        elif name in ids:
            states = {"state": chance.choice(["failed", "success"]), "end_date": POSTED + step * TOOK}
            session.execute(update(DagRun.__table__).where(DagRun.id == ids[name]).values(states))
        else:
            posted = POSTED + timedelta(minutes=chance.randrange(100))
            ids[name] = written.run(f"{name}_0_0", file, "running", posted=posted)
        scans, at_once = index.refresh(session), scan_index.ScanIndex().refresh(session)
        for filters in (
            Filters(),
            Filters(state="failed"),
            *(Filters(day=date(2026, 7, n)) for n in (1, 2, 3)),
        ):
            assert scans.page(filters, 1) == at_once.page(filters, 1)
        days = [date(2026, 7, n) for n in (1, 2, 3)]
        assert scans.day_counts(days) == at_once.day_counts(days)


def test_a_scan_that_was_posted_a_moment_ago_is_there_for_who_asks_for_it(
    written: Written, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic import scan_index

    monkeypatch.setattr(scan_index, "_REFRESH_AFTER", 3600.0)
    index = scan_index.ScanIndex()
    index.refresh(session)
    written.run("NS_260701033_0_0", path(), "queued")
    assert index.refresh(session).scan(NAME) is None
    assert index.refresh(session, at_once=True).scan(NAME) is not None


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))]
)
def test_a_thousand_scans_a_day_for_a_hundred_days(database: str, tmp_path: Path) -> None:
    """Prints what a look at the list takes; the limit is what a reader notices, many times over."""
    programs = postgres.programs() if database == "postgresql" else None
    with postgres.running_postgres(programs) if programs else nullcontext() as server:
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (TESTS, TESTS.parent / "include", PLUGINS)))
        if server is not None:
            environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = server.address
        done = subprocess.run(
            [sys.executable, "-m", "support.measure_scans", str(tmp_path), "100000"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    seconds: dict[str, tuple[float, float]] = json.loads(done.stdout.splitlines()[-1])
    for what, (value, cpu) in seconds.items():
        print(f"{database}, 100,000 runs: {what}: {value * 1000:.1f} ms, {cpu * 1000:.1f} ms of CPU")
    assert max(cpu for what, (_, cpu) in seconds.items() if "after a change" in what) < 3
    assert seconds["first page, nothing new"][1] < 1
