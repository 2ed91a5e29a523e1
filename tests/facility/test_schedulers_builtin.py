"""Real jobs under the built-in scheduler, seen through SFAPI as squeue and sacct show them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.nersc import Nersc, nersc_running, script, until


@pytest.fixture(scope="module")
def nersc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nersc]:
    """One facility for the module; a Slurm minute takes 0.6 s."""
    with nersc_running(tmp_path_factory.mktemp("builtin"), {"slots": 3}) as made:
        yield made


def processes_of(job_id: str) -> list[int]:
    """Living processes of a job's script."""
    mark = f"SLURM_JOB_ID={job_id}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def test_a_job_from_submit_to_end(nersc: Nersc) -> None:
    job_id = nersc.submit(
        script('echo "out $SLURM_JOB_ID $1"', "echo err >&2", "pwd", directives="-J first -o a-%j -e b-%j")
    )
    row = nersc.wait_for(job_id, "COMPLETED")
    assert (row["exitcode"], row["jobname"], row["account"], row["qos"]) == (
        "0:0",
        "first",
        "als_g",
        "gpu_regular",
    )
    assert row["start"] >= row["submit"]
    assert row["end"] >= row["start"]
    assert nersc.output(job_id, "a-%j") == f"out {job_id} \n{nersc.described['home']}\n"
    assert nersc.output(job_id, "b-%j") == "err\n"
    assert nersc.book(job_id)["states"] == ["PENDING", "RUNNING", "COMPLETED"]
    assert nersc.book(job_id)["runs"] == 1


@pytest.mark.parametrize(
    ("body", "state", "code"),
    [
        ("exit 3", "FAILED", "3:0"),
        ("kill -9 $$", "FAILED", "0:9"),
        ("kill -15 $$", "FAILED", "0:15"),
        ("exit 137", "FAILED", "9:0"),
        ("bash -c 'kill -9 $$'", "FAILED", "9:0"),
        ("false; true", "COMPLETED", "0:0"),
    ],
)
def test_exit_codes_as_slurm_reports_them(nersc: Nersc, body: str, state: str, code: str) -> None:
    row = nersc.wait_for(nersc.submit(script(body)), "FAILED", "COMPLETED")
    assert (row["state"], row["exitcode"]) == (state, code)


@pytest.mark.parametrize(
    ("directives", "code"),
    [("-o missing/x.out", "0:53"), ("-D missing", "0:53"), ("-o /etc/out", "0:53"), ("-e /proc/x", "0:53")],
)
def test_output_that_cannot_be_opened(nersc: Nersc, directives: str, code: str) -> None:
    job_id = nersc.submit(script("touch ran-$SLURM_JOB_ID", directives=directives))
    row = nersc.wait_for(job_id, "FAILED")
    assert row["exitcode"] == code
    assert not (Path(nersc.described["home"]) / f"ran-{job_id}").exists()


def test_interpreter_that_is_missing(nersc: Nersc) -> None:
    job_id = nersc.submit(script("true", interpreter="/no/such/shell"))
    assert nersc.wait_for(job_id, "FAILED")["exitcode"] == "2:0"
    assert "slurmstepd: error: execve()" in nersc.output(job_id)


def test_time_limit(nersc: Nersc) -> None:
    job_id = nersc.submit(script("trap 'echo told; exit 0' TERM", "sleep 60 & wait", directives="-t 2"))
    row = nersc.wait_for(job_id, "TIMEOUT")
    assert row["exitcode"] == "0:0"
    assert row["timelimit"] == "00:02:00"
    assert row["elapsed"] >= "00:02:00"
    nersc.ended(job_id)
    assert "DUE TO TIME LIMIT ***\ntold\n" in nersc.output(job_id)
    assert not processes_of(job_id)


def test_what_ignores_term_is_killed(nersc: Nersc) -> None:
    nersc.control("set", kill_wait=100.0)
    job_id = nersc.submit(script("trap '' TERM", "echo ready", "sleep 60 & sleep 60", directives="-t 10"))
    until(lambda: nersc.output(job_id) == "ready\n")
    nersc.call("DELETE", f"compute/jobs/perlmutter/{job_id}")
    row = nersc.wait_for(job_id, f"CANCELLED by {os.getuid()}")
    assert (row["exitcode"], row["end"] != "Unknown") == ("0:0", True)
    assert nersc.row("squeue", job_id)["state"] == "COMPLETING"
    nersc.ended(job_id)
    nersc.control("set", kill_wait=30.0)
    assert not processes_of(job_id)
    assert nersc.row("squeue", job_id) == {}
    assert nersc.book(job_id)["cancelled_by"] == os.getuid()
    assert [c["effective"] for c in nersc.book(job_id)["cancels"]] == [True]


