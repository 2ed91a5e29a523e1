"""The triggers that wait for a Slurm job, for NERSC to answer, or for a machine to be up."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from facilities.cancellation import Cancellation
from facilities.errors import FacilityError, NotFoundError
from facilities.polling import SharedPoller, jittered_sleep, shared_poller
from facilities.progress import Progress
from facilities.superfacility.hook import SlurmJobSource, SuperfacilityHook
from facilities.superfacility.own_jobs import JobIdentity, OwnJobs
from facilities.superfacility.slurm import HELD, HELD_REASONS, RUNNING, SlurmJob, SlurmState
from facilities.waiting import OutageTrigger, WaitEnd, WaitEvent, WaitTrigger, format_duration

log = logging.getLogger(__name__)

_LOG_YOUNG = 55.0  # seconds between lines about a job that runs, at first; a poll comes each minute at least
_LOG_OLD = 595.0  # the same for a job that has run for longer than ten minutes
_YOUNG = 600.0
_ESTIMATE_MOVED = 900.0  # seconds by which a start estimate must move to be logged


@dataclass(eq=False, kw_only=True)
class SlurmJobTrigger(WaitTrigger[SlurmJob]):
    """Waits until a Slurm job has ended, or its deadline has come. Yields a `WaitEvent`.

    All jobs of a connection on a machine share one poll. Example::

        trigger = SlurmJobTrigger(
            superfacility_conn_id="superfacility_default",
            machine="perlmutter",
            remote_id="80",
            deadline=time.time() + 86_400,
        )

    :param superfacility_conn_id: connection of type `superfacility`.
    :param machine: such as perlmutter.
    :param remote_id: the job.
    :param confirm: seconds for which a node failure or preemption must stay, to be believed.
    :param grace: seconds that a job may be unknown to Slurm before that is an error.
    :param first_pause: seconds before the first poll; accounting knows a job some seconds after its submit.

    The others are those of `WaitTrigger`.
    """

    service = "NERSC"
    work = "Slurm job"
    step_after_deadline = (
        "look at the queue (squeue --me at NERSC) and run it again; the limit is the task's timeout, in the "
        "DAG's file."
    )
    failures_before_warning = 2

    superfacility_conn_id: str
    machine: str
    min_poll_interval: float = 5.0
    max_poll_interval: float = 60.0
    confirm: float = 30.0
    grace: float = 600.0
    first_pause: float = 2.0

    def begin(self, remaining: float, now: float) -> None:
        super().begin(remaining, now)
        self._last: SlurmJob | None = None
        self._missing_since: float | None = None
        self._lost_since: float | None = None
        self._logged = SlurmJob("", "squeue", "", None)
        self._logged_at = 0.0

    async def wait(self) -> WaitEvent:
        await jittered_sleep(min(self.first_pause, max(self.deadline - time.time(), 0.0)))
        return await super().wait()

    def poller(self) -> SharedPoller[SlurmJob]:
        """One request for 350 jobs of a connection."""
        conn_id, machine = self.superfacility_conn_id, self.machine
        return shared_poller(("superfacility", conn_id, machine), lambda: SlurmJobSource(conn_id, machine))

    def poll_interval(self, now: float) -> float:
        job = self._last
        if job is None or self._lost_since is not None or self._missing_since is not None:
            return self.min_poll_interval
        if job.state in RUNNING and job.elapsed is not None:
            left = None if job.limit is None else job.limit - job.elapsed
            return self.poll_seconds.after(job.elapsed, left)
        return super().poll_interval(now)

    def assess(self, value: SlurmJob | None, now: float) -> WaitEnd | None:
        if value is None or (value.origin == "squeue" and value.final):
            return self._assess_missing(value, now)
        self._missing_since = None
        self._last, self.state = value, value.state_text
        if value.lost:
            return self._assess_lost(value, now)
        self._lost_since = None
        if value.final:
            return WaitEnd("ended", result=value.to_dict())
        self._log_progress(value, now)
        return None

    def progress(self) -> Progress | None:
        job = self._last
        if job is None:
            return None
        return Progress(
            job.state_text,
            elapsed=job.elapsed if job.state in RUNNING else None,
            limit=job.limit,
            start_estimate=job.start_estimate,
            trouble=f"held ({job.reason})" if is_held(job) else "",
        )

    def _assess_missing(self, queued: SlurmJob | None, now: float) -> WaitEnd | None:
        """Accounting does not know the job (yet); squeue may know that it has ended."""
        if self._missing_since is None:
            self._missing_since = now
        if now - self._missing_since < self.grace:
            return None
        if queued is not None:
            return WaitEnd("ended", result=queued.to_dict())
        known = f"It was {self.state} when last seen." if self._last else "It was never seen."
        error = NotFoundError(
            f"Slurm on {self.machine} does not know the job, for {format_duration(self.grace)} now",
            remote_id=self.remote_id,
            state=self.state or None,
            next_step=f"run 'sacct -j {self.remote_id}' at NERSC. If the job is there, clear this task; if "
            "not, start a reprocessing of the scan.",
            details=known,
        )
        return WaitEnd("lost", error)

    def _assess_lost(self, job: SlurmJob, now: float) -> WaitEnd | None:
        """Accounting shows a failure that Slurm undoes when it starts the job again."""
        if self._lost_since is None:
            self._lost_since = now
            self.log.warning("Job %s shows %s; looking whether it stays.", job.job_id, job.state_text)
        if now - self._lost_since < self.confirm:
            return None
        return WaitEnd("ended", result=job.to_dict())

    def cancel(self) -> Cancellation:
        with closing(SuperfacilityHook.for_emergency(self.superfacility_conn_id, own_tokens=False)) as hook:
            return cancel_job(hook, self.machine, self.remote_id)

    # What is new about a job, not more often than useful

    def _log_progress(self, job: SlurmJob, now: float) -> None:
        before = self._logged
        changed = job.state_text != before.state_text
        level = logging.INFO
        if job.requeued_after:
            level, text = logging.WARNING, f"had {job.requeued_after}; Slurm starts it again"
            changed = job.requeued_after != before.requeued_after
        elif job.state is None:
            level, text = logging.WARNING, f"is in a state that is not known here: {job.state_text!r}"
        elif is_held(job):
            level = logging.WARNING
            text = (
                f"is held ({job.state_text}, {job.reason}): nothing happens until somebody runs "
                f"'scontrol release {job.job_id}' at NERSC, or ends this task"
            )
            changed = changed or job.reason != before.reason
        elif job.state is SlurmState.PENDING:
            text = "waits in the queue" + (f", {job.reason}" if job.reason else "")
            if job.start_estimate:
                text += f"; Slurm expects to start it at {job.start_estimate}"
            changed = changed or self._is_new_in_queue(job)
        elif job.state in RUNNING:
            where = f" on {job.node_list}" if job.node_list else ""
            limit = f" of {format_duration(job.limit)}" if job.limit else ""
            text = f"runs{where}: {format_duration(job.elapsed or 0)}{limit}"
            pause = _LOG_YOUNG if (job.elapsed or 0) <= _YOUNG else _LOG_OLD
            changed = changed or now - self._logged_at >= pause
        else:
            text = f"is {job.state_text}"
        if changed:
            self.log.log(level, f"Job {job.job_id} {text}.")
            self._logged, self._logged_at = job, now

    def _is_new_in_queue(self, job: SlurmJob) -> bool:
        if job.reason is not None and job.reason != self._logged.reason:
            return True
        if job.start_estimate is None or self._logged.start_estimate is None:
            return job.start_estimate is not None
        new, old = (datetime.fromisoformat(t) for t in (job.start_estimate, self._logged.start_estimate))
        return abs((new - old).total_seconds()) >= _ESTIMATE_MOVED


@dataclass(eq=False, kw_only=True)
class SubmitTrigger(OutageTrigger):
    """Waits until a submit can go on: NERSC answers and the machine is up. Yields an `OutageEvent`.

    Example::

        trigger = SubmitTrigger(
            superfacility_conn_id="superfacility_default",
            machine="perlmutter",
            identity=asdict(identity),
            reason="HTTP 503",
            deadline=time.time() + 86_400,
            first_pause=10,
        )

    :param superfacility_conn_id: connection of type `superfacility`.
    :param machine: such as perlmutter.
    :param identity: fields of the `JobIdentity` whose jobs are cancelled when the task is ended: a submit may
        have been acted on just before NERSC fell silent.

    The others are those of `OutageTrigger`.
    """

    service = SlurmJobTrigger.service
    work = SlurmJobTrigger.work

    superfacility_conn_id: str
    machine: str
    identity: dict[str, Any]

    def connection_key(self) -> tuple[str, ...]:
        return (self.superfacility_conn_id, self.machine)

    def check(self) -> None:
        """Look whether the machine is up and the API lets the client in."""
        with closing(SuperfacilityHook(self.superfacility_conn_id, attempts=1)) as hook:
            hook.status(self.machine).require_up()
            hook.session.get("account/", "Asking NERSC who the client is")

    def cancel(self) -> Cancellation:
        with closing(SuperfacilityHook.for_emergency(self.superfacility_conn_id, own_tokens=False)) as hook:
            return cancel_jobs_of(hook, self.machine, JobIdentity(**self.identity))


def is_held(job: SlurmJob) -> bool:
    """Whether a job will not start until somebody releases it."""
    return job.state in HELD or (job.state is SlurmState.PENDING and job.reason in HELD_REASONS)


def cancel_job(hook: SuperfacilityHook, machine: str, job_id: str) -> Cancellation:
    """Cancel a job."""
    try:
        hook.cancel(machine, job_id)
    except FacilityError as error:
        log.error("Job %s could not be cancelled: %s", job_id, error)
        note = f"Job {job_id} could NOT be cancelled ({error.what}): run 'scancel {job_id}' at NERSC."
        return Cancellation(False, note)
    return Cancellation(True, f"Job {job_id} was cancelled.")


def cancel_jobs_of(hook: SuperfacilityHook, machine: str, identity: JobIdentity) -> Cancellation:
    """Cancel the living jobs of a task instance whose ids are not known, such as after a lost reply."""
    try:
        living = OwnJobs(hook, identity, machine).all_living()
    except FacilityError as error:
        name = identity.name(0)
        log.error("Whether a job of the name %s lives could not be found out: %s", name, error)
        return Cancellation(False, f"Whether a job of the name {name} lives is not known: {error.what}.")
    results = [cancel_job(hook, machine, job.job_id) for job in living]
    return Cancellation(all(result.done for result in results), "\n".join(result.note for result in results))
