"""Stores what Globus keeps over a restart: tasks, what each moved, their events, tokens and consents."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from standin.globus import times
from standin.globus.model import Task
from standin.store import open_database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (
    task_id TEXT PRIMARY KEY, owner_id TEXT NOT NULL, submission_id TEXT NOT NULL,
    request_time REAL NOT NULL,
    record TEXT NOT NULL,
    UNIQUE (owner_id, submission_id));
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT, task_id TEXT NOT NULL,
    outcome TEXT NOT NULL, source_path TEXT NOT NULL, destination_path TEXT NOT NULL,
    size INTEGER NOT NULL DEFAULT 0,
    checksummed INTEGER NOT NULL DEFAULT 0, checksum TEXT, algorithm TEXT,
    error_code TEXT, error_details TEXT,
    is_directory INTEGER NOT NULL DEFAULT 0, time REAL NOT NULL,
    UNIQUE (task_id, source_path, destination_path));
CREATE INDEX IF NOT EXISTS files_by_task ON files (task_id, outcome, number);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, task_id TEXT NOT NULL, time REAL NOT NULL,
    code TEXT NOT NULL, is_error INTEGER NOT NULL, description TEXT NOT NULL,
    details TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_task ON events (task_id, number);
CREATE TABLE IF NOT EXISTS partials (
    task_id TEXT NOT NULL, path TEXT NOT NULL, source_path TEXT NOT NULL, destination_path TEXT NOT NULL,
    columns TEXT, PRIMARY KEY (task_id, path));
CREATE TABLE IF NOT EXISTS tokens (
    hash TEXT PRIMARY KEY, client_id TEXT NOT NULL, resource_server TEXT NOT NULL, scopes TEXT NOT NULL,
    issued REAL NOT NULL, expires REAL NOT NULL, revoked INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS switches (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS consents (
    client_id TEXT NOT NULL, scope TEXT NOT NULL, PRIMARY KEY (client_id, scope));
"""


