"""The database of the NERSC half: tokens, clients, tasks, outages, jobs and their history."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from standin.store import open_database

SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tokens (
    digest TEXT PRIMARY KEY, client_id TEXT NOT NULL, expires REAL NOT NULL);
CREATE TABLE IF NOT EXISTS assertions (jti TEXT PRIMARY KEY, expires REAL NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, request TEXT NOT NULL, status TEXT NOT NULL,
    result TEXT, created REAL NOT NULL, finished REAL);
CREATE TABLE IF NOT EXISTS outages (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, start_at REAL NOT NULL, end_at REAL NOT NULL,
    description TEXT NOT NULL, notes TEXT, announced INTEGER NOT NULL, cancelled INTEGER NOT NULL,
    extended INTEGER NOT NULL, updated REAL NOT NULL);
CREATE TABLE IF NOT EXISTS transfers (id TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    job_id INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT UNIQUE, active INTEGER NOT NULL,
    record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS history (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, job_id INTEGER NOT NULL, at REAL NOT NULL, ended REAL,
    record TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS history_of_job ON history (job_id, at);
CREATE INDEX IF NOT EXISTS jobs_active ON jobs (active);
CREATE TABLE IF NOT EXISTS cancels (job_id INTEGER NOT NULL, at REAL NOT NULL, uid INTEGER NOT NULL,
    effective INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS submissions (request_id TEXT PRIMARY KEY, job_id TEXT);
"""


class Database:
    """One connection, used by the server's event loop only: transactions are short."""

    def __init__(self, path: Path) -> None:
        self._connection = open_database(path, SCHEMA)
        self._depth = 0

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; an inner transaction is part of the outer one."""
        if self._depth == 0:
            self._connection.execute("BEGIN IMMEDIATE")
        self._depth += 1
        try:
            yield
        except BaseException:
            self._depth -= 1
            if self._depth == 0:
                self._connection.execute("ROLLBACK")
            raise
        self._depth -= 1
        if self._depth == 0:
            self._connection.execute("COMMIT")

    def run(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """Run one statement."""
        return self._connection.execute(statement, values)

    def rows(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query."""
        return self._connection.execute(statement, values).fetchall()

    def row(self, statement: str, *values: Any) -> sqlite3.Row | None:
        """The first row of a query, or None."""
        found: sqlite3.Row | None = self._connection.execute(statement, values).fetchone()
        return found

    def keep(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name."""
        self.run("INSERT OR REPLACE INTO kept VALUES (?, ?)", name, json.dumps(value))

    def kept(self, name: str, default: Any = None) -> Any:
        """The value kept under a name."""
        row = self.row("SELECT value FROM kept WHERE name = ?", name)
        return default if row is None else json.loads(row["value"])
