"""The client against the real Airflow of the session, with the stand-in facility behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.parse
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beamline_client.client import Client
from beamline_client.config import Settings
from beamline_client.errors import RefusedError, RejectedError
from beamline_client.parameters import DAG_ID
from beamline_client.scan_names import scan_run_id
from support.client import PROGRAM
from support.live import Live, Pipeline, install_engines

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture
def pipeline(live_airflow: Live) -> Pipeline:
    """The running system, with the test engine installed."""
    install_engines(live_airflow.facility)
    return Pipeline(live_airflow)


@pytest.fixture
def at_beamline(live_airflow: Live, tmp_path: Path) -> Settings:
    """Settings of a beamline computer of this Airflow."""
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text(live_airflow.airflow.passwords["beamline"])
    return Settings(
        url=live_airflow.airflow.url,
        user="beamline",
        password_file=password,
        spool=tmp_path / "spool",
        timeout=60.0,
    )


Command = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def command(at_beamline: Settings) -> Command:
    """Run the command in a process of its own; gives its exit code and its JSON."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(at_beamline.spool.parent),
        "COSMIC_AIRFLOW_URL": at_beamline.url,
        "COSMIC_AIRFLOW_USER": at_beamline.user,
        "COSMIC_AIRFLOW_PASSWORD_FILE": str(at_beamline.password_file),
        "COSMIC_SPOOL": str(at_beamline.spool),
    }

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), *arguments, "--json", "--timeout", "60"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        assert "Traceback" not in done.stderr
        return done.returncode, answer

    return run


def test_a_scan_is_started_followed_and_reported(pipeline: Pipeline, command: Command) -> None:
    scan = pipeline.new_scan()
    code, answer = command(
        scan, "--engine", "ptychocam", "--param", "n_iter=7", "--wait", "--wait-limit", "150"
    )
    (outcome,) = answer["results"]
    assert (code, outcome["outcome"]) == (0, "success")
    assert outcome["tasks"]["report"] == "success"
    assert outcome["results"]["report"]["scan"] == scan
    assert outcome["run_id"] == scan_run_id(scan)
    code, answer = command(scan, "--engine", "ptychocam", "--param", "n_iter=7")
    assert (code, answer["results"][0]["outcome"], answer["results"][0]["state"]) == (
        0,
        "already accepted",
        "success",
    )
    assert len(pipeline.transfers_of(outcome["run_id"])) == 1
    assert len(pipeline.jobs_of(scan)) == 1

    code, answer = command("reprocess", scan, "--param", "n_iter=9", "--wait", "--wait-limit", "150")
    assert (code, answer["results"][0]["run_id"]) == (0, scan_run_id(scan, 2))
    conf = pipeline.rest.run(DAG_ID, scan_run_id(scan, 2))["conf"]
    assert (conf["n_iter"], conf["do_ptychocam"]) == (9, True)
    code, answer = command("status", scan)
    assert [result["run_id"] for result in answer["results"]] == [scan_run_id(scan), scan_run_id(scan, 2)]


def test_a_failed_run_shows_why(pipeline: Pipeline, command: Command) -> None:
    scan = pipeline.new_scan("fail 3")
    code, answer = command(scan, "--engine", "ptychocam", "--wait", "--wait-limit", "150")
    (outcome,) = answer["results"]
    assert (code, outcome["outcome"]) == (5, "failed")
    assert any("What to do" in error for errors in outcome["errors"].values() for error in errors), outcome


def test_cancel_ends_the_run_and_its_job(pipeline: Pipeline, command: Command) -> None:
    scan = pipeline.new_scan("hold")
    code, answer = command(scan, "--engine", "ptychocam")
    assert code == 0
    pipeline.wait_for_task(scan_run_id(scan), "ptychocam.wait", "deferred")
    code, answer = command("cancel", scan)
    assert (code, answer["results"][0]["outcome"]) == (0, "cancelled")
    pipeline.wait_for(lambda: {j["state"] for j in pipeline.jobs_of(scan)} == {"CANCELLED"}, "the job's end")
    code, answer = command("cancel", scan)
    assert (code, answer["results"][0]["outcome"]) == (0, "had ended")


