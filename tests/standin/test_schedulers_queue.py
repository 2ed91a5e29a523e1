"""The order of the queue, the reasons and the estimates. No processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standin.nersc.options import Options
from standin.nersc.schedulers.interface import Submission
from standin.nersc.schedulers.job import Job
from standin.nersc.schedulers.policy import Site, make_job
from standin.nersc.schedulers.queue import MAINTENANCE, NEVER, dependency_state, plan

NOW = 1_800_000_000.0


def job(job_id: int, qos: str = "regular", hours: float = 1.0, **changes: Any) -> Job:
    """A job that has waited since NOW."""
    text = f"#!/bin/sh\n#SBATCH -C gpu -q {qos} -t {int(hours * 60)} -J job{job_id}\n"
    made = make_job(Submission("r", text), Site(Options(), Path("/home"), lambda _qos: 0))
    values = {"job_id": job_id, "eligible": NOW, "submit": NOW, **changes}
    for name, value in values.items():
        setattr(made, name, value)
    return made


def running(job_id: int, **changes: Any) -> Job:
    """A job that has run since NOW."""
    return job(job_id, **{"state": "RUNNING", "start": NOW, **changes})


def test_slots_are_filled_by_priority_and_then_by_age() -> None:
    jobs = [job(1), job(2, "realtime"), job(3), job(4, "preempt")]
    planned = plan(jobs, Options(slots=2), NOW, None)
    assert [j.job_id for j in planned.start] == [2, 1]
    assert planned.reasons == {3: "Resources", 4: "Priority"}


def test_reasons_of_jobs_that_could_not_start_anyway() -> None:
    jobs = [
        job(1, hold="user", eligible=None), job(2, hold="admin", eligible=None), job(3, eligible=None),
        job(4, eligible=None, reason=NEVER), job(5, eligible=NOW + 60), job(6, nodes=5000),
        job(7, completing=True),
    ]  # fmt: skip
    planned = plan(jobs, Options(slots=9), NOW, None)
    assert planned.start == []
    assert planned.reasons == {
        1: "JobHeldUser", 2: "JobHeldAdmin", 3: "Dependency", 4: NEVER, 5: "BeginTime", 6: "PartitionConfig",
        7: "BeginTime",
    }  # fmt: skip


def test_debug_runs_two_at_once_and_lets_others_pass() -> None:
    planned = plan([job(n, "debug", 0.1) for n in range(1, 5)] + [job(5)], Options(slots=4), NOW, None)
    assert [j.job_id for j in planned.start] == [1, 2, 5]
    assert planned.reasons == {3: "QOSMaxJobsPerUserLimit", 4: "QOSMaxJobsPerUserLimit"}


def test_no_job_runs_into_a_maintenance() -> None:
    outage = (NOW + 1800, NOW + 7200)
    planned = plan([job(1, hours=1), job(2, hours=0.4)], Options(slots=2), NOW, outage)
    assert [j.job_id for j in planned.start] == [2]
    assert planned.reasons == {1: MAINTENANCE}
    assert planned.expected[1] == outage[1]
    during = plan([job(1, hours=0.1)], Options(slots=2), NOW + 2000, outage)
    assert during.reasons == {1: MAINTENANCE}
    assert [j.job_id for j in plan([job(1)], Options(), outage[1], outage).start] == [1]


def test_start_estimates_follow_the_limits_of_running_jobs() -> None:
    jobs = [running(1, hours=2.0), running(2, hours=1.0), job(3), job(4), job(5)]
    planned = plan(jobs, Options(slots=2), NOW, None)
    assert planned.expected == {3: NOW + 3600, 4: NOW + 7200, 5: NOW + 7200}
    assert plan(jobs, Options(slots=0), NOW, None).expected == {}


def test_a_job_whose_processes_still_go_keeps_its_slot() -> None:
    ended = job(1, state="CANCELLED", completing=True, start=NOW, end=NOW)
    assert plan([ended, job(2)], Options(slots=1), NOW, None).start == []


@pytest.mark.parametrize(
    ("dependency", "other", "verdict"),
    [
        ("afterok:9", {"state": "COMPLETED"}, "met"),
        ("afterok:9", {"state": "FAILED"}, "never"),
        ("afterok:9", {"state": "CANCELLED"}, "never"),
        ("afterok:9", {"state": "RUNNING"}, "waiting"),
        ("afternotok:9", {"state": "COMPLETED"}, "never"),
        ("afternotok:9", {"state": "TIMEOUT"}, "met"),
        ("afterany:9", {"state": "FAILED"}, "met"),
        ("afterany:9", {"state": "PENDING"}, "waiting"),
        ("after:9", {"state": "PENDING"}, "waiting"),
        ("after:9", {"state": "RUNNING", "start": NOW}, "met"),
        ("afterok:9,singleton", {"state": "COMPLETED"}, "waiting"),
        ("afterok:9:8", {"state": "COMPLETED"}, "met"),
        ("", {}, "met"),
    ],
)
def test_dependencies(dependency: str, other: dict[str, Any], verdict: str) -> None:
    known = {"9": job(9, **other)}  # 8 is unknown to the controller, which drops it
    assert dependency_state(job(10, dependency=dependency), known.get, lambda _job: True) == verdict


_QOS = st.sampled_from(["regular", "debug", "realtime", "preempt"])
_STATES = st.sampled_from(["PENDING", "RUNNING", "SUSPENDED", "CONFIGURING"])


@given(st.lists(st.tuples(_QOS, _STATES, st.booleans(), st.booleans()), max_size=12), st.integers(0, 5))
def test_whatever_the_queue_holds(queue: list[tuple[str, str, bool, bool]], slots: int) -> None:
    jobs = [
        job(n, qos, 0.5, state=state, hold="user" if held else "", eligible=None if held or blocked else NOW,
            start=None if state == "PENDING" else NOW)
        for n, (qos, state, held, blocked) in enumerate(queue, start=1)
    ]  # fmt: skip
    planned = plan(jobs, Options(slots=slots), NOW, None)
    pending = {j.job_id for j in jobs if j.state == "PENDING"}
    started = {j.job_id for j in planned.start}
    assert started | set(planned.reasons) == pending
    assert not started & set(planned.reasons)
    assert len(started) <= max(slots - (len(jobs) - len(pending)), 0)
    assert all(not j.hold and j.eligible is not None for j in planned.start)
    assert all(when >= NOW for when in planned.expected.values())
    free = slots - (len(jobs) - len(pending)) - len(started)
    assert free <= 0 or not {"Resources", "Priority"} & set(planned.reasons.values())
