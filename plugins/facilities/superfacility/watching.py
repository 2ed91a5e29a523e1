"""Judges a job from one look after the other. No network, no clock: the trigger and the worker share it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime

from facilities.errors import (
    CredentialsError,
    FacilityError,
    NotFoundError,
    TimeLimitError,
    TransientError,
)
from facilities.polling import Answer, PollFailed, PollInterval
from facilities.superfacility.job import JobSnapshot
from facilities.superfacility.states import CONFIRM, FINAL, HELD, HELD_REASONS, RUNNING, SlurmState

_SAY_SILENCE_EVERY = 900.0
_SAY_RUNNING_EVERY = 600.0
_SAY_PART = 0.1  # of the time limit
_ESTIMATE_MOVED = 900.0  # seconds by which a start estimate must move to be told
_REFUSALS = 5  # in a row, for the wait to be given up; of credentials, two


@dataclass(frozen=True)
class JobView:
    """What squeue and sacct say about one job at the same time."""

    accounted: JobSnapshot | None
    queued: JobSnapshot | None


@dataclass(frozen=True)
class Limits:
    """How a job is waited for; all in seconds.

    :param confirm: between two looks that see a node failure or preemption, for it to be believed.
    :param grace: that a job may be unknown to Slurm before that is an error.
    """

    pace: PollInterval = field(default_factory=PollInterval)
    confirm: float = 30.0
    grace: float = 600.0


@dataclass(frozen=True)
class Verdict:
    """The wait is over: the job is final (`job`), or waiting has no sense any more (`error`)."""

    job: JobSnapshot | None = None
    error: FacilityError | None = None
    cancel: bool = False


class JobWatch:
    """Follows one job. Times are of one monotonic clock, in seconds.

    :param machine: for messages.
    :param patience: seconds until the wait reaches its limit.
    """

    def __init__(self, job_id: str, machine: str, limits: Limits, patience: float, now: float) -> None:
        self.job_id = job_id
        self.last: JobSnapshot | None = None
        self._machine = machine
        self._limits = limits
        self._patience = patience
        self._began = now
        self._missing_since: float | None = None
        self._failing_since: float | None = None
        self._silent = False
        self._said_silence_at = 0.0
        self._teller = _Teller(job_id)
        self._messages: list[tuple[int, str]] = []

    def seconds_until_limit(self, now: float) -> float:
        """Seconds until the wait reaches its limit, not below zero."""
        return max(self._began + self._patience - now, 0.0)

    def wait(self, now: float) -> float:
        """Seconds until the next look."""
        pace, job = self._limits.pace, self.last
        if job is None or self._failing_since is not None or self._missing_since is not None:
            wanted = pace.min_seconds
        elif job.state in RUNNING and job.elapsed is not None:
            left = None if job.limit is None else job.limit - job.elapsed
            wanted = pace.after(job.elapsed, left)
        else:
            wanted = pace.after(now - self._began)
        return min(wanted, self.seconds_until_limit(now))

    def look(self, answer: Answer[JobView] | PollFailed, now: float) -> Verdict | None:
        """Take in an answer; None while the job goes on."""
        if isinstance(answer, PollFailed):
            return self._look_failed(answer, now)
        if self._silent:
            self._silent = False
            self._say(logging.INFO, f"NERSC answers again. Job {self.job_id} is waited for as before.")
        return self._look_at(answer.value or JobView(None, None), now) or self._out_of_time(now)

    def expire(self) -> Verdict:
        """The verdict when the limit of the wait is reached."""
        state = self.last.state_text if self.last else None
        error = TimeLimitError(
            f"The Slurm job did not end within {_duration(self._patience)}, the task's own limit",
            remote_id=self.job_id,
            state=state,
            next_step="look at the queue (squeue --me at NERSC); give the task a longer timeout, then clear "
            "the submit task.",
        )
        return Verdict(error=error, cancel=True)

    def drain(self) -> list[tuple[int, str]]:
        """Messages for the task's log since the last call, with their levels."""
        messages, self._messages = self._messages, []
        return messages

    def _say(self, level: int, text: str) -> None:
        self._messages.append((level, text))

    def _out_of_time(self, now: float) -> Verdict | None:
        return self.expire() if self.seconds_until_limit(now) <= 0 else None

    # No answer

    def _look_failed(self, answer: PollFailed, now: float) -> Verdict | None:
        error = answer.error
        if isinstance(error, FacilityError) and not isinstance(error, TransientError):
            enough = 2 if isinstance(error, CredentialsError) else _REFUSALS
            if answer.consecutive >= enough:
                return Verdict(error=error)
        if answer.consecutive >= 2 and (not self._silent or now - self._said_silence_at > _SAY_SILENCE_EVERY):
            self._silent, self._said_silence_at = True, now
            self._say(
                logging.WARNING,
                f"NERSC has not answered for {_duration(answer.seconds)}. Job {self.job_id} is not affected; "
                f"the wait goes on by itself. {error}",
            )
        return self._out_of_time(now)

    # An answer

    def _look_at(self, view: JobView, now: float) -> Verdict | None:
        job = view.accounted or view.queued
        if job is None or (view.accounted is None and job.final):
            return self._look_missing(job, now)
        self._missing_since = None
        if job.state in CONFIRM:
            return self._look_doubtful(job, view.queued, now)
        self._failing_since = None
        self.last = _with_queue(job, view.queued)
        if job.state in FINAL:
            return Verdict(job=job)
        self._tell(now)
        return None

    def _look_missing(self, queued: JobSnapshot | None, now: float) -> Verdict | None:
        """Accounting does not know the job (yet); squeue may know that it has ended."""
        if self._missing_since is None:
            self._missing_since = now
        if now - self._missing_since < self._limits.grace:
            return None
        if queued is not None:
            return Verdict(job=queued)
        known = f"It was {self.last.state_text} when last seen." if self.last else "It was never seen."
        error = NotFoundError(
            f"Slurm on {self._machine} does not know the job, for {_duration(self._limits.grace)} now",
            remote_id=self.job_id,
            state=self.last.state_text if self.last else None,
            next_step=f"run 'sacct -j {self.job_id}' at NERSC. If the job is there, clear this task; if not, "
            "start a reprocessing of the scan.",
            details=known,
        )
        return Verdict(error=error)

    def _look_doubtful(self, job: JobSnapshot, queued: JobSnapshot | None, now: float) -> Verdict | None:
        """Accounting shows a failure that Slurm undoes when it starts the job again."""
        if queued is not None and not queued.final and queued.state is not SlurmState.COMPLETING:
            self._failing_since = None
            self.last = queued
            self._say(logging.WARNING, f"Job {self.job_id} had {job.state_text}; Slurm starts it again.")
            self._tell(now)
            return None
        self.last = job
        if self._failing_since is None:
            self._failing_since = now
            self._say(logging.WARNING, f"Job {self.job_id} shows {job.state_text}; looking whether it stays.")
        if now - self._failing_since < self._limits.confirm:
            return None
        return Verdict(job=job)

    def _tell(self, now: float) -> None:
        if self.last is not None:
            self._messages += self._teller.tell(self.last, now)


