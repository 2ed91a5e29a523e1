"""Rules that every DAG of the bundle keeps."""

from __future__ import annotations

import ast
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from cosmic.dag_constants import (
    CANCEL_ABANDONED_WORK,
    CHECK_TASK,
    COPY_TASK,
    GLOBUS_CONN_ID,
    REPORT_TASK,
    SUPERFACILITY_CONN_ID,
    TRANSFER_AUTO_RECON,
    WATCH_SCANS,
)

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = sorted((REPOSITORY / "dags").glob("*.py"))
POOLS = set(json.loads((REPOSITORY / "include" / "pools.json").read_text()))
SUBMITTING = ("GlobusTransferOperator", "GlobusDeleteOperator", "SfapiSubmitJobOperator")


@pytest.fixture(scope="module")
def dags(airflow_database: None) -> dict[str, Any]:
    """All DAGs by id, parsed as the DAG processor does, with every connection refused."""
    from airflow.dag_processing.dagbag import DagBag

    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"Parsing a DAG connected to {address}.")

    connect, socket.socket.connect = socket.socket.connect, refuse  # type: ignore[method-assign, assignment]
    try:
        bag = DagBag(dag_folder=REPOSITORY / "dags")
    finally:
        socket.socket.connect = connect  # type: ignore[method-assign]
    assert bag.import_errors == {}
    return dict(bag.dags)


def test_each_file_holds_the_dag_of_its_name(dags: dict[str, Any]) -> None:
    assert set(dags) == {path.stem for path in FILES}
    for dag_id, dag in dags.items():
        assert Path(dag.fileloc).stem == dag_id


def test_only_the_watcher_is_off_at_first(dags: dict[str, Any]) -> None:
    assert [dag_id for dag_id, dag in dags.items() if dag.is_paused_upon_creation] == [WATCH_SCANS]


def test_connections_are_known_when_a_dag_is_read(dags: dict[str, Any]) -> None:
    found = {
        getattr(task, name)
        for dag in dags.values()
        for task in dag.tasks
        for name in ("globus_conn_id", "superfacility_conn_id")
        if hasattr(task, name)
    }
    assert found == {GLOBUS_CONN_ID, SUPERFACILITY_CONN_ID}


def test_every_dag_explains_itself(dags: dict[str, Any]) -> None:
    for dag_id, dag in dags.items():
        for words in ("**When it fails.**", "**Owner.**"):
            assert words in (dag.doc_md or ""), f"{dag_id} lacks {words}"
        assert "bl7012" in dag.tags, dag_id
        assert dag.catchup is False, dag_id


def test_every_task_is_retried_by_what_failed(dags: dict[str, Any]) -> None:
    for dag_id, dag in dags.items():
        for task in dag.tasks:
            assert task.owner == "bl7012", f"{dag_id}.{task.task_id}"
            assert task.retries >= 1, f"{dag_id}.{task.task_id}"
            assert task.retry_policy is not None, f"{dag_id}.{task.task_id}"


def test_every_task_keeps_why_it_failed(dags: dict[str, Any]) -> None:
    for dag_id, dag in dags.items():
        for task in dag.tasks:
            for callbacks in (task.on_failure_callback, task.on_retry_callback):
                names = [f"{one.__module__}.{one.__name__}" for one in callbacks]
                assert names == ["cosmic.failures.keep_error"], f"{dag_id}.{task.task_id}"


def test_tasks_that_talk_to_a_facility_are_in_its_pool(dags: dict[str, Any]) -> None:
    for dag_id, dag in dags.items():
        for task in dag.tasks:
            assert task.pool in POOLS | {"default_pool"}, f"{dag_id}.{task.task_id}"
            kind = type(task).__name__
            if kind.startswith("Globus"):
                assert task.pool == "globus", f"{dag_id}.{task.task_id}"
            if kind in ("SfapiSubmitJobOperator", "ResubmittingSlurmJobSensor"):
                assert task.pool == "nersc", f"{dag_id}.{task.task_id}"


def test_nothing_waits_in_a_worker_or_without_an_end(dags: dict[str, Any]) -> None:
    waiting = ("GlobusTransferOperator", "GlobusDeleteOperator", "ResubmittingSlurmJobSensor")
    for dag_id, dag in dags.items():
        for task in dag.tasks:
            if type(task).__name__ in waiting:
                assert task.deferrable, f"{dag_id}.{task.task_id}"
                assert task.timeout, f"{dag_id}.{task.task_id}"


def test_no_date_is_before_the_first(dags: dict[str, Any]) -> None:
    """A run with a logical date before its tasks' start date has no tasks, and is a success at once."""
    for dag_id, dag in dags.items():
        assert dag.start_date is None, dag_id
        assert [task.task_id for task in dag.tasks if task.start_date or task.end_date] == [], dag_id


def test_nothing_of_a_scan_goes_on_after_its_copy_has_failed(dags: dict[str, Any]) -> None:
    """All that is not done before the copy needs its success: the run ends with it."""
    dag = dags[TRANSFER_AUTO_RECON]
    before = {CHECK_TASK, COPY_TASK}
    assert {task.task_id for task in dag.tasks} - before == dag.get_task(COPY_TASK).get_flat_relative_ids()
    rules = {task.task_id: task.trigger_rule.value for task in dag.tasks}
    assert rules.pop(REPORT_TASK) == "none_failed_min_one_success"
    assert set(rules.values()) == {"all_success"}


def test_every_task_that_owns_remote_work_is_known_to_the_orphan_clean_up(dags: dict[str, Any]) -> None:
    clean_up = dags[CANCEL_ABANDONED_WORK].get_task("cancel_abandoned").python_callable
    owning_tasks = clean_up.__globals__["OWNING_TASKS"]
    groups = {(dag_id, *group) for dag_id, listed in owning_tasks.items() for group in listed}
    expected = set()
    for dag_id, dag in dags.items():
        for task in dag.tasks:
            if type(task).__name__ in SUBMITTING:
                waits = (t for t in task.downstream_list if type(t).__name__ == "ResubmittingSlurmJobSensor")
                expected.add((dag_id, task.task_id, *(wait.task_id for wait in waits)))
    assert groups == expected


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dag_files_are_short_and_hold_no_logic(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 120
    tree = ast.parse(text)
    forbidden = (ast.ClassDef, ast.If, ast.While, ast.Try, ast.Lambda)
    found = [type(node).__name__ for node in ast.walk(tree) if isinstance(node, forbidden)]
    assert found == []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in functions if "task" not in map(_decorator, node.decorator_list)] == []


def _decorator(node: ast.expr) -> str:
    return ast.unparse(node.func if isinstance(node, ast.Call) else node)
