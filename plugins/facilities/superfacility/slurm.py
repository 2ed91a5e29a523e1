"""Models Slurm jobs: their states, and what a row of squeue or sacct says.

A job has three forms: a row as the Superfacility API gives it (lower-cased column names, strings, naive times
in the facility's time zone), a `SlurmJob`, which says what the row means, and what a task returns, a
`job_end.JobResult`. A row that cannot be read is skipped with a warning; a field that cannot be read is None.

States are from Slurm's documentation and our own recordings: NODE_FAIL, PREEMPTED and BOOT_FAIL are final
only if Slurm does not requeue the job, which accounting shows for some seconds as failed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal
from zoneinfo import ZoneInfo

from facilities.superfacility import claims

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
Origin = Literal["sacct", "squeue"]

_PLACEHOLDER_NAME = "allocation"  # what sacct shows in the first seconds of a job that started at once
_NOTHING = frozenset({"", "unknown", "none", "n/a", "none assigned", "(null)", "invalid", "not_set"})
_CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?:(?P<a>\d+):)?(?:(?P<b>\d+):)?(?P<c>\d+)(?:\.\d+)?")
_ID = re.compile(r"(?P<job>\d+)(?P<part>[_+].+)?")


class SlurmState(StrEnum):
    """A job's state; text that is not in here is unknown, and an unknown state is not final."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    DEADLINE = "DEADLINE"
    REVOKED = "REVOKED"
    NODE_FAIL = "NODE_FAIL"
    BOOT_FAIL = "BOOT_FAIL"
    PREEMPTED = "PREEMPTED"
    PENDING = "PENDING"
    CONFIGURING = "CONFIGURING"
    RUNNING = "RUNNING"
    COMPLETING = "COMPLETING"
    SUSPENDED = "SUSPENDED"
    STOPPED = "STOPPED"
    RESIZING = "RESIZING"
    SIGNALING = "SIGNALING"
    STAGE_OUT = "STAGE_OUT"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    SPECIAL_EXIT = "SPECIAL_EXIT"


SUCCEEDED = frozenset({SlurmState.COMPLETED})
CONFIRM = frozenset({SlurmState.NODE_FAIL, SlurmState.BOOT_FAIL, SlurmState.PREEMPTED})
"""Final unless Slurm requeues the job: to be seen again before they are believed."""
OUT_OF_RESOURCES = frozenset({SlurmState.TIMEOUT, SlurmState.OUT_OF_MEMORY})
FAILED = (
    CONFIRM
    | OUT_OF_RESOURCES
    | {SlurmState.FAILED, SlurmState.CANCELLED, SlurmState.DEADLINE, SlurmState.REVOKED}
)
FINAL = SUCCEEDED | FAILED
HELD = frozenset({SlurmState.REQUEUE_HOLD, SlurmState.RESV_DEL_HOLD, SlurmState.SPECIAL_EXIT})
"""Active, but nothing happens until somebody releases the job."""
RUNNING = frozenset({SlurmState.RUNNING, SlurmState.COMPLETING, SlurmState.STAGE_OUT})

HELD_REASONS = frozenset({
    "JobHeldUser", "JobHeldAdmin", "job requeued in held state", "DependencyNeverSatisfied",
})  # fmt: skip
"""Reasons of a pending job that will not start by itself. sacct goes on showing them when it has started."""


def parse_state(text: str | None) -> SlurmState | None:
    """Read a state as squeue and sacct write it: "CANCELLED by 1000", "CANCELLED+", any letter case.

    :return: None for text that names no known state.
    """
    words = (text or "").replace("+", " ").split()
    try:
        return SlurmState(words[0].upper())
    except (IndexError, ValueError):
        return None


