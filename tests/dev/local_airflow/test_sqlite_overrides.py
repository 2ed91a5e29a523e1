"""What goes wrong in Airflow's own functions when several processes share a SQLite file, and does not here.

When a test "without" an override fails, the installed Airflow no longer needs that override: delete it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event, func, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from dev.local_airflow.sqlite import CONNECT_ARGS, SchedulerConnection
from dev.local_airflow.sqlite_plugin import OneWriter
from support.stored_dags import stored

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("airflow_database")]

DAG_ID = "sqlite_overrides"
WITHOUT: dict[str, Any] = {}
DAY = datetime(2023, 2, 16, tzinfo=UTC)


def database() -> Path:
    """The session's SQLite file."""
    return Path(os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].removeprefix("sqlite:///"))


@contextlib.contextmanager
def airflows_engine(connect_args: dict[str, Any]) -> Iterator[Engine]:
    """An engine as Airflow makes it, with these arguments."""
    from airflow import settings
    from airflow.utils.orm_event_handlers import setup_event_handlers

    engine = settings.create_metadata_engine(
        f"sqlite:///{database()}",
        engine_args=settings.prepare_engine_args(),  # type: ignore[no-untyped-call]
        connect_args={**connect_args, "check_same_thread": False},
    )
    setup_event_handlers(engine)  # type: ignore[no-untyped-call]
    try:
        yield engine
    finally:
        engine.dispose()


@contextlib.contextmanager
def used_by_airflow(engine: Engine) -> Iterator[None]:
    """Airflow's functions use this engine until the block ends."""
    from airflow import settings

    maker = sessionmaker(engine, autoflush=False, expire_on_commit=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "engine", engine)
        patch.setattr(settings, "NonScopedSession", maker)
        patch.setattr(settings, "Session", scoped_session(maker))
        yield


@pytest.fixture(scope="module")
def dag(airflow_database: None) -> Iterator[Any]:
    """A DAG with one task."""
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG

    with DAG(DAG_ID, schedule="@daily", start_date=DAY, catchup=False) as written:
        EmptyOperator(task_id="only")
    with stored(written) as found:
        yield found


# A savepoint that reads and then writes


def create_backfill(dag: Any, connect_args: dict[str, Any]) -> tuple[int, bool]:
    """Create a backfill while another process writes; returns its runs and whether the other could write."""
    from airflow.models.backfill import Backfill, BackfillDagRun, ReprocessBehavior, _create_backfill

    other: list[bool] = []

    def another_process_writes(_: object, __: object, statement: str, *___: object) -> None:
        # The first look at runs is the one in the savepoint.
        if other or not statement.startswith("SELECT dag_run."):
            return
        with contextlib.closing(sqlite3.connect(database(), timeout=0)) as connection:
            try:
                connection.execute("UPDATE dag SET last_expired = datetime('now') WHERE dag_id = ?", [DAG_ID])
                connection.commit()
            except sqlite3.OperationalError:
                other.append(False)  # a real one would wait
            else:
                other.append(True)

    with airflows_engine(connect_args) as engine:
        event.listen(engine, "after_cursor_execute", another_process_writes)
        with used_by_airflow(engine):
            backfill = _create_backfill(
                dag_id=dag.dag_id,
                from_date=DAY,
                to_date=DAY,
                max_active_runs=1,
                reverse=False,
                dag_run_conf=None,
                triggering_user_name="tests",
                reprocess_behavior=ReprocessBehavior.NONE,
            )
        with Session(engine) as session:
            of_backfill = BackfillDagRun.backfill_id == backfill.id
            runs = session.scalar(select(func.count()).select_from(BackfillDagRun).where(of_backfill))
            session.get_one(Backfill, backfill.id).completed_at = datetime.now(UTC)
            session.commit()
    return runs or 0, other == [True]


@pytest.fixture
def _no_backfill(dag: Any) -> Iterator[None]:
    """What a test leaves of its backfill is removed."""
    yield
    with contextlib.closing(sqlite3.connect(database(), timeout=60)) as connection:
        connection.execute("DELETE FROM backfill_dag_run")
        connection.execute("DELETE FROM backfill")
        connection.execute("DELETE FROM dag_run WHERE dag_id = ?", [DAG_ID])
        connection.commit()


@pytest.mark.usefixtures("_no_backfill")
def test_without_waiting_savepoints_a_backfill_fails(dag: Any) -> None:
    with pytest.raises(OperationalError, match="database is locked"):
        create_backfill(dag, WITHOUT)


