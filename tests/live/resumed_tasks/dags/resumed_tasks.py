"""Tasks that defer until a file is there, then run until another is; one DAG for each executor."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator, Context
from held_exits import FOLDER, TASKS, FileIsThere  # type: ignore[import-not-found]


class Waits(BaseOperator):
    """Defers, is resumed, and waits in its second worker."""

    def __init__(self, *, kind: str, number: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind = kind
        self.number = number

    def execute(self, context: Context) -> None:
        self.defer(trigger=FileIsThere(str(FOLDER / f"{self.kind}.fire")), method_name="resume")

    def resume(self, context: Context, event: str) -> None:
        while not (FOLDER / f"{self.kind}.go").exists():
            time.sleep(0.1)


for kind, tasks in TASKS.items():
    arguments = {"executor": kind, "retries": 1 if kind == "protected" else 0, "retry_delay": timedelta(0)}
    with DAG(kind, schedule=None, max_active_tasks=2 * tasks, default_args=arguments):
        Waits.partial(task_id="waits", kind=kind).expand(number=list(range(tasks)))
