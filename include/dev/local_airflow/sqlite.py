"""Makes SQLite bear a whole Airflow: five processes that write, where it has one writer at a time.

With Python's own settings a busy machine answers posts with "500 Database error", creating a backfill fails
with "database is locked", and a run that a person marks as failed may end as a success. Named in
`dev.local_airflow.settings`; PostgreSQL needs nothing of this.
"""

from __future__ import annotations

import sqlite3
import sys
from typing import Any

# The scheduler reads a run "FOR UPDATE" before it decides on it, which SQLite leaves out: a person may end
# the run before the scheduler writes. So a run that has ended stays as it is. Only the scheduler is held to
# that: others clear a run or mark it anew. A lock would make everybody wait for the scheduler, all the time.
_KEEP_ENDED = """
CREATE TEMP TRIGGER IF NOT EXISTS keep_ended AFTER UPDATE OF state ON main.dag_run
WHEN OLD.state IN ('success', 'failed') AND NEW.state <> OLD.state
BEGIN
    UPDATE dag_run SET state = OLD.state, end_date = OLD.end_date WHERE id = OLD.id;
END
"""


class _Cursor(sqlite3.Cursor):
    def execute(self, sql: str, parameters: Any = (), /) -> _Cursor:
        # A savepoint that opens a transaction opens one that reads. When it comes to write and somebody
        # else has written since, SQLite fails at once, however long the timeout. So it queues up first.
        if sql.startswith("SAVEPOINT") and not self.connection.in_transaction:
            super().execute("BEGIN IMMEDIATE")
        return super().execute(sql, parameters)


class _Connection(sqlite3.Connection):
    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(factory or _Cursor)


class SchedulerConnection(_Connection):
    """Does not change how a run has ended."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.execute(_KEEP_ENDED)


_WAIT = 60.0  # seconds that a writer waits for another, instead of 5

_IS_SCHEDULER = sys.argv[1:2] == ["scheduler"]
CONNECT_ARGS = {"timeout": _WAIT, "factory": SchedulerConnection if _IS_SCHEDULER else _Connection}
ASYNC_CONNECT_ARGS = {"timeout": _WAIT}
