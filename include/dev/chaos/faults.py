"""The faults, by kind. A seed decides which comes next; what it hits depends on the moment."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dev.chaos.kills import Kills
from dev.chaos.people import People
from dev.chaos.rules import Rules
from dev.chaos.system import System

GLOBUS_PATHS = ("/transfer$", "/submission_id", "/task_list", "/task/", "/stat", "/oauth2/token", ".*")
NERSC_PATHS = ("/compute/jobs", "/tasks/", "/utilities/", "/c2id/token", "/status", ".*")
SUBMITS = (("globus", "/transfer$"), ("nersc", "/compute/jobs/[^/]+$"))
STATUSES = (429, 500, 502, 503, 504)
SPOILED_AT_MOST = 3  # jobs of a scan: the bundle submits a job again three times, and no more


@dataclass
class Fault:
    """One fault that has happened, or (a rule that no request has met yet) may still happen.

    :param under_way: run ids of the scans that it may have hit.
    """

    kind: str
    said: str
    under_way: frozenset[str] = frozenset()
    rule: int | None = None
    happened: bool = True


@dataclass
class Switches:
    """What faults act on; each method does one and says what, or None when there is nothing to act on."""

    system: System
    draw: random.Random
    kills: Kills
    rules: Rules
    people: People
    spoiled: dict[str, str] = field(default_factory=dict)  # jobs that a fault has ended for good, with names
    _restores: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    def tend(self, *, all_of_them: bool = False) -> None:
        """Take back what has lasted its time (or everything)."""
        now = time.monotonic()
        due = [restore for at, restore in self._restores if all_of_them or at <= now]
        self._restores = [] if all_of_them else [pair for pair in self._restores if pair[0] > now]
        for restore in due:
            restore()

    # HTTP

    def globus_request(self) -> str | None:
        """One to three requests to Globus go wrong."""
        return self._request("globus", GLOBUS_PATHS)

    def nersc_request(self) -> str | None:
        """One to three requests to NERSC go wrong."""
        return self._request("nersc", NERSC_PATHS)

    def lost_submit(self) -> str | None:
        """The next submit goes wrong: not acted on, or acted on and its reply lost, or no reply for long."""
        service, path = self.draw.choice(SUBMITS)
        kind = self.draw.choice(("drop_reply", "drop_reply", "reset", "truncate", "drop_before", "delay"))
        spec: dict[str, Any] = {"kind": kind, "times": 1, "act": kind == "reset" and self.draw.random() < 0.5}
        if kind == "delay":
            spec["delay"] = 32.0  # longer than the client waits; the submit is acted on all the same
        return self.rules.add(service=service, method="POST", path=path, **spec)

    def _request(self, service: str, paths: tuple[str, ...]) -> str | None:
        kind = self.draw.choice(("delay", "status", "drop_before", "drop_reply", "reset", "truncate"))
        spec: dict[str, Any] = {
            "path": self.draw.choice(paths),
            "kind": kind,
            "times": self.draw.randint(1, 3),
        }
        if kind == "status":
            spec["status"] = self.draw.choice(STATUSES)
        if kind == "delay":
            spec["delay"] = round(self.draw.uniform(0.5, 10), 1)
        return self.rules.add(service=service, **spec)

    # The facilities

    def kill_facility(self) -> str | None:
        """Both services go away and come back with their books, and the rules of faults with them."""
        self.rules.look()
        self.system.facility.kill()
        self.system.facility.restart()
        self.rules.lay_again()
        return "killed the facility"

    def revoke_tokens(self) -> str | None:
        """All access tokens are invalid; new ones can be had."""
        service = self.draw.choice(("globus", "nersc"))
        self.system.facility.control(service, "revoke_tokens")
        return f"revoked the tokens of {service}"

    def sacct_lag(self) -> str | None:
        """Accounting is late by up to fifteen seconds."""
        seconds = round(self.draw.uniform(0, 15), 1)
        self.system.facility.control("nersc", "set", sacct_lag=seconds)
        return f"sacct lags {seconds} s"

    def api_down(self) -> str | None:
        """The whole Superfacility API answers 503 for a while."""
        seconds = round(self.draw.uniform(1, 10), 1)
        self.system.facility.control("nersc", "api_down", seconds=seconds)
        return f"Superfacility API down for {seconds} s"

    def maintenance(self) -> str | None:
        """Perlmutter is in maintenance for a while; nobody has announced it."""
        seconds = round(self.draw.uniform(2, 12), 1)
        self.system.facility.control("nersc", "maintenance", seconds=seconds, announced=False)
        return f"Perlmutter in maintenance for {seconds} s"

    def endpoint_down(self) -> str | None:
        """A collection's endpoint is away for a while."""
        seconds = round(self.draw.uniform(2, 10), 1)
        collection = self.draw.choice(("data7012", "nersc7012"))
        condition = self.draw.choice(("gc_not_connected", "endpoint_error"))
        facility = self.system.facility
        facility.control("globus", "endpoint", collection=collection, condition=condition)
        restore = lambda: facility.control("globus", "endpoint", collection=collection, condition="up")  # noqa: E731
        self._restores.append((time.monotonic() + seconds, restore))
        return f"{condition} at {collection} for {seconds} s"

    def node_failure(self) -> str | None:
        """The node of a running job fails; Slurm starts the job again, or does not."""
        return self._spoil("node_failure")

    def preemption(self) -> str | None:
        """A running job is preempted, with or without requeue."""
        return self._spoil("preempt")

    def _spoil(self, verb: str) -> str | None:
        requeue = self.draw.random() < 0.5
        names = list(self.spoiled.values())
        running = [
            job
            for job in self.system.facility.jobs()
            if job["state"] == "RUNNING" and _stems(names).count(_stem(job["name"])) < SPOILED_AT_MOST
        ]
        if not running:
            return None
        job = self.draw.choice(running)
        try:
            self.system.facility.control("nersc", verb, job_id=job["job_id"], requeue=requeue)
        except RuntimeError:  # it has ended in the meantime
            return None
        if not requeue:
            self.spoiled[job["job_id"]] = job["name"]
        return f"{verb} of job {job['job_id']}, which Slurm {'starts again' if requeue else 'leaves'}"


