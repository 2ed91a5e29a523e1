"""The faults, by kind. Which one comes next is drawn from a seed; what it hits depends on the moment."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facility.testing import SpawnedFacility
from local_airflow.stack import LocalAirflow

GLOBUS_PATHS = ("/transfer$", "/submission_id", "/task_list", "/task/", "/stat", "/oauth2/token", ".*")
NERSC_PATHS = ("/compute/jobs", "/tasks/", "/utilities/", "/c2id/token", "/status", ".*")
STATUSES = (429, 500, 502, 503, 504)


class Switches:
    """What faults act on."""

    def __init__(self, airflow: LocalAirflow, facility: SpawnedFacility, random_: random.Random) -> None:
        self.airflow = airflow
        self.facility = facility
        self.random = random_
        self.spoiled_jobs: set[str] = set()  # jobs that a fault has ended: not the orchestration's doing

    # Airflow's processes

    def kill_scheduler(self) -> str:
        """And with it all workers: LocalExecutor's are its children."""
        return self._kill("scheduler")

    def kill_triggerer(self) -> str:
        """The triggers are taken up by the next one."""
        return self._kill("triggerer")

    def kill_dag_processor(self) -> str:
        """No DAG is read while it is away."""
        return self._kill("dag-processor")

    def kill_api_server(self) -> str:
        """Running tasks cannot report while it is away."""
        return self._kill("api-server")

    def kill_worker(self) -> str:
        """One process below the scheduler: a worker, a supervisor or a task."""
        below = _descendants(self.airflow.processes["scheduler"].pid)
        if not below:
            return "no worker to kill"
        pid = self.random.choice(sorted(below))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return f"killed process {pid} below the scheduler"

    def _kill(self, component: str) -> str:
        self.airflow.kill(component)
        self.airflow.start(component)
        return f"killed {component}"

    # The facilities

    def kill_facility(self) -> str:
        """Both services go away and come back with their books."""
        self.facility.kill()
        self.facility.restart()
        return "killed the facility"

    def globus_request(self) -> str:
        """One to three requests to Globus go wrong."""
        return self._request("globus", GLOBUS_PATHS)

    def nersc_request(self) -> str:
        """One to three requests to NERSC go wrong."""
        return self._request("nersc", NERSC_PATHS)

    def lost_submit(self) -> str:
        """The next submit is acted on, and its reply is lost."""
        service, path = self.random.choice((("globus", "/transfer$"), ("nersc", "/compute/jobs/[^/]+$")))
        kind = self.random.choice(("drop_reply", "reset", "truncate", "drop_before"))
        self.facility.fault(service=service, method="POST", path=path, kind=kind, times=1)
        return f"{kind} of the next submit to {service}"

    def revoke_tokens(self) -> str:
        """All access tokens are invalid; new ones can be had."""
        service = self.random.choice(("globus", "nersc"))
        self.facility.control(service, "revoke_tokens")
        return f"revoked the tokens of {service}"

    def sacct_lag(self) -> str:
        """Accounting is late by up to ten seconds."""
        seconds = round(self.random.uniform(0, 10), 1)
        self.facility.control("nersc", "set", sacct_lag=seconds)
        return f"sacct lags {seconds} s"

    def api_down(self) -> str:
        """The whole Superfacility API answers 503 for a while."""
        seconds = round(self.random.uniform(1, 8), 1)
        self.facility.control("nersc", "api_down", seconds=seconds)
        return f"Superfacility API down for {seconds} s"

    def node_failure(self) -> str:
        """The node of a running job fails; Slurm does not start the job again by itself."""
        return self._spoil("node_failure")

    def preemption(self) -> str:
        """A running job is preempted for good."""
        return self._spoil("preempt")

    def _spoil(self, verb: str) -> str:
        running = [job for job in self.facility.jobs() if job["state"] == "RUNNING"]
        if not running:
            return "no running job"
        job_id = self.random.choice(running)["job_id"]
        try:
            self.facility.control("nersc", verb, job_id=job_id)
        except RuntimeError as error:  # it has ended in the meantime
            return str(error)[:80]
        self.spoiled_jobs.add(job_id)
        return f"{verb} of job {job_id}"

    def _request(self, service: str, paths: tuple[str, ...]) -> str:
        kind = self.random.choice(("delay", "status", "drop_before", "drop_reply", "reset", "truncate"))
        spec: dict[str, Any] = {
            "service": service,
            "path": self.random.choice(paths),
            "kind": kind,
            "times": self.random.randint(1, 3),
        }
        if kind == "status":
            spec["status"] = self.random.choice(STATUSES)
        if kind == "delay":
            spec["delay"] = round(self.random.uniform(0.5, 12), 1)
        self.facility.fault(**spec)
        return f"{kind} for {spec['times']} request(s) to {service}{spec['path']}"


@dataclass(frozen=True)
class Kind:
    """A kind of fault: its name in the table, how often it is drawn, what it does."""

    name: str
    weight: float
    act: Callable[[Switches], str]


KINDS = (
    Kind("Globus request", 24, Switches.globus_request),
    Kind("NERSC request", 30, Switches.nersc_request),
    Kind("lost submit", 12, Switches.lost_submit),
    Kind("revoked tokens", 4, Switches.revoke_tokens),
    Kind("sacct lag", 5, Switches.sacct_lag),
    Kind("API down", 3, Switches.api_down),
    Kind("node failure", 4, Switches.node_failure),
    Kind("preemption", 4, Switches.preemption),
    Kind("kill worker process", 6, Switches.kill_worker),
    Kind("kill triggerer", 2, Switches.kill_triggerer),
    Kind("kill scheduler", 1.5, Switches.kill_scheduler),
    Kind("kill API server", 1.5, Switches.kill_api_server),
    Kind("kill DAG processor", 1, Switches.kill_dag_processor),
    Kind("kill facility", 3, Switches.kill_facility),
)


def _descendants(pid: int) -> set[int]:
    """Ids of all processes below `pid`, from /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            parents.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found.update(children)
        waiting += children
    return found
