"""The REST contract: the document's own lines, what errors look like, what the beamline's user may do."""

from __future__ import annotations

import concurrent.futures
import json
import math
import re
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from dev.local_airflow.rest import Rest, RestError
from dev.local_airflow.settings import REPOSITORY
from support.live import Pipeline
from support.missed import all_runs, run_id

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(900)]

SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
DOCUMENT = (REPOSITORY / "docs" / "reference" / "rest.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.fixture
def beamline(pipeline: Pipeline) -> Rest:
    """The API as the beamline computer's user."""
    return Rest(pipeline.airflow.url, "beamline", pipeline.airflow.passwords["beamline"])


class Shell:
    """Runs blocks of the document one after the other, each with the variables of the first two."""

    def __init__(self, url: str, password: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        login = folder / "login.json"
        login.touch(mode=0o600)
        login.write_text(json.dumps({"username": "beamline", "password": password}))

    def run(self, *blocks: str, fails: bool = False) -> str:
        """The output of the last block."""
        text = "set -euo pipefail\n" + "\n".join(blocks[:-1]) + "\necho ----\n" + blocks[-1]
        done = subprocess.run(
            ["/bin/bash", "-c", text],
            env={"AIRFLOW": self.url, "PATH": "/usr/local/bin:/usr/bin:/bin"},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        return done.stdout.split("----\n", 1)[1].strip()


@pytest.mark.needs("curl", "jq")
def test_the_lines_of_the_document_work_as_they_are(pipeline: Pipeline, tmp_path: Path) -> None:
    login, start, follow, result, listing, warnings, reprocess, cancel = BLOCKS
    shell = Shell(pipeline.airflow.url, pipeline.airflow.passwords["beamline"], tmp_path)
    names = "\n".join(start.splitlines()[:2])
    pipeline.live.scan(SCAN, b"ok\n")

    started = json.loads(shell.run(login, start))
    assert (started["dag_run_id"], started["state"]) == (run_id(SCAN), "queued")
    assert started["conf"] == {"file_path": SCAN, "do_ptychocam": True, "n_iter": 300}
    assert f"There is a run {run_id(SCAN)} of {DAG_ID} already." in shell.run(login, start, fails=True)
    assert pipeline.finish(run_id(SCAN)) == "success"

    state, *tasks = shell.run(login, names, follow).splitlines()
    assert state == "success"
    assert "ptychocam.wait\tsuccess" in tasks
    assert json.loads(shell.run(login, names, result))["scan"] == SCAN
    assert any(line.endswith(f"success\t{SCAN}") for line in shell.run(login, names, listing).splitlines())

    assert run_id(SCAN) in shell.run(login, names, warnings).splitlines()

    pipeline.live.scan(SCAN, b"hold\n")
    assert json.loads(shell.run(login, names, reprocess))["dag_run_id"] == run_id(SCAN, 2)
    pipeline.wait_for_task(run_id(SCAN, 2), "ptychocam.wait", "deferred")
    assert shell.run(login, names, cancel) == "failed"
    pipeline.wait_for(
        lambda: sorted(job["state"] for job in pipeline.jobs_of(SCAN)) == ["CANCELLED", "COMPLETED"],
        "the job is cancelled",
    )


RUNS = f"/api/v2/dags/{DAG_ID}/dagRuns"
GOOD = {"file_path": SCAN}


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        (RUNS, {"conf": {**GOOD, "n_gpu": 400}}, (400, "n_gpu must be a whole number from 1 to 4, not 400")),
        (RUNS, {"conf": {**GOOD, "n_gpu": "8"}}, (400, "n_gpu must be a whole number from 1 to 4, not '8'")),
        (RUNS, {"conf": {**GOOD, "n_gpus": 1}}, (400, "no parameter 'n_gpus' (did you mean n_gpu?)")),
        (RUNS, {"conf": {**GOOD, "propagation_distance": math.nan}}, (400, "propagation_distance must be a")),
        (RUNS, {"conf": {"file_path": "../x.cxi"}}, (400, "the path of a scan such as 2023/")),
        (RUNS, {"conf": {"file_path": "\ud800.cxi"}}, (400, "the path of a scan such as 2023/")),
        (RUNS, {"conf": {"file_path": "x" * 256 + ".cxi"}}, (400, "the path of a scan such as 2023/")),
        (RUNS, {"conf": {}}, (400, "file_path is missing")),
        (RUNS, {"conf": {**GOOD, "probe_initialization": "x" * 10**6}}, (413, "longer than 65536 bytes")),
        (RUNS, {"conf": GOOD, "dag_run_id": "a/b"}, (400, "a/b")),
        (RUNS, {"conf": GOOD, "dag_run_id": "x\n"}, (400, "dag_run_id must be at most 200 letters")),
        (RUNS, {"conf": GOOD, "dag_run_id": "x" * 250}, (400, "dag_run_id must be at most 200 letters")),
        (RUNS, {"conf": GOOD, "logical_date": "x"}, (422, "logical_date")),
        (RUNS, {"conf": GOOD, "dag_run": "x"}, (422, "Extra inputs are not permitted")),
        ("/api/v2/dags/no_such_dag/dagRuns", {}, (404, "not found")),
    ],
)
def test_what_is_refused_says_why_and_makes_no_run(
    pipeline: Pipeline, beamline: Rest, path: str, body: dict[str, Any], answer: tuple[int, str]
) -> None:
    name = f"refused_{uuid.uuid4().hex}"
    with pytest.raises(RestError) as refused:
        beamline.call("POST", path, {"dag_run_id": name, "logical_date": None, **body})
    assert refused.value.status == answer[0]
    assert answer[1] in refused.value.detail
    assert f"| {answer[0]} |" in DOCUMENT
    with pytest.raises(RestError, match="404"):
        pipeline.rest.run(DAG_ID, name)


def test_the_two_conflicts_are_told_apart(pipeline: Pipeline, beamline: Rest) -> None:
    name, date = f"conflict_{uuid.uuid4().hex}", "2024-01-01T00:00:00Z"
    body = {"conf": GOOD, "logical_date": date}
    beamline.call("POST", RUNS, {"dag_run_id": name, **body})
    with pytest.raises(RestError, match=f"409.*There is a run {name} of {DAG_ID} already"):
        beamline.call("POST", RUNS, {"dag_run_id": name, **body})
    with pytest.raises(
        RestError, match=f"409.*There is another run of {DAG_ID} with the logical date {date}"
    ):
        beamline.call("POST", RUNS, {"dag_run_id": f"{name}_2", **body})


@pytest.mark.parametrize(
    ("conf", "refusal"),
    [
        ('{"file_path": "%s", "account": "x"}', "There is no parameter 'account' (there are: file_path, "),
        ('{"file_path": "%s", "n_gpu": "two"}', "n_gpu must be a whole number from 1 to 4, not 'two'"),
        ('{"file_path": "%s", "propagation_distance": NaN}', "propagation_distance must be a distance"),
    ],
)
def test_what_comes_through_the_command_line_fails_in_the_first_task_once(
    pipeline: Pipeline, conf: str, refusal: str
) -> None:
    name = f"command_{uuid.uuid4().hex}"
    airflow_command(pipeline, "dags", "trigger", DAG_ID, "--run-id", name, "--conf", conf % SCAN)
    assert pipeline.finish(name) == "failed"
    task = pipeline.rest.task_instances(DAG_ID, name)["check_scan"]
    assert (task["state"], task["try_number"]) == ("failed", 1)
    assert refusal in pipeline.rest.log(DAG_ID, name, "check_scan")


def test_the_command_line_refuses_a_run_id_that_cannot_work(pipeline: Pipeline) -> None:
    for name in ("command\n", "x" * 250):
        conf = json.dumps(GOOD)
        said = airflow_command(
            pipeline, "dags", "trigger", DAG_ID, "--run-id", name, "--conf", conf, fails=True
        )
        assert "does not match regex pattern" in said


def airflow_command(pipeline: Pipeline, *words: str, fails: bool = False) -> str:
    """What Airflow's command says, on the machine of the running Airflow."""
    done = subprocess.run(
        [sys.executable, "-m", "airflow", *words],
        env=pipeline.airflow.environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_date_must_be_named(pipeline: Pipeline, beamline: Rest) -> None:
    with pytest.raises(RestError, match="Field required") as refused:
        beamline.call("POST", RUNS, {"conf": GOOD})
    assert refused.value.status == 422


def test_without_a_token_or_with_a_wrong_one_nothing_is_said(pipeline: Pipeline) -> None:
    for token, status, said in (("", 401, "Not authenticated"), ("nonsense", 403, "Invalid JWT token")):
        request = urllib.request.Request(pipeline.airflow.url + RUNS)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert refused.value.code == status
        assert said in refused.value.read().decode()
        assert said in DOCUMENT
    with pytest.raises(RestError, match="401"):
        Rest(pipeline.airflow.url, "beamline", "wrong")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/v2/connections", None),
        ("POST", "/api/v2/connections", {"connection_id": "x", "conn_type": "http"}),
        ("GET", "/api/v2/variables", None),
        ("POST", "/api/v2/pools", {"name": "x", "slots": 1}),
    ],
)
def test_the_beamlines_user_may_start_and_read_runs_and_not_look_at_settings(
    beamline: Rest, method: str, path: str, body: dict[str, Any] | None
) -> None:
    with pytest.raises(RestError) as refused:
        beamline.call(method, path, body)
    assert refused.value.status == 403
    assert "Forbidden" in refused.value.detail
    assert beamline.call("GET", f"{RUNS}?limit=1")["dag_runs"] is not None


def test_a_burst_of_posts_is_a_run_each_nothing_lost_and_none_doubled(
    pipeline: Pipeline, beamline: Rest
) -> None:
    """The DAG is paused, so that the runs only wait; each scan is posted twice, from many threads."""
    scans = [f"2022/11/221101/NS_221101{number:04}_ccdframes_0_0.cxi" for number in range(100)]
    switch = f"/api/v2/dags/{DAG_ID}"
    pipeline.rest.call("PATCH", switch, {"is_paused": True})
    try:

        def post(scan: str) -> int:
            body = {"dag_run_id": run_id(scan), "logical_date": None, "conf": {"file_path": scan}}
            try:
                beamline.call("POST", RUNS, body)
            except RestError as error:
                return error.status
            return 200

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = Counter(pool.map(post, scans * 2))
        there = all_runs(pipeline, "2022/11/221101/")
        assert answers == {200: len(scans), 409: len(scans)}
        assert sorted(run["conf"]["file_path"] for run in there) == scans
        for run in there:
            pipeline.rest.call("DELETE", f"{RUNS}/{run['dag_run_id']}")
    finally:
        pipeline.rest.call("PATCH", switch, {"is_paused": False})