@dataclass(frozen=True)
class Kind:
    """A kind of fault: its name in the table, how often it is drawn, what it does."""

    name: str
    weight: float
    act: Callable[[Switches], str | None]


KINDS = (
    Kind("Globus request", 24, Switches.globus_request),
    Kind("NERSC request", 30, Switches.nersc_request),
    Kind("lost submit", 14, Switches.lost_submit),
    Kind("revoked tokens", 4, Switches.revoke_tokens),
    Kind("sacct lag", 4, Switches.sacct_lag),
    Kind("API down", 2, Switches.api_down),
    Kind("maintenance", 1.5, Switches.maintenance),
    Kind("endpoint down", 2, Switches.endpoint_down),
    Kind("node failure", 4, Switches.node_failure),
    Kind("preemption", 4, Switches.preemption),
    Kind("kill facility", 2.5, Switches.kill_facility),
    Kind("kill task process", 3, lambda switches: switches.kills.task_process()),
    Kind("kill in a submit", 3, lambda switches: switches.kills.lie_in_wait(switches.rules, SUBMITS)),
    Kind("kill triggerer", 1, lambda switches: switches.kills.component("triggerer")),
    Kind("kill scheduler", 1.2, lambda switches: switches.kills.component("scheduler")),
    Kind("kill API server", 1.2, lambda switches: switches.kills.component("api-server")),
    Kind("a person ends a run", 0.7, lambda switches: switches.people.end_a_run()),
    Kind("a person clears a job", 1, lambda switches: switches.people.clear_the_job()),
    Kind("kill DAG processor", 0.6, lambda switches: switches.kills.component("dag-processor")),
)


def _stem(job_name: str) -> str:
    """Job names end in a hash and a number; the rest is the scan's."""
    return job_name.rsplit("-", 2)[0]


def _stems(names: list[str]) -> list[str]:
    return [_stem(name) for name in names]
