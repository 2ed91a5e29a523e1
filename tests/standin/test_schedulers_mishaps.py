"""Failures of nodes, preemption, holds and odd states, on request, as squeue and sacct show them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from standin.testing import until
from support.nersc import Nersc, cancel, nersc_running, script

ENDLESS = 'echo "run ${SLURM_RESTART_COUNT:-0}" >> log-$SLURM_JOB_ID; sleep 60'


@pytest.fixture(scope="module")
def nersc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nersc]:
    """One facility for the module; a requeued job may begin after 0.5 s, and sacct shows why for 0.3 s."""
    options = {"requeue_delay": 200.0, "requeue_shown": 100.0}  # 2 s and 1 s: both states are looked for
    with nersc_running(tmp_path_factory.mktemp("mishaps"), {"slots": 4}, **options) as made:
        yield made


def started(nersc: Nersc, directives: str = "", run: int = 0) -> str:
    """A job whose script has begun."""
    job_id = nersc.submit(script(ENDLESS, directives=f"-t 40 {directives}"))
    until(lambda: f"run {run}\n" in nersc.output(job_id, "log-%j"))
    return job_id


@pytest.mark.parametrize(
    ("verb", "state"),
    [("node_failure", "NODE_FAIL"), ("preempt", "PREEMPTED"), ("boot_fail", "BOOT_FAIL")],
)
def test_lost_for_good_without_requeue(nersc: Nersc, verb: str, state: str) -> None:
    job_id = started(nersc, "--no-requeue")
    assert nersc.control(verb, job_id=job_id) == {"job_id": job_id, "state": state, "done": True}
    row = nersc.ended(job_id)
    assert (row["state"], row["exitcode"], row["reason"]) == (state, "0:0", "None")
    assert nersc.book(job_id)["runs"] == 1


def test_a_requeued_job_can_be_cancelled_before_it_runs_again(nersc: Nersc) -> None:
    job_id = started(nersc, "--requeue")
    nersc.control("node_failure", job_id=job_id)
    cancel(nersc, job_id)
    assert nersc.state(job_id) == f"CANCELLED by {os.getuid()}"
    until(lambda: nersc.row("squeue", job_id) == {})
    assert nersc.book(job_id)["runs"] == 1


def test_control_decides_over_the_jobs_wish(nersc: Nersc) -> None:
    job_id = started(nersc, "--requeue")
    nersc.control("node_failure", job_id=job_id, requeue=False)
    assert nersc.ended(job_id)["state"] == "NODE_FAIL"


def test_many_jobs_wait_at_no_cost_until_they_are_released(nersc: Nersc) -> None:
    held = script("true", directives="--hold")
    ids = nersc.control("submit_many", script=held, count=300)["job_ids"]
    assert len(set(ids)) == 300
    assert {nersc.row("squeue", job_id)["reason"] for job_id in ids[:3]} == {"JobHeldUser"}
    nersc.control("release", job_id=ids[1])
    assert nersc.ended(ids[1])["state"] == "COMPLETED"
    cancel(nersc, ids[2])
    assert nersc.state(ids[2]) == f"CANCELLED by {os.getuid()}"
    assert nersc.state(ids[0]) == "PENDING"
    assert not set(ids[:1] + ids[3:]) - set(nersc.control("end_all")["ended"])


@pytest.mark.parametrize("body", [{"script": "true"}, {"count": 1}, {"script": "true", "count": 1001}])
def test_many_jobs_need_a_script_and_a_number(nersc: Nersc, body: dict[str, object]) -> None:
    with pytest.raises(RuntimeError, match="400"):
        nersc.control("submit_many", **body)


def test_hold_needs_a_pending_job(nersc: Nersc) -> None:
    job_id = started(nersc)
    with pytest.raises(RuntimeError, match=f"Job {job_id} is RUNNING; this needs PENDING"):
        nersc.control("hold", job_id=job_id)
    with pytest.raises(RuntimeError, match="There is no unfinished job 12"):
        nersc.control("hold", job_id="12")
    cancel(nersc, job_id)


@pytest.mark.parametrize(
    "state", ["DEADLINE", "REVOKED", "OUT_OF_MEMORY", "BOOT_FAIL", "FAILED", "COMPLETED"]
)
def test_any_final_state_can_be_had(nersc: Nersc, state: str) -> None:
    job_id = started(nersc)
    nersc.control("end_job", job_id=job_id, state=state)
    row = nersc.ended(job_id)
    assert (row["state"], row["exitcode"]) == (state, "0:125" if state == "OUT_OF_MEMORY" else "0:0")


@pytest.mark.parametrize(
    "state", ["STAGE_OUT", "SPECIAL_EXIT", "LAUNCH_FAILED", "CANCELLED+", "", "RESIZING"]
)
def test_any_string_can_be_shown(nersc: Nersc, state: str) -> None:
    job_id = started(nersc)
    nersc.control("force_state", job_id=job_id, state=state)
    assert (nersc.row("sacct", job_id)["state"], nersc.row("squeue", job_id)["state"]) == (state, state)
    nersc.control("force_state", job_id=job_id, state=None, view="squeue")
    assert (nersc.row("sacct", job_id)["state"], nersc.row("squeue", job_id)["state"]) == (state, "RUNNING")
    nersc.control("force_state", job_id=job_id, state=None)
    cancel(nersc, job_id)
    assert nersc.state(job_id).startswith("CANCELLED")


def test_signal(nersc: Nersc) -> None:
    job_id = started(nersc)
    nersc.control("signal", job_id=job_id, number=int(signal.SIGKILL))
    assert nersc.wait_for(job_id, "FAILED")["exitcode"] == "0:9"


def test_a_runner_that_dies_is_a_node_that_fails(nersc: Nersc) -> None:
    job_id = nersc.submit(script("setsid sleep 61 & echo $! > child-$SLURM_JOB_ID; wait", directives="-t 40"))
    child = int(until(lambda: nersc.output(job_id, "child-%j").strip()))
    os.kill(runner_of(nersc, job_id), signal.SIGKILL)
    assert nersc.wait_for(job_id, "NODE_FAIL")["exitcode"] == "0:0"
    nersc.ended(job_id)
    until(lambda: not alive(child))


def test_a_runner_that_dies_under_a_job_that_may_be_requeued(nersc: Nersc) -> None:
    job_id = started(nersc, "--requeue")
    os.kill(runner_of(nersc, job_id), signal.SIGKILL)
    nersc.wait_for(job_id, "NODE_FAIL")
    nersc.wait_for(job_id, "RUNNING")
    until(lambda: nersc.output(job_id, "log-%j") == "run 0\nrun 1\n")
    cancel(nersc, job_id)


def runner_of(nersc: Nersc, job_id: str) -> int:
    """Pid of the process that looks after a job's script, of this facility: others number theirs alike."""
    end = f"jobs/{job_id}/run-1\0".encode()
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
            if end in command and os.fsencode(nersc.facility.root) in command:
                return int(folder.name)
    raise AssertionError(f"Job {job_id} has no runner.")


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_nodes_that_have_to_boot_first(nersc: Nersc) -> None:
    nersc.control("set", configure_seconds=50.0)
    job_id = nersc.submit(script("true"))
    assert (nersc.row("squeue", job_id)["state"], nersc.book(job_id)["runs"]) == ("CONFIGURING", 0)
    nersc.wait_for(job_id, "COMPLETED")
    failing = nersc.submit(script("true"))
    nersc.control("boot_fail", job_id=failing)
    assert nersc.ended(failing)["state"] == "BOOT_FAIL"
    assert nersc.book(failing)["runs"] == 0
    nersc.control("set", configure_seconds=0.0)


