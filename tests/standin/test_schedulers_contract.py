"""What clients of SFAPI see of jobs: the same from the built-in runner and from Slurm (make slurm-test)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from standin.testing import until
from support.nersc import Nersc, cancel, nersc_running, processes_of, script
from support.scheduling import fill, lost_node, preempted

pytestmark = pytest.mark.both

LONG = 120.0  # seconds; Slurm looks at time limits twice a minute, and at its accounting every few seconds
ENDLESS = 'echo "run ${SLURM_RESTART_COUNT:-0}" >> log-$SLURM_JOB_ID; sleep 600'
EATER = "import time; x = bytearray(300 << 20); x[::4096] = b'x' * len(x[::4096]); time.sleep(60)"


@pytest.fixture(scope="module")
def nersc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nersc]:
    """One facility for the module; on the built-in runner a Slurm minute takes 0.6 s."""
    options = {"requeue_delay": 200.0, "requeue_shown": 100.0}  # 2 s and 1 s: both states are looked for
    with nersc_running(tmp_path_factory.mktemp("contract"), {"slots": 4}, **options) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def limited(nersc: Nersc) -> str:
    """A job whose time limit passes while the other tests run."""
    return nersc.submit(script("trap 'echo told; exit 0' TERM", "sleep 600 & wait", directives="-J limited"))


def started(nersc: Nersc, directives: str = "", run: int = 0) -> str:
    """A job whose script has begun, and that the accounting knows."""
    job_id = nersc.submit(script(ENDLESS, directives=f"-t 300 {directives}"))
    until(lambda: f"run {run}\n" in nersc.output(job_id, "log-%j"), LONG)
    nersc.wait_for(job_id, "RUNNING")
    return job_id


def test_a_job_from_submit_to_end(nersc: Nersc) -> None:
    job_id = nersc.submit(
        script('echo "out $SLURM_JOB_ID $1"', "echo err >&2", "pwd", directives="-J first -o a-%j -e b-%j")
    )
    row = nersc.wait_for(job_id, "COMPLETED")
    assert (row["exitcode"], row["jobname"], row["account"], row["qos"], row["partition"]) == (
        "0:0", "first", "als_g", "gpu_regular", "gpu_ss11",
    )  # fmt: skip
    assert row["submit"] <= row["start"] <= row["end"]
    assert nersc.output(job_id, "a-%j") == f"out {job_id} \n{nersc.described['home']}\n"
    assert nersc.output(job_id, "b-%j") == "err\n"
    book = nersc.book(job_id)
    assert (book["runs"], book["state"], book["states"][-1]) == (1, "COMPLETED", "COMPLETED")


def test_accounting_knows_a_job_before_its_name(nersc: Nersc) -> None:
    """A job that starts at once is nameless for a while, even when it has ended, and no name finds it."""
    nersc.control("set", sacct_lag=3.0)
    user, nameless = nersc.described["user"], []
    try:
        job_id = nersc.submit(script("true", directives="-J quick"))

        def named() -> bool:
            by_name = nersc.list("sacct", user=user, name="quick")["output"]  # before the look by id
            row = nersc.row("sacct", job_id)
            if row.get("jobname") == "allocation":
                nameless.append(row)
                assert job_id not in [found["jobid"] for found in by_name]
            return row.get("jobname") == "quick"

        until(named)
    finally:
        nersc.control("set", sacct_lag=0.0)
    assert {row["state"] for row in nameless} <= {"PENDING", "COMPLETED"}
    unknown = ("eligible", "qos", "partition", "timelimit", "submitline", "workdir")
    assert [nameless[-1][column] for column in unknown] == ["Unknown", "Unknown", "", "", "", ""]
    assert nameless[-1]["start"] >= nameless[-1]["submit"]
    until(
        lambda: [row["jobid"] for row in nersc.list("sacct", user=user, name="QUICK")["output"]] == [job_id]
    )


def test_exit_codes_as_slurm_reports_them(nersc: Nersc) -> None:
    expected = {
        "exit 3": ("FAILED", "3:0"),
        "kill -9 $$": ("FAILED", "0:9"),
        "kill -15 $$": ("FAILED", "0:15"),
        "exit 137": ("FAILED", "9:0"),
        "bash -c 'kill -9 $$'": ("FAILED", "9:0"),
        "false; true": ("COMPLETED", "0:0"),
    }
    jobs = {body: nersc.submit(script(body)) for body in expected}
    rows = {body: nersc.wait_for(job_id, "FAILED", "COMPLETED") for body, job_id in jobs.items()}
    assert {body: (row["state"], row["exitcode"]) for body, row in rows.items()} == expected


@pytest.mark.parametrize(
    ("directives", "body", "interpreter", "code"),
    [("-o missing/x.out", "true", "/bin/bash", "0:53"), ("", "true", "/no/such/shell", "2:0")],
)
def test_jobs_that_cannot_be_launched(
    nersc: Nersc, directives: str, body: str, interpreter: str, code: str
) -> None:
    job_id = nersc.submit(script(body, directives=directives, interpreter=interpreter))
    assert nersc.wait_for(job_id, "FAILED")["exitcode"] == code
    if not directives:
        words = r"slurmstepd[^:]*: error: execve\(\): bad interpreter\(/no/such/shell\): No such file or dir"
        assert re.match(words, nersc.output(job_id))


@pytest.mark.needs("control groups")
def test_out_of_memory(nersc: Nersc) -> None:
    """The process that takes too much is killed; the script goes on, and its job ends as OUT_OF_MEMORY."""
    body = (f'python3 -c "{EATER}"', "echo went on")
    job_id = nersc.submit(script(*body, directives="--mem=100M -t 100"))
    assert nersc.wait_for(job_id, "OUT_OF_MEMORY", seconds=LONG)["exitcode"] == "0:125"
    output = nersc.output(job_id)
    assert "went on\n" in output
    assert re.search(r"slurmstepd[^:]*: error: Detected 1 oom.kill event", output)


def test_script_by_path_with_arguments(nersc: Nersc) -> None:
    path = Path(nersc.described["home"]) / "recon.sh"
    path.write_text(script('printf "%s|" "$@"'))
    job_id = nersc.submit(str(path), path=True, args=["a b", "$(x)", "'"])
    assert nersc.wait_for(job_id, "COMPLETED")["jobname"] == "recon.sh"
    assert nersc.output(job_id) == "a b|$(x)|'|"
    for missing in ("/etc/passwd", "nosuch.sh", f"{path}/../../../../../etc/passwd"):
        assert (
            nersc.try_submit(missing, path=True)["error"] == f"sbatch: error: Unable to open file {missing}"
        )


def test_the_servers_environment_stays_with_the_server(nersc: Nersc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOBUS_CLIENT_SECRET", "very-secret")
    job_id = nersc.submit(script("env"))
    nersc.wait_for(job_id, "COMPLETED")
    text = nersc.output(job_id)
    assert "very-secret" not in text
    assert f"SLURM_JOB_ID={job_id}\n" in text
    assert f"HOME={nersc.described['home']}\n" in text
    assert "PATH=/usr/local/bin:/usr/bin:/bin\n" in text


def test_what_ignores_term_is_killed(nersc: Nersc) -> None:
    nersc.control("set", kill_wait=100.0)
    job_id = nersc.submit(script("trap '' TERM", "echo ready", "sleep 600 & sleep 600", directives="-t 100"))
    until(lambda: nersc.output(job_id) == "ready\n", LONG)
    nersc.wait_for(job_id, "RUNNING")
    nersc.call("DELETE", f"compute/jobs/perlmutter/{job_id}")
    row = nersc.wait_for(job_id, f"CANCELLED by {os.getuid()}")
    assert (row["exitcode"], row["end"] != "Unknown") == ("0:0", True)
    assert nersc.row("squeue", job_id)["state"] == "COMPLETING"
    until(lambda: nersc.row("squeue", job_id) == {}, LONG)
    until(lambda: not processes_of(nersc, job_id))
    nersc.control("set", kill_wait=30.0)
    assert nersc.book(job_id)["cancelled_by"] == os.getuid()
    assert [c["effective"] for c in nersc.book(job_id)["cancels"]] == [True]
    assert "CANCELLED AT" in nersc.output(job_id)


@pytest.mark.needs("control groups")
def test_leftover_processes_go_with_the_job(nersc: Nersc) -> None:
    job_id = nersc.submit(script("setsid sleep 60 >/dev/null 2>&1 &", "sleep 60 >/dev/null 2>&1 &", "exit 0"))
    nersc.wait_for(job_id, "COMPLETED")
    until(lambda: not processes_of(nersc, job_id))


def test_a_full_machine_and_cancel_of_a_pending_job(nersc: Nersc) -> None:
    running = fill(nersc)
    first, second = (nersc.submit(script("touch never-%j", directives="-G 1")) for _ in range(2))
    row = until(lambda: (r := nersc.row("squeue", first)).get("reason") == "Resources" and r, LONG)
    assert (row["state"], row["st"], row["time"], row["nodelist"]) == ("PENDING", "PD", "0:00", "")
    assert row["nodelist(reason)"] == "(Resources)"
    until(lambda: nersc.row("squeue", second)["reason"] == "Priority")
    until(lambda: nersc.row("squeue", first)["start_time"] != "N/A", LONG)
    sacct = nersc.wait_for(first, "PENDING")
    assert (sacct["start"], sacct["nodelist"], sacct["reason"]) == ("Unknown", "None assigned", "None")
    for job_id in (first, second, *running):
        nersc.call("DELETE", f"compute/jobs/perlmutter/{job_id}")
    assert nersc.wait_for(first, f"CANCELLED by {os.getuid()}")["start"] == "None"
    for job_id in running:
        nersc.ended(job_id)
    assert [nersc.book(job_id)["runs"] for job_id in (first, second)] == [0, 0]


def test_cancel_of_finished_and_unknown_jobs_is_silent(nersc: Nersc) -> None:
    job_id = nersc.submit(script("true"))
    nersc.wait_for(job_id, "COMPLETED")
    for wanted in (job_id, "99999", "abc", "1_2"):
        reply = nersc.call("DELETE", f"compute/jobs/perlmutter/{wanted}").json()
        assert nersc.result(reply["task_id"])["status"] == "ok"
    assert nersc.state(job_id) == "COMPLETED"
    assert [c["effective"] for c in nersc.book(job_id)["cancels"]] == [False]


def test_afterok(nersc: Nersc) -> None:
    good = nersc.submit(script("sleep 0.3", directives="-t 10"))
    bad = nersc.submit(script("until [ -e afterok ]; do sleep 0.1; done; exit 1", directives="-t 100"))
    after_good = nersc.submit(script("true", directives=f"-d afterok:{good}"))
    after_bad = nersc.submit(script("true", directives=f"-d afterok:{bad}"))
    killed = nersc.submit(script("true", directives=f"-d afterok:{bad} --kill-on-invalid-dep=yes"))
    unknown = nersc.submit(script("true", directives="-d afterok:99999"))
    row = nersc.row("squeue", after_bad)
    assert (row["reason"], row["dependency"]) == ("Dependency", f"afterok:{bad}(unfulfilled)")
    done = nersc.wait_for(after_good, "COMPLETED")
    assert done["start"] >= nersc.row("sacct", good)["end"]
    (Path(nersc.described["home"]) / "afterok").touch()
    row = until(lambda: "Never" in (r := nersc.row("squeue", after_bad))["reason"] and r, LONG)
    assert (row["reason"], row["dependency"]) == ("DependencyNeverSatisfied", f"afterok:{bad}(failed)")
    assert nersc.wait_for(after_bad, "PENDING")["reason"].startswith("Dependency")
    nersc.wait_for(killed, "CANCELLED")
    nersc.wait_for(unknown, "COMPLETED")  # what the controller does not know it does not wait for
    names = [row["jobid"] for row in nersc.list("sacct", user=nersc.described["user"])["output"]]
    assert after_bad not in names  # never eligible: only its id finds it
    assert after_good in names
    nersc.call("DELETE", f"compute/jobs/perlmutter/{after_bad}")


def test_listing_by_user_name_partition_and_slices(nersc: Nersc) -> None:
    ids = [nersc.submit(script("true", directives=f"-J slice{n}")) for n in range(3)]
    for job_id in ids:
        nersc.wait_for(job_id, "COMPLETED")
    user = nersc.described["user"]
    until(lambda: nersc.list("squeue", jobid=ids[0])["output"] == [])
    assert nersc.list("squeue", jobid=ids[0]) == {"status": "OK", "output": [], "error": None}
    unknown = "slurm_load_jobs error: Invalid job id specified"
    assert nersc.list("squeue", jobid="99999") == {"status": "ERROR", "output": [], "error": unknown}
    assert nersc.list("squeue", jobid=f"{ids[0]},99999")["status"] == "OK"
    assert [r["jobid"] for r in nersc.list("sacct", jobid=",".join(ids))["output"]] == ids
    assert [r["jobid"] for r in nersc.list("sacct", user=user, name="SLICE1")["output"]] == [ids[1]]
    assert {r["partition"] for r in nersc.list("sacct", user=user, partition="gpu_ss11")["output"]} == {
        "gpu_ss11"
    }
    assert nersc.list("sacct", user=user, partition="nosuch")["output"] == []
    assert nersc.list("squeue", user="no-such-user")["error"] == "Invalid user: no-such-user"
    assert "unrecognized option '--frob'" in nersc.list("sacct", frob="1")["error"]
    assert "Invalid job id" in nersc.list("sacct", jobid="1;rm")["error"]
    base = [("sacct", "true"), ("cached", "false"), ("kwargs", f"jobid={','.join(ids)}")]
    rows = nersc.get("compute/jobs/perlmutter", params=[*base, ("index", "1"), ("limit", "1")])["output"]
    assert [r["jobid"] for r in rows] == [ids[1]]
    one = nersc.get(f"compute/jobs/perlmutter/{ids[2]}", params={"sacct": "true", "cached": "false"})
    assert [r["jobid"] for r in one["output"]] == [ids[2]]


def test_requeue_needs_the_jobs_own_wish(nersc: Nersc) -> None:
    job_id = started(nersc)
    with pytest.raises(RuntimeError, match=f"Requested operation is presently disabled for job {job_id}"):
        nersc.control("requeue", job_id=job_id)
    cancel(nersc, job_id)


def test_requeue_and_hold(nersc: Nersc) -> None:
    job_id = started(nersc, "--requeue")
    nersc.control("requeue", job_id=job_id, hold=True)
    held = ("PENDING", "job requeued in held state")
    until(lambda: ((r := nersc.row("squeue", job_id))["state"], r["reason"]) == held, LONG)
    assert nersc.wait_for(job_id, "PENDING")["reason"] == "JobHeldUser"
    nersc.control("release", job_id=job_id)
    until(lambda: nersc.row("squeue", job_id)["state"] == "RUNNING", LONG)
    cancel(nersc, job_id)


def test_held_jobs_hide_from_sacct_by_user_and_name(nersc: Nersc) -> None:
    job_id = nersc.submit(script(ENDLESS, directives="-H -J heldjob"))
    assert nersc.row("squeue", job_id)["reason"] == "JobHeldUser"
    assert nersc.row("squeue", job_id)["priority"] == "0"
    assert nersc.wait_for(job_id, "PENDING")["eligible"] == "Unknown"
    user = nersc.described["user"]
    assert nersc.list("sacct", user=user, name="heldjob")["output"] == []
    assert [r["jobid"] for r in nersc.list("squeue", user=user, name="heldjob")["output"]] == [job_id]
    nersc.control("release", job_id=job_id)
    assert nersc.wait_for(job_id, "RUNNING")["reason"] == "JobHeldUser"  # not any more, but sacct says so
    assert nersc.list("sacct", user=user, name="heldjob")["output"]
    cancel(nersc, job_id)
    later = nersc.submit(script("true", directives="-H -J heldagain"))
    cancel(nersc, later)
    assert nersc.list("sacct", user=user, name="heldagain")["output"] == []
    assert nersc.wait_for(later, f"CANCELLED by {os.getuid()}")
    assert nersc.book(later)["state"] == "CANCELLED"


def test_suspend_and_resume(nersc: Nersc) -> None:
    body = "for i in $(seq 25); do echo $i; sleep 0.04; done"
    job_id = nersc.submit(script(body, directives="-t 20"))
    until(lambda: "2\n" in nersc.output(job_id), LONG)
    nersc.control("suspend", job_id=job_id)
    until(lambda: nersc.row("squeue", job_id)["st"] == "S")
    quiet = until(lambda: _unchanged(nersc, job_id))
    assert nersc.output(job_id) == quiet
    nersc.control("resume", job_id=job_id)
    nersc.wait_for(job_id, "COMPLETED")
    assert nersc.output(job_id).endswith("25\n")


def _unchanged(nersc: Nersc, job_id: str) -> str:
    """What the job wrote, when looks over some requests show the same; else nothing."""
    looks = {nersc.output(job_id) for _ in range(30) if nersc.row("squeue", job_id)}
    return looks.pop() if len(looks) == 1 else ""


def test_two_hundred_jobs_run_once_each_and_are_seen_with_one_request(nersc: Nersc) -> None:
    body = 'echo x >> "ran-$SLURM_JOB_NAME"'
    ids = [nersc.submit(script(body, directives=f"-J many{n} -t 100")) for n in range(200)]
    assert len(set(ids)) == 200
    everyone = ",".join(ids)
    assert nersc.list("squeue", jobid=everyone)["status"] == "OK"

    def all_ended() -> bool:
        rows = nersc.list("sacct", jobid=everyone)["output"]
        return [r["jobid"] for r in rows if (r["state"], r["jobname"][:4]) == ("COMPLETED", "many")] == ids

    until(all_ended, 2 * LONG)
    assert nersc.list("squeue", jobid=everyone) == {"status": "OK", "output": [], "error": None}
    home = Path(nersc.described["home"])
    assert {(home / f"ran-many{n}").read_text() for n in range(200)} == {"x\n"}
    books = {job["job_id"]: job for job in nersc.facility.jobs()}
    assert {books[job_id]["runs"] for job_id in ids} == {1}


def test_time_limit(nersc: Nersc, limited: str) -> None:
    row = nersc.wait_for(limited, "TIMEOUT", seconds=LONG)
    assert (row["exitcode"], row["timelimit"], row["reason"]) == ("0:0", "00:01:00", "None")
    assert row["elapsed"] >= "00:01:00"
    until(lambda: nersc.row("squeue", limited) == {})
    assert re.search(
        r"slurmstepd[^:]*: error: \*\*\* JOB .* DUE TO TIME LIMIT \*\*\*\ntold\n", nersc.output(limited)
    )
    until(lambda: not processes_of(nersc, limited))


@pytest.mark.parametrize(("verb", "state"), [("node_failure", "NODE_FAIL"), ("preempt", "PREEMPTED")])
def test_lost_for_good_without_requeue(nersc: Nersc, verb: str, state: str) -> None:
    job_id = started(nersc, "--no-requeue -q preempt -G 4")
    with preempted(nersc, job_id) if verb == "preempt" else lost_node(nersc, job_id):
        row = nersc.wait_for(job_id, state)
        assert (row["exitcode"], row["reason"]) == ("0:0", "None")
        until(lambda: nersc.row("squeue", job_id) == {}, LONG)
    assert nersc.state(job_id) == state
    assert nersc.book(job_id)["runs"] == 1


@pytest.mark.parametrize(
    ("verb", "shown"), [("node_failure", "NODE_FAIL"), ("preempt", "PREEMPTED"), ("requeue", "REQUEUED")]
)
def test_requeued_jobs_run_again_under_their_id(nersc: Nersc, verb: str, shown: str) -> None:
    job_id = started(nersc, "--requeue -q preempt -G 4")
    if verb == "requeue":
        nersc.control("requeue", job_id=job_id)
        row = nersc.wait_for(job_id, shown)
    else:
        with preempted(nersc, job_id) if verb == "preempt" else lost_node(nersc, job_id):
            row = nersc.wait_for(job_id, shown)  # believed too early, it is a failed job
            assert nersc.row("squeue", job_id)["state"] in (
                ("PENDING",) if verb == "node_failure" else ("COMPLETING", "PENDING")
            )
    assert row["end"] != "Unknown"
    row = until(lambda: (r := nersc.row("squeue", job_id))["state"] != "COMPLETING" and r, LONG)
    assert row["state"] == "PENDING"
    until(lambda: nersc.row("squeue", job_id)["reason"] == "BeginTime")
    row = nersc.wait_for(job_id, "PENDING")
    assert (row["start"], row["end"]) == ("Unknown", "Unknown")
    until(lambda: nersc.row("squeue", job_id)["state"] == "RUNNING", LONG)
    assert nersc.wait_for(job_id, "RUNNING")["reason"] in ("BeginTime", "None")
    until(lambda: nersc.output(job_id, "log-%j") == "run 0\nrun 1\n")
    assert nersc.book(job_id)["runs"] == 2
    cancel(nersc, job_id)
