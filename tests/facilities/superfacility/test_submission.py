"""One task, one job: every window in which a submit can break."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from facilities.errors import CredentialsError, UserError
from facilities.superfacility import operators, submission
from facilities.superfacility.claims import Claim
from facilities.superfacility.files import CommandResult
from facilities.superfacility.job_script import SlurmResources
from facilities.superfacility.own_jobs import JobIdentity
from facilities.superfacility.submission import INTENT_KEY, JOB_KEY, Submission
from standin.testing import Facility, until
from support.globus import first_event
from support.superfacility import RESOURCES, Logged, Task, eventually, job_of, submits

SUBMIT = {"service": "nersc", "method": "POST", "path": "/compute/jobs/"}
LONG = "sleep 60"
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --account=als_g
#SBATCH --qos=regular
#SBATCH --constraint=gpu
#SBATCH --time=01:00:00
#SBATCH --nodes=1
#SBATCH --gpus=1
#SBATCH --output={log}
#SBATCH --comment={mark}
#SBATCH --dependency=singleton

{claim}
echo reconstructed
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_MIN_WAIT", 0.05)
    monkeypatch.setattr(submission, "_SOON", 0.1)


def _one_run(task: Task) -> None:
    assert [(job["state"], job["runs"]) for job in task.books()] == [("COMPLETED", 1)]


def test_a_first_try_submits_once_and_says_where(nersc: Facility, task: Task) -> None:
    job_id = task.finish(task.submit())
    assert task.ti.xcoms["job"] == {
        "job_id": job_id,
        "name": task.identity.name(0),
        "machine": "perlmutter",
        "new": True,
        "stdout": str(task.log),
        "stderr": str(task.log),
        "url": task.ti.xcoms["_link_SlurmJobLink"],
        "script_copy": None,
        "resources": {**RESOURCES, "nodes": 1, "output": str(task.log)},
        "body": "echo reconstructed",
    }
    assert task.ti.xcoms["_link_SlurmJobLink"].startswith("https://iris.nersc.gov/user/")
    assert INTENT_KEY not in task.store
    assert len(submits(nersc)) == 1
    until(lambda: job_of(nersc, job_id)["state"] == "COMPLETED")
    assert task.log.read_text() == "reconstructed\n"


@pytest.mark.parametrize("fault", ["drop_reply", "truncate"])
def test_a_reply_lost_after_nersc_acted_does_not_submit_again(
    nersc: Facility, task: Task, fault: str
) -> None:
    nersc.fault(kind=fault, times=1, **SUBMIT)
    job_id = task.finish(task.submit(LONG))
    assert [job["job_id"] for job in task.books()] == [job_id]
    assert len(submits(nersc)) == 1
    assert len(task.deferrals) == 1


@pytest.mark.parametrize("script", ["true", "exit 3", LONG])
def test_a_lost_reply_of_a_job_that_may_have_ended(nersc: Facility, task: Task, script: str) -> None:
    nersc.control("nersc", "set", sacct_lag=0.4)
    nersc.fault(kind="drop_reply", times=1, **SUBMIT)
    job_id = task.finish(task.submit(script, settle=2.0))
    assert [job["job_id"] for job in task.books()] == [job_id]


@pytest.mark.parametrize("fault", [{"kind": "drop_before"}, {"kind": "status", "status": 502}])
def test_a_submit_that_never_arrived_is_sent_again_after_the_lists_settled(
    nersc: Facility, task: Task, fault: dict[str, Any]
) -> None:
    nersc.fault(times=1, **fault, **SUBMIT)
    began = time.monotonic()
    job_id = task.finish(task.submit(LONG))
    assert time.monotonic() - began >= 0.5
    assert [job["job_id"] for job in task.books()] == [job_id]
    assert len(submits(nersc)) == 2


def test_a_submit_that_was_surely_not_taken_is_not_doubted(nersc: Facility, task: Task) -> None:
    nersc.fault(kind="status", status=429, retry_after=0.1, times=1, **SUBMIT)
    first = task.start(task.submit(LONG))
    assert isinstance(first, TaskDeferred)
    assert INTENT_KEY not in task.store


def test_an_expired_token_is_renewed_and_the_submit_sent_once_more(nersc: Facility, task: Task) -> None:
    operator = task.submit(LONG)()
    assert operator.hook.user
    nersc.control("nersc", "revoke_tokens")
    operator.execute(task.context())
    assert [one["status"] for one in submits(nersc)][-1] == 200
    assert len(task.books()) == 1


def test_a_worker_killed_between_answer_and_saved_id(
    nersc: Facility, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = task.submit(LONG)()

    def die(*_: str, **__: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(killed.hook, "submitted_job", die)
    with pytest.raises(KeyboardInterrupt):
        killed.execute(task.context())
    assert task.store[INTENT_KEY]["task_id"]
    task.retry()
    job_id = task.finish(task.submit(LONG))
    assert [job["job_id"] for job in task.books()] == [job_id]
    assert len(submits(nersc)) == 1


def test_a_worker_killed_before_the_answer(
    nersc: Facility, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = task.submit(LONG)()
    submit = killed.hook.submit

    def submit_and_die(script: str, *, machine: str) -> str:
        submit(script, machine=machine)
        raise KeyboardInterrupt

    monkeypatch.setattr(killed.hook, "submit", submit_and_die)
    with pytest.raises(KeyboardInterrupt):
        killed.execute(task.context())
    assert task.store[INTENT_KEY]["task_id"] is None
    task.retry()
    job_id = task.finish(task.submit(LONG))
    assert [job["job_id"] for job in task.books()] == [job_id]


def test_a_result_that_was_forgotten_is_found_by_name(nersc: Facility, task: Task) -> None:
    nersc.fault(kind="status", status=404, path="/tasks/", times=1, body={"detail": "Task not found"})
    job_id = task.finish(task.submit(LONG))
    assert [job["job_id"] for job in task.books()] == [job_id]


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize(("script", "jobs"), [(LONG, 1), ("true", 1), ("exit 3", 2)])
def test_a_cleared_task_takes_up_what_lives_or_succeeded_and_replaces_what_failed(
    nersc: Facility, task: Task, store: bool, script: str, jobs: int
) -> None:
    if not store:
        task.store = None
    first = task.finish(task.submit(script))
    if script != LONG:
        until(lambda: not job_of(nersc, first)["active"])
    task.clear()
    second = task.finish(task.submit(script))
    names = [job["name"] for job in task.books()]
    assert names == [task.identity.name(generation) for generation in range(jobs)]
    assert (second == first) == (jobs == 1)
    assert task.ti.xcoms["job"]["new"] == (jobs == 2)


def test_a_task_that_is_cleared_before_accounting_has_its_jobs_end_submits_a_new_one(
    nersc: Facility, task: Task
) -> None:
    """As after a person has ended the job: the queue has it no more, and it runs still in the accounting."""
    lag = 3.0
    nersc.control("nersc", "set", sacct_lag=lag)
    first = task.finish(task.submit(LONG))
    hook = task.submit()().hook
    until(lambda: hook.jobs("perlmutter", [first], "sacct"))
    ended = time.monotonic()
    hook.cancel("perlmutter", first)
    task.clear()
    second = task.finish(task.submit(LONG))
    assert second != first
    assert time.monotonic() - ended >= lag
    assert len(task.books()) == 2


@pytest.mark.parametrize("killed", ["before the answer", "after the id was saved"])
@pytest.mark.parametrize("store", [True, False])
def test_a_job_that_failed_while_its_worker_was_killed_is_not_run_again(
    nersc: Facility, task: Task, monkeypatch: pytest.MonkeyPatch, store: bool, killed: str
) -> None:
    """Nobody has been told of its failure yet: the task that waits for it does that."""
    if not store:
        task.store = None
    first = task.submit("exit 3")()
    submit = first.hook.submit

    def submit_and_die(script: str, *, machine: str) -> str:
        submit(script, machine=machine)
        raise KeyboardInterrupt

    if killed == "before the answer":
        monkeypatch.setattr(first.hook, "submit", submit_and_die)
        with pytest.raises(KeyboardInterrupt):
            first.execute(task.context())
    else:
        first.execute(task.context())
    (job,) = until(task.books)
    until(lambda: not job_of(nersc, job["job_id"])["active"])
    task.retry()
    assert task.finish(task.submit("exit 3")) == job["job_id"]
    task.clear()
    assert task.finish(task.submit("exit 3")) != job["job_id"]
    assert len(task.books()) == 2


def test_a_cleared_task_whose_worker_is_killed_submits_its_new_job_once(
    nersc: Facility, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = task.finish(task.submit("exit 3"))
    until(lambda: not job_of(nersc, first)["active"])
    task.clear()
    killed = task.submit("exit 3")()

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(killed.hook, "submit", die)
    with pytest.raises(KeyboardInterrupt):
        killed.execute(task.context())
    task.retry()
    second = task.finish(task.submit("exit 3"))
    assert [job["job_id"] for job in task.books()] == [first, second]


def test_a_held_job_is_found_though_accounting_does_not_list_it(nersc: Facility, task: Task) -> None:
    nersc.control("nersc", "set", slots=0)
    first = task.finish(task.submit(LONG))
    nersc.control("nersc", "hold", job_id=first)
    task.store = None
    task.retry()
    assert task.finish(task.submit(LONG)) == first


def test_a_whole_run_cleared_twice_while_the_job_lives(nersc: Facility, task: Task) -> None:
    first = task.finish(task.submit(LONG))
    for _ in range(2):
        task.clear()
        assert task.finish(task.submit(LONG)) == first
    assert len(submits(nersc)) == 1


@pytest.mark.parametrize(("state", "jobs"), [("NODE_FAIL", 2), ("PREEMPTED", 2)])
def test_a_node_failure_leads_to_a_new_job_when_it_is_confirmed(
    nersc: Facility, task: Task, state: str, jobs: int
) -> None:
    first = task.finish(task.submit(LONG))
    until(lambda: job_of(nersc, first)["state"] == "RUNNING")
    nersc.control(
        "nersc", {"NODE_FAIL": "node_failure", "PREEMPTED": "preempt"}[state], job_id=first, requeue=False
    )
    until(lambda: job_of(nersc, first)["state"] == state)
    task.clear()
    assert task.finish(task.submit(LONG)) != first
    assert len(task.books()) == jobs


def test_a_requeued_job_is_the_same_job(nersc: Facility, task: Task) -> None:
    first = task.finish(task.submit(LONG))
    until(lambda: job_of(nersc, first)["state"] == "RUNNING")
    nersc.control("nersc", "force_state", job_id=first, state="NODE_FAIL", view="sacct")
    task.retry()
    assert task.finish(task.submit(LONG)) == first


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"account": "wrong"}, "check the account"),
        ({"qos": "wrong"}, "check the qos"),
        ({"constraint": "wrong"}, "check the constraint"),
        ({"nodes": 4000}, "fewer nodes"),
    ],
)
def test_a_refused_job_fails_at_once_with_what_to_do(
    nersc: Facility, task: Task, resources: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        task.finish(task.submit(resources=resources))
    assert "sbatch: error" in str(caught.value) or "Job request" in str(caught.value)
    assert INTENT_KEY not in task.store
    assert not any(job["runs"] for job in task.books())
    task.clear()
    job_id = task.finish(task.submit())
    until(lambda: job_of(nersc, job_id)["state"] == "COMPLETED")


def test_an_outage_holds_and_the_submit_goes_on_by_itself(nersc: Facility, task: Task) -> None:
    nersc.control("nersc", "api_down")
    held = task.start(task.submit(LONG))
    assert isinstance(held, TaskDeferred)
    assert held.timeout is not None
    assert not submits(nersc) or all(one["status"] == 503 for one in submits(nersc))
    nersc.control("nersc", "api_up")
    held.trigger.first_pause = 0.05
    outcome = task.resume(task.submit(LONG), held, task.fire(held))
    assert [job["job_id"] for job in task.books()] == [outcome]


def test_a_machine_in_maintenance_gets_no_submit_and_the_log_has_the_end(
    nersc: Facility, task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = nersc.control("nersc", "maintenance", seconds=3600, description="Slurm upgrade")
    until = datetime.fromisoformat(planned["end_at"]).astimezone(UTC)
    logged = Logged(capsys)
    held = task.start(task.submit(LONG))
    assert isinstance(held, TaskDeferred)
    assert not task.books()
    held.trigger.first_pause = 0.05

    async def wait_until_it_is_up() -> Any:
        event = asyncio.create_task(first_event(task.trigger(held)))
        await eventually(lambda: "Outage (Slurm upgrade)" in logged)
        assert f"until {until:%Y-%m-%dT%H:%M}" in logged
        await asyncio.to_thread(nersc.control, "nersc", "end_maintenance")
        return await asyncio.wait_for(event, 120)

    event = asyncio.run(wait_until_it_is_up())
    assert task.resume(task.submit(LONG), held, event) == task.books()[0]["job_id"]


def _in_doubt(nersc: Facility, task: Task) -> TaskDeferred:
    """A submit whose reply was lost, and that waits for the lists to settle; NERSC answers."""
    nersc.fault(kind="drop_before", times=1, **SUBMIT)
    held = task.start(task.submit(LONG, settle=60.0))
    assert isinstance(held, TaskDeferred)
    assert held.trigger.reason == "the reply to the submit was lost"
    return held


def test_a_submit_that_waits_for_the_lists_speaks_of_no_outage(
    nersc: Facility, task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    held = _in_doubt(nersc, task)
    capsys.readouterr()
    logged = Logged(capsys)
    assert task.fire(held) == {"outcome": "answers"}
    assert "Holding until" not in logged  # as it is said in the next test


def test_an_outage_that_comes_while_a_submit_waits_is_told(
    nersc: Facility, task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    held = _in_doubt(nersc, task)
    nersc.control("nersc", "maintenance", seconds=3600, description="Slurm upgrade")
    capsys.readouterr()
    logged = Logged(capsys)

    async def wait_until_it_is_up() -> Any:
        event = asyncio.create_task(first_event(task.trigger(held)))
        await eventually(lambda: "Holding until NERSC can be used" in logged)
        assert "Outage (Slurm upgrade)" in logged
        await asyncio.to_thread(nersc.control, "nersc", "end_maintenance")
        return await asyncio.wait_for(event, 120)

    assert asyncio.run(wait_until_it_is_up()) == {"outcome": "answers"}
    assert "NERSC answers: trying again." in logged


def test_an_expired_client_fails_at_once_and_is_named(nersc: Facility, task: Task) -> None:
    nersc.control("nersc", "expire_client")
    with pytest.raises(CredentialsError, match="Iris") as caught:
        task.finish(task.submit())
    assert caught.value.remote_id == nersc.description["nersc"]["client_id"]
    assert not task.books()


def test_nothing_is_sent_when_the_intent_cannot_be_written_down(nersc: Facility, task: Task) -> None:
    task.store.failing = frozenset({INTENT_KEY})
    with pytest.raises(ConnectionError):
        task.finish(task.submit())
    assert not submits(nersc)


def test_a_job_whose_id_cannot_be_written_down_is_found_by_name(nersc: Facility, task: Task) -> None:
    task.store.failing = frozenset({JOB_KEY})
    first = task.finish(task.submit(LONG))
    task.retry()
    assert task.finish(task.submit(LONG)) == first
    assert len(task.books()) == 1


def test_a_job_that_slurm_does_not_list_is_kept_for_a_day_then_replaced(
    nersc: Facility, task: Task, hook: Any, tmp_path: Path
) -> None:
    sacct = tmp_path / "sacct"  # this machine may have one that knows no Slurm
    sacct.write_text("#!/bin/sh\n")
    sacct.chmod(0o755)
    nersc.control("nersc", "set", job_path=str(tmp_path))
    task.store.set(JOB_KEY, {"job_id": "4711", "name": "x", "generation": 0, "submitted_at": time.time()})
    assert task.finish(task.submit()) == "4711"
    task.store.set(
        JOB_KEY, {"job_id": "4711", "name": "x", "generation": 0, "submitted_at": time.time() - 90_000}
    )
    job_id = task.finish(task.submit())
    assert job_id != "4711"
    assert task.ti.xcoms["job"]["name"] == task.identity.name(1)


@pytest.mark.parametrize("kept", ["intent", "failed job"])
def test_what_was_submitted_yesterday_is_looked_for_with_the_sacct_command(
    nersc: Facility, task: Task, hook: Any, kept: str
) -> None:
    generation = 0 if kept == "intent" else 1
    asked: list[list[str]] = []

    def command(machine: str, arguments: list[str], **_: Any) -> Any:
        asked.append(arguments)
        name = task.identity.name(generation)
        line = (
            f"4712|COMPLETED|2026-11-20T23:58:00|2026-11-20T23:58:01|2026-11-20T23:59:00|59|0:0|nid1|{name}"
        )
        return CommandResult(line + "\n", "", 0)

    hook.command = command
    hook.jobs_of_user = lambda *_: []
    two_days = 2 * 86_400.0
    store = type(task.store)()
    if kept == "intent":
        store.set(INTENT_KEY, {"generation": 0, "name": "x", "attempted_at": time.time() - two_days})
    else:
        failed = {"job_id": "4711", "name": "x", "generation": 0, "submitted_at": time.time() - two_days}
        store.set(JOB_KEY, failed)
    after_midnight = Submission(
        hook,
        task.identity,
        machine="perlmutter",
        resources=SlurmResources(**RESOURCES),
        body="true",
        before_submit=lambda *_: pytest.fail("submitted"),
        store=store,
    )
    found = after_midnight.step()
    assert getattr(found, "job_id", None) == "4712"
    assert asked[0][:5] == ["sacct", "-X", "-n", "-P", "--delimiter=|"]
    assert task.identity.name(9) in asked[0][6]


def test_five_tries_after_a_lost_reply_have_one_job(nersc: Facility, task: Task) -> None:
    nersc.fault(kind="drop_reply", times=1, **SUBMIT)
    task.finish(task.submit(LONG))
    for _ in range(4):
        task.retry()
        task.finish(task.submit(LONG))
    assert len(task.books()) == 1


def test_names_are_safe_and_tell_whose_the_job_is() -> None:
    identity = JobIdentity("dag", "run", "task", base="scan 'é' $(x)\n" * 30)
    other = JobIdentity("dag", "run", "task", map_index=3)
    name = identity.name(12)
    assert len(name) < 100
    assert name.replace("-", "").replace("_", "").replace(".", "").isascii()
    assert identity.generation_of(name) == 12
    assert identity.generation_of(name.upper()) == 12
    assert other.generation_of(name) is None
    assert identity.generation_of(None) is None
    assert JobIdentity("dag", "run", "task", base="another").generation_of(name) == 12


def test_identities_do_not_run_into_each_other() -> None:
    assert JobIdentity("a", "bc", "d").digest != JobIdentity("ab", "c", "d").digest


def test_the_script_is_kept_for_its_owner_under_the_jobs_name(
    nersc: Facility, task: Task, tmp_path: Any
) -> None:
    folder = tmp_path / "copies"
    task.finish(task.submit(script_copy_dir=str(folder)))
    copy = folder / f"{task.identity.name(0)}.sh"
    assert task.ti.xcoms["job"]["script_copy"] == str(copy)
    assert copy.stat().st_mode & 0o777 == 0o600
    name, claim = task.identity.name(0), Claim(task.identity.digest).preamble
    assert copy.read_text() == SCRIPT.format(name=name, log=task.log, mark=task.identity.mark, claim=claim)
    assert [path.name for path in folder.iterdir()] == [copy.name]


def test_a_full_disk_does_not_keep_the_job_from_being_submitted(
    nersc: Facility, task: Task, tmp_path: Any
) -> None:
    (tmp_path / "file").write_text("in the way")
    job_id = task.finish(task.submit(script_copy_dir=str(tmp_path / "file" / "copies")))
    assert task.ti.xcoms["job"] | {"job_id": job_id, "script_copy": None} == task.ti.xcoms["job"]
