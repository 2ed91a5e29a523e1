"""What happens to jobs for others' sake, brought about on the built-in runner or on Slurm itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from standin.testing import until
from support.nersc import SCHEDULER, Nersc, cancel, script

SLEEP = script("sleep 600", directives="-t 300")


def fill(nersc: Nersc) -> list[str]:
    """Jobs that leave no room for one with a GPU; all of them run."""
    text = SLEEP.replace("-t 300", "-t 300 -G 4")
    jobs = [nersc.submit(text) for _ in range(1 if SCHEDULER == "slurm" else nersc.facility.settings.slots)]
    until(lambda: {nersc.row("squeue", job_id)["state"] for job_id in jobs} == {"RUNNING"}, 60)
    return jobs


@contextmanager
def preempted(nersc: Nersc, job_id: str) -> Iterator[None]:
    """A job that has all GPUs and runs in the QOS preempt makes room, until the block ends."""
    if SCHEDULER == "builtin":
        nersc.control("preempt", job_id=job_id)
        yield
        return
    urgent = nersc.submit(SLEEP.replace("-q regular", "-q realtime").replace("-t 300", "-t 300 -G 4"))
    try:
        until(lambda: nersc.row("squeue", urgent)["state"] == "RUNNING", 60)
        yield
    finally:
        cancel(nersc, urgent)


@contextmanager
def lost_node(nersc: Nersc, job_id: str) -> Iterator[None]:
    """The job's node is down until the block ends."""
    nodes = nersc.control("node_failure", job_id=job_id).get("nodes")
    try:
        yield
    finally:
        if nodes is not None:
            nersc.control("restore_nodes", nodes=nodes)
