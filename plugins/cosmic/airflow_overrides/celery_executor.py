"""The CeleryExecutor for an installation with Celery's workers; see the two modules that it is made of."""

from __future__ import annotations

from airflow.providers.celery.executors import celery_executor

from cosmic.airflow_overrides.idle_pause import PausesWhenIdle
from cosmic.airflow_overrides.resumed_tasks import KeepsResumedTasks


class CeleryExecutor(PausesWhenIdle, KeepsResumedTasks, celery_executor.CeleryExecutor):  # type: ignore[misc, unused-ignore]
    """Has tasks run by `airflow celery worker` on any machine.

    Use: `AIRFLOW__CORE__EXECUTOR=cosmic.airflow_overrides.celery_executor.CeleryExecutor`.
    """
