"""Makes SQLite bear a whole Airflow: five processes that write, where it has one writer at a time.

With Python's own settings a busy machine answers posts with "500 Database error", and creating a backfill
fails with "database is locked". Named in `local_airflow.settings`; PostgreSQL needs nothing of this.
"""

from __future__ import annotations

import sqlite3
from typing import Any


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


_WAIT = 60.0  # seconds that a writer waits for another, instead of 5

CONNECT_ARGS = {"timeout": _WAIT, "factory": _Connection}
ASYNC_CONNECT_ARGS = {"timeout": _WAIT}
