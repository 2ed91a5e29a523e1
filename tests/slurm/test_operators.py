"""The bundle's operators and triggers against Slurm itself: submit, wait, and what Slurm does meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from facilities.errors import FacilityError, InfrastructureError, ResourcesError, UserError
from standin.testing import until
from support.nersc import Nersc, cancel
from support.scheduling import fill, lost_node, preempted
from support.superfacility import CONN_ID, Logged, Task, connection_to, use_connection

pytestmark = pytest.mark.slurm

LONG = 90.0
ALL_GPUS = {"gpus": 4, "qos": "preempt"}
HOLD = "until [ -e go-$SLURM_JOB_ID ]; do sleep 0.2; done"
EATER = "import time; x = bytearray(300 << 20); x[::4096] = b'x' * len(x[::4096]); time.sleep(60)"


@pytest.fixture
def task(nersc: Nersc, monkeypatch: pytest.MonkeyPatch) -> Task:
    """A task instance of its own."""
    use_connection(monkeypatch, CONN_ID, connection_to(nersc.facility))
    return Task(nersc.facility)


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    """Where a wait goes on while the test acts on the job."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Logged:
    """What the tasks wrote to their logs."""
    return Logged(capsys)


def running(nersc: Nersc, task: Task, **resources: Any) -> str:
    """A job of the submit operator that runs until it is let go."""
    job_id = str(task.finish(task.submit(HOLD, resources={"chdir": nersc.described["home"], **resources})))
    until(lambda: nersc.row("squeue", job_id)["state"] == "RUNNING", LONG)
    return job_id


def waiting(task: Task, aside: ThreadPoolExecutor, job_id: str) -> Future[Any]:
    """The sensor, waiting for the job."""
    sensor = task.wait(
        job_id, min_poll_interval=0.3, max_poll_interval=0.5, confirm=10.0, grace=30.0, timeout=200.0
    )
    return aside.submit(task.finish, sensor)


def let_go(nersc: Nersc, job_id: str) -> None:
    """Let a job end."""
    (nersc.facility.nersc / "homes" / nersc.described["user"] / f"go-{job_id}").touch()


def test_a_job_from_submit_to_its_end(nersc: Nersc, task: Task, aside: ThreadPoolExecutor) -> None:
    job_id = str(task.finish(task.submit("echo reconstructed; sleep 1", resources={"gpus": 2})))
    done = waiting(task, aside, job_id).result(LONG)
    assert (done["state"], done["job_id"]) == ("COMPLETED", job_id)
    assert task.log.read_text() == "reconstructed\n"
    assert "gres/gpu=2" in nersc.wait_for(job_id, "COMPLETED")["alloctres"]


