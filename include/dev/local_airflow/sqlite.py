"""Lets several Airflow processes share one SQLite file; PostgreSQL needs nothing of this.

`dev.local_airflow.settings` names it as `[database] sql_alchemy_connect_args`. There are three overrides, two
here and one in `sqlite_plugin`, each with the source of Airflow 3.3.2 that it works around.
`tests/dev/local_airflow/test_sqlite_overrides.py` fails for one that the installed Airflow no longer needs.
"""

from __future__ import annotations

import sqlite3
import sys
from typing import Any

# A lost update: `DagRun.get_running_dag_runs_to_examine` (airflow/models/dagrun.py) reads runs "FOR UPDATE",
# which SQLite leaves out. A person may end the run before the scheduler writes its decision over that. So a
# run that has ended keeps its state. This holds for the scheduler alone, since others clear a run or mark it
# again; a lock would make everybody wait for the scheduler, all the time.
_KEEP_ENDED = """
CREATE TEMP TRIGGER IF NOT EXISTS keep_ended AFTER UPDATE OF state ON main.dag_run
WHEN OLD.state IN ('success', 'failed') AND NEW.state <> OLD.state
BEGIN
    UPDATE dag_run SET state = OLD.state, end_date = OLD.end_date WHERE id = OLD.id;
END
"""


class _Cursor(sqlite3.Cursor):
    def execute(self, sql: str, parameters: Any = (), /) -> _Cursor:
        # "database is locked" at once, whatever the timeout: a savepoint that opens a transaction opens one
        # that reads, and SQLite refuses its first write when another process has written since. Airflow does
        # this in `_create_backfill_dag_run_non_partitioned` (airflow/models/backfill.py; apache/airflow
        # issues 66726 and 68699). Here such a savepoint waits until it may write, and reads then.
        if sql.startswith("SAVEPOINT") and not self.connection.in_transaction:
            super().execute("BEGIN IMMEDIATE")
        return super().execute(sql, parameters)


class _Connection(sqlite3.Connection):
    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(factory or _Cursor)


class SchedulerConnection(_Connection):
    """The scheduler's connection: it does not change the state of a run that has ended."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.execute(_KEEP_ENDED)


_WAIT = 60.0  # seconds that a writer waits for another, instead of 5

_IS_SCHEDULER = sys.argv[1:2] == ["scheduler"]
CONNECT_ARGS = {"timeout": _WAIT, "factory": SchedulerConnection if _IS_SCHEDULER else _Connection}
ASYNC_CONNECT_ARGS = {"timeout": _WAIT}
