"""Imports what tasks need once, in the process that workers are forked from.

Airflow 3.3.2 forks a worker from the scheduler and a task from a worker (`_spawn_worker` of
`airflow.executors.local_executor`, `airflow.sdk.execution_time.supervisor`), and its scheduler has not loaded
what a task runs on: each task would spend 0.3 s of CPU on importing the same modules, more than half of all
that it uses. A forked task finds them loaded, because the scheduler loads plugins first; so do Celery's
workers, by `celery_config`.
"""

from __future__ import annotations

from importlib import import_module

NEEDED_BY_TASKS = (
    "airflow.dag_processing.dagbag",
    "airflow.providers.standard.decorators.branch_python",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.standard.operators.empty",
    "airflow.sdk.execution_time.supervisor",
    "cosmic.flight_check",
    "cosmic.missed_scans",
    "cosmic.notifications.tasks",
    "cosmic.plan",
    "cosmic.results",
    "cosmic.stacks",
    "cosmic.throttle",
    "facilities.globus.operators",
    "facilities.globus.orphans",
    "facilities.superfacility.operators",
    "facilities.superfacility.orphans",
    "facilities.superfacility.sensors",
    "globus_sdk.services.auth",
    "globus_sdk.services.transfer",
    "jinja2.ext",
)


def preload() -> None:
    """Import what tasks need."""
    for name in NEEDED_BY_TASKS:
        import_module(name)
