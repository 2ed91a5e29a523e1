"""Tasks that are resumed before a slow scheduler has processed the exits of workers that they have left."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dev.local_airflow.postgres import programs, running_postgres
from dev.local_airflow.rest import Rest
from dev.local_airflow.stack import LocalAirflow, running, wait_until

pytestmark = [pytest.mark.live]

FILES = Path(__file__).with_name("resumed_tasks")
SLOW = 300.0  # seconds that anything here may take on a busy machine


class Resumed:
    """An Airflow with the DAGs of `resumed_tasks`, and how many tasks the one with our executor has."""

    def __init__(self, rest: Rest, folder: Path, tasks: int) -> None:
        self.rest = rest
        self.folder = folder
        self.tasks = tasks

    def run(self, dag_id: str, tasks: int, limit: float = SLOW) -> list[dict[str, Any]]:
        """Let all tasks of a DAG defer and be resumed; returns what has become of them."""
        run_id = self.rest.trigger(dag_id)

        def deferred() -> bool:
            return len(self._instances(dag_id, run_id, "deferred")) == tasks

        assert wait_until(deferred, limit), f"{dag_id}: not all tasks are deferred after {limit:.0f} s"
        (self.folder / f"{dag_id}.fire").touch()
        self.rest.wait_for_run(dag_id, run_id, limit)
        return self._instances(dag_id, run_id)

    def mismatches(self, dag_id: str) -> int:
        """How often the scheduler has failed a task because of an executor's event."""
        found = self.rest.call("GET", f"/api/v2/eventLogs?dag_id={dag_id}&event=state%20mismatch")
        return int(found["total_entries"])

    def _instances(self, dag_id: str, run_id: str, state: str | None = None) -> list[dict[str, Any]]:
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=100"
        wanted = path + (f"&state={state}" if state else "")
        found: list[dict[str, Any]] = []
        while page := self.rest.call("GET", f"{wanted}&offset={len(found)}")["task_instances"]:
            found += page
        return found


@contextlib.contextmanager
def start(folder: Path, tasks: int, database: str | None) -> Iterator[Resumed]:
    """Start an Airflow of its own, on SQLite or the database at an address."""
    extra = {
        "AIRFLOW__CORE__EXECUTOR": "protected:held_exits.Protected,plain:held_exits.Plain",
        "AIRFLOW__CORE__DAGS_FOLDER": str(FILES / "dags"),
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
        "RESUMED_TASKS_FOLDER": str(folder),
        "RESUMED_TASKS": str(tasks),
    }
    if database:
        extra["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = database
    airflow = LocalAirflow(folder / "airflow", extra=extra)
    airflow.environment["PYTHONPATH"] += os.pathsep + str(FILES)
    pool = {"slots": 10_000, "description": "for all at once"}
    with running(airflow, {"pools": {"default_pool": pool}}):
        rest = Rest(airflow.url, "admin", airflow.passwords["admin"])
        for dag_id in ("protected", "plain"):
            rest.wait_for_dag(dag_id)
        yield Resumed(rest, folder, tasks)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
def database(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Address of a database; None: SQLite."""
    found = programs()
    if request.param == "sqlite" or found is None:
        yield None
        return
    with running_postgres(found) as server:
        yield server.address


@pytest.mark.long
@pytest.mark.timeout(900)
def test_late_exits_fail_tasks_with_airflows_executor_and_not_with_ours(
    tmp_path: Path, database: str | None
) -> None:
    """When the first part fails, Airflow no longer needs the protection."""
    with start(tmp_path, 6, database) as resumed:
        assert [task["state"] for task in resumed.run("plain", 2)] == ["failed"] * 2
        assert resumed.mismatches("plain") == 2
        check_none_is_failed(resumed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_hundred_tasks_that_resume_at_once(tmp_path: Path, database: str | None) -> None:
    with start(tmp_path, 500, database) as resumed:
        check_none_is_failed(resumed, limit=1700)


def check_none_is_failed(resumed: Resumed, limit: float = SLOW) -> None:
    tasks = resumed.run("protected", resumed.tasks, limit)
    assert [(task["state"], task["try_number"]) for task in tasks] == [("success", 1)] * resumed.tasks
    assert resumed.mismatches("protected") == 0
