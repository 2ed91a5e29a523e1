"""Writes files and databases that survive a kill at any moment."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import zlib
from pathlib import Path


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file that is either there whole or not at all, with that mode from the start."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        os.fchmod(descriptor, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def open_database(path: Path, schema: str) -> sqlite3.Connection:
    """Open an SQLite database in write-ahead mode and run its schema (CREATE ... IF NOT EXISTS).

    Transactions are explicit (`with connection:` after BEGIN, or single statements that commit by
    themselves). A process that is killed leaves the last committed state.

    :raises OSError: the database has another schema.
    """
    connection = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")
    version = zlib.crc32(schema.encode()) & 0x7FFFFFFF
    (made_by,) = connection.execute("PRAGMA user_version").fetchone()
    if made_by not in (0, version):
        connection.close()
        raise OSError(f"{path} was made by another version of the stand-in. Remove it, or use another root.")
    connection.executescript(f"{schema}; PRAGMA user_version={version};")
    path.chmod(0o600)
    return connection