@dataclass(frozen=True)
class SlurmJob:
    """A job at one moment. Times are ISO 8601 with an offset, durations are in seconds.

    Example::

        with closing(SuperfacilityHook("superfacility_default")) as hook:
            job = hook.jobs("perlmutter", ["80"], "sacct")["80"]
            print(job.state, job.elapsed, job.node_hours)

    :param origin: sacct lists every job, some seconds late; squeue those that wait or run.
    :param state: None when Slurm's word for it, `state_text`, is not known.
    :param exit_code: the batch script's exit status.
    :param signal: signal (or Slurm's own number) that ended the job; 0 for none.
    :param start_estimate: of a pending job, when Slurm expects to start it.
    :param stdout: pattern or path of the output file, where Slurm reports it.
    :param requeued_after: state of an earlier run, which accounting still shows as the job's.
    """

    job_id: str
    origin: Origin
    state_text: str
    state: SlurmState | None
    name: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    submitted: str | None = None
    started: str | None = None
    ended: str | None = None
    start_estimate: str | None = None
    elapsed: int | None = None
    limit: int | None = None
    nodes: int = 0
    node_list: str | None = None
    qos: str | None = None
    user: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    work_dir: str | None = None
    comment: str | None = None
    requeued_after: str | None = None

    @property
    def final(self) -> bool:
        """Whether the state is final, as far as one look can tell."""
        return self.state in FINAL

    @property
    def rejected(self) -> bool:
        """Whether this is the row of a job that sbatch refused: failed without a node or a second."""
        return self.state is SlurmState.FAILED and self.node_list is None and not self.elapsed

    @property
    def lost(self) -> bool:
        """Whether the facility lost the job, unless Slurm starts it again."""
        return self.state in CONFIRM

    @property
    def refused(self) -> bool:
        """Whether the job may have found its task's work claimed by another (`claims`), and done nothing."""
        return self.state is SlurmState.FAILED and self.exit_code == claims.EXIT_CODE

    @property
    def node_hours(self) -> float:
        """Nodes times hours that the job held them."""
        return self.nodes * (self.elapsed or 0) / 3600

    @property
    def queue_seconds(self) -> float | None:
        """Seconds from submission to start."""
        if self.submitted is None or self.started is None:
            return None
        waited = datetime.fromisoformat(self.started) - datetime.fromisoformat(self.submitted)
        return max(waited.total_seconds(), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a trigger's event."""
        return {**asdict(self), "state": None if self.state is None else self.state.value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SlurmJob:
        """The job that `to_dict` made plain values of; keys of another version are left out."""
        known = {field.name for field in fields(cls)}
        kept = {key: value for key, value in values.items() if key in known}
        return cls(**{**kept, "state": parse_state(kept.get("state"))})


def read_rows(rows: Iterable[Any], origin: Origin, zone: ZoneInfo) -> list[SlurmJob]:
    """Read all jobs of a reply, without their steps."""
    jobs = []
    for row in rows:
        job = read_row(row, origin, zone) if isinstance(row, Mapping) else None
        if job is None:
            log.warning("Skipping a row of %s that cannot be read: %.200r", origin, row)
        elif "." not in job.job_id:
            jobs.append(job)
    return jobs


def read_row(row: Row, origin: Origin, zone: ZoneInfo) -> SlurmJob | None:
    """Read one row; None when it has no job id."""
    job_id = _text(row, "jobid")
    if job_id is None:
        return None
    state = str(row.get("state") or "")
    job = SlurmJob(
        job_id=job_id,
        origin=origin,
        state_text=state,
        state=parse_state(state),
        reason=_text(row, "reason"),
        node_list=_text(row, "nodelist"),
        qos=_text(row, "qos"),
        user=_text(row, "user"),
        comment=_text(row, "comment"),
    )
    return _with_squeue(job, row, zone) if origin == "squeue" else _with_sacct(job, row, zone)


def _with_sacct(job: SlurmJob, row: Row, zone: ZoneInfo) -> SlurmJob:
    code, _, signal = str(row.get("exitcode") or "").partition(":")
    name = _text(row, "jobname")
    minutes = _integer(row.get("timelimitraw"))
    return replace(
        job,
        name=None if name == _PLACEHOLDER_NAME else name,
        exit_code=_integer(code),
        signal=_integer(signal),
        submitted=_time(row.get("submit"), zone),
        started=_time(row.get("start"), zone),
        ended=_time(row.get("end"), zone),
        elapsed=_first(_integer(row.get("elapsedraw")), seconds(row.get("elapsed"))),
        limit=minutes * 60 if minutes is not None else seconds(row.get("timelimit")),
        nodes=_first(_integer(row.get("allocnodes")), _integer(row.get("nnodes"))) or 0,
        stdout=_text(row, "stdout"),
        stderr=_text(row, "stderr"),
        work_dir=_text(row, "workdir"),
    )


def _with_squeue(job: SlurmJob, row: Row, zone: ZoneInfo) -> SlurmJob:
    start = _time(row.get("start_time"), zone)
    pending = job.state in (SlurmState.PENDING, None)
    return replace(
        job,
        name=_text(row, "name"),
        submitted=_time(row.get("submit_time"), zone),
        started=None if pending else start,
        start_estimate=start if pending else None,
        elapsed=seconds(row.get("time")),
        limit=seconds(row.get("time_limit")),
        nodes=_integer(row.get("nodes")) or 0,
        work_dir=_text(row, "work_dir"),
    )


def by_id(jobs: Iterable[SlurmJob], wanted: Iterable[str]) -> dict[str, SlurmJob]:
    """Find each wanted job among the rows.

    Of several rows of one job (sacct keeps those from before a requeue) the newest counts. An array's state
    is that of a task that is not final, else of one that failed, else of one that succeeded.
    """
    own: dict[str, list[SlurmJob]] = {}
    parts: dict[str, list[SlurmJob]] = {}
    for job in jobs:
        match = _ID.fullmatch(job.job_id)
        if match is None:
            log.warning("Skipping a job with an id that cannot be read: %.80r", job.job_id)
            continue
        own.setdefault(job.job_id, []).append(job)
        if match["part"]:
            parts.setdefault(match["job"], []).append(job)
    found = {}
    for job_id in wanted:
        if job_id in own:
            found[job_id] = max(own[job_id], key=_age)
        elif job_id in parts:
            found[job_id] = min(parts[job_id], key=_rank_in_array)
    return found


def combine(accounted: SlurmJob | None, queued: SlurmJob | None) -> SlurmJob | None:
    """What sacct and squeue say together about one job at the same time; None when neither knows it.

    squeue counts while the job waits or runs: only it has reasons and start estimates, and it does not show
    the failure that a requeue undoes.
    """
    if accounted is None or queued is None or queued.final or accounted.state is None:
        return accounted or queued
    if accounted.lost and queued.state is not SlurmState.COMPLETING:
        return replace(queued, requeued_after=accounted.state_text)
    return accounted if accounted.final else queued


def _age(job: SlurmJob) -> tuple[datetime, datetime]:
    long_ago = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    submitted, started = (datetime.fromisoformat(t) if t else long_ago for t in (job.submitted, job.started))
    return submitted, started


def _rank_in_array(job: SlurmJob) -> int:
    if job.state in SUCCEEDED:
        return 2
    return 1 if job.state in FAILED else 0


def seconds(text: Any) -> int | None:
    """Read Slurm's [days-][[hours:]minutes:]seconds; None for UNLIMITED, INVALID and the like."""
    match = _CLOCK.fullmatch(str(text or "").strip())
    if match is None:
        return None
    days, first, second, last = (int(match[key] or 0) for key in ("days", "a", "b", "c"))
    if match["b"] is None:  # with a single colon, the first number is minutes
        first, second = 0, first
    return ((days * 24 + first) * 60 + second) * 60 + last


def _text(row: Row, key: str) -> str | None:
    value = str(row.get(key) or "").strip()
    return None if value.lower() in _NOTHING else value


def _integer(value: Any) -> int | None:
    try:
        return int(str(value).strip())
    except ValueError:
        return None


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _time(value: Any, zone: ZoneInfo) -> str | None:
    text = str(value or "").strip()
    try:
        moment = datetime.fromtimestamp(int(text), zone) if text.isdigit() else datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).isoformat()