def test_a_scan_of_several_files_by_its_name(pipeline: Pipeline, command: Command) -> None:
    name = f"NS_230216{uuid.uuid4().int % 10**9:09}"
    done, failed, held = (
        f"2023/02/230216/{name}_ccdframes_{numbers}.cxi" for numbers in ("0_0", "0_1", "1_0")
    )
    for path, behaviour in ((done, b"ok\n"), (failed, b"fail 3\n"), (held, b"hold\n")):
        pipeline.live.scan(path, behaviour)
    assert command("status", name)[0] == 6
    assert command(done, failed, held, "--engine", "ptychocam")[0] == 0
    assert pipeline.finish(scan_run_id(done)) == "success"
    assert pipeline.finish(scan_run_id(failed)) == "failed"
    pipeline.wait_for_task(scan_run_id(held), "ptychocam.wait", "deferred")

    code, answer = command("status", name)
    (status,) = answer["results"]
    assert (code, status["outcome"]) == (5, "1 of 3 done, 1 of them with warnings, 1 failed, 1 running")
    assert [one["path"] for one in status["files"]] == [done, failed, held]
    (why,) = status["files"][1]["errors"]["ptychocam.wait"]
    assert "FAILED" in why
    query = urllib.parse.urlsplit(status["url"]).query  # the UI's list of the scan's runs
    runs = f"/api/v2/dags/{DAG_ID}/dagRuns?{query}"
    assert pipeline.rest.call("GET", runs)["total_entries"] == 3

    pipeline.live.scan(failed, b"ok\n")
    code, answer = command("reprocess", name, "--wait", "--wait-limit", "150")
    assert (code, answer["results"][0]["outcome"]) == (8, "2 of 3 done, 2 of them with warnings, 1 running")
    code, answer = command("reprocess", name)
    assert (code, answer["results"][0]["outcome"]) == (0, "0 of 3 accepted, 2 done, 1 running")

    code, answer = command("cancel", name)
    assert (code, answer["results"][0]["outcome"]) == (0, "1 of 3 cancelled, 2 had ended")
    pipeline.wait_for(lambda: {j["state"] for j in pipeline.jobs_of(held)} == {"CANCELLED"}, "the job's end")
    code, answer = command("cancel", name)
    assert (code, answer["results"][0]["outcome"]) == (0, "0 of 3 cancelled, 3 had ended")
    assert command("status", name)[0] == 5
    assert pipeline.rest.call("GET", runs)["total_entries"] == 4


def test_what_airflow_refuses(pipeline: Pipeline, at_beamline: Settings, tmp_path: Path) -> None:
    client = Client(at_beamline, log=lambda _: None)
    run_id = scan_run_id("refused/a.cxi")
    start = client.runs.start
    for conf in ({"file_path": "../a.cxi"}, {}, {"file_path": "refused/a.cxi", "n_gpu": 9}):
        with pytest.raises(RejectedError, match="finds the request wrong"):
            start(run_id, conf, "")
    assert client.find_runs(run_id) == []
    client.runs.airflow._token = "no.such.token"
    assert client.find_runs(run_id) == []  # a new one was fetched
    (tmp_path / "password").write_text("wrong")
    with pytest.raises(RefusedError, match="refuses to log in 'beamline'"):
        Client(at_beamline).find_runs(run_id)


def test_many_scans_at_once_from_one_computer(pipeline: Pipeline, at_beamline: Settings) -> None:
    client = Client(at_beamline, log=lambda _: None)
    scans = [pipeline.new_scan() for _ in range(6)]
    outcomes = client.submit(scans)
    assert [outcome.outcome for outcome in outcomes] == ["accepted"] * 6
    assert [outcome.outcome for outcome in client.submit(scans)] == ["already accepted"] * 6
    last = client.wait_for([outcome.run_id for outcome in outcomes], 150)
    assert {run["state"] for run in last.values()} == {"success"}
