"""Uses real Slurm, through sbatch, squeue, sacct, scancel and scontrol."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from standin.nersc.database import Database
from standin.nersc.options import LiveOptions
from standin.nersc.schedulers.environment import clean_environment
from standin.nersc.schedulers.interface import Query, QueryError, RejectedError, Row, Submission
from standin.nersc.schedulers.queries import IDS, SYNONYMS, check_filters
from standin.nersc.schedulers.rows import SQUEUE_LETTERS
from standin.service import Control, ControlError

FIELD, RECORD = "\x1f", "\x1e"  # control characters, because names may hold "|" and newlines
SQUEUE_FORMAT = FIELD.join(f"%{letter}" for letter in SQUEUE_LETTERS) + RECORD
BOOK_FIELDS = (
    "JobIDRaw", "JobName", "User", "UID", "State", "ExitCode", "Submit", "Start", "End", "Account", "QOS",
    "NNodes", "TimelimitRaw", "Reason", "WorkDir",
)  # fmt: skip
COMMAND_SECONDS = 60.0
MAX_IDS = 1000  # on one command line
UNKNOWN_OUTCOME = (
    "sbatch: error: The API server was restarted while sbatch ran. Whether there is a job is unknown: "
    "look it up by its name."
)
_JOB_ID = re.compile(r"\d+(_\d+)?")


def slurm_answers() -> bool:
    """Whether there is an sbatch and a controller behind it."""
    scontrol = shutil.which("scontrol")
    if scontrol is None or shutil.which("sbatch") is None:
        return False
    try:
        done = subprocess.run([scontrol, "ping"], capture_output=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and b" is UP" in done.stdout


def parse_squeue(text: str) -> list[Row]:
    """Rows of `squeue --format=SQUEUE_FORMAT`, its headings first. Of equal headings the last one counts."""
    records = [record.lstrip("\n").split(FIELD) for record in text.split(RECORD)]
    headings = [heading.strip().lower() for heading in records[0]]
    return [dict(zip(headings, record, strict=True)) for record in records[1:] if len(record) > 1]


def parse_sacct(text: str) -> list[Row]:
    """Rows of `sacct --parsable2 --delimiter=FIELD`, its headings first.

    A value that holds a line break goes on in the next line, until the row has all its fields.
    """
    lines = text.split("\n")
    headings = lines[0].lower().split(FIELD)
    rows: list[Row] = []
    pending: str | None = None
    for line in lines[1:]:
        pending = line if pending is None else f"{pending}\n{line}"
        values = pending.split(FIELD)
        if len(values) == len(headings):
            rows.append(dict(zip(headings, values, strict=True)))
            pending = None
    return rows


class SlurmScheduler:
    """A cluster that somebody else runs. The stand-in's user is the cluster's user."""

    name = "slurm"

    def __init__(self, database: Database, options: LiveOptions, home: Path) -> None:
        self._database = database
        self._live = options
        self._home = home
        self._cache: dict[str, tuple[float, list[Row]]] = {}

    async def start(self) -> None:
        """Nothing to take up: the cluster looks after its jobs."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def submit(self, submission: Submission) -> str:
        """Call sbatch once for a request, however often it is asked to.

        :raises RejectedError: when it refuses, or when an earlier call was interrupted.
        """
        known = self._database.row(
            "SELECT job_id FROM submissions WHERE request_id = ?", submission.request_id
        )
        if known is not None:
            if known["job_id"] is None:
                raise RejectedError(UNKNOWN_OUTCOME)
            return str(known["job_id"])
        self._database.run("INSERT INTO submissions VALUES (?, NULL)", submission.request_id)
        script = [] if submission.name is None else ["--", submission.name, *submission.args]
        text = submission.text if submission.name is None else None
        code, output, errors = await self._call("sbatch", "--parsable", *script, stdin=text)
        job_id = output.strip().partition(";")[0]
        if code != 0 or not _JOB_ID.fullmatch(job_id):
            self._database.run("DELETE FROM submissions WHERE request_id = ?", submission.request_id)
            raise RejectedError(errors.strip() or f"sbatch: error: exit code {code}")
        self._database.run(
            "UPDATE submissions SET job_id = ? WHERE request_id = ?", job_id, submission.request_id
        )
        return job_id

    async def cancel(self, job_id: str) -> None:
        """Call scancel; what it says of finished and unknown ids is not an error."""
        if not _JOB_ID.fullmatch(job_id):
            return
        listed = await self._call("squeue", "--noheader", "--format=%i", f"--jobs={job_id}")
        effective = listed[0] == 0 and bool(listed[1].strip())
        self._database.run(
            "INSERT INTO cancels VALUES (?, ?, ?, ?)",
            int(job_id.partition("_")[0]), time.time(), os.getuid(), effective,
        )  # fmt: skip
        await self._call("scancel", "--", job_id)

    async def squeue(self, query: Query) -> list[Row]:
        """Call squeue.

        :raises QueryError: when it fails.
        """
        self._check("squeue", query)
        if query.cached:
            return await self._cached("squeue", query)
        return parse_squeue(await self._listing("squeue", _options(query.filters)))

    async def sacct(self, query: Query) -> list[Row]:
        """Call sacct, one row a job.

        :raises QueryError: when it fails.
        """
        self._check("sacct", query)
        if query.cached:
            return await self._cached("sacct", query)
        return parse_sacct(await self._listing("sacct", _options(query.filters)))

    def _check(self, command: str, query: Query) -> None:
        check_filters(command, query.filters, self._live.now.user_name)

    async def _listing(self, command: str, options: list[str]) -> str:
        fixed = {
            "squeue": [f"--format={SQUEUE_FORMAT}"],
            "sacct": ["--allocations", "--parsable2", f"--delimiter={FIELD}", "--format=ALL"],
        }[command]
        code, output, errors = await self._call(command, *fixed, *options)
        if code != 0:
            raise QueryError(errors.strip() or f"{command}: exit code {code}")
        return output

    async def _cached(self, command: str, query: Query) -> list[Row]:
        """From a listing of everything that is as old as the cached view may be."""
        made, rows = self._cache.get(command, (0.0, []))
        if time.time() - made > self._live.now.cached_lag:
            parse = parse_squeue if command == "squeue" else parse_sacct
            rows = parse(await self._listing(command, []))
            self._cache[command] = (time.time(), rows)
        return [row for row in rows if _keeps(row, query.filters)]

    async def all_jobs(self) -> list[dict[str, Any]]:
        """Every job that was submitted here; a row of sacct for each time that it was in the queue.

        :raises QueryError: when sacct fails.
        """
        jobs: dict[str, dict[str, Any]] = {}
        for job_ids in self._submitted():  # by their ids: sacct lists held jobs in no other way
            jobs |= {job_id: _unaccounted(job_id) for job_id in job_ids.split(",")}
            arguments = ["--allocations", "--duplicates", "--parsable2", f"--delimiter={FIELD}",
                         f"--format={','.join(BOOK_FIELDS)}", f"--jobs={job_ids}"]  # fmt: skip
            code, output, errors = await self._call("sacct", *arguments)
            if code != 0:
                raise QueryError(errors.strip())
            for row in parse_sacct(output):
                self._enter(jobs, row)
        for cancel in self._database.rows("SELECT * FROM cancels"):
            if (job := jobs.get(str(cancel["job_id"]))) is not None:
                job["cancels"].append(
                    {"at": cancel["at"], "uid": cancel["uid"], "effective": bool(cancel["effective"])}
                )
        return list(jobs.values())

    def _submitted(self) -> list[str]:
        """Ids of the jobs that were submitted here, joined by commas in parts that fit a command line."""
        rows = self._database.rows("SELECT job_id FROM submissions WHERE job_id IS NOT NULL ORDER BY rowid")
        ids = [str(row["job_id"]) for row in rows]
        return [",".join(ids[i : i + MAX_IDS]) for i in range(0, len(ids), MAX_IDS)]

    def _enter(self, jobs: dict[str, dict[str, Any]], row: Row) -> None:
        state, _, by = row["state"].partition(" by ")
        start, end = self._moment(row["start"]), self._moment(row["end"])
        job = jobs.setdefault(row["jobidraw"], _unaccounted(row["jobidraw"]))
        job["submitted"] = job["submitted"] or self._moment(row["submit"])
        job["runs"] += start is not None
        job["restarts"] += bool(job["states"])
        job["states"].append(state)
        job |= {
            "name": row["jobname"], "user": row["user"], "state": state, "active": end is None,
            "started": start, "ended": end, "exit_code": row["exitcode"], "reason": row["reason"],
            "cancelled_by": int(by) if by.isdigit() else None, "account": row["account"], "qos": row["qos"],
            "nodes": int(row["nnodes"] or 1), "work_dir": row["workdir"],
            "time_limit": float(row["timelimitraw"]) * 60 if row["timelimitraw"].isdigit() else None,
        }  # fmt: skip

    def _moment(self, text: str) -> float | None:
        try:
            return datetime.fromisoformat(text).replace(tzinfo=self._live.now.zone).timestamp()
        except ValueError:  # Unknown, None
            return None

    async def _call(self, command: str, *arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
        """Run one of Slurm's commands; returns its exit code and what it wrote."""
        environment = clean_environment(self._live.now, self._home) | {
            "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        program = shutil.which(command)
        if program is None:
            return 127, "", f"{command}: command not found"
        process = await asyncio.create_subprocess_exec(
            program, *arguments,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=self._home, env=environment,
        )  # fmt: skip
        content = None if stdin is None else stdin.encode()
        try:
            output, errors = await asyncio.wait_for(process.communicate(content), COMMAND_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
            return 1, "", f"{command}: error: no answer within {COMMAND_SECONDS:.0f} s"
        return process.returncode or 0, output.decode(errors="replace"), errors.decode(errors="replace")

    def controls(self) -> dict[str, Control]:
        """What a user, or an operator of one's own cluster, can do to jobs and nodes."""

        def scontrol(*words: str) -> Control:
            async def verb(body: dict[str, Any]) -> dict[str, Any]:
                job_id = _control_job(body)
                await self._scontrol(*words, job_id)
                return {"job_id": job_id}

            return verb

        return {
            "hold": scontrol("hold"), "release": scontrol("release"), "requeue": self._requeue,
            "suspend": scontrol("suspend"), "resume": scontrol("resume"), "signal": self._signal,
            "node_failure": self._node_failure, "restore_nodes": self._restore_nodes,
            "end_all": self._end_all,
        }  # fmt: skip

    async def _scontrol(self, *words: str) -> str:
        code, output, errors = await self._call("scontrol", *words)
        if code != 0:
            raise ControlError(errors.strip() or f"scontrol ended with {code}")
        return output

    async def _requeue(self, body: dict[str, Any]) -> dict[str, Any]:
        """Requeue a job that may be requeued; with `hold` it stays in the queue until it is released."""
        job_id = _control_job(body)
        await self._scontrol("requeuehold" if body.get("hold") else "requeue", job_id)
        return {"job_id": job_id}

    async def _signal(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send signal `number` to all of a job."""
        job_id, number = _control_job(body), body.get("number")
        if not isinstance(number, int) or not 0 < number < 65:
            raise ControlError(f"number is {number!r}; it must be a signal's number.")
        await self._call("scancel", "--full", f"--signal={number}", "--", job_id)
        return {"job_id": job_id}

    async def _end_all(self, _body: dict[str, Any]) -> dict[str, Any]:
        """Cancel what was submitted here and has not ended; other jobs of the user are not touched."""
        for job_ids in self._submitted():
            await self._call("scancel", *job_ids.split(","))
        return {"ended": [job for jobs in self._submitted() for job in jobs.split(",")]}

    async def _node_failure(self, body: dict[str, Any]) -> dict[str, Any]:
        """Set the nodes of a job down; `restore_nodes` brings them back."""
        job_id = _control_job(body)
        rows = await self.squeue(Query({"jobid": job_id}))
        if not rows or not rows[0]["nodelist"]:
            raise ControlError(f"Job {job_id} has no nodes.")
        nodes = rows[0]["nodelist"]
        await self._scontrol("update", f"NodeName={nodes}", "State=DOWN", "Reason=stand-in")
        return {"job_id": job_id, "nodes": nodes}

    async def _restore_nodes(self, body: dict[str, Any]) -> dict[str, Any]:
        """Bring `nodes` back, if they are not back by themselves."""
        nodes = str(body.get("nodes"))
        if not re.fullmatch(r"[\w.,\[\]-]+", nodes):
            raise ControlError(f"nodes is {nodes!r}; it must be a list of nodes.")
        try:
            await self._scontrol("update", f"NodeName={nodes}", "State=RESUME")
        except ControlError as error:
            if "Invalid node state" not in str(error):  # that is said of a node that is up
                raise
        return {"nodes": nodes}


def _unaccounted(job_id: str) -> dict[str, Any]:
    """The entry of a job that sacct does not list yet."""
    return {
        "job_id": job_id, "name": "", "state": "PENDING", "active": True, "runs": 0, "restarts": 0,
        "states": [], "cancels": [], "submitted": None, "started": None, "ended": None,
    }  # fmt: skip


def _control_job(body: dict[str, Any]) -> str:
    job_id = str(body.get("job_id"))
    if not _JOB_ID.fullmatch(job_id):
        raise ControlError(f"job_id is {job_id!r}; it must be a job's id.")
    return job_id


def _options(filters: Mapping[str, str]) -> list[str]:
    """Command line options; one word each, so that no value can become an option of its own."""
    return [
        f"--{'jobs' if name in IDS else SYNONYMS.get(name, name)}={value}" for name, value in filters.items()
    ]


def _keeps(row: Row, filters: Mapping[str, str]) -> bool:
    """Whether a row of the cached view is asked for."""
    for name, value in filters.items():
        column = "jobid" if name in IDS else SYNONYMS.get(name, name).removesuffix("s")
        shown = row.get(column, row.get(f"job{column}"))
        if shown is not None and column == "state":
            shown = shown.partition(" ")[0]
        if shown is not None and shown not in [part.strip() for part in value.split(",")]:
            return False
    return True
