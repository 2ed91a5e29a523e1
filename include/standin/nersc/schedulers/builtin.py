"""The built-in scheduler: a queue with slots, real processes, Slurm's states and habits."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from standin.nersc.database import Database
from standin.nersc.options import LiveOptions, Options
from standin.nersc.schedulers.interface import Query, QueryError, RejectedError, Row, Submission
from standin.nersc.schedulers.job import Job
from standin.nersc.schedulers.ledger import Ledger
from standin.nersc.schedulers.lifecycle import Lifecycle, Places
from standin.nersc.schedulers.mishaps import Mishaps
from standin.nersc.schedulers.policy import Site, UnavailableConfigurationError, make_job
from standin.nersc.schedulers.queries import check_filters, keep_sacct, keep_squeue, sacct_window
from standin.nersc.schedulers.queue import NEVER, Plan, dependency_state, plan
from standin.nersc.schedulers.rows import ALLOCATION, HELD, as_allocation, sacct_row, squeue_row
from standin.nersc.schedulers.runs import collect_exited, runs_started
from standin.nersc.schedulers.states import PENDING
from standin.service import Control, ControlError
from standin.store import write_atomically

log = logging.getLogger(__name__)

LOOK_EVERY = 0.1
TOUCH_EVERY = 2.0
MANY = 1000  # jobs that one call of `submit_many` makes, at most
Outage = Callable[[], tuple[float, float] | None]


class BuiltinScheduler:
    """Runs jobs on this machine. Its accounting and its running jobs outlive the server."""

    name = "builtin"

    def __init__(self, database: Database, options: LiveOptions, places: Places, outage: Outage) -> None:
        """`outage` gives begin and end of the machine's next, or present, maintenance."""
        self._live = options
        self._places = places
        self._outage = outage
        self._ledger = Ledger(database)
        self._lifecycle = Lifecycle(self._ledger, lambda: options.now, places)
        self._jobs: dict[int, Job] = {}
        self._expected: dict[int, float] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._touched = 0.0

    @property
    def _options(self) -> Options:
        return self._live.now

    async def start(self) -> None:
        """Take up the jobs that an earlier server left, and look after them."""
        self._places.jobs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._jobs = {job.job_id: job for job in self._ledger.active()}
        self._touch()
        self._step()
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stop looking; running jobs go on, and are taken up again by the next server."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _watch(self) -> None:
        while True:
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), LOOK_EVERY)
            try:
                self._touch()
                self._step()
            except Exception:
                log.exception("The built-in scheduler failed at a step; it tries again")

    def _touch(self) -> None:
        if time.monotonic() - self._touched > TOUCH_EVERY:
            self._touched = time.monotonic()
            self._places.alive.touch(mode=0o600)

    def _step(self) -> None:
        """Look at all jobs once, and start what may start."""
        collect_exited()
        now = time.time()
        # Nothing happens to a held job until it is released or cancelled: ten thousand of them cost nothing.
        moving = [
            job for job in self._jobs.values() if not job.hold or job.state != PENDING or job.completing
        ]
        for job in moving:
            self._lifecycle.look(job, now)
            if not job.active:
                del self._jobs[job.job_id]
        for job in moving:
            if job.state == PENDING and not job.hold:
                self._check_dependency(job, now)
        planned = plan(
            [job for job in moving if job.job_id in self._jobs], self._options, now, self._outage()
        )
        self._carry_out(planned, now)

    def _carry_out(self, planned: Plan, now: float) -> None:
        self._expected = planned.expected
        for job_id, reason in planned.reasons.items():
            job = self._jobs[job_id]
            if job.reason != reason:
                job.reason = reason
                self._ledger.save(job, max(now, job.settles))
        for job in planned.start:
            self._lifecycle.begin(job, now)

    def _check_dependency(self, job: Job, now: float) -> None:
        """Note when a job's dependency is met, or can never be."""
        if job.eligible is not None or job.reason == NEVER:
            return
        verdict = dependency_state(job, self._find, self._has_namesake)
        if verdict == "met":
            job.eligible = max(job.begin or 0.0, now)
            job.wait_no_more()
        elif verdict == "never" and job.kill_on_invalid_dependency:
            job.state, job.end, job.reason = "CANCELLED", now, "Dependency"
            del self._jobs[job.job_id]
        elif verdict == "never":
            job.reason = NEVER
        else:
            return
        self._ledger.save(job, now)

    def _find(self, job_id: str) -> Job | None:
        return self._jobs.get(int(job_id)) or self._ledger.get(job_id)

    def _has_namesake(self, job: Job) -> bool:
        return any(other.name == job.name and other.job_id < job.job_id for other in self._jobs.values())

    async def submit(self, submission: Submission) -> str:
        """As sbatch does.

        :raises RejectedError: when sbatch would refuse.
        """
        job = self._accept(submission)
        if not job.hold:
            self._step()
        return str(job.job_id)

    def _accept(self, submission: Submission) -> Job:
        """Check a submission and put its job into the queue."""
        try:
            job = make_job(submission, Site(self._options, self._places.home, self._submitted))
        except UnavailableConfigurationError as refusal:
            job = refusal.job
            job.state, job.exit_code, job.start, job.end = "FAILED", 1, job.submit, job.submit
            job.eligible = job.submit
            self._ledger.add(job, submission.request_id, lambda _job: None)
            raise RejectedError(str(refusal)) from refusal
        self._drop_purged(job)
        if job.hold:
            job.priority, job.reason = 0, HELD["user"]

        def keep_script(new: Job) -> None:
            folder = self._lifecycle.folder(new)
            folder.mkdir(mode=0o700, exist_ok=True)
            write_atomically(folder / "slurm_script", submission.text, 0o700)

        job = self._ledger.add(job, submission.request_id, keep_script)
        if job.active:
            job = self._jobs.setdefault(job.job_id, job)
        return job

    async def submit_many(self, body: dict[str, Any]) -> dict[str, Any]:
        """Submit `script` so many times (`count`), as one sbatch after the other would."""
        script, count = body.get("script"), body.get("count")
        if not isinstance(script, str) or not isinstance(count, int) or not 0 < count <= MANY:
            raise ControlError(f"script must be a text, and count a number from 1 to {MANY}.")
        try:
            with self._ledger.together():
                jobs = [self._accept(Submission(f"many-{uuid.uuid4()}", script)) for _ in range(count)]
        except RejectedError as error:
            raise ControlError(str(error)) from error
        self._changed.set()
        return {"job_ids": [str(job.job_id) for job in jobs]}

    def _submitted(self, qos: str) -> int:
        return sum(job.asked_qos == qos for job in self._jobs.values() if not job.ended)

    def _drop_purged(self, job: Job) -> None:
        """Drop a dependency on a job that the controller has purged."""
        kept = []
        for clause in filter(None, job.dependency.split(",")):
            kind, *ids = clause.split(":")
            known = [job_id for job_id in ids if self._known(job_id)]
            if known or kind == "singleton":
                kept.append(":".join([kind, *known]))
        job.dependency = ",".join(kept)
        job.eligible = None if kept or job.hold else max(job.begin or 0.0, job.submit)
        if kept:
            job.reason = "Dependency"

    def _known(self, job_id: str) -> bool:
        """Whether the controller still has a job."""
        job = self._ledger.get(job_id)
        if job is None:
            return False
        age = self._options.real(self._options.min_job_age)
        return job.active or (job.end or 0) > time.time() - age

    async def cancel(self, job_id: str) -> None:
        """As scancel does: finished and unknown jobs are accepted."""
        now = time.time()
        job = self._jobs.get(int(job_id)) if job_id.isascii() and job_id.isdigit() else None
        uid = self._lifecycle.uid
        effective = job is not None and self._lifecycle.end(
            job, "CANCELLED", now, grace=self._options.kill_wait, message="", by=uid
        )
        if job is not None or self._ledger.get(job_id) is not None:
            self._ledger.note_cancel(int(job_id), uid, now, effective)
        self._changed.set()

    async def squeue(self, query: Query) -> list[Row]:
        """As squeue does.

        :raises QueryError: for an unknown option, or a single id that the controller does not know.
        """
        options, now = self._options, time.time()
        check_filters("squeue", query.filters, options.user_name)
        at = now - options.cached_lag if query.cached else now
        ids = query.job_ids
        if ids is not None and len(ids) == 1 and not query.cached and not self._known(ids[0]):
            raise QueryError("slurm_load_jobs error: Invalid job id specified")
        jobs = [job for job in self._ledger.as_of(at, at, ids) if job.listed]
        return [
            squeue_row(job, options, at, self._expected.get(job.job_id))
            for job in jobs
            if keep_squeue(job, query.filters)
        ]

    async def sacct(self, query: Query) -> list[Row]:
        """As sacct does, behind by its lag.

        :raises QueryError: for an unknown option or too wide a range of dates.
        """
        options, now = self._options, time.time()
        check_filters("sacct", query.filters, options.user_name)
        lag = options.cached_lag if query.cached else options.sacct_lag
        since, until = sacct_window(query, options.zone, now)
        jobs = self._ledger.as_of(now - lag, since, query.job_ids)
        return [
            sacct_row(shown, options, now) | (ALLOCATION if nameless else {})
            for shown, nameless in (self._as_accounted(job, now, lag) for job in jobs)
            if keep_sacct(shown, query, until)
        ]

    def _as_accounted(self, job: Job, now: float, lag: float) -> tuple[Job, bool]:
        """The job, and whether the accounting has no name for it yet.

        That is so for a while when it started at once, and may last longer than the job.
        """
        if now - job.first_submit >= 2 * lag:
            return job, False
        if job.start is None and (since := self._ledger.get(str(job.job_id))) is not None:
            job = replace(job, start=since.start, node_list=since.node_list)
        nameless = job.start is not None and job.start - job.first_submit <= lag
        return (as_allocation(job), True) if nameless else (job, False)

    async def all_jobs(self) -> list[dict[str, Any]]:
        """Every job ever, with how often its script was really started."""
        states, cancels = self._ledger.states(), self._ledger.cancels()
        return [
            {
                "job_id": str(job.job_id), "name": job.name, "user": job.user, "state": job.state,
                "active": job.active, "runs": runs_started(self._lifecycle.folder(job)),
                "restarts": job.restarts, "states": states.get(job.job_id, []),
                "submitted": job.first_submit, "started": job.start, "ended": job.end,
                "exit_code": f"{job.exit_code}:{job.exit_signal}", "reason": job.reason,
                "cancelled_by": job.cancelled_by, "cancels": cancels.get(job.job_id, []),
                "script_sha256": job.script_sha256, "account": job.account, "qos": job.asked_qos,
                "gpus": job.gpus, "nodes": job.nodes, "time_limit": job.time_limit, "work_dir": job.work_dir,
            }
            for job in self._ledger.all()
        ]  # fmt: skip

    def controls(self) -> dict[str, Control]:
        """Verbs that act on jobs."""
        mishaps = Mishaps(self._lifecycle, self._jobs_now, self._changed.set)
        return {**mishaps.controls(), "submit_many": self.submit_many}

    def _jobs_now(self) -> dict[int, Job]:
        return self._jobs
