"""Decides which pending jobs may start, why the others wait, and when they might start. No I/O."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from standin.nersc.options import Options
from standin.nersc.schedulers.job import Job
from standin.nersc.schedulers.policy import MAX_RUNNING, NODES
from standin.nersc.schedulers.rows import HELD
from standin.nersc.schedulers.states import PENDING

MAINTENANCE = "ReqNodeNotAvail, Reserved for maintenance"
NEVER = "DependencyNeverSatisfied"


@dataclass
class Plan:
    """What to start now, and what to report about the rest."""

    start: list[Job] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    expected: dict[int, float] = field(default_factory=dict)


def plan(jobs: list[Job], options: Options, now: float, outage: tuple[float, float] | None) -> Plan:
    """Plan the active jobs, whose dependencies and holds are already noted in them.

    :param outage: begin and end of the next maintenance, or of the one that is going on.
    """
    made = Plan()
    busy = [job for job in jobs if job.state != PENDING or job.completing]
    free = max(options.slots - len(busy), 0)
    running = Counter(job.asked_qos for job in busy)
    waiting = []
    for job in sorted((j for j in jobs if j.state == PENDING), key=lambda j: (-j.priority, j.job_id)):
        reason = _own_reason(job, options, now, outage, running)
        if reason is None and free > len(made.start):
            made.start.append(job)
            running[job.asked_qos] += 1
            continue
        if reason is None:
            reason = "Resources" if "Resources" not in made.reasons.values() else "Priority"
        made.reasons[job.job_id] = reason
        if job.hold == "" and job.eligible is not None:
            waiting.append(job)
    _estimate(made, busy, waiting, options=options, now=now, outage=outage)
    return made


def _own_reason(
    job: Job, options: Options, now: float, outage: tuple[float, float] | None, running: Counter[str]
) -> str | None:
    """Why a job could not start even on an empty machine."""
    reasons = (
        (bool(job.hold), HELD.get(job.hold, "")),
        (job.reason == NEVER, NEVER),
        (job.eligible is None, "Dependency"),
        (job.eligible is not None and job.eligible > now, "BeginTime"),
        (job.completing, "BeginTime"),  # what is left of its last run has to go first
        (job.nodes > NODES["cpu"], "PartitionConfig"),
        (_in_the_way(job, options, now, outage), MAINTENANCE),
        (
            running[job.asked_qos] >= MAX_RUNNING.get(job.asked_qos, options.slots + 1),
            "QOSMaxJobsPerUserLimit",
        ),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _in_the_way(job: Job, options: Options, begin: float, outage: tuple[float, float] | None) -> bool:
    return outage is not None and begin < outage[1] and begin + options.real(job.time_limit) > outage[0]


def _estimate(
    made: Plan,
    busy: list[Job],
    waiting: list[Job],
    *,
    options: Options,
    now: float,
    outage: tuple[float, float] | None,
) -> None:
    """When waiting jobs would start if every job took all of its time."""
    if options.slots == 0:
        return
    ends = [max((job.start or now) + options.real(job.time_limit), now) for job in busy]
    ends += [now + options.real(job.time_limit) for job in made.start]
    free_at = sorted([*ends, *[now] * max(options.slots - len(ends), 0)])[-options.slots :]
    heapq.heapify(free_at)
    for job in waiting:
        begin = max(heapq.heappop(free_at), job.eligible or now, now)
        if _in_the_way(job, options, begin, outage) and outage is not None:
            begin = outage[1]
        made.expected[job.job_id] = begin
        heapq.heappush(free_at, begin + options.real(job.time_limit))


def dependency_state(job: Job, lookup: Callable[[str], Job | None], same_name: Callable[[Job], bool]) -> str:
    """Whether a job's dependency is "met", still "waiting", or can "never" be met.

    :param same_name: whether an earlier unfinished job of the same user has the same name.
    """
    verdicts = set()
    for clause in filter(None, job.dependency.split(",")):
        kind, *ids = clause.split(":")
        if kind == "singleton":
            verdicts.add("waiting" if same_name(job) else "met")
        verdicts.update(_verdict(kind, lookup(job_id)) for job_id in ids)
    return next((verdict for verdict in ("never", "waiting") if verdict in verdicts), "met")


def _verdict(kind: str, other: Job | None) -> str:
    if other is None:  # unknown to the controller: it drops the dependency
        return "met"
    if kind == "after":
        return "met" if other.start is not None or other.ended else "waiting"
    if not other.ended:
        return "waiting"
    if kind == "afterany":
        return "met"
    return "met" if (other.state == "COMPLETED") == (kind == "afterok") else "never"
