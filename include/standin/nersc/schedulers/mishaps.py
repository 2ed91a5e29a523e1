"""Causes, on request, what happens to jobs on a real machine: control verbs of the built-in scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from standin.nersc.schedulers.job import Job
from standin.nersc.schedulers.lifecycle import NODE_MESSAGE, Lifecycle
from standin.nersc.schedulers.states import ALLOCATED, ENDED, PENDING, RUNNING, SUSPENDED
from standin.service import Control, ControlError

Body = dict[str, Any]


class Mishaps:
    """Each verb takes `job_id` (and more, as said) and answers with the job's id and state."""

    def __init__(
        self, lifecycle: Lifecycle, jobs: Callable[[], dict[int, Job]], changed: Callable[[], None]
    ) -> None:
        self._lifecycle = lifecycle
        self._jobs = jobs
        self._changed = changed

    def controls(self) -> dict[str, Control]:
        """All verbs."""
        return {
            "node_failure": self.node_failure, "preempt": self.preempt, "boot_fail": self.boot_fail,
            "end_job": self.end_job, "requeue": self.requeue, "hold": self.hold, "release": self.release,
            "suspend": self.suspend, "resume": self.resume, "signal": self.signal,
            "force_state": self.force_state, "end_all": self.end_all,
        }  # fmt: skip

    async def node_failure(self, body: Body) -> Body:
        """A node dies: requeued if `requeue` (default: as the job asked), else NODE_FAIL."""
        return self._lose(body, "NODE_FAIL", grace=0.0, message=NODE_MESSAGE)

    async def preempt(self, body: Body) -> Body:
        """Preempted by a job of a higher QOS: requeued if `requeue` (default: as the job asked)."""
        grace = self._lifecycle.options.kill_wait
        return self._lose(body, "PREEMPTED", grace=grace, message="DUE TO PREEMPTION")

    async def boot_fail(self, body: Body) -> Body:
        """Its node does not boot: requeued if `requeue` (default: as the job asked), else BOOT_FAIL."""
        return self._lose(body, "BOOT_FAIL", grace=0.0, message=NODE_MESSAGE)

    def _lose(self, body: Body, state: str, *, grace: float, message: str) -> Body:
        job = self._job(body, ALLOCATED)
        now = time.time()
        if body.get("requeue", job.requeue):
            done = self._lifecycle.requeue(job, state, now, grace=grace, message=message)
        else:
            done = self._lifecycle.end(job, state, now, grace=grace, message=message)
        return self._answer(job, done)

    async def end_job(self, body: Body) -> Body:
        """End a job in the given final `state`, whatever it does."""
        job = self._job(body, ALLOCATED | {PENDING})
        state = self._text(body, "state")
        if state not in ENDED:
            raise ControlError(f"state is {state!r}; it must be one of {', '.join(sorted(ENDED))}.")
        return self._answer(job, self._lifecycle.end(job, state, time.time()))

    async def requeue(self, body: Body) -> Body:
        """As `scontrol requeue` (or, with `hold`, `requeuehold`) does: only jobs that asked for it."""
        job = self._job(body, ALLOCATED)
        if not job.requeue:
            raise ControlError(f"Requested operation is presently disabled for job {job.job_id}")
        grace, hold = self._lifecycle.options.kill_wait, bool(body.get("hold", False))
        done = self._lifecycle.requeue(job, "REQUEUED", time.time(), grace=grace, hold=hold)
        return self._answer(job, done)

    async def hold(self, body: Body) -> Body:
        """Hold a pending job; `by` is "user" (default) or "admin"."""
        by: Literal["user", "admin"] = "admin" if body.get("by") == "admin" else "user"
        job = self._job(body, {PENDING})
        self._lifecycle.hold(job, by, time.time())
        return self._answer(job, True)

    async def release(self, body: Body) -> Body:
        """Release a held job."""
        job = self._job(body, {PENDING})
        if not job.hold:
            raise ControlError(f"Job {job.job_id} is not held.")
        self._lifecycle.release(job, time.time())
        return self._answer(job, True)

    async def suspend(self, body: Body) -> Body:
        """Stop a running job's processes."""
        job = self._job(body, {RUNNING})
        self._lifecycle.suspend(job, time.time())
        return self._answer(job, True)

    async def resume(self, body: Body) -> Body:
        """Let a suspended job go on."""
        job = self._job(body, {SUSPENDED})
        self._lifecycle.resume(job, time.time())
        return self._answer(job, True)

    async def signal(self, body: Body) -> Body:
        """Send signal `number` to everything that a running job started."""
        job = self._job(body, {RUNNING})
        number = body.get("number")
        if not isinstance(number, int) or not 0 < number < 65:
            raise ControlError(f"number is {number!r}; it must be a signal's number.")
        self._lifecycle.signal(job, number)
        return self._answer(job, True)

    async def force_state(self, body: Body) -> Body:
        """Show `state` (any string; null: the true one again) in `view`: squeue, sacct or both (default)."""
        job_id = str(body.get("job_id"))
        job = self._jobs().get(int(job_id)) if job_id.isdigit() else None
        job = job or self._lifecycle.ledger.get(job_id)
        if job is None:
            raise ControlError(f"There is no job {job_id}.")
        view = body.get("view", "both")
        views = {"both": ("squeue", "sacct"), "squeue": ("squeue",), "sacct": ("sacct",)}.get(view)
        if views is None:
            raise ControlError(f"view is {view!r}; it must be squeue, sacct or both.")
        for name in views:
            job.forced.pop(name, None)
            if body.get("state") is not None:
                job.forced[name] = self._text(body, "state")
        self._lifecycle.ledger.save(job, time.time())
        return self._answer(job, True)

    async def end_all(self, _body: Body) -> Body:
        """Cancel every job and kill its processes at once; for the end of a demonstration."""
        jobs = [job for job in self._jobs().values() if not job.ended]
        with self._lifecycle.ledger.together():  # these have no processes
            for job in (job for job in jobs if job.state == PENDING):
                self._lifecycle.end(job, "CANCELLED", time.time(), by=0)
        for job in (job for job in jobs if not job.ended):
            self._lifecycle.end(job, "CANCELLED", time.time(), by=0)
        self._changed()
        return {"ended": [str(job.job_id) for job in jobs]}

    def _job(self, body: Body, states: frozenset[str] | set[str]) -> Job:
        job_id = str(body.get("job_id"))
        job = self._jobs().get(int(job_id)) if job_id.isascii() and job_id.isdigit() else None
        if job is None:
            raise ControlError(f"There is no unfinished job {job_id}.")
        if job.state not in states:
            raise ControlError(f"Job {job_id} is {job.state}; this needs {' or '.join(sorted(states))}.")
        return job

    def _text(self, body: Body, name: str) -> str:
        value = body.get(name)
        if not isinstance(value, str):
            raise ControlError(f"{name} is {value!r}; it must be a string.")
        return value

    def _answer(self, job: Job, done: bool) -> Body:
        self._changed()
        return {"job_id": str(job.job_id), "state": job.state, "done": done}
