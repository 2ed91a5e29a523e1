"""What tasks need in memory, imported once by the process from which they are forked.

The scheduler loads plugins before its workers are forked, and a task is forked from a worker. What is there
already a task need not import: without this each spends 0.3 s of CPU, more than half of all that it takes,
on reading the same modules again.
"""

from __future__ import annotations

from importlib import import_module

NEEDED_BY_TASKS = (
    "airflow.dag_processing.dagbag",
    "airflow.providers.standard.decorators.branch_python",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.standard.operators.empty",
    "airflow.sdk.definitions.decorators",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "cosmic.flight_check",
    "cosmic.missed_params",
    "cosmic.missed_scans",
    "cosmic.noticed_scans",
    "cosmic.start_runs",
    "cosmic.tasks",
    "cosmic.timetable",
    "cosmic.watcher",
    "facilities.globus.operators",
    "facilities.retries",
    "facilities.superfacility.operators",
    "facilities.superfacility.resubmission",
    "facilities.superfacility.sensors",
    "globus_sdk.services.auth",
    "globus_sdk.services.transfer",
    "jinja2.ext",
)


def preload() -> None:
    """Import what tasks need."""
    for name in NEEDED_BY_TASKS:
        import_module(name)