@pytest.mark.parametrize(
    ("body", "resources", "error"),
    [
        ("echo cannot allocate >&2; exit 3", {}, (UserError, "FAILED", "exit code 3", "cannot allocate")),
        ("kill -9 $$", {}, (FacilityError, "FAILED", "9")),
        (f'python3 -c "{EATER}"', {"memory": "100M"}, (ResourcesError, "OUT_OF_MEMORY", "oom")),
    ],
)
def test_a_job_that_fails(
    task: Task, aside: ThreadPoolExecutor, body: str, resources: Any, error: Any
) -> None:
    job_id = str(task.finish(task.submit(body, resources=resources)))
    with pytest.raises(error[0]) as failed:
        waiting(task, aside, job_id).result(LONG)
    for word in error[1:]:
        assert word in str(failed.value)


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"account": "nobody"}, "Invalid account"),
        ({"qos": "nosuch"}, "Invalid qos"),
        ({"constraint": "haswell"}, "Invalid feature"),
        ({"qos": "debug", "time_limit": "00:31:00"}, "accounting/QOS policy"),
        ({"gpus": 99}, "Requested node configuration is not available"),
    ],
)
def test_what_slurm_refuses_is_the_users_error(task: Task, resources: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        task.finish(task.submit("true", resources=resources))


def test_preempted_and_started_again_is_one_wait(
    nersc: Nersc, task: Task, aside: ThreadPoolExecutor, said: Logged
) -> None:
    job_id = running(nersc, task, requeue=True, **ALL_GPUS)
    wait = waiting(task, aside, job_id)
    with preempted(nersc, job_id):
        until(lambda: "PREEMPTED" in said, LONG)
        until(lambda: nersc.row("squeue", job_id)["state"] == "PENDING", LONG)
    let_go(nersc, job_id)
    assert wait.result(LONG)["state"] == "COMPLETED"
    # Not how often it ran: seen once, the accounting had no row of a run that was preempted within seconds.
    assert [(job["job_id"], job["state"]) for job in task.books()] == [(job_id, "COMPLETED")]


@pytest.mark.parametrize("requeue", [True, False])
def test_a_node_that_fails(nersc: Nersc, task: Task, aside: ThreadPoolExecutor, requeue: bool) -> None:
    job_id = running(nersc, task, requeue=requeue)
    wait = waiting(task, aside, job_id)
    with lost_node(nersc, job_id):
        nersc.wait_for(job_id, "NODE_FAIL")
    let_go(nersc, job_id)
    if requeue:
        assert wait.result(LONG)["state"] == "COMPLETED"
        return
    with pytest.raises(InfrastructureError, match="NODE_FAIL"):
        wait.result(LONG)
    task.clear()
    again = str(task.finish(task.submit("true")))
    assert again != job_id
    assert waiting(task, aside, again).result(LONG)["state"] == "COMPLETED"


def test_a_held_job_is_waited_for_and_told(
    nersc: Nersc, task: Task, aside: ThreadPoolExecutor, said: Logged
) -> None:
    others = fill(nersc)
    job_id = str(task.finish(task.submit("true")))
    nersc.control("hold", job_id=job_id)
    wait = waiting(task, aside, job_id)
    until(lambda: f"scontrol release {job_id}" in said, LONG)
    nersc.control("release", job_id=job_id)
    for other in others:
        cancel(nersc, other)
    assert wait.result(LONG)["state"] == "COMPLETED"


def test_a_job_that_somebody_cancels(nersc: Nersc, task: Task, aside: ThreadPoolExecutor) -> None:
    job_id = running(nersc, task)
    wait = waiting(task, aside, job_id)
    cancel(nersc, job_id)
    with pytest.raises(FacilityError, match="CANCELLED"):
        wait.result(LONG)


@pytest.mark.parametrize("body", ["true", "sleep 20"])
def test_a_submit_whose_reply_is_lost_leaves_one_job(nersc: Nersc, task: Task, body: str) -> None:
    """Found by its name: in squeue while it runs, in the accounting when that has its name."""
    nersc.facility.fault(service="nersc", method="POST", path="/compute/jobs", kind="drop_reply", times=1)
    job_id = str(task.finish(task.submit(body, settle=15.0)))
    assert [job["job_id"] for job in task.books()] == [job_id]
    nersc.call("DELETE", f"compute/jobs/perlmutter/{job_id}")


def test_a_submit_that_arrives_when_all_waiting_is_over_does_nothing(
    nersc: Nersc, task: Task, aside: ThreadPoolExecutor
) -> None:
    """Of two jobs of a name the second waits for the first; then it finds the work claimed."""
    work = f'echo "$SLURM_JOB_ID" >> {task.log}.work'
    hold = {"kind": "hold", "times": 1}
    nersc.facility.fault(service="nersc", method="POST", path="/compute/jobs", **hold)
    job_id = str(task.finish(task.submit(f"{work}; {HOLD}", resources={"chdir": nersc.described["home"]})))
    wait = waiting(task, aside, job_id)
    until(lambda: nersc.row("squeue", job_id)["state"] == "RUNNING", LONG)
    nersc.facility.clear_faults()
    until(lambda: len(task.books()) == 2, LONG)
    (late,) = [job["job_id"] for job in task.books() if job["job_id"] != job_id]
    until(lambda: nersc.row("squeue", late)["reason"] == "Dependency", LONG)
    let_go(nersc, job_id)
    assert wait.result(LONG)["job_id"] == job_id
    until(lambda: not any(job["active"] for job in task.books()), LONG)
    assert {job["job_id"]: job["exit_code"] for job in task.books()} == {job_id: "0:0", late: "93:0"}
    assert Path(f"{task.log}.work").read_text().split() == [job_id]
