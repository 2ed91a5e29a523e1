"""What the end of a Slurm job means: the result of one that has completed, the error of any other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from facilities.errors import FacilityError, InfrastructureError, ResourcesError, UserError
from facilities.superfacility.slurm import OUT_OF_RESOURCES, SlurmJob, SlurmState


class JobResult(TypedDict):
    """A job that has completed, as a task returns it. Times are ISO 8601 with an offset.

    `stdout` and `stderr` are paths at the facility, None when they are not known.
    """

    job_id: str
    name: str | None
    machine: str
    state: str
    queue_seconds: float | None
    run_seconds: float | None
    node_hours: float
    nodes: int
    node_list: str | None
    qos: str | None
    submitted: str | None
    started: str | None
    ended: str | None
    stdout: str | None
    stderr: str | None


@dataclass(frozen=True)
class LogFiles:
    """Where a job writes. `of` fills in Slurm's patterns (%j, %x, %u)."""

    stdout: str | None = None
    stderr: str | None = None

    def of(self, job: SlurmJob) -> LogFiles:
        """The paths of a job: as given, else as Slurm reports them, else Slurm's default."""
        stdout = _expand(self.stdout or job.stdout, job)
        if stdout is None and job.work_dir:
            stdout = f"{job.work_dir.rstrip('/')}/slurm-{job.job_id}.out"
        return LogFiles(stdout, _expand(self.stderr or job.stderr, job) or stdout)


def _expand(pattern: str | None, job: SlurmJob) -> str | None:
    """Fill in a file name pattern; None when it holds what is not known here."""
    if not pattern:
        return None
    values = {"%": "%", "j": job.job_id, "A": job.job_id, "x": job.name, "u": job.user}
    if any(values.get(key) is None for key in re.findall(r"%(.)", pattern)):
        return None
    path = re.sub(r"%(.)", lambda match: str(values[match[1]]), pattern)
    return path if path.startswith("/") else f"{(job.work_dir or '').rstrip('/')}/{path}"


def job_result(job: SlurmJob, machine: str, files: LogFiles) -> JobResult:
    """Sum up a completed job."""
    return JobResult(
        job_id=job.job_id,
        name=job.name,
        machine=machine,
        state=job.state_text,
        queue_seconds=job.queue_seconds,
        run_seconds=None if job.elapsed is None else float(job.elapsed),
        node_hours=job.node_hours,
        nodes=job.nodes,
        node_list=job.node_list,
        qos=job.qos,
        submitted=job.submitted,
        started=job.started,
        ended=job.ended,
        stdout=files.stdout,
        stderr=files.stderr,
    )


def failure_of_job(job: SlurmJob, machine: str) -> FacilityError:
    """The exception that a job's end without success means.

    `InfrastructureError` when the facility lost it (NODE_FAIL, BOOT_FAIL, PREEMPTED), `ResourcesError` for
    TIMEOUT and OUT_OF_MEMORY, else `UserError`.
    """
    kind: type[FacilityError] = UserError
    if job.lost:
        kind = InfrastructureError
    elif job.state in OUT_OF_RESOURCES:
        kind = ResourcesError
    name = f" {job.name}" if job.name else ""
    return kind(
        f"The Slurm job{name} on {machine} ended as {job.state_text}",
        remote_id=job.job_id,
        state=job.state_text,
        next_step=_next_step(job),
        details=_describe_end(job),
    )


# A cleared task runs with the values that it had: what needs others needs a new run.
_RUN_AGAIN = "clear the submit task, or start a new run"
_AGAIN = f"run it again: {_RUN_AGAIN}."
_NEXT_STEPS: Mapping[SlurmState, str] = {
    SlurmState.NODE_FAIL: _AGAIN,
    SlurmState.BOOT_FAIL: _AGAIN,
    SlurmState.PREEMPTED: f"run it again: {_RUN_AGAIN}, in another qos for one that is not preempted.",
    SlurmState.TIMEOUT: "start a new run with more time or less to do; a cleared task has the same time.",
    SlurmState.OUT_OF_MEMORY: (
        "start a new run with more GPUs, whose memory it gets too, or less to do; a cleared task has the "
        "same memory."
    ),
    SlurmState.CANCELLED: f"somebody or the scheduler cancelled it; to run it again {_RUN_AGAIN}.",
    SlurmState.DEADLINE: f"its deadline passed before it could end; to run it again {_RUN_AGAIN}.",
    SlurmState.REVOKED: "another cluster took the job; look for it with sacct at NERSC.",
    SlurmState.FAILED: (
        "read the end of its output below; when its input was mended start a new run (a cleared task has the "
        "same copy), and when the cause was outside clear the submit task."
    ),
}


def _next_step(job: SlurmJob) -> str:
    if job.rejected:
        return "Slurm refused the job: start a new run with other resources."
    if job.state is SlurmState.FAILED and job.signal == 53:
        return (
            "the folder of its output, or its working directory, does not exist: make it, then clear the "
            "submit task."
        )
    return _NEXT_STEPS.get(job.state, "look at the job with sacct at NERSC.") if job.state else ""


def _describe_end(job: SlurmJob) -> str:
    """Exit code, reason, times and nodes in a line."""

    def known(value: object) -> str:
        return "unknown" if value is None else str(value)

    parts = [f"exit code {known(job.exit_code)}, signal {known(job.signal)}"]
    if job.reason:
        parts.append(f"reason {job.reason}")
    limit = "no limit" if job.limit is None else f"{job.limit} s"
    parts.append(f"ran {known(job.elapsed)} s of {limit}")
    parts.append(f"nodes {job.node_list or 'none'}")
    parts.append(f"submitted {known(job.submitted)}, started {known(job.started)}, ended {known(job.ended)}")
    return "; ".join(parts) + "."
