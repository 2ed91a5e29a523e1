"""Windows in which something breaks that no other test here opens: other machines, clocks, names, replies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from facilities.polling import SharedPoller
from facilities.superfacility import operators, submission
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.job_script import SlurmResources, job_script
from facilities.superfacility.slurm import read_rows
from facilities.superfacility.submission import INTENT_KEY, Intent, NotYet, Submission, Submitted
from standin.testing import Facility, until
from support.superfacility import RESOURCES, Task, job_of, submits

REPOSITORY = Path(__file__).resolve().parents[3]

# Another machine: another process, in another folder, that has only what Airflow hands it.
ELSEWHERE = """
import json, sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from support.superfacility import Store, Task

ti, run_after, store, folder, log = json.loads(sys.stdin.read())
task = Task(SimpleNamespace(nersc=Path(folder)))
vars(task.ti).update(ti)
task.dag_run.run_after = datetime.fromisoformat(run_after)
task.store, task.log = Store(store), Path(log)
print("JOB", task.finish(task.submit("sleep 60", script_copy_dir=folder + "/copies")))
"""


def _elsewhere(task: Task, folder: Path) -> str:
    ti = {key: vars(task.ti)[key] for key in ("run_id", "dag_id", "task_id", "map_index", "try_number")}
    path = os.pathsep.join(str(REPOSITORY / name) for name in ("plugins", "include", "tests"))
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=json.dumps([ti, task.dag_run.run_after.isoformat(), task.store, str(folder), str(task.log)]),
        env={**os.environ, "PYTHONPATH": path, "HOME": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("JOB ")]
    assert found, done.stdout + done.stderr
    return found[0]


@pytest.mark.parametrize("kept", ["job id", "intent", "nothing"])
def test_a_task_that_goes_on_on_another_machine_has_one_job(
    nersc: Facility, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    monkeypatch.setattr(operators, "_MIN_WAIT", 0.05)
    first = task.submit("sleep 60")()
    if kept == "job id":
        first.execute(task.context())
    else:
        monkeypatch.setattr(first.hook, "submitted_job", _raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            first.execute(task.context())
    if kept == "nothing":
        task.store.clear()
    task.retry()
    job_id = _elsewhere(task, tmp_path)
    assert [job["job_id"] for job in task.books()] == [job_id]
    assert len(submits(nersc)) == 1


def _raise_interrupt(*_: str, **__: float) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("skew", [-90.0, 0.0, 90.0])
def test_a_job_that_accounting_has_no_name_for_yet_is_waited_for(
    nersc: Facility, task: Task, hook: SuperfacilityHook, skew: float
) -> None:
    """It has begun and ended at once; sacct calls it "allocation", and does not list it among the user's.

    Our clock differs from the facility's.
    """
    nersc.control("nersc", "set", sacct_lag=3.0)
    now = time.time() + skew
    name = task.identity.name(0)
    script = job_script(SlurmResources(**RESOURCES), name, "true\n")
    sent = hook.submit(script, machine="perlmutter")
    job_id = until(lambda: hook.submitted_job(sent))
    until(lambda: not job_of(nersc, job_id)["active"])
    until(lambda: job_id in hook.jobs("perlmutter", [job_id], "sacct"))
    assert hook.jobs("perlmutter", [job_id], "sacct")[job_id].name is None
    assert job_id not in [job.job_id for job in hook.jobs_of_user("perlmutter", "sacct")]

    task.store.set(INTENT_KEY, vars(Intent(0, name, now)))
    submission_ = Submission(
        hook,
        task.identity,
        machine="perlmutter",
        resources=SlurmResources(**RESOURCES),
        body="true",
        before_submit=lambda *_: pytest.fail("submitted a second time"),
        store=task.store,
        clock=lambda: time.time() + skew,
    )
    step = submission_.step()
    assert isinstance(step, NotYet)
    assert step.why == "a submit may be on its way, though no job of its name is listed"
    nersc.control("nersc", "set", sacct_lag=0.0)
    until(lambda: isinstance(submission_.step(), Submitted))
    assert task.store["slurm_job"]["job_id"] == job_id


def test_a_nameless_job_that_accounting_does_list_may_be_the_one(
    hook: SuperfacilityHook, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm 22.05 does not list it among the user's jobs; should another version do so, it counts."""
    zone, now = hook.config.zone, time.time()
    row = {"jobid": "5", "jobname": "allocation", "state": "COMPLETED",
           "submit": datetime.fromtimestamp(now, zone).strftime("%Y-%m-%dT%H:%M:%S")}  # fmt: skip
    listed = {"sacct": read_rows([row], "sacct", zone), "squeue": []}
    monkeypatch.setattr(hook, "jobs_of_user", lambda _machine, origin: listed[origin])
    task.store.set(INTENT_KEY, vars(Intent(0, task.identity.name(0), now - 100, missed_at=now - 90)))
    step = Submission(
        hook,
        task.identity,
        machine="perlmutter",
        resources=SlurmResources(**RESOURCES),
        body="true",
        before_submit=lambda *_: pytest.fail("submitted a second time"),
        store=task.store,
    ).step()
    assert isinstance(step, NotYet)
    assert step.why == "accounting has no name yet for job 5"


@pytest.fixture
def waiting(task: Task, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(submission, "_SOON", 0.1)
    return task


def _submitted(task: Task, script: str) -> str:
    job_id = str(task.finish(task.submit(script)))
    task.retry()
    return job_id


@pytest.mark.parametrize("body", ["{not json", "<html>Bad gateway</html>", "[]", "null", '{"status": "OK"}'])
def test_a_reply_that_is_not_what_it_should_be_is_no_failed_job(
    waiting: Task, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedPoller, "max_backoff", 0.2)
    job_id = _submitted(waiting, "sleep 1")
    malformed = {"kind": "status", "status": 200, "body": body, "times": 2}
    waiting.facility.fault(service="nersc", method="GET", path="/compute/jobs/", **malformed)
    assert waiting.finish(waiting.wait(job_id))["state"] == "COMPLETED"
    assert waiting.facility.faults()[0]["hits"] == 2


def test_tokens_that_expire_again_and_again_while_waiting_are_renewed(waiting: Task) -> None:
    job_id = waiting.submit_held()
    waiting.retry()
    waiting.facility.control("nersc", "revoke_tokens")
    waiting.facility.control("nersc", "set", token_seconds=1.0)
    waiting.facility.clear_requests()

    def asked() -> list[int]:
        requests = waiting.facility.requests("nersc")
        return [one["status"] for one in requests if one["path"].endswith("/token")]

    def let_go_after_three() -> None:
        try:
            until(lambda: len(asked()) >= 3)
        finally:
            waiting.let_go()

    with ThreadPoolExecutor(1) as pool:
        renewed = pool.submit(let_go_after_three)
        assert waiting.finish(waiting.wait(job_id))["state"] == "COMPLETED"
        renewed.result()
    assert set(asked()) == {200}


def test_a_retried_wait_keeps_the_limit_of_the_first_and_a_new_job_has_its_own(waiting: Task) -> None:
    first = waiting.start(waiting.wait("4711", timeout=100.0)).trigger.deadline
    waiting.retry()
    again = waiting.start(waiting.wait("4711", timeout=500.0))
    assert again.trigger.deadline == first
    assert again.timeout.total_seconds() < 401
    assert waiting.start(waiting.wait("4712", timeout=500.0)).trigger.deadline > first + 300
