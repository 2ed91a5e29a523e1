"""The local Airflow's SQLite: writers wait for each other, savepoints too."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from local_airflow.settings import local_environment
from local_airflow.sqlite import CONNECT_ARGS


def engine_for(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={**CONNECT_ARGS, "check_same_thread": False})

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


@pytest.mark.parametrize(("connection", "named"), [(None, True), ("postgresql+psycopg2://x/y", False)])
def test_only_sqlite_gets_it(tmp_path: Path, connection: str | None, named: bool) -> None:
    extra = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": connection} if connection else None
    environment = local_environment(tmp_path / "airflow", 9, extra)
    assert ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS" in environment) is named
