"""The local Airflow's SQLite: writers wait for each other, savepoints too; what has ended stays as it is."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from dev.local_airflow.settings import local_environment
from dev.local_airflow.sqlite import CONNECT_ARGS, SchedulerConnection


def engine_for(path: Path, **connect_args: Any) -> Engine:
    arguments = {**CONNECT_ARGS, "check_same_thread": False, **connect_args}
    engine = create_engine(f"sqlite:///{path}", connect_args=arguments)

    @event.listens_for(engine, "connect")
    def as_airflow_does(connection: object, _: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")  # type: ignore[attr-defined]

    return engine


def test_writers_in_savepoints_wait_for_each_other(tmp_path: Path) -> None:
    """Without the waiting savepoint nearly every run of this fails with "database is locked"."""
    engine = engine_for(tmp_path / "x.db")
    with engine.begin() as connection:
        connection.execute(text("create table counts (n integer)"))
        connection.execute(text("insert into counts values (0)"))
    failures: list[Exception] = []

    def count() -> None:
        try:
            for _ in range(50):
                with engine.begin() as connection, connection.begin_nested():
                    connection.execute(text("select n from counts")).scalar_one()
                    connection.execute(text("update counts set n = n + 1"))
        except OperationalError as error:
            failures.append(error)

    threads = [threading.Thread(target=count) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engine.connect() as connection:
        total = connection.execute(text("select n from counts")).scalar_one()
    engine.dispose()
    assert failures == []
    assert total == 300


@pytest.fixture
def sessions(airflow_database: None) -> Iterator[tuple[Session, Session]]:
    """Of a person (by way of the API server) and of the scheduler, on Airflow's own tables."""
    path = Path(os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].removeprefix("sqlite:///"))
    engines = [engine_for(path), engine_for(path, factory=SchedulerConnection)]
    person, scheduler = (Session(engine) for engine in engines)
    with person, scheduler:
        yield person, scheduler
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize(
    ("before", "meanwhile", "decided", "after"),
    [
        ("running", "failed", "success", "failed"),
        ("queued", "failed", "running", "failed"),
        ("running", "success", "failed", "success"),
        ("running", "running", "success", "success"),
        ("queued", "queued", "running", "running"),
    ],
)
def test_the_scheduler_does_not_write_over_how_a_person_has_ended_a_run(
    sessions: tuple[Session, Session], before: str, meanwhile: str, decided: str, after: str
) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.utils.state import DagRunState

    person, scheduler = sessions
    run_id = f"run_{uuid.uuid4().hex}"
    now = datetime.now(UTC)
    person.add(
        DagRun(dag_id="marked", run_id=run_id, run_type="manual", run_after=now, state=DagRunState(before))
    )
    person.commit()
    query = select(DagRun).where(DagRun.run_id == run_id)

    seen = scheduler.scalars(query).one()
    person.scalars(query).one().set_state(DagRunState(meanwhile))
    person.commit()
    ended = person.scalars(query).one().end_date
    seen.last_scheduling_decision = now
    seen.set_state(DagRunState(decided))
    scheduler.commit()

    person.expire_all()
    run = person.scalars(query).one()
    assert run.state == after
    assert run.last_scheduling_decision == now
    assert run.end_date == ended or after != meanwhile

    run.set_state(DagRunState.QUEUED)  # it is cleared, and the scheduler takes it up
    person.commit()
    scheduler.expire_all()
    scheduler.scalars(query).one().set_state(DagRunState.RUNNING)
    scheduler.commit()
    person.expire_all()
    assert person.scalars(query).one().state == "running"
    person.delete(person.scalars(query).one())
    person.commit()


@pytest.mark.parametrize(("connection", "named"), [(None, True), ("postgresql+psycopg2://x/y", False)])
def test_only_sqlite_gets_it(tmp_path: Path, connection: str | None, named: bool) -> None:
    extra = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": connection} if connection else None
    environment = local_environment(tmp_path / "airflow", 9, extra)
    assert ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS" in environment) is named
