"""A power cut between any two lines of the client: nothing lost, nothing doubled."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest

from beamline_client.client import Client
from beamline_client.scan_names import scan_run_id
from support import kill_client
from support.airflow_api import DAG_RUNS, AirflowApi
from support.client import PROGRAM

FIRST = 10_000  # numbers of the scans, so that their paths have one length
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(PROGRAM), str(Path(kill_client.__file__).parents[1])]),
}


def an_hdf5_file() -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["x"] = 1
    return content.getvalue()


def kill_at_every(
    points: str, scenario: str, api: AirflowApi, password_file: Path, folder: Path
) -> list[dict[str, Any]]:
    spec = {
        "url": api.url,
        "password_file": str(password_file),
        "folder": str(folder),
        "first": FIRST,
        "hdf5": an_hdf5_file().hex(),
    }
    command = [sys.executable, kill_client.__file__, scenario, points, json.dumps(spec)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(report["killed"] for report in reports[:-1])
    assert (reports[-1]["killed"], reports[-1]["status"]) == (False, 0)
    return reports


def runs_of(api: AirflowApi, n: int) -> int:
    first = scan_run_id(kill_client.scan(n))
    return sum(run_id.startswith(first) for run_id in api.created)


@pytest.mark.parametrize(
    ("scenario", "points"),
    [
        pytest.param("submit", "lines", marks=pytest.mark.long),
        ("submit", "calls"),
        pytest.param("reprocess", "lines", marks=pytest.mark.long),
        ("reprocess", "calls"),
        pytest.param("outage", "lines", marks=pytest.mark.long),
    ],
)
def test_killed_anywhere_a_kept_request_is_one_run(
    api: AirflowApi, password_file: Path, tmp_path: Path, scenario: str, points: str
) -> None:
    before = int(scenario == "reprocess")
    if scenario == "reprocess":
        for n in range(FIRST, FIRST + 1000):
            path = kill_client.scan(n)
            api.add_run(scan_run_id(path), "success", {"file_path": path})
    reports = kill_at_every(points, scenario, api, password_file, tmp_path)
    made = [runs_of(api, report["n"]) - before for report in reports]
    kept = made.index(1)
    assert 10 < kept < len(made) - 10, "kills both before and after the request was on disk"
    # Before that the caller got no answer and nothing was sent; from then on it is one run, always.
    assert made == [0] * kept + [1] * (len(made) - kept)
    assert all(report["recovered"] == 0 and report["left"] == 0 for report in reports)
    assert any(report["waited"] for report in reports)


@pytest.mark.parametrize("points", [pytest.param("lines", marks=pytest.mark.long), "calls"])
def test_a_watch_killed_anywhere_submits_each_scan_once(
    api: AirflowApi, password_file: Path, tmp_path: Path, points: str
) -> None:
    reports = kill_at_every(points, "watch", api, password_file, tmp_path)
    assert len(reports) > 50
    assert [runs_of(api, report["n"]) for report in reports] == [1] * len(reports)
    assert all(report["recovered"] == 0 and report["left"] == 0 for report in reports)


def test_killed_when_airflow_has_acted_and_not_answered(
    api: AirflowApi, client: Client, config: Path
) -> None:
    client.submit(["a/b.cxi"], any_name=True)
    path = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
    arguments = [sys.executable, str(PROGRAM), path, "--config", str(config)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    acted: list[str] = []

    def kill(method: str, where: str) -> None:
        if method == "POST" and where == DAG_RUNS and not acted:
            acted.append(where)
            process.kill()
            process.wait()

    api.on_request = kill
    assert process.wait(60) == -signal.SIGKILL
    assert api.created[1:] == [scan_run_id(path)]
    assert len(client.spool.names()) == 1
    (outcome,) = client.sender.flush().values()
    assert outcome.outcome == "already accepted"
    assert api.created[1:] == [scan_run_id(path)]
    assert client.spool.names() == []
