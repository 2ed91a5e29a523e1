"""Real jobs under the built-in scheduler, seen through SFAPI as squeue and sacct show them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from standin.nersc.schedulers import runs
from standin.testing import until
from support.nersc import Nersc, nersc_running, script


@pytest.fixture(scope="module")
def nersc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nersc]:
    """One facility for the module; a Slurm minute takes 0.6 s."""
    with nersc_running(tmp_path_factory.mktemp("builtin"), {"slots": 3}) as made:
        yield made


@pytest.mark.parametrize(
    ("directives", "code"),
    [("-o missing/x.out", "0:53"), ("-D missing", "0:53"), ("-o /etc/out", "0:53"), ("-e /proc/x", "0:53")],
)
def test_output_that_cannot_be_opened(nersc: Nersc, directives: str, code: str) -> None:
    job_id = nersc.submit(script("touch ran-$SLURM_JOB_ID", directives=directives))
    row = nersc.wait_for(job_id, "FAILED")
    assert row["exitcode"] == code
    assert not (Path(nersc.described["home"]) / f"ran-{job_id}").exists()


def test_signal_before_the_limit(nersc: Nersc) -> None:
    body = ("trap 'echo warned; exit 4' USR1", "sleep 60 & wait")
    job_id = nersc.submit(script(*body, directives="--signal=B:USR1@30"))
    assert nersc.wait_for(job_id, "FAILED", "TIMEOUT")["exitcode"] == "4:0"
    assert nersc.output(job_id) == "warned\n"


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
        assert (row["state"], row["start"] != "Unknown", row["end"]) == ("PENDING", True, "Unknown")
        assert with_lag(0.2)["jobname"] == "patient"
        assert nersc.state(job_id) == "RUNNING"
        nersc.call("DELETE", f"compute/jobs/perlmutter/{job_id}")
    finally:
        nersc.control("set", sacct_lag=0.0)


def test_the_accounting_refuses_long_ranges_of_dates(nersc: Nersc) -> None:
    listed = nersc.list("sacct", user=nersc.described["user"], starttime="2020-01-01")
    assert listed["error"].endswith("Too wide of a date range in query")


def test_states_of_a_job_in_the_books(nersc: Nersc) -> None:
    job_id = nersc.submit(script("true"))
    nersc.wait_for(job_id, "COMPLETED")
    assert nersc.book(job_id)["states"] == ["PENDING", "RUNNING", "COMPLETED"]


def test_cached_view_is_behind(nersc: Nersc) -> None:
    nersc.control("set", cached_lag=0.6)
    job_id = nersc.submit(script("true"))
    nersc.wait_for(job_id, "COMPLETED")
    assert nersc.list("sacct", cached=True, jobid=job_id)["output"] == []
    until(lambda: nersc.list("sacct", cached=True, jobid=job_id)["output"])
    nersc.control("set", cached_lag=0.0)


def test_a_runner_that_another_standin_of_the_process_has_waited_for_is_forgotten() -> None:
    """Two stand-ins in threads wait for the same children; the second must not fail."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)  # before a stand-in of this test session may wait for it
    runs._children.add(pid)
    runs.collect_exited()
    assert pid not in runs._children
