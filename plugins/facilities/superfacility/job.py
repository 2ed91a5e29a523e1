"""What Slurm says about a job, read from rows of squeue and sacct as the Superfacility API gives them.

Rows map lower-cased column names to strings. Times are naive, in the facility's time zone. A row that
cannot be read is skipped with a warning; a field that cannot be read is None.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

from facilities.superfacility import claims
from facilities.superfacility.states import FAILED, FINAL, SUCCEEDED, SlurmState, parse_state

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
Origin = Literal["sacct", "squeue"]

PLACEHOLDER_NAME = "allocation"
"""Name that sacct shows for the first seconds of a job that started at once."""

_NOTHING = frozenset({"", "unknown", "none", "n/a", "none assigned", "(null)", "invalid", "not_set"})
_CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?:(?P<a>\d+):)?(?:(?P<b>\d+):)?(?P<c>\d+)(?:\.\d+)?")
_ID = re.compile(r"(?P<job>\d+)(?P<part>[_+].+)?")


@dataclass(frozen=True)
class JobSnapshot:
    """A job at one moment. Times are ISO 8601 with an offset, durations are in seconds.

    :param state: None when Slurm's word for it, `state_text`, is not known.
    :param exit_code: the batch script's exit status.
    :param signal: signal (or Slurm's own number) that ended the job; 0 for none.
    :param start_estimate: of a pending job, when Slurm expects to start it.
    :param stdout: pattern or path of the output file, where Slurm tells it.
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

    @property
    def final(self) -> bool:
        """Whether the state is final, as far as one look can tell."""
        return self.state in FINAL

    @property
    def rejected(self) -> bool:
        """Whether this is the row of a job that sbatch refused: failed without a node or a second."""
        return self.state is SlurmState.FAILED and self.node_list is None and not self.elapsed

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
        """Give plain values for a trigger event."""
        return {**asdict(self), "state": None if self.state is None else self.state.value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> JobSnapshot:
        """Read what `to_dict` gave; keys of another version are left out."""
        known = {field.name for field in fields(cls)}
        kept = {key: value for key, value in values.items() if key in known}
        return cls(**{**kept, "state": parse_state(kept.get("state"))})


def read_rows(rows: Iterable[Any], origin: Origin, zone: ZoneInfo) -> list[JobSnapshot]:
    """Read all jobs of a reply, without their steps."""
    snapshots = []
    for row in rows:
        snapshot = read_row(row, origin, zone) if isinstance(row, Mapping) else None
        if snapshot is None:
            log.warning("Skipping a row of %s that cannot be read: %.200r", origin, row)
        elif "." not in snapshot.job_id:
            snapshots.append(snapshot)
    return snapshots


def read_row(row: Row, origin: Origin, zone: ZoneInfo) -> JobSnapshot | None:
    """Read one row; None when it has no job id."""
    job_id = _text(row, "jobid")
    if job_id is None:
        return None
    if origin == "squeue":
        return _from_squeue(row, job_id, zone)
    return _from_sacct(row, job_id, zone)


def _from_sacct(row: Row, job_id: str, zone: ZoneInfo) -> JobSnapshot:
    code, signal = _exit_code(row.get("exitcode"))
    name = _text(row, "jobname")
    started, ended = _time(row.get("start"), zone), _time(row.get("end"), zone)
    minutes = _integer(row.get("timelimitraw"))
    return JobSnapshot(
        job_id=job_id,
        origin="sacct",
        state_text=str(row.get("state") or ""),
        state=parse_state(str(row.get("state") or "")),
        name=None if name == PLACEHOLDER_NAME else name,
        exit_code=code,
        signal=signal,
        reason=_text(row, "reason"),
        submitted=_time(row.get("submit"), zone),
        started=started,
        ended=ended,
        elapsed=_first(_integer(row.get("elapsedraw")), seconds(row.get("elapsed"))),
        limit=minutes * 60 if minutes is not None else seconds(row.get("timelimit")),
        nodes=_first(_integer(row.get("allocnodes")), _integer(row.get("nnodes"))) or 0,
        node_list=_text(row, "nodelist"),
        qos=_text(row, "qos"),
        user=_text(row, "user"),
        stdout=_text(row, "stdout"),
        stderr=_text(row, "stderr"),
        work_dir=_text(row, "workdir"),
        comment=_text(row, "comment"),
    )


def _from_squeue(row: Row, job_id: str, zone: ZoneInfo) -> JobSnapshot:
    state = parse_state(str(row.get("state") or ""))
    start = _time(row.get("start_time"), zone)
    pending = state in (SlurmState.PENDING, None)
    return JobSnapshot(
        job_id=job_id,
        origin="squeue",
        state_text=str(row.get("state") or ""),
        state=state,
        name=_text(row, "name"),
        reason=_text(row, "reason"),
        submitted=_time(row.get("submit_time"), zone),
        started=None if pending else start,
        start_estimate=start if pending else None,
        elapsed=seconds(row.get("time")),
        limit=seconds(row.get("time_limit")),
        nodes=_integer(row.get("nodes")) or 0,
        node_list=_text(row, "nodelist"),
        qos=_text(row, "qos"),
        user=_text(row, "user"),
        work_dir=_text(row, "work_dir"),
        comment=_text(row, "comment"),
    )


def by_id(snapshots: Iterable[JobSnapshot], wanted: Iterable[str]) -> dict[str, JobSnapshot]:
    """Find each wanted job among the rows.

    Of several rows of one job (sacct keeps those from before a requeue) the newest counts. An array
    stands for its most telling task: one that is not final, else one that failed, else one that succeeded.
    """
    own: dict[str, list[JobSnapshot]] = {}
    parts: dict[str, list[JobSnapshot]] = {}
    for snapshot in snapshots:
        match = _ID.fullmatch(snapshot.job_id)
        if match is None:
            log.warning("Skipping a job with an id that cannot be read: %.80r", snapshot.job_id)
            continue
        own.setdefault(snapshot.job_id, []).append(snapshot)
        if match["part"]:
            parts.setdefault(match["job"], []).append(snapshot)
    found = {}
    for job_id in wanted:
        if job_id in own:
            found[job_id] = max(own[job_id], key=_age)
        elif job_id in parts:
            found[job_id] = min(parts[job_id], key=_telling)
    return found


def _age(snapshot: JobSnapshot) -> tuple[datetime, datetime]:
    long_ago = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    submitted, started = (
        datetime.fromisoformat(t) if t else long_ago for t in (snapshot.submitted, snapshot.started)
    )
    return submitted, started


def _telling(snapshot: JobSnapshot) -> int:
    if snapshot.state in SUCCEEDED:
        return 2
    return 1 if snapshot.state in FAILED else 0


def seconds(text: Any) -> int | None:
    """Read Slurm's [days-][[hours:]minutes:]seconds; None for UNLIMITED, INVALID and the like."""
    match = _CLOCK.fullmatch(str(text or "").strip())
    if match is None:
        return None
    days, first, second, last = (int(match[key] or 0) for key in ("days", "a", "b", "c"))
    if match["b"] is None:  # with a single colon, the first number is minutes
        first, second = 0, first
    return ((days * 24 + first) * 60 + second) * 60 + last


def _exit_code(text: Any) -> tuple[int | None, int | None]:
    code, _, signal = str(text or "").partition(":")
    return _integer(code), _integer(signal)


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