def test_jobs_do_not_outlive_their_scheduler_for_ever(nersc: Nersc) -> None:
    nersc.control("set", orphan_seconds=0.0)  # as if no server had looked for long
    try:
        job_id = nersc.submit(script(ENDLESS, directives="-t 40"))
        assert nersc.wait_for(job_id, "NODE_FAIL")
    finally:
        nersc.control("set", orphan_seconds=600.0)


def test_wrong_controls_are_refused(nersc: Nersc) -> None:
    for verb, body, words in (
        ("set", {"slots": "many"}, "slots = 'many' is not an option"),
        ("set", {"color": 1}, "color = 1 is not an option"),
        ("set", {"time_scale": 0}, "must be more than 0"),
        ("set", {"timezone": "Mars/North"}, "there is no such zone"),
        ("set", {"sacct_lag": -1}, "must be from 0"),
        ("api_down", {"status": 200}, "must be from 500 to 599"),
        ("maintenance", {"resource": "cori9"}, "resource is 'cori9'"),
        ("maintenance", {"seconds": "long"}, "must be a number"),
        ("extend_maintenance", {}, "There is no outage to extend"),
        ("force_state", {"job_id": "1", "state": "X"}, "There is no job 1"),
        ("nonsense", {}, "No such verb"),
    ):
        with pytest.raises(RuntimeError, match=words):
            nersc.control(verb, **body)