@pytest.mark.usefixtures("_no_backfill")
def test_with_waiting_savepoints_a_backfill_is_created(dag: Any) -> None:
    assert create_backfill(dag, CONNECT_ARGS) == (1, False)


# The scheduler's decision and a person's


def decided_and_marked(dag: Any, connect_args: dict[str, Any]) -> str | None:
    """State of a run that a person marks as failed while the scheduler decides that it has succeeded."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.state import DagRunState, TaskInstanceState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    run_id = f"run_{uuid.uuid4().hex}"
    with airflows_engine(CONNECT_ARGS) as engine, Session(engine) as person:
        run = dag.create_dagrun(
            run_id=run_id,
            run_after=DAY,
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.RUNNING,
            session=person,
        )
        for task in run.get_task_instances(session=person):
            task.state = TaskInstanceState.SUCCESS
        person.commit()
        with airflows_engine(connect_args) as engine_of_scheduler, Session(engine_of_scheduler) as scheduler:
            examined = DagRun.get_running_dag_runs_to_examine(session=scheduler)
            (seen,) = [each for each in examined if each.run_id == run_id]
            run.set_state(DagRunState.FAILED)
            person.commit()
            seen.dag = dag
            seen.update_state(session=scheduler, execute_callbacks=False)
            scheduler.commit()
        person.refresh(run)
        state: str | None = run.state
        person.delete(run)
        person.commit()
    return state


def test_without_the_trigger_the_scheduler_writes_over_what_a_person_has_marked(dag: Any) -> None:
    assert decided_and_marked(dag, WITHOUT) == "success"


def test_with_the_trigger_a_run_stays_as_a_person_has_marked_it(dag: Any) -> None:
    assert decided_and_marked(dag, {**CONNECT_ARGS, "factory": SchedulerConnection}) == "failed"


# Two requests to the API server


class Arrivals:
    """ASGI middleware that says when the second request has arrived."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.count = 0
        self.second = threading.Event()

    async def __call__(self, *arguments: Any) -> None:
        self.count += 1
        if self.count == 2:
            self.second.set()
        await self.app(*arguments)


def two_requests(*, one_writer: bool) -> list[int]:
    """Delete two pools; the second request comes when the first has written. Returns the replies' status."""
    from airflow.api_fastapi.app import create_app, get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.models.pool import Pool

    first_has_written = asyncio.Event()
    logging = threading.Event()
    pools = [f"pool_{uuid.uuid4().hex}" for _ in range(2)]

    async def both(app: Any, engine: Engine) -> list[int]:
        loop = asyncio.get_running_loop()
        arrivals = Arrivals(OneWriter(app) if one_writer else app)

        def before(_: object, cursor: Any, statement: str, *__: object) -> None:
            if first_has_written.is_set() and statement.startswith("INSERT INTO log"):
                cursor.connection.execute("PRAGMA busy_timeout = 2000")  # how long everything stands still
                logging.set()

        def after(_: object, __: object, statement: str, *___: object) -> None:
            if statement.startswith("DELETE FROM slot_pool") and not first_has_written.is_set():
                loop.call_soon_threadsafe(first_has_written.set)
                # The lock is held until this returns and the event loop commits.
                (arrivals.second if one_writer else logging).wait()

        event.listen(engine, "before_cursor_execute", before)
        event.listen(engine, "after_cursor_execute", after)
        token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="admin", role="admin"))
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(arrivals, raise_app_exceptions=False),
            base_url="http://airflow",
            headers={"Authorization": f"Bearer {token}"},
        ) as client:
            first = asyncio.create_task(client.delete(f"/api/v2/pools/{pools[0]}"))
            written = asyncio.create_task(first_has_written.wait())
            await asyncio.wait({first, written}, return_when=asyncio.FIRST_COMPLETED)
            assert written.done(), f"the first request did not write: {(await first).text}"
            second = await client.delete(f"/api/v2/pools/{pools[1]}")
            return [(await first).status_code, second.status_code]

    for pool in pools:
        Pool.create_or_update_pool(pool, slots=1, description="", include_deferred=False)
    with pytest.MonkeyPatch.context() as patch, airflows_engine(CONNECT_ARGS) as engine:
        patch.setattr("airflow.plugins_manager.get_fastapi_plugins", lambda: ([], []))
        app = create_app(apps="core")
        with used_by_airflow(engine):
            return asyncio.run(both(app, engine))


def test_without_one_writer_at_a_time_a_request_fails() -> None:
    assert sorted(two_requests(one_writer=False)) == [204, 500]


def test_with_one_writer_at_a_time_both_requests_succeed() -> None:
    assert two_requests(one_writer=True) == [204, 204]