def test_leftover_processes_go_with_the_job(nersc: Nersc) -> None:
    job_id = nersc.submit(script("setsid sleep 60 >/dev/null 2>&1 &", "sleep 60 >/dev/null 2>&1 &", "exit 0"))
    nersc.wait_for(job_id, "COMPLETED")
    assert not processes_of(job_id)


def test_out_of_memory(nersc: Nersc) -> None:
    eater = "import time; x = bytearray(300 << 20); x[::4096] = b'x' * len(x[::4096]); time.sleep(60)"
    job_id = nersc.submit(script(f'python3 -c "{eater}"', directives="--mem=100M -t 10"))
    row = nersc.wait_for(job_id, "OUT_OF_MEMORY")
    assert row["exitcode"] == "0:125"
    nersc.ended(job_id)
    assert "oom_kill event" in nersc.output(job_id)


def test_signal_before_the_limit(nersc: Nersc) -> None:
    body = ("trap 'echo warned; exit 4' USR1", "sleep 60 & wait")
    job_id = nersc.submit(script(*body, directives="--signal=B:USR1@30"))
    assert nersc.wait_for(job_id, "FAILED", "TIMEOUT")["exitcode"] == "4:0"
    assert nersc.output(job_id) == "warned\n"


def test_script_by_path_with_arguments(nersc: Nersc) -> None:
    path = Path(nersc.described["home"]) / "recon.sh"
    path.write_text(script('printf "%s|" "$@"'))
    job_id = nersc.submit(str(path), path=True, args=["a b", "$(x)", "'"])
    nersc.wait_for(job_id, "COMPLETED")
    assert nersc.output(job_id) == "a b|$(x)|'|"
    assert nersc.row("sacct", job_id)["jobname"] == "recon.sh"
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


def test_refused_jobs_and_the_row_one_of_them_leaves(nersc: Nersc) -> None:
    before = len(nersc.facility.jobs())
    assert nersc.refusal("") == "sbatch: error: Batch script is empty!"
    assert "Invalid account" in nersc.refusal(script().replace("als_g", "nobody"))
    assert len(nersc.facility.jobs()) == before
    assert "Requested node configuration is not available" in nersc.refusal(
        script(directives="-J greedy -G 99")
    )
    row = next(
        r for r in nersc.list("sacct", user=nersc.described["user"])["output"] if r["jobname"] == "greedy"
    )
    assert (row["state"], row["exitcode"], row["nodelist"]) == ("FAILED", "1:0", "None assigned")


def test_queue_reasons_estimates_and_cancel_of_a_pending_job(nersc: Nersc) -> None:
    running = [nersc.submit(script("sleep 60", directives="-t 10")) for _ in range(3)]
    first, second = (nersc.submit(script("touch never-%j")) for _ in range(2))
    row = until(lambda: (r := nersc.row("squeue", first))["start_time"] != "N/A" and r)
    assert (row["state"], row["st"], row["reason"], row["time"]) == ("PENDING", "PD", "Resources", "0:00")
    assert row["nodelist(reason)"] == "(Resources)"
    assert nersc.row("squeue", second)["reason"] == "Priority"
    assert nersc.row("squeue", running[0])["time_left"] <= "9:59"
    sacct = nersc.row("sacct", first)
    assert (sacct["state"], sacct["start"], sacct["nodelist"]) == ("PENDING", "Unknown", "None assigned")
    for job_id in (first, second, *running):
        nersc.call("DELETE", f"compute/jobs/perlmutter/{job_id}")
    row = nersc.wait_for(first, f"CANCELLED by {os.getuid()}")
    assert row["start"] == "None"
    for job_id in running:
        nersc.ended(job_id)
    assert [nersc.book(job_id)["runs"] for job_id in (first, second)] == [0, 0]


def test_cancel_of_finished_and_unknown_jobs_is_silent(nersc: Nersc) -> None:
    job_id = nersc.submit(script("true"))
    nersc.wait_for(job_id, "COMPLETED")
    for wanted in (job_id, "99", "abc", "1_2"):
        reply = nersc.call("DELETE", f"compute/jobs/perlmutter/{wanted}").json()
        assert nersc.result(reply["task_id"])["status"] == "ok"
    assert nersc.state(job_id) == "COMPLETED"
    assert [c["effective"] for c in nersc.book(job_id)["cancels"]] == [False]


