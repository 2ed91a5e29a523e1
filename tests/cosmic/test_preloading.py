"""A task finds in its parent what the DAG files import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
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


def test_the_dag_files_import_nothing_that_the_plugin_has_not_loaded() -> None:
    dags = sorted(str(path) for path in (REPOSITORY / "dags").glob("*.py"))
    path = os.pathsep.join(str(REPOSITORY / folder) for folder in ("plugins", "include"))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-c", IMPORTS, *dags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
