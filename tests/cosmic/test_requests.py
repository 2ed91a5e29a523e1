"""What one scan asks of NERSC and Globus, request by request: another one is a decision, not an accident."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.models.connection import Connection

from deployment.standin_settings import standin_beamline, standin_seed
from standin.testing import Facility
from support.live import install_engines

REPOSITORY = Path(__file__).resolve().parents[2]
SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"

REQUESTS = {
    "Globus `POST /v2/oauth2/token`": r"POST /globus/\S*/v2/oauth2/token",
    "Globus `GET /operation/endpoint/<source>/stat`": r"GET /globus/\S*/endpoint/<source>/stat",
    "Globus `GET /operation/endpoint/<destination>/stat`": r"GET /globus/\S*/endpoint/<destination>/stat",
    "Globus `GET /submission_id`": r"GET /globus/\S*/submission_id",
    "Globus `POST /transfer`": r"POST /globus/\S*/transfer",
    "Globus `GET /task_list`": r"GET /globus/\S*/task_list",
    "NERSC `POST /c2id/token`": r"POST /nersc/\S*/token",
    "NERSC `GET /account/`": r"GET /nersc/\S*/account/",
    "NERSC `GET /compute/jobs`, squeue": r"GET /nersc/\S*/compute/jobs/perlmutter squeue",
    "NERSC `GET /compute/jobs`, sacct": r"GET /nersc/\S*/compute/jobs/perlmutter sacct",
    "NERSC `GET /status/perlmutter`": r"GET /nersc/\S*/status/perlmutter",
    "NERSC `POST /compute/jobs`": r"POST /nersc/\S*/compute/jobs/perlmutter",
    "NERSC `GET /tasks/<id>`": r"GET /nersc/\S*/tasks/\d+",
    "NERSC `GET /utilities/ls`": r"GET /nersc/\S*/utilities/ls/perlmutter/\S*",
    "NERSC `GET /utilities/download`": r"GET /nersc/\S*/utilities/download/perlmutter/\S*",
}
"""Of each request its name, as the table of the documentation has it, and how it looks."""

POLLS = {
    "Globus `GET /task_list`",
    "NERSC `GET /tasks/<id>`",
    "NERSC `GET /compute/jobs`, sacct",
    "NERSC `GET /compute/jobs`, squeue",
}
"""Requests that are repeated until something has happened."""

ONCE_FOR_A_MACHINE = {
    "Globus `POST /v2/oauth2/token`",
    "NERSC `POST /c2id/token`",
    "NERSC `GET /account/`",
}
ALWAYS = {
    "copy_to_nersc": [
        "Globus `GET /operation/endpoint/<source>/stat`",
        "Globus `GET /submission_id`",
        "Globus `POST /transfer`",
        "Globus `GET /task_list`",
        "Globus `GET /operation/endpoint/<destination>/stat`",
        "Globus `GET /operation/endpoint/<source>/stat`",
    ],
    "ptychocam.submit": [
        "NERSC `GET /compute/jobs`, squeue",
        "NERSC `GET /status/perlmutter`",
        "NERSC `POST /compute/jobs`",
        "NERSC `GET /tasks/<id>`",
    ],
    "ptychocam.wait": ["NERSC `GET /compute/jobs`, sacct"],
    "ptychocam.collect": [
        *["NERSC `GET /utilities/ls`"] * 2,  # .cxi, .h5
        *["NERSC `GET /utilities/download`"] * 4,  # .json, .png, both pictures
    ],
}


@pytest.fixture
def dag(airflow_database: None, facility: Facility, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`transfer_auto_recon`, pointed at a stand-in whose reconstructions take no time."""
    facility.control("nersc", "set", sacct_lag=0.0)
    install_engines(facility)
    seed = standin_seed(facility.description)
    for conn_id, values in seed["connections"].items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", Connection(conn_id=conn_id, **values).as_json())
    site = standin_beamline(facility.description, tmp_path / "beamline.yaml", tmp_path / "scripts")
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(site))
    bag = DagBag(dag_folder=str(REPOSITORY / "dags" / "transfer_auto_recon.py"))
    assert bag.import_errors == {}
    return bag.dags["transfer_auto_recon"]


def run_scan(dag: Any, facility: Facility, number: int, **conf: Any) -> dict[str, list[str]]:
    """Run a scan; what each of its tasks has asked for, a poll once."""
    path = SCAN.replace("033", f"{number:03}")
    file = facility.collection("data7012") / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("ok\n")
    facility.clear_requests()
    run = dag.test(run_conf={"file_path": path, **conf})
    tasks = run.get_task_instances()
    assert run.state == "success", [(ti.task_id, ti.state) for ti in tasks]
    spans = {
        ti.task_id: (ti.start_date.timestamp(), ti.end_date.timestamp()) for ti in tasks if ti.start_date
    }
    asked: dict[str, list[str]] = {}
    for request in facility.requests():
        name = name_of(request, facility)
        (task_id,) = [t for t, (start, end) in spans.items() if start <= request["time"] <= end]
        of_task = asked.setdefault(task_id, [])
        if not (name in POLLS and name in of_task[-2:]):  # squeue and sacct may take turns
            of_task.append(name)
    return asked


def name_of(request: Mapping[str, Any], facility: Facility) -> str:
    """A request's name; fails for one that has none."""
    line = f"{request['method']} {request['path']}"
    for place, collection in (("source", "data7012"), ("destination", "nersc7012")):
        line = line.replace(facility.description["collections"][collection]["id"], f"<{place}>")
    if line.startswith("GET") and "/compute/jobs/" in line:
        line += " sacct" if "sacct=true" in request["query"] else " squeue"
    (name,) = [name for name, pattern in REQUESTS.items() if re.fullmatch(pattern, line)] or [line]
    return name


def without(asked: Mapping[str, list[str]], names: set[str]) -> dict[str, list[str]]:
    return {task: [name for name in of_task if name not in names] for task, of_task in asked.items()}


@pytest.mark.filterwarnings("ignore")  # of the Airflow server that runs in this process
def test_each_request_of_a_scan_has_its_purpose(dag: Any, facility: Facility) -> None:
    first = run_scan(dag, facility, 1, do_ptychocam=True)
    once = [name for of_task in first.values() for name in of_task if name in ONCE_FOR_A_MACHINE]
    assert sorted(once) == sorted(ONCE_FOR_A_MACHINE)

    # The queue is asked as well while accounting does not know the job yet, or the job waits.
    queue = "NERSC `GET /compute/jobs`, squeue"
    for asked in (first, run_scan(dag, facility, 2, do_ptychocam=True)):
        if asked is not first:
            assert not ONCE_FOR_A_MACHINE & {name for of_task in asked.values() for name in of_task}
        asked["ptychocam.wait"] = [name for name in asked["ptychocam.wait"] if name != queue]
        assert without(asked, ONCE_FOR_A_MACHINE) == ALWAYS

    table = (REPOSITORY / "docs" / "reference" / "requests.md").read_text()
    assert set(re.findall(r"(?m)^\| ((?:Globus|NERSC) `[^|]+?) \|", table)) == set(REQUESTS)
