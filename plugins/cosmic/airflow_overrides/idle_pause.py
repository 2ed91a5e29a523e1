"""Lets the scheduler rest while nothing changes.

Airflow 3.3.2's scheduler (`_run_scheduler_loop` of `airflow.jobs.scheduler_job_runner`) goes round and round,
with a pause of always `[scheduler] scheduler_idle_sleep_time` when a round had nothing to do. A round takes
CPU even then: short pauses, which make the steps of a run follow each other quickly, cost 9 to 14 % of a core
all day. Here a round that finds what the one before has left waits for a change, which costs a small
query each time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from airflow import settings
from airflow.executors.base_executor import BaseExecutor
from airflow.models.dagrun import DagRun
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

LOOK_INTERVAL = 0.2  # seconds
# Seconds, as often as the scheduler's heartbeat. What shows in no count waits for so long: a retry or a
# timetable that is due, the first run after an event of an asset.
LONGEST_PAUSE = 5.0
# Seconds without a change before a pause. What a person does is in Airflow's audit log before it is done, and
# a new run is due when its `run_after` is over by the database's clock; SQLite's has whole seconds.
SETTLE = 1.1

Counts = dict[str, int | None]

# Each part is answered from an index alone, and none of them has what has ended.
_COUNTS = text("""
SELECT state, count(*) FROM task_instance
WHERE state IN ('scheduled', 'queued', 'running', 'restarting', 'deferred', 'awaiting_input')
GROUP BY state
UNION ALL SELECT 'queued runs', count(*) FROM dag_run WHERE state = 'queued'
UNION ALL SELECT 'running runs', count(*) FROM dag_run WHERE state = 'running'
UNION ALL SELECT 'audit log', max(id) FROM log
""")
_AT_WORK = ("queued", "running", "restarting")


class PausesWhenIdle(BaseExecutor):
    """Mixin for an executor: its heartbeat, once in a round, lasts while nothing changes."""

    _counts: Counts | None = None
    _rounds = 0  # that have changed nothing
    _changed_at = 0.0

    def heartbeat(self) -> None:
        """Do what the executor does, then wait while there is nothing to do for the scheduler."""
        super().heartbeat()
        if self.slots_occupied or self.event_buffer:
            self._counts = None
            return
        try:
            with settings.get_engine().connect() as connection:  # type: ignore[no-untyped-call]
                self._wait_for_change(connection.execution_options(isolation_level="AUTOCOMMIT"))
        except SQLAlchemyError:
            self.log.warning(
                "The database did not answer; the scheduler goes on without a pause", exc_info=True
            )

    def _wait_for_change(self, connection: Connection) -> None:
        counts = _read_counts(connection)
        if counts != self._counts or any(state in counts for state in _AT_WORK):
            self._counts, self._rounds, self._changed_at = counts, 0, time.monotonic()
            return
        if time.monotonic() < self._changed_at + SETTLE:
            return
        # A whole round lies between these equal counts, and has looked at some of the runs.
        self._rounds += 1
        if self._rounds * DagRun.DEFAULT_DAGRUNS_TO_EXAMINE < (counts["running runs"] or 0):
            return
        end = time.monotonic() + LONGEST_PAUSE
        while time.monotonic() < end and _read_counts(connection) == counts:
            time.sleep(LOOK_INTERVAL)


def _read_counts(connection: Connection) -> Counts:
    """How many runs and tasks are in each state that is not an end, and the last entry of the audit log."""
    return dict(connection.execute(_COUNTS).tuples().all())
