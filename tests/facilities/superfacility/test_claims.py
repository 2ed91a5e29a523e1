"""A submit that arrives when everybody has given it up: one job does the work, and all wait for that one."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facilities.errors import UserError
from facilities.superfacility import claims, operators, own_jobs, submission, triggers
from facilities.superfacility.claims import EXIT_CODE, Claim
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.job_script import SlurmResources, job_script
from standin.testing import Facility, until
from support.superfacility import RESOURCES, Task, submits

HOLD: dict[str, Any] = {
    "service": "nersc",
    "method": "POST",
    "path": "/compute/jobs/",
    "kind": "hold",
    "times": 1,
}
TASK = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_MIN_WAIT", 0.05)
    monkeypatch.setattr(submission, "_SOON", 0.1)


def _work(task: Task) -> str:
    """A job that leaves a line each time it does something."""
    return f'echo "$SLURM_JOB_ID" >> {task.log}.work'


def _worked(task: Task) -> list[str]:
    """Ids of the jobs that did something."""
    return Path(f"{task.log}.work").read_text().split()


def _arrived(task: Task) -> list[dict[str, Any]]:
    """Both jobs, once they have ended."""
    until(lambda: len(task.books()) == 2)
    return until(lambda: [job for job in task.books() if not job["active"]][1:]) and task.books()


def _refused(task: Task) -> list[str]:
    return [job["job_id"] for job in task.books() if job["exit_code"] == f"{EXIT_CODE}:0"]


def test_a_submit_that_arrives_after_the_second_ones_job_has_ended(nersc: Facility, task: Task) -> None:
    nersc.fault(**HOLD)
    job_id = task.finish(task.submit(_work(task)))
    result = task.finish(task.wait(job_id))
    assert len(submits(nersc)) == 2
    nersc.clear_faults()
    _arrived(task)
    assert _worked(task) == [job_id] == [result["job_id"]]
    (late,) = _refused(task)
    assert f"Job {late} did nothing: job {job_id} does this task's work" in task.log.read_text()


def test_a_submit_that_arrives_while_the_second_ones_job_runs(nersc: Facility, task: Task) -> None:
    nersc.fault(**HOLD)
    held = f"{_work(task)}; until [ -e {task.log}.go ]; do sleep 0.05; done"
    job_id = task.finish(task.submit(held))
    until(lambda: Path(f"{task.log}.work").exists())
    nersc.clear_faults()
    until(lambda: len(task.books()) == 2)
    late = next(job for job in task.books() if job["job_id"] != job_id)
    assert late["state"] == "PENDING", "Slurm keeps two of a name from running side by side"
    task.let_go()
    _arrived(task)
    assert _worked(task) == [job_id]
    assert _refused(task) == [late["job_id"]]


def test_a_submit_that_arrives_before_the_second_one_is_the_one_that_is_waited_for(
    nersc: Facility, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last look did not show it: it was on its way, or accounting was late."""
    nersc.fault(**HOLD)
    monkeypatch.setattr(own_jobs.OwnJobs, "living", lambda _: None)
    monkeypatch.setattr(own_jobs.OwnJobs, "ended", lambda *_: None)
    make = task.submit(_work(task))
    real = SuperfacilityHook.submit

    def arrive_first(hook: SuperfacilityHook, script: str, *, machine: str) -> str:
        if len(submits(nersc)) == 1:
            nersc.clear_faults()
            until(lambda: [job for job in task.books() if not job["active"]])
        return real(hook, script, machine=machine)

    monkeypatch.setattr(SuperfacilityHook, "submit", arrive_first)
    job_id = task.finish(make)
    first = next(job["job_id"] for job in task.books() if job["job_id"] != job_id)
    result = task.finish(_sensor(task, job_id))
    assert result["job_id"] == first
    assert _worked(task) == [first]
    assert _refused(task) == [job_id]
    assert task.finish(make) == first, "a cleared submit task returns the job that did the work"
    assert len(task.books()) == 2


def _sensor(task: Task, job_id: str) -> Any:
    """The sensor of the submit task."""
    task.pulled["job"] = task.ti.xcoms["job"]
    make = task.wait(job_id)

    def made() -> Any:
        sensor = make()
        sensor._submit_task = task.ti.task_id
        return sensor

    return made


def test_a_claim_that_failed_passes_to_the_job_that_follows(task: Task, hook: SuperfacilityHook) -> None:
    first = task.finish(task.submit(f"{_work(task)}; exit 3"))
    until(lambda: not task.books()[0]["active"])
    task.clear()
    second = task.finish(task.submit(_work(task)))
    assert task.finish(task.wait(second))["state"] == "COMPLETED"
    assert _worked(task) == [first, second]
    assert claims.owner(hook, "perlmutter", task.identity.digest) == second


def test_a_late_submit_of_a_task_whose_job_failed_does_not_run_beside_its_successor(
    nersc: Facility, task: Task
) -> None:
    nersc.fault(**HOLD)
    first = task.finish(task.submit(f"{_work(task)}; exit 3"))
    until(lambda: not [job for job in task.books() if job["active"]])
    task.clear()
    second = task.finish(task.submit(_work(task)))
    task.finish(task.wait(second))
    nersc.clear_faults()
    until(lambda: len(task.books()) == 3)
    until(lambda: not [job for job in task.books() if job["active"]])
    assert _worked(task) == [first, second]
    assert len(_refused(task)) == 1


