"""Daemons of Slurm that die, and what clients of SFAPI see of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from facilities.errors import TransientError
from facilities.superfacility.hook import SuperfacilityHook
from standin.testing import until
from support.nersc import Nersc, cancel, script
from support.slurm_cluster import SlurmCluster, enforces_memory
from support.superfacility import CONN_ID, connection_to, use_connection

pytestmark = pytest.mark.slurm

LONG = 90.0
ENDLESS = 'echo "run ${SLURM_RESTART_COUNT:-0}" >> log-$SLURM_JOB_ID; sleep 600'


@pytest.fixture
def hook(nersc: Nersc, monkeypatch: pytest.MonkeyPatch) -> Iterator[SuperfacilityHook]:
    """The bundle's own client; it sends each look once."""
    use_connection(monkeypatch, CONN_ID, connection_to(nersc.facility))
    hook = SuperfacilityHook(CONN_ID, attempts=1)
    yield hook
    hook.close()


def test_the_tests_ran_on_slurm_with_all_that_they_mean(cluster: SlurmCluster, nersc: Nersc) -> None:
    assert nersc.described["scheduler"] == "slurm"
    shown = cluster.run("scontrol", "show", "node", cluster.node)
    assert "Gres=gpu:4" in shown
    assert "ActiveFeatures=gpu,cpu" in shown
    held_by = "task/cgroup" if enforces_memory() else "task/none"
    assert held_by in cluster.run("scontrol", "show", "config")


def test_a_node_that_dies_and_comes_back(cluster: SlurmCluster, nersc: Nersc) -> None:
    lost, again = (
        nersc.submit(script(ENDLESS, directives=f"-t 300 {directive}"))
        for directive in ("--no-requeue", "--requeue")
    )
    for job_id in (lost, again):
        nersc.wait_for(job_id, "RUNNING")
    cluster.stop("slurmd", signal.SIGKILL)
    try:
        assert nersc.wait_for(lost, "NODE_FAIL", seconds=LONG)["exitcode"] == "0:0"
        until(lambda: nersc.row("squeue", again)["state"] == "PENDING", LONG)
        waiting = nersc.submit(script("true", directives="-J waiting"))
        until(lambda: "NotAvail" in nersc.row("squeue", waiting)["reason"], LONG)
    finally:
        cluster.start_node()
    nersc.wait_for(waiting, "COMPLETED", seconds=LONG)
    until(lambda: nersc.output(again, "log-%j") == "run 0\nrun 1\n", LONG)
    assert nersc.state(lost) == "NODE_FAIL"
    books = {job: nersc.book(job) for job in (lost, again)}
    assert [books[job]["runs"] for job in (lost, again)] == [1, 2]
    assert books[again]["states"][:2] == ["NODE_FAIL", "RUNNING"]
    cancel(nersc, again)


def test_a_controller_that_is_away_is_an_error_that_passes(
    cluster: SlurmCluster, nersc: Nersc, hook: SuperfacilityHook
) -> None:
    job_id = nersc.submit(script("sleep 8"))
    nersc.wait_for(job_id, "RUNNING")
    cluster.stop("slurmctld")
    try:
        answer = nersc.list("squeue", jobid=job_id)
        assert (answer["status"], answer["output"]) == ("ERROR", [])
        assert "Unable to contact slurm controller" in answer["error"]
        with pytest.raises(TransientError, match="Unable to contact slurm controller"):
            hook.jobs("perlmutter", [job_id], "squeue")
        assert hook.jobs("perlmutter", [job_id], "sacct")[job_id].state == "RUNNING"
        refused = nersc.refusal(script("true", directives="-J away"))
        assert "Unable to contact slurm controller" in refused
    finally:
        cluster.start("slurmctld")
    until(lambda: nersc.list("squeue", jobid=job_id)["status"] == "OK", LONG)
    nersc.wait_for(job_id, "COMPLETED", seconds=LONG)
    assert nersc.book(job_id)["runs"] == 1
    assert nersc.list("sacct", user=nersc.described["user"], name="away")["output"] == []


def test_an_accounting_that_is_away_is_an_error_that_passes(
    cluster: SlurmCluster, nersc: Nersc, hook: SuperfacilityHook
) -> None:
    cluster.stop("slurmdbd")
    try:
        job_id = nersc.submit(script("exit 3", directives="-J unbooked"))
        until(lambda: nersc.list("squeue", jobid=job_id)["output"] == [], LONG)
        answer = nersc.list("sacct", jobid=job_id)
        assert (answer["status"], answer["output"]) == ("ERROR", [])
        with pytest.raises(TransientError):
            hook.jobs("perlmutter", [job_id], "sacct")
    finally:
        cluster.start("slurmdbd")
    row = nersc.wait_for(job_id, "FAILED", seconds=LONG)
    assert row["jobname"] == "unbooked"
    until(lambda: nersc.row("sacct", job_id)["exitcode"] == "3:0", LONG)  # it comes after the state
