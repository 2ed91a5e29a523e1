"""The accounting: every job, and every change of it, so that a view of any past moment can be given."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from standin.nersc.database import Database
from standin.nersc.schedulers.job import Job

FIRST_ID = 31_000_001


class Ledger:
    """Jobs in the database. What is saved is committed, and survives a kill of the server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, job: Job, request_id: str | None, keep: Callable[[Job], None]) -> Job:
        """Record a new job and give it its id; a request that made a job before gets that one.

        :param keep: called with a new job before it counts, so that none is ever without its files.
        """
        with self._database.transaction():
            known = self._database.row("SELECT * FROM jobs WHERE request_id = ?", request_id)
            if known is not None:
                return _job(known["record"])
            last = self._database.row("SELECT MAX(job_id) AS last FROM jobs")
            job.job_id = max(FIRST_ID - 1, (last["last"] if last else None) or 0) + 1
            job.db_index = self.next_index()
            self._database.run("INSERT INTO jobs VALUES (?, ?, 1, '')", job.job_id, request_id)
            keep(job)
            self.save(job, job.submit)
        return job

    def together(self) -> AbstractContextManager[None]:
        """What is recorded in the block is recorded whole or not at all, and faster."""
        return self._database.transaction()

    def next_index(self) -> int:
        """Number of the next row of the accounting database."""
        number: int = self._database.kept("db_index", 0) + 1
        self._database.keep("db_index", number)
        return number

    def save(self, job: Job, at: float) -> None:
        """Record a change; views show it from `at` on, unless a later change comes before that."""
        record = json.dumps(job.to_record())
        ended = None if job.active else job.end
        with self._database.transaction():
            self._database.run(
                "UPDATE jobs SET active = ?, record = ? WHERE job_id = ?", job.active, record, job.job_id
            )
            self._database.run(
                "INSERT INTO history (job_id, at, ended, record) VALUES (?, ?, ?, ?)",
                job.job_id,
                at,
                ended,
                record,
            )

    def active(self) -> list[Job]:
        """Jobs that the scheduler looks after, oldest first."""
        rows = self._database.rows("SELECT record FROM jobs WHERE active = 1 ORDER BY job_id")
        return [_job(row["record"]) for row in rows]

    def get(self, job_id: str) -> Job | None:
        """The job of that id."""
        if not job_id.isascii() or not job_id.isdigit() or len(job_id) > 18:
            return None
        row = self._database.row("SELECT record FROM jobs WHERE job_id = ?", int(job_id))
        return None if row is None else _job(row["record"])

    def as_of(self, at: float, ended_after: float, job_ids: list[str] | None = None) -> list[Job]:
        """All jobs as they were at a time, without those that had ended before `ended_after`."""
        chosen, values = "", []
        if job_ids is not None:
            values = [int(i) for i in job_ids if i.isascii() and i.isdigit() and len(i) < 19]
            chosen = f"AND job_id IN ({','.join('?' * len(values))})"
        rows = self._database.rows(
            "SELECT record FROM history WHERE seq IN (SELECT MAX(seq) FROM history "  # noqa: S608 - question marks only
            f"WHERE at <= ? {chosen} GROUP BY job_id) AND (ended IS NULL OR ended >= ?) ORDER BY job_id",
            at,
            *values,
            ended_after,
        )
        return [_job(row["record"]) for row in rows]

    def all(self) -> list[Job]:
        """Every job ever."""
        return [_job(row["record"]) for row in self._database.rows("SELECT record FROM jobs ORDER BY job_id")]

    def states(self) -> dict[int, list[str]]:
        """The states that each job went through."""
        states: dict[int, list[str]] = {}
        for row in self._database.rows("SELECT job_id, record FROM history ORDER BY at, seq"):
            state = json.loads(row["record"])["state"]
            seen = states.setdefault(row["job_id"], [])
            if not seen or seen[-1] != state:
                seen.append(state)
        return states

    def note_cancel(self, job_id: int, uid: int, at: float, effective: bool) -> None:
        """Record a request to cancel, and whether the job was still there to be cancelled."""
        self._database.run("INSERT INTO cancels VALUES (?, ?, ?, ?)", job_id, at, uid, effective)

    def cancels(self) -> dict[int, list[dict[str, Any]]]:
        """Requests to cancel, by job."""
        found: dict[int, list[dict[str, Any]]] = {}
        for row in self._database.rows("SELECT * FROM cancels ORDER BY at"):
            entry = {"at": row["at"], "uid": row["uid"], "effective": bool(row["effective"])}
            found.setdefault(row["job_id"], []).append(entry)
        return found


def _job(record: str) -> Job:
    return Job(**json.loads(record))