def test_a_program_that_ends_with_the_same_code_has_failed(nersc: Facility, task: Task) -> None:
    job_id = task.finish(task.submit(f"echo out of frames >&2; exit {EXIT_CODE}"))
    with pytest.raises(UserError, match="ended as FAILED"):
        task.finish(_sensor(task, job_id))
    task.clear()
    assert task.finish(task.submit("true")) != job_id


def test_a_job_that_slurm_starts_again_keeps_its_claim(nersc: Facility, task: Task) -> None:
    nersc.control("nersc", "set", requeue_delay=0.1)
    once = f"{_work(task)}; [ -e {task.log}.go ] || sleep 600"
    job_id = task.finish(task.submit(once))
    until(lambda: Path(f"{task.log}.work").exists())
    task.let_go()
    nersc.control("nersc", "preempt", job_id=job_id, requeue=True)
    assert task.finish(task.wait(job_id))["state"] == "COMPLETED"
    assert _worked(task) == [job_id, job_id]


def test_a_run_that_was_deleted_and_posted_again_is_processed_again(nersc: Facility, task: Task) -> None:
    first = task.finish(task.submit(_work(task)))
    task.finish(task.wait(first))
    again = Task(nersc)
    again.ti.run_id, again.log = task.ti.run_id, task.log
    second = again.finish(again.submit(_work(task)))
    again.finish(again.wait(second))
    assert _worked(task) == [first, second]


def test_all_jobs_of_an_ended_task_are_cancelled(nersc: Facility, task: Task) -> None:
    nersc.fault(**HOLD)
    operator = task.submit("sleep 600")()
    job_id = task.finish(lambda: operator)
    nersc.clear_faults()
    until(lambda: len(task.books()) == 2)
    cancelled = triggers.cancel_jobs_of(operator.hook, "perlmutter", task.identity)
    assert cancelled.done
    assert len(cancelled.note.splitlines()) == 2
    assert f"Job {job_id} was cancelled" in cancelled.note
    until(lambda: not [job for job in task.books() if job["active"]])


# The script alone


def _run(home: Path, job_id: int, claim: Claim, *, shell: str = "/bin/bash") -> int:
    resources = SlurmResources(**RESOURCES)
    body = f'#!{shell}\nset -eu\necho "$SLURM_JOB_ID" >> "$HOME/work"\n'
    script = job_script(resources, "job", body, claim=claim)
    environment = {"HOME": str(home), "SLURM_JOB_ID": str(job_id), "PATH": os.environ["PATH"]}
    return subprocess.run([shell], input=script, text=True, env=environment, check=False).returncode


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh"])
def test_of_many_jobs_at_once_one_does_the_work(tmp_path: Path, shell: str) -> None:
    with ThreadPoolExecutor(20) as pool:
        codes = list(pool.map(lambda number: _run(tmp_path, number, Claim(TASK), shell=shell), range(1, 41)))
    assert sorted(codes) == [0] + [EXIT_CODE] * 39
    assert (tmp_path / "work").read_text().split() == [str(codes.index(0) + 1)]


@settings(max_examples=25, deadline=None)
@given(jobs=st.lists(st.tuples(st.integers(1, 4), st.frozensets(st.integers(1, 4))), min_size=1, max_size=8))
def test_the_claim_goes_only_from_a_job_to_one_that_knows_it_as_failed(
    tmp_path_factory: pytest.TempPathFactory, jobs: list[tuple[int, frozenset[int]]]
) -> None:
    home = tmp_path_factory.mktemp("home")
    owner: int | None = None
    for job_id, failed in jobs:
        code = _run(home, job_id, Claim(TASK, tuple(str(number) for number in sorted(failed))))
        if owner in (None, job_id) or owner in failed:
            assert code == 0
            owner = job_id
        else:
            assert code == EXIT_CODE


def test_a_job_that_can_claim_nothing_does_nothing_and_says_so(tmp_path: Path) -> None:
    (tmp_path / ".job_claims").write_text("in the way")
    assert _run(tmp_path, 1, Claim(TASK)) == 1
    assert not (tmp_path / "work").exists()


def test_old_claims_go(tmp_path: Path) -> None:
    old = tmp_path / ".job_claims" / "fedcba9876543210"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    assert _run(tmp_path, 1, Claim(TASK)) == 0
    assert [path.name for path in (tmp_path / ".job_claims").iterdir()] == [TASK]


@pytest.mark.parametrize(
    ("first", "right"),
    [
        ("#!/bin/sh", True),
        ("#!/bin/bash -l", True),
        ("#!/usr/bin/env bash", True),
        ("#! /usr/bin/env -S bash -l", True),
        ("#!/usr/bin/python3", False),
        ("#!/bin/csh", False),
        ("#!/usr/bin/env python3", False),
    ],
)
def test_a_script_for_another_program_is_refused(first: str, right: bool) -> None:
    if right:
        claims.require_sh(first)
        return
    with pytest.raises(UserError, match="not for sh or bash"):
        claims.require_sh(first)


@pytest.mark.parametrize("wrong", [("../x",), (TASK, ("1 2",)), (TASK, ("$(x)",))])
def test_nothing_else_gets_into_a_claim(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="Not"):
        Claim(*wrong)
