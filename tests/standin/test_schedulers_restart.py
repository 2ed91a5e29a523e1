"""Jobs and accounting when the server is killed: nothing lost, nothing run twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from standin.testing import SpawnedFacility, spawn, until
from support.nersc import FAST, Nersc, end_jobs, script

COUNTING = 'echo x >> "ran-$SLURM_JOB_NAME"'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpawnedFacility]:
    """A facility in a process that can be killed, for all tests of the module."""
    with spawn(tmp_path_factory.mktemp("restart"), slots=3) as facility:
        nersc = Nersc(facility)
        nersc.control("set", **FAST)
        yield facility
        end_jobs(nersc)
        nersc.close()


def restart(server: SpawnedFacility) -> None:
    """Kill it at once, and start it again."""
    server.kill()
    server.restart()


def test_a_running_job_is_taken_up_again(server: SpawnedFacility) -> None:
    nersc = Nersc(server)
    job_id = nersc.submit(
        script(COUNTING, "until [ -e go ]; do sleep 0.05; done; exit 5", directives="-t 60 -J one")
    )
    waiting = nersc.submit(script("true", directives=f"-d afterany:{job_id}"))
    home = Path(nersc.described["home"])
    until((home / "ran-one").exists)
    restart(server)
    assert nersc.state(job_id) == "RUNNING"  # with the token and the options of before
    assert nersc.row("squeue", waiting)["reason"] == "Dependency"
    (home / "go").touch()
    assert nersc.wait_for(job_id, "FAILED")["exitcode"] == "5:0"
    nersc.wait_for(waiting, "COMPLETED")
    assert (home / "ran-one").read_text() == "x\n"
    assert nersc.book(job_id)["runs"] == 1
    nersc.close()


def test_what_ended_meanwhile_is_noticed(server: SpawnedFacility) -> None:
    nersc = Nersc(server)
    job_id = nersc.submit(script("until [ -e go2 ]; do sleep 0.05; done; kill -9 $$", directives="-t 60"))
    limited = nersc.submit(script("sleep 30", directives="-t 1"))
    queued = [nersc.submit(script("true")) for _ in range(3)]
    home = Path(nersc.described["home"])
    until(lambda: nersc.state(limited) in ("RUNNING", "TIMEOUT"))
    server.kill()
    (home / "go2").touch()
    folder = server.root / "state" / "jobs"
    until((folder / job_id / "run-1" / "exit.json").exists)
    until((folder / limited / "run-1" / "exit.json").exists)
    server.restart()
    assert nersc.wait_for(job_id, "FAILED")["exitcode"] == "0:9"
    assert nersc.wait_for(limited, "TIMEOUT")
    for other in queued:
        nersc.wait_for(other, "COMPLETED")
    nersc.close()


def test_killed_again_and_again_each_accepted_job_runs_once(server: SpawnedFacility) -> None:
    """Kills right after submits: what was accepted runs once, and only once."""
    nersc = Nersc(server)
    before = len(server.jobs())
    accepted = []
    for number in range(12):
        form = {"job": script(COUNTING, directives=f"-J n{number}"), "isPath": "false"}
        reply = nersc.call("POST", "compute/jobs/perlmutter", data=form)
        accepted.append(reply.json()["task_id"])
        if number % 4 == 1:
            restart(server)
    job_ids = [nersc.result(task_id)["jobid"] for task_id in accepted]
    assert len(set(job_ids)) == 12
    for job_id in job_ids:
        nersc.wait_for(job_id, "COMPLETED")
    home = Path(nersc.described["home"])
    assert [(home / f"ran-n{n}").read_text() for n in range(12)] == ["x\n"] * 12
    assert {nersc.book(job_id)["runs"] for job_id in job_ids} == {1}
    assert len(server.jobs()) == before + 12
    nersc.close()


def test_outages_and_client_survive_too(server: SpawnedFacility) -> None:
    nersc = Nersc(server)
    client_id = nersc.described["client_id"]
    nersc.control("maintenance", seconds=300, description="power work")
    restart(server)
    status = nersc.http.get(f"{nersc.described['api_url']}/status/perlmutter").json()
    assert (status["status"], status["description"]) == ("unavailable", "power work")
    assert server.description["nersc"]["client_id"] == client_id
    assert nersc.ask_token().status_code == 200
    nersc.control("end_maintenance")
    nersc.close()


def test_a_command_under_way_is_reported_as_lost(server: SpawnedFacility) -> None:
    nersc = Nersc(server)
    reply = nersc.call("POST", "utilities/command/perlmutter", data={"executable": "sleep 2"})
    restart(server)
    document = nersc.get(f"tasks/{reply.json()['task_id']}")
    assert document["status"] == "failed"
    assert "whether it was done is unknown" in document["result"]
    nersc.close()
