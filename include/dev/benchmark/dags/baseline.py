"""DAGs to compare with: as many steps one after the other as a scan has, doing nothing.

`baseline_empty` has empty tasks only. In `baseline_deferring` the two steps that wait for a facility defer
to a trigger that fires at once: what Airflow's own hand-overs take. `baseline_copy` has one such step, as
copying alone has.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator, Context

# check_scan, copy_to_nersc, submit, wait, collect, report: the longest path through transfer_auto_recon.
STEPS = ("check", "copy", "submit", "wait", "collect", "report")
WAITS = ("copy", "wait")


class Nothing(BaseOperator):
    """Runs on a worker and does nothing."""

    def execute(self, context: Context) -> None:
        """Nothing to do."""


class Hop(BaseOperator):
    """Defers once and comes back."""

    def execute(self, context: Context) -> None:  # noqa: ARG002 - Airflow's signature
        """Hand over to the triggerer."""
        trigger = TimeDeltaTrigger(timedelta(0))
        self.defer(trigger=trigger, method_name="back", timeout=timedelta(minutes=5))

    def back(self, context: Context, event: Any = None) -> None:
        """Nothing to do."""


def _step(name: str, *, deferring: bool) -> BaseOperator:
    return Hop(task_id=name) if deferring and name in WAITS else Nothing(task_id=name)


for _dag_id, _names, _deferring in (
    ("baseline_empty", STEPS, False),
    ("baseline_deferring", STEPS, True),
    ("baseline_copy", ("copy",), True),
):
    with DAG(dag_id=_dag_id, schedule=None, start_date=datetime(2023, 1, 1)) as _dag:  # noqa: DTZ001
        _steps = [_step(name, deferring=_deferring) for name in _names]
        for _before, _after in pairwise(_steps):
            _before >> _after
    globals()[_dag_id] = _dag
