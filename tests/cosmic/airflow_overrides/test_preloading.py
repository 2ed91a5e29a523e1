"""A task finds in its parent what the DAG files import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
IMPORTS = """
import json, runpy, sys
import airflow.executors.local_executor
from airflow.listeners.listener import get_listener_manager
get_listener_manager()  # loads the plugins, as the scheduler does before its workers are forked
before = set(sys.modules)
for path in sys.argv[1:]:
    runpy.run_path(path)
print(json.dumps(sorted(set(sys.modules) - before)))
"""

SCHEDULER = """
import json, sys
import airflow.executors.local_executor, airflow.jobs.scheduler_job_runner
print(json.dumps("airflow.sdk.execution_time.supervisor" in sys.modules))
"""

WORKER = """
import json, sys
from airflow.providers.celery.executors.celery_executor import app
from airflow.sdk.plugins_manager import _get_plugins
app.loader.import_default_modules()  # as a worker of Celery does before it forks
loaded = _get_plugins.cache_info().currsize
print(json.dumps([loaded, "facilities.superfacility.sensors" in sys.modules, _get_plugins()[1]]))
"""


def python(code: str, *arguments: str) -> Any:
    """What a Python of its own writes in its last line."""
    path = os.pathsep.join(str(REPOSITORY / folder) for folder in ("plugins", "include"))
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_dag_files_import_nothing_that_the_plugin_has_not_loaded() -> None:
    dags = sorted(str(path) for path in (REPOSITORY / "dags").glob("*.py"))
    assert python(IMPORTS, *dags) == []


def test_airflow_still_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, Airflow's scheduler loads what tasks run on by itself: delete the override."""
    monkeypatch.setenv("AIRFLOW__CORE__PLUGINS_FOLDER", str(tmp_path))
    assert python(SCHEDULER) is False


@pytest.mark.needs("celery")
def test_a_worker_of_celery_loads_the_plugins_before_it_forks() -> None:
    assert python(WORKER) == [1, True, {}]


@pytest.mark.needs("celery")
def test_celery_still_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, Airflow's worker loads plugins by itself: delete `celery_config`."""
    monkeypatch.delenv("AIRFLOW__CELERY__CELERY_CONFIG_OPTIONS")
    assert python(WORKER)[:2] == [0, False]
