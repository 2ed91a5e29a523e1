"""The operator in a real DAG run, with Airflow's own task runner, XComs and state store."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag

from deployment.standin_settings import standin_beamline
from standin.testing import Facility
from support.globus import CONN_ID, Place

DAGS = Path(__file__).resolve().parents[3] / "dags"


@pytest.fixture
def dag(airflow_database: None, standin: Facility, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The bundle's transfer DAG, pointed at the stand-in."""
    monkeypatch.setenv("AIRFLOW_CONN_GLOBUS_DEFAULT", os.environ[f"AIRFLOW_CONN_{CONN_ID.upper()}"])
    site = standin_beamline(standin.description, tmp_path / "beamline.yaml", tmp_path / "scripts")
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(site))
    bag = DagBag(dag_folder=str(DAGS / "process_newfile_7012_ptycho4.py"))
    assert bag.import_errors == {}
    return bag.dags["process_newfile_7012_ptycho4"]


@pytest.mark.filterwarnings("ignore")  # of the Airflow server that runs in this process
def test_a_run_copies_the_file_and_leaves_its_traces(dag: Any, place: Place) -> None:
    run = dag.test(run_conf={"file_path": place.path})
    assert run.state == "success", [(ti.task_id, ti.state) for ti in run.get_task_instances()]
    assert place.at_destination.read_bytes() == place.at_source.read_bytes()
    ti = run.get_task_instance("copy_to_nersc")
    result = ti.xcom_pull(task_ids="copy_to_nersc")
    assert (result["bytes"], result["files"]) == (600, 1)
    link = ti.xcom_pull(task_ids="copy_to_nersc", key="_link_GlobusTaskLink")
    assert link == f"https://app.globus.org/activity/{result['task_id']}"
    (book,) = place.books()
    assert book["label"].startswith(re.sub(r"[^A-Za-z0-9._ -]+", "_", run.run_id))
    secret = place.facility.description["globus"]["client_secret"]
    assert secret not in json.dumps(result)


@pytest.mark.filterwarnings("ignore")
def test_a_path_that_cannot_be_fails_with_what_to_do_and_asks_nobody(
    dag: Any, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """The path is checked in a template of the task: there is no step before it."""
    run = dag.test(run_conf={"file_path": "../secret.cxi"})
    assert run.state == "failed"
    assert "../secret.cxi" in caplog.messages[-2]
    assert "correct it and start a new run" in caplog.messages[-2]
    assert place.books() == []