class GlobusStore:
    """The database. Used from the server's event loop only, so that one call is one atomic step."""

    def __init__(self, path: Path) -> None:
        self._db = open_database(path, _SCHEMA)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    # tasks

    def save(self, task: Task) -> None:
        """Add a task, or bring its record up to date."""
        self._db.execute(
            "INSERT INTO tasks (task_id, owner_id, submission_id, request_time, record)"
            " VALUES (?, ?, ?, ?, ?) ON CONFLICT (task_id) DO UPDATE SET record = excluded.record",
            (task.task_id, task.owner_id, task.submission_id, task.request_time, task.to_record()),
        )

    def load(self) -> list[Task]:
        """All tasks ever, oldest first; what unfinished ones moved is counted anew."""
        rows = self._db.execute("SELECT record FROM tasks ORDER BY request_time, task_id")
        tasks = [Task.from_record(row["record"]) for row in rows]
        for task in tasks:
            if not task.ended:
                self._recount(task)
        return tasks

    def _recount(self, task: Task) -> None:
        rows = self._db.execute(
            "SELECT outcome, count(*) AS files, sum(size) AS bytes, sum(checksummed) AS hashed"
            " FROM files WHERE task_id = ? GROUP BY outcome",
            (task.task_id,),
        )
        sums = {row["outcome"]: row for row in rows}
        counts = task.counts
        counts.files_transferred = sums["moved"]["files"] if "moved" in sums else 0
        counts.bytes_transferred = sums["moved"]["bytes"] if "moved" in sums else 0
        counts.files_skipped = sums["skipped"]["files"] if "skipped" in sums else 0
        counts.skipped_errors = sums["skipped_error"]["files"] if "skipped_error" in sums else 0
        counts.bytes_checksummed = sum(row["hashed"] or 0 for row in sums.values())

    # what a task did with each file

    def add_file(self, task_id: str, outcome: str, source: str, destination: str, **columns: Any) -> None:
        """Note what became of one file: moved, skipped, or skipped_error."""
        names = ["task_id", "outcome", "source_path", "destination_path", "time", *columns]
        values = [task_id, outcome, source, destination, time.time(), *columns.values()]
        self._db.execute(
            f"INSERT OR REPLACE INTO files ({', '.join(names)})"  # noqa: S608 - our own column names
            f" VALUES ({', '.join('?' * len(names))})",
            values,
        )

    def files_done(self, task_id: str) -> set[tuple[str, str]]:
        """Source and destination paths that need not be looked at again."""
        rows = self._db.execute(
            "SELECT source_path, destination_path FROM files WHERE task_id = ?", (task_id,)
        )
        return {(row["source_path"], row["destination_path"]) for row in rows}

    def knows_file(self, task_id: str, source: str, destination: str) -> bool:
        """Whether it was noted what became of a file."""
        row = self._db.execute(
            "SELECT 1 FROM files WHERE task_id = ? AND source_path = ? AND destination_path = ?",
            (task_id, source, destination),
        )
        return row.fetchone() is not None

    def files(self, task_id: str, outcome: str, after: int, limit: int) -> list[dict[str, Any]]:
        """A page of files with that outcome, in the order in which they ended."""
        rows = self._db.execute(
            "SELECT * FROM files WHERE task_id = ? AND outcome = ? AND number > ? ORDER BY number LIMIT ?",
            (task_id, outcome, after, limit),
        )
        return [dict(row) for row in rows]

    # events

    def add_event(
        self, task_id: str, code: str, details: str, *, is_error: bool, description: str = ""
    ) -> None:
        """Add an event; of a task that goes wrong for days only the newest thousand are kept."""
        self._db.execute(
            "INSERT INTO events (task_id, time, code, is_error, description, details)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (task_id, time.time(), code, is_error, description or code.replace("_", " ").lower(), details),
        )
        self._db.execute(
            "DELETE FROM events WHERE task_id = ? AND number <= (SELECT number FROM events WHERE task_id = ?"
            " ORDER BY number DESC LIMIT 1 OFFSET 1000)",
            (task_id, task_id),
        )

    def events(self, task_id: str) -> list[dict[str, Any]]:
        """The events of a task as documents, newest first."""
        rows = self._db.execute("SELECT * FROM events WHERE task_id = ? ORDER BY number DESC", (task_id,))
        return [
            {
                "DATA_TYPE": "event",
                "code": row["code"],
                "is_error": bool(row["is_error"]),
                "description": row["description"],
                "details": row["details"],
                "time": times.iso(row["time"]),
            }
            for row in rows
        ]

    # copies on their way: noted before the file is written, and again before it is put into place

    def add_partial(self, task_id: str, path: Path, source: str, destination: str) -> None:
        """Note a part file that is about to be written."""
        self._db.execute(
            "INSERT OR REPLACE INTO partials VALUES (?, ?, ?, ?, NULL)",
            (task_id, str(path), source, destination),
        )

    def partial_complete(self, task_id: str, path: Path, columns: dict[str, Any]) -> None:
        """Note that a part file is complete and will be put into place now; `columns` as of `add_file`."""
        self._db.execute(
            "UPDATE partials SET columns = ? WHERE task_id = ? AND path = ?",
            (json.dumps(columns), task_id, str(path)),
        )

    def drop_partial(self, task_id: str, path: Path) -> None:
        """Forget a part file that took its place or was removed."""
        self._db.execute("DELETE FROM partials WHERE task_id = ? AND path = ?", (task_id, str(path)))

    def settle_partials(self) -> None:
        """Remove what a killed server left half-written, and count what it had just put into place."""
        for row in self._db.execute("SELECT * FROM partials").fetchall():
            part = Path(row["path"])
            if row["columns"] is not None and not part.exists():
                columns = json.loads(row["columns"])
                self.add_file(row["task_id"], "moved", row["source_path"], row["destination_path"], **columns)
            part.unlink(missing_ok=True)
            self.drop_partial(row["task_id"], part)

    # tokens

    def add_token(
        self, digest: str, client_id: str, resource_server: str, scopes: list[str], expires: float
    ) -> None:
        """Keep a token, as its hash."""
        self._db.execute(
            "INSERT INTO tokens (hash, client_id, resource_server, scopes, issued, expires)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (digest, client_id, resource_server, json.dumps(scopes), time.time(), expires),
        )
        self._db.execute("DELETE FROM tokens WHERE expires < ?", (time.time() - 7 * 86400,))

    def token(self, digest: str) -> dict[str, Any] | None:
        """The token with that hash, if it was ever given out."""
        row = self._db.execute("SELECT * FROM tokens WHERE hash = ?", (digest,)).fetchone()
        return {**dict(row), "scopes": json.loads(row["scopes"])} if row else None

    def revoke(self, digest: str | None = None) -> int:
        """Revoke one token, or all; returns how many were still good."""
        where, values = ("hash = ? AND ", [digest]) if digest else ("", [])
        cursor = self._db.execute(
            f"UPDATE tokens SET revoked = 1 WHERE {where}revoked = 0 AND expires > ?",  # noqa: S608 - fixed text
            [*values, time.time()],
        )
        return cursor.rowcount

    def expire_tokens(self) -> int:
        """Let all tokens expire now; returns how many were still good."""
        now = time.time()
        cursor = self._db.execute(
            "UPDATE tokens SET expires = ? WHERE revoked = 0 AND expires > ?", (now, now)
        )
        return cursor.rowcount

    def add_consents(self, client_id: str, scopes: Iterable[str]) -> None:
        """Remember the dependent scopes that a client consented to by asking for them."""
        self._db.executemany("INSERT OR IGNORE INTO consents VALUES (?, ?)", [(client_id, s) for s in scopes])

    def drop_consents(self, scope: str) -> None:
        """Forget all consents to a scope."""
        self._db.execute("DELETE FROM consents WHERE scope = ?", (scope,))

    def has_consent(self, client_id: str, scope: str) -> bool:
        """Whether the client consented to that scope."""
        row = self._db.execute("SELECT 1 FROM consents WHERE client_id = ? AND scope = ?", (client_id, scope))
        return row.fetchone() is not None

    # switches that tests set

    def set_switch(self, name: str, value: Any) -> None:
        """Keep a switch."""
        self._db.execute("INSERT OR REPLACE INTO switches VALUES (?, ?)", (name, json.dumps(value)))

    def switches(self) -> dict[str, Any]:
        """The switches that were ever set."""
        return {row["name"]: json.loads(row["value"]) for row in self._db.execute("SELECT * FROM switches")}
