"""A stand-in for the DAG of scans, under its name, so that the pages list its runs: two waits and no work.

`dev.benchmark.waits` writes its runs into the database as they are while they wait.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import DAG, BaseOperator, Context, TaskGroup

from cosmic.dag_constants import COPY_TASK, TRANSFER_AUTO_RECON
from facilities.waiting import read_event


class Wait(BaseOperator):
    """Waits; its trigger is in the database already."""

    def execute(self, context: Context) -> None:
        """Nothing to do after a transfer: what waits has been written into the database."""

    def ended(self, context: Context, event: Any) -> str:  # noqa: ARG002 - Airflow's signature
        """Go on when the wait has ended.

        :return: why.
        """
        return read_event(event)["outcome"]


with DAG(dag_id=TRANSFER_AUTO_RECON, schedule=None, start_date=datetime(2023, 1, 1)) as dag:  # noqa: DTZ001
    copy = Wait(task_id=COPY_TASK)
    with TaskGroup("ptychocam"):
        copy >> Wait(task_id="wait")