class _Teller:
    """Says in a task's log what is new about a job, and not more often than useful."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._state = ""
        self._reason: str | None = None
        self._estimate: str | None = None
        self._said_at = 0.0
        self._said_elapsed = 0

    def tell(self, job: JobSnapshot, now: float) -> list[tuple[int, str]]:
        """Messages about this look."""
        changed = job.state_text != self._state
        if job.state is None:
            text = f"Job {self._job_id} is in a state that is not known here: {job.state_text!r}. Waiting on."
            level = logging.WARNING
        elif job.state in HELD or (job.state is SlurmState.PENDING and job.reason in HELD_REASONS):
            level = logging.WARNING
            text = (
                f"Job {self._job_id} is held ({job.state_text}, {job.reason}): nothing happens until "
                f"somebody runs 'scontrol release {self._job_id}' at NERSC, or ends this task."
            )
            changed = changed or job.reason != self._reason
        elif job.state is SlurmState.PENDING:
            level, text = logging.INFO, self._pending(job)
            changed = changed or self._pending_changed(job)
        elif job.state in RUNNING:
            level, text = logging.INFO, self._running(job)
            changed = changed or self._running_changed(job, now)
        else:
            level, text = logging.INFO, f"Job {self._job_id}: {job.state_text}."
        if not changed:
            return []
        self._state, self._said_at, self._said_elapsed = job.state_text, now, job.elapsed or 0
        self._reason = job.reason or self._reason
        self._estimate = job.start_estimate or self._estimate
        return [(level, text)]

    def _pending(self, job: JobSnapshot) -> str:
        reason = f", {job.reason}" if job.reason else ""
        estimate = f"; Slurm expects to start it at {job.start_estimate}" if job.start_estimate else ""
        return f"Job {self._job_id} waits in the queue{reason}{estimate}."

    def _pending_changed(self, job: JobSnapshot) -> bool:
        if job.reason is not None and job.reason != self._reason:
            return True
        if job.start_estimate is None or self._estimate is None:
            return job.start_estimate is not None
        moved = datetime.fromisoformat(job.start_estimate) - datetime.fromisoformat(self._estimate)
        return abs(moved.total_seconds()) >= _ESTIMATE_MOVED

    def _running(self, job: JobSnapshot) -> str:
        limit = f" of {_duration(job.limit)}" if job.limit else ""
        where = f" on {job.node_list}" if job.node_list else ""
        return f"Job {self._job_id} runs{where}: {_duration(job.elapsed or 0)}{limit}."

    def _running_changed(self, job: JobSnapshot, now: float) -> bool:
        grown = (job.elapsed or 0) - self._said_elapsed
        return now - self._said_at >= _SAY_RUNNING_EVERY and grown >= _SAY_PART * (job.limit or 0)


def _with_queue(job: JobSnapshot, queued: JobSnapshot | None) -> JobSnapshot:
    """Prefer squeue for a job that is not final: only it tells reasons and estimates."""
    if queued is None or job.final or queued.final or job.state is None:
        return job
    return queued


def _duration(seconds: float) -> str:
    """Hours:minutes:seconds."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
