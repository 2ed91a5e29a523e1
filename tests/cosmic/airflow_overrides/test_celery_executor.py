"""The CeleryExecutor knows which worker has a task: it needs no numbers, as our LocalExecutor does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.state import TaskInstanceState

from cosmic.airflow_overrides.idle_pause import PausesWhenIdle
from cosmic.airflow_overrides.resumed_tasks import KeepsResumedTasks

pytestmark = [pytest.mark.needs("celery"), pytest.mark.filterwarnings("ignore")]

KEY = TaskInstanceKey("dag", "task", "run", 1)


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """One with Celery's own results, in a database as in the Compose stack; nobody takes what it sends."""
    from airflow.executors.executor_loader import ExecutorLoader

    monkeypatch.setenv("AIRFLOW__CELERY__BROKER_URL", "memory://")
    monkeypatch.setenv("AIRFLOW__CELERY__RESULT_BACKEND", f"db+sqlite:///{tmp_path}/results.db")
    name = "cosmic.airflow_overrides.celery_executor.CeleryExecutor"
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", name)
    made: Any = ExecutorLoader.import_executor_cls(ExecutorLoader.get_default_executor_name())[0]()
    monkeypatch.setattr(
        made, "_send_workloads_to_celery", lambda sent: [(key, None, one) for key, one in sent]
    )
    return made


def send(executor: Any, celery_id: str) -> None:
    """Give the task to a worker."""
    executor._send_workloads([(KEY, executor.celery_app.AsyncResult(celery_id))])


def end(executor: Any, celery_id: str, state: str = "SUCCESS") -> None:
    """The worker ends."""
    executor.celery_app.backend.store_result(celery_id, None, state)


def test_it_is_airflows_with_both_overrides(executor: Any) -> None:
    assert isinstance(executor, PausesWhenIdle)
    assert isinstance(executor, KeepsResumedTasks)
    assert type(executor).__name__ == "CeleryExecutor"  # its name in metrics
    assert {command.name for command in type(executor).get_cli_commands()} == {"celery"}


def test_the_exit_of_a_worker_is_an_event(executor: Any) -> None:
    send(executor, "first")
    end(executor, "first")
    executor.sync()
    assert executor.event_buffer[KEY][0] == TaskInstanceState.SUCCESS
    assert KEY not in executor.running


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE"])
def test_the_late_exit_of_a_worker_whose_task_another_has_is_none(executor: Any, state: str) -> None:
    """When this fails, Celery's executor needs what our LocalExecutor has."""
    send(executor, "first")
    send(executor, "second")
    end(executor, "first", state)
    executor.sync()
    assert executor.event_buffer[KEY] == (TaskInstanceState.QUEUED, "second")
    assert KEY in executor.running
    end(executor, "second")
    executor.sync()
    assert executor.event_buffer[KEY][0] == TaskInstanceState.SUCCESS
