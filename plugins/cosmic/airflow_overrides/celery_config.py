"""Makes Celery's workers load the plugins before they fork; Celery's settings are Airflow's, unchanged.

A worker of Celery forks its processes, and those a process for each task: what the worker has loaded, none
of them has to load. Airflow 3.3.2 loads a few modules there (`on_celery_import_modules` of its
`celery_executor_utils`) and no plugins, which took each task most of its CPU. The bundle's plugin loads what
else tasks need (`preloading`).

Use: `AIRFLOW__CELERY__CELERY_CONFIG_OPTIONS=cosmic.airflow_overrides.celery_config.CONFIG`.
"""

from __future__ import annotations

from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG as CONFIG
from airflow.sdk.listener import get_listener_manager
from celery.signals import import_modules

__all__ = ["CONFIG"]


@import_modules.connect  # type: ignore[untyped-decorator, unused-ignore]
def _load_plugins(**_: object) -> None:
    get_listener_manager()  # the first thing that a task asks of plugins
