"""What the end of a job means: a typed result, or an exception that tells the job's own story."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from facilities.errors import (
    FacilityError,
    InfrastructureError,
    NotFoundError,
    ResourcesError,
    TransientError,
    UserError,
)
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.job import JobSnapshot
from facilities.superfacility.states import CONFIRM, OUT_OF_RESOURCES, SUCCEEDED, SlurmState

TAIL_LINES = 30
PATIENCE = 60.0  # seconds for which reading the output of a failed job is tried again
_PAUSE = 5.0


class JobResult(TypedDict):
    """A job that has completed. Times are ISO 8601 with an offset.

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
    """Where a job writes. Patterns of Slurm (%j, %x, %u) are filled in by `of`."""

    stdout: str | None = None
    stderr: str | None = None

    def of(self, job: JobSnapshot) -> LogFiles:
        """The paths of a job: as given, else as Slurm tells them, else Slurm's default."""
        stdout = _expand(self.stdout or job.stdout, job)
        if stdout is None and job.work_dir:
            stdout = f"{job.work_dir.rstrip('/')}/slurm-{job.job_id}.out"
        return LogFiles(stdout, _expand(self.stderr or job.stderr, job) or stdout)


def _expand(pattern: str | None, job: JobSnapshot) -> str | None:
    """Fill in a file name pattern; None when it holds what is not known here."""
    if not pattern:
        return None
    values = {"%": "%", "j": job.job_id, "A": job.job_id, "x": job.name, "u": job.user}
    if any(values.get(key) is None for key in re.findall(r"%(.)", pattern)):
        return None
    path = re.sub(r"%(.)", lambda match: str(values[match[1]]), pattern)
    return path if path.startswith("/") else f"{(job.work_dir or '').rstrip('/')}/{path}"


def job_result(job: JobSnapshot, machine: str, logs: LogFiles) -> JobResult:
    """Sum up a completed job."""
    files = logs.of(job)
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


def conclude(hook: SuperfacilityHook, job: JobSnapshot, machine: str, logs: LogFiles) -> JobResult:
    """The result of a final job.

    :raises InfrastructureError: the facility lost it: NODE_FAIL, BOOT_FAIL, PREEMPTED.
    :raises ResourcesError: TIMEOUT, OUT_OF_MEMORY.
    :raises UserError: any other end without success.
    """
    if job.state not in SUCCEEDED:
        raise _failure(hook, job, machine, logs)
    return job_result(job, machine, logs)


def _failure(hook: SuperfacilityHook, job: JobSnapshot, machine: str, logs: LogFiles) -> FacilityError:
    """What the end of a job means, with the last lines of its output."""
    kind: type[FacilityError] = UserError
    if job.state in CONFIRM:
        kind = InfrastructureError
    elif job.state in OUT_OF_RESOURCES:
        kind = ResourcesError
    name = f" {job.name}" if job.name else ""
    return kind(
        f"The Slurm job{name} on {machine} ended as {job.state_text}",
        remote_id=job.job_id,
        state=job.state_text,
        next_step=_next_step(job),
        details="\n".join((_story(job), *_tails(hook, job, machine, logs))),
    )


_NEXT_STEPS: Mapping[SlurmState, str] = {
    SlurmState.NODE_FAIL: "clear the submit task: the job is submitted again.",
    SlurmState.BOOT_FAIL: "clear the submit task: the job is submitted again.",
    SlurmState.PREEMPTED: "clear the submit task: the job is submitted again; another qos is not preempted.",
    SlurmState.TIMEOUT: "give the job more time, or less to do, and clear the submit task.",
    SlurmState.OUT_OF_MEMORY: "give the job more memory (more GPUs or nodes), and clear the submit task.",
    SlurmState.CANCELLED: "somebody or the scheduler cancelled it; clear the submit task to submit it again.",
    SlurmState.DEADLINE: "its deadline passed before it could end; clear the submit task to submit it again.",
    SlurmState.REVOKED: "another cluster took the job; look for it with sacct at NERSC.",
    SlurmState.FAILED: "read the output below; when the cause is gone, clear the submit task.",
}


def _next_step(job: JobSnapshot) -> str:
    if job.rejected:
        return "Slurm refused the job; check its resources, then clear the submit task."
    if job.state is SlurmState.FAILED and job.signal == 53:
        return "the folder of its output, or its working directory, does not exist: make it, then clear the "\
            "submit task."  # fmt: skip
    return _NEXT_STEPS.get(job.state, "look at the job with sacct at NERSC.") if job.state else ""


def _story(job: JobSnapshot) -> str:
    """Exit code, reason, times and nodes in a line."""
    parts = [f"exit code {_known(job.exit_code)}, signal {_known(job.signal)}"]
    if job.reason:
        parts.append(f"reason {job.reason}")
    limit = "no limit" if job.limit is None else f"{job.limit} s"
    parts.append(f"ran {_known(job.elapsed)} s of {limit}")
    parts.append(f"nodes {job.node_list or 'none'}")
    parts.append(
        f"submitted {_known(job.submitted)}, started {_known(job.started)}, ended {_known(job.ended)}"
    )
    return "; ".join(parts) + "."


def _known(value: object) -> str:
    return "unknown" if value is None else str(value)


def _tails(hook: SuperfacilityHook, job: JobSnapshot, machine: str, logs: LogFiles) -> list[str]:
    files = logs.of(job)
    paths = {"stderr": files.stderr, "stdout": files.stdout}
    if files.stdout == files.stderr:
        paths = {"stdout and stderr": files.stdout}
    deadline = time.monotonic() + PATIENCE
    return [_tail(hook, machine, what, path, deadline) for what, path in paths.items()]


def _tail(hook: SuperfacilityHook, machine: str, what: str, path: str | None, deadline: float) -> str:
    """The end of one of the job's files. That it cannot be read is said, and hides nothing else."""
    if path is None:
        return f"--- {what}: where it is written is not known."
    try:
        text = _read_tail(hook, machine, path, deadline)
    except NotFoundError:
        return f"--- {what} ({path}): the job has not written this file."
    except FacilityError as error:
        return f"--- {what} ({path}) could not be read: {error.what}."
    return f"--- last lines of {what}, in full at {path}:\n{text or '(empty)'}"


def _read_tail(hook: SuperfacilityHook, machine: str, path: str, deadline: float) -> str:
    """The last lines; an API that does not answer is asked again, since nobody looks for them later."""
    while True:
        try:
            return hook.tail(machine, path, lines=TAIL_LINES)
        except TransientError:
            if time.monotonic() + _PAUSE > deadline:
                raise
        time.sleep(_PAUSE)