def test_afterok(nersc: Nersc) -> None:
    good, bad = nersc.submit(script("sleep 0.3")), nersc.submit(script("exit 1"))
    after_good = nersc.submit(script("true", directives=f"-d afterok:{good}"))
    after_bad = nersc.submit(script("true", directives=f"-d afterok:{bad}"))
    killed = nersc.submit(script("true", directives=f"-d afterok:{bad} --kill-on-invalid-dep=yes"))
    assert nersc.wait_for(after_good, "COMPLETED")["start"] >= nersc.row("sacct", good)["end"]
    until(lambda: nersc.row("squeue", after_bad)["reason"] == "DependencyNeverSatisfied")
    assert nersc.row("sacct", after_bad)["reason"] == "Dependency"
    nersc.wait_for(killed, "CANCELLED")
    names = [row["jobid"] for row in nersc.list("sacct", user=nersc.described["user"])["output"]]
    assert after_bad not in names  # never eligible: only its id finds it
    assert after_good in names
    unknown = nersc.submit(script("true", directives="-d afterok:17"))
    nersc.wait_for(unknown, "COMPLETED")
    nersc.call("DELETE", f"compute/jobs/perlmutter/{after_bad}")


def test_the_controller_forgets_and_the_accounting_does_not(nersc: Nersc) -> None:
    failed = nersc.submit(script("exit 1"))
    nersc.wait_for(failed, "FAILED")
    assert nersc.list("squeue", jobid=failed) == {"status": "OK", "output": [], "error": None}
    nersc.control("set", min_job_age=0.0)
    until(lambda: nersc.list("squeue", jobid=failed)["status"] == "ERROR")
    reply = nersc.list("squeue", jobid=failed)
    assert reply == {
        "status": "ERROR",
        "output": [],
        "error": "slurm_load_jobs error: Invalid job id specified",
    }
    assert nersc.list("squeue", jobid=f"{failed},12")["status"] == "OK"
    later = nersc.submit(script("true", directives=f"-d afterok:{failed}"))
    nersc.control("set", min_job_age=300.0)
    nersc.wait_for(later, "COMPLETED")  # a purged dependency is dropped, whatever became of it


def test_sacct_is_behind_and_calls_new_jobs_allocation(nersc: Nersc) -> None:
    nersc.control("set", sacct_lag=1000.0)
    try:
        job_id = nersc.submit(script("sleep 60", directives="-J patient -t 10"))
        submitted = nersc.book(job_id)["submitted"]
        assert nersc.row("squeue", job_id)["name"] == "patient"
        assert nersc.row("sacct", job_id) == {}

        def with_lag(share: float) -> dict[str, str]:
            """The row when the lag is that share of the job's age."""
            nersc.control("set", sacct_lag=share * (time.time() - submitted))
            return nersc.row("sacct", job_id)

        row = until(lambda: (r := with_lag(0.8)).get("jobname") == "allocation" and r)
        assert (row["state"], row["start"]) == ("PENDING", "Unknown")
        assert with_lag(0.2)["jobname"] == "patient"
        assert nersc.state(job_id) == "RUNNING"
        nersc.call("DELETE", f"compute/jobs/perlmutter/{job_id}")
    finally:
        nersc.control("set", sacct_lag=0.0)


def test_cached_view_is_behind(nersc: Nersc) -> None:
    nersc.control("set", cached_lag=0.6)
    job_id = nersc.submit(script("true"))
    nersc.wait_for(job_id, "COMPLETED")
    assert nersc.list("sacct", cached=True, jobid=job_id)["output"] == []
    until(lambda: nersc.list("sacct", cached=True, jobid=job_id)["output"])
    nersc.control("set", cached_lag=0.0)


def test_listing_by_user_name_partition_and_slices(nersc: Nersc) -> None:
    ids = [nersc.submit(script("true", directives=f"-J slice{n}")) for n in range(3)]
    for job_id in ids:
        nersc.wait_for(job_id, "COMPLETED")
    user = nersc.described["user"]
    assert [r["jobid"] for r in nersc.list("sacct", jobid=",".join(ids))["output"]] == ids
    assert [r["jobid"] for r in nersc.list("sacct", user=user, name="SLICE1")["output"]] == [ids[1]]
    assert {r["partition"] for r in nersc.list("sacct", user=user, partition="gpu_ss11")["output"]} == {
        "gpu_ss11"
    }
    assert nersc.list("sacct", user=user, partition="nosuch")["output"] == []
    assert nersc.list("squeue", user="no-such-user")["error"] == "Invalid user: no-such-user"
    assert "unrecognized option '--frob'" in nersc.list("sacct", frob="1")["error"]
    assert "Invalid job id" in nersc.list("sacct", jobid="1;rm")["error"]
    assert nersc.list("sacct", user=user, starttime="2020-01-01")["error"].endswith(
        "Too wide of a date range in query"
    )
    base = [("sacct", "true"), ("cached", "false"), ("kwargs", f"jobid={','.join(ids)}")]
    rows = nersc.get("compute/jobs/perlmutter", params=[*base, ("index", "1"), ("limit", "1")])["output"]
    assert [r["jobid"] for r in rows] == [ids[1]]
    one = nersc.get(f"compute/jobs/perlmutter/{ids[2]}", params={"sacct": "true", "cached": "false"})
    assert [r["jobid"] for r in one["output"]] == [ids[2]]
