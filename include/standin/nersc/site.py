"""Keeps what is up at NERSC and what is not: resources, outages, the API itself."""

from __future__ import annotations

import sqlite3
import time
from datetime import UTC, datetime
from typing import Any

from standin.nersc.database import Database

RESOURCES: dict[str, tuple[str, str]] = {
    "perlmutter": ("Perlmutter", "compute"),
    "dtns": ("Data Transfer Nodes", "filesystem"),
    "dtn01": ("Data Transfer Node 01", "filesystem"),
    "dna": ("DNA", "filesystem"),
    "global_homes": ("Global Homes", "filesystem"),
    "global_common": ("Global Common", "filesystem"),
    "community_filesystem": ("Community File System (CFS)", "filesystem"),
    "iris": ("IRIS", "service"),
    "globus": ("Globus", "service"),
    "jupyter": ("Jupyter", "service"),
    "nersc_center": ("NERSC Center", "service"),
    "helpportal": ("Help Portal", "service"),
    "website": ("NERSC Website", "service"),
    "sgns": ("Science Gateway Services", "service"),
    "network": ("Network", "service"),
    "ldap": ("LDAP", "service"),
    "spin": ("Spin", "service"),
    "ssh-proxy": ("ssh-proxy", "service"),
    "regent": ("HPSS Regent (Backup)", "storage"),
    "archive": ("HPSS Archive (User)", "storage"),
}
MACHINES = ("perlmutter", "dtns", "dtn01")


def iso(when: float) -> str:
    """A point in time with its zone."""
    return datetime.fromtimestamp(when, UTC).isoformat()


class SiteStatus:
    """Outages and switches; kept in the database, so that a restart does not end an outage."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._since = time.time()

    def status(self, name: str) -> dict[str, Any]:
        """Document of one resource."""
        full_name, system_type = RESOURCES[name]
        outage = self.active_outage(name)
        degraded = self._database.kept(f"degraded:{name}")
        description, state, notes = "System Active", "active", []
        if outage is not None:
            description, state, notes = outage["description"], "unavailable", [_note(outage)]
        elif degraded is not None:
            description, state, notes = "System Degraded", "degraded", [degraded]
        return {
            "name": name, "full_name": full_name, "description": description, "system_type": system_type,
            "notes": notes, "status": state,
            "updated_at": iso(self._since if outage is None else outage["start_at"]),
        }  # fmt: skip

    def degrade(self, name: str, note: str | None) -> None:
        """Call a resource degraded, or (None) not any more."""
        self._database.keep(f"degraded:{name}", note)

    def outages(self, name: str, planned: bool) -> list[dict[str, Any]]:
        """Outages of a resource: those that are to come, or those that began or were cancelled."""
        now = time.time()
        rows = self._database.rows("SELECT * FROM outages WHERE name = ? ORDER BY start_at", name)
        return [_document(row, now) for row in rows if _public(row, now) and _is_to_come(row, now) == planned]

    def notes(self, name: str) -> list[dict[str, Any]]:
        """Notes about a resource."""
        document = self.status(name)
        return [
            {"name": name, "notes": note, "active": True, "timestamp": document["updated_at"]}
            for note in document["notes"]
        ]

    def active_outage(self, name: str) -> sqlite3.Row | None:
        """The outage that goes on now."""
        now = time.time()
        return self._database.row(
            "SELECT * FROM outages WHERE name = ? AND NOT cancelled AND start_at <= ? AND end_at > ? "
            "ORDER BY end_at DESC",
            name, now, now,
        )  # fmt: skip

    def next_outage(self, name: str) -> tuple[float, float] | None:
        """Begin and end of the outage that goes on or was announced to come next."""
        row = self.active_outage(name) or self._database.row(
            "SELECT * FROM outages WHERE name = ? AND NOT cancelled AND announced AND start_at > ? "
            "ORDER BY start_at",
            name, time.time(),
        )  # fmt: skip
        return None if row is None else (row["start_at"], row["end_at"])

    def plan_outage(
        self, name: str, start_at: float, end_at: float, *, description: str, announced: bool
    ) -> int:
        """Enter an outage; an unannounced one is not listed before it begins."""
        cursor = self._database.run(
            "INSERT INTO outages (name, start_at, end_at, description, announced, cancelled, extended, "
            "updated) VALUES (?, ?, ?, ?, ?, 0, 0, ?)",
            name, start_at, end_at, description, announced, time.time(),
        )  # fmt: skip
        return int(cursor.lastrowid or 0)

    def end_outages(self, name: str) -> int:
        """End the outage that goes on, and cancel those to come; returns how many."""
        now = time.time()
        with self._database.transaction():
            ended = self._database.run(
                "UPDATE outages SET end_at = ?, updated = ? "
                "WHERE name = ? AND NOT cancelled AND start_at <= ? AND end_at > ?",
                now, now, name, now, now,
            ).rowcount  # fmt: skip
            cancelled = self._database.run(
                "UPDATE outages SET cancelled = 1, updated = ? "
                "WHERE name = ? AND NOT cancelled AND start_at > ?",
                now, name, now,
            ).rowcount  # fmt: skip
        return ended + cancelled

    def extend_outage(self, name: str, end_at: float) -> bool:
        """Let the outage that goes on end later; False when there is none."""
        outage = self.active_outage(name)
        if outage is None:
            return False
        self._database.run(
            "UPDATE outages SET end_at = ?, extended = 1, updated = ? WHERE id = ?",
            end_at,
            time.time(),
            outage["id"],
        )
        return True

    def take_down(self, status: int, until: float | None) -> None:
        """Let the whole API answer with an error status, until a time or until `bring_up`."""
        self._database.keep("down", {"status": status, "until": until})

    def bring_up(self) -> None:
        """Let the API answer again."""
        self._database.keep("down", None)

    def down_status(self) -> int | None:
        """The status with which the API answers everything, or None when it works."""
        down = self._database.kept("down")
        if down is None or (down["until"] is not None and down["until"] <= time.time()):
            return None
        return int(down["status"])


def _is_to_come(row: sqlite3.Row, now: float) -> bool:
    return row["start_at"] > now and not row["cancelled"]


def _public(row: sqlite3.Row, now: float) -> bool:
    return bool(row["announced"]) or row["start_at"] <= now


def _document(row: sqlite3.Row, now: float) -> dict[str, Any]:
    if row["cancelled"]:
        state = "Cancelled"
    elif row["start_at"] > now:
        state = "Planned"
    elif row["end_at"] <= now:
        state = "Completed"
    else:
        state = "Extended" if row["extended"] else "Active"
    return {
        "name": row["name"], "start_at": iso(row["start_at"]), "end_at": iso(row["end_at"]),
        "description": row["description"], "notes": row["notes"], "status": state, "swo": "swo",
        "update_at": iso(row["updated"]),
    }  # fmt: skip


def _note(row: sqlite3.Row) -> str:
    return f"{iso(row['start_at'])} -- {iso(row['end_at'])}, {row['description']}"
