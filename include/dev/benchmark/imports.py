"""Measures the time and memory that importing the DAG files takes over a bare `import airflow.sdk`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import NamedTuple

from dev.local_airflow.settings import REPOSITORY

REPEATS = 5
_MEASURE = """
import json, resource, runpy, sys, time
started = time.perf_counter()
import airflow.sdk
for path in sys.argv[1:]:
    runpy.run_path(path)
print(json.dumps([time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


class Import(NamedTuple):
    """Seconds and MiB, medians of several fresh processes."""

    seconds: float
    memory: float


def measure_imports(home: Path) -> tuple[Import, Import]:
    """(bare `import airflow.sdk`, the same and all DAG files)."""
    dags = sorted(str(path) for path in (REPOSITORY / "dags").glob("*.py"))
    runs = [(_import(home), _import(home, *dags)) for _ in range(REPEATS)]
    bare, ours = zip(*runs, strict=True)
    return _median(bare), _median(ours)


def _import(home: Path, *files: str) -> Import:
    path = os.pathsep.join(str(REPOSITORY / folder) for folder in ("plugins", "include"))
    environment = {**os.environ, "PYTHONPATH": path, "AIRFLOW_HOME": str(home)}
    done = subprocess.run(  # noqa: S603 - our own interpreter and text
        [sys.executable, "-c", _MEASURE, *files], env=environment, capture_output=True, text=True, check=True
    )
    return Import(*json.loads(done.stdout.splitlines()[-1]))


def _median(runs: tuple[Import, ...]) -> Import:
    return Import(median(run.seconds for run in runs), median(run.memory for run in runs))
