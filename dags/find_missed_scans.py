"""
### Scans that were missed

Compares, for each day of its data interval, what the beamline's collection holds with what is at NERSC and
with the runs of `transfer_auto_recon`, and starts a run for each scan that was not processed. Its result is
a table, a line per day: scans on disk, processed, running, failed, missing, left alone, started.

**Started** every day at 15:00 UTC for the day before, by a backfill for any range of days, or by hand for
`first_day` to `last_day`. `which` chooses missing scans only, failed ones too, or everything; `dry_run` only
lists. The parameters of the runs are those of the day (`processing` in `beamline.yaml`).

**Live scans go first.** A run is started only while fewer than `at_once` runs are going on and fewer than
`copies_at_once` of them have their transfer before them; between that, `start_runs` waits (purple). One run
of this DAG at a time starts runs (pool `missed_scans`). To stop it, mark `start_runs` as failed: what is
started goes on, the rest is not started.

**When it fails.** The last lines of the red task's log say what failed and what to do. Clearing is safe: a
scan has one run id, so none is started twice. A scan that is left alone (young, or being written) is looked
at again when its day is; a file of another name than a scan's is never started.

**Owner.** COSMIC, ALS beamline 7.0.1.2.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task

from cosmic import missed_scans
from cosmic.missed_params import missed_scans_params
from cosmic.start_runs import StartRunsOperator
from cosmic.timetable import BeamlineDays
from facilities.retries import facility_retry_policy

with DAG(
    dag_id="find_missed_scans",
    dag_display_name="find_missed_scans: start what was not processed",
    doc_md=__doc__,
    schedule=BeamlineDays(hours_after=15),
    start_date=datetime(2023, 1, 1),  # noqa: DTZ001 - Airflow reads it as UTC
    catchup=False,
    params=missed_scans_params(),
    max_active_runs=4,
    default_args={
        "owner": "bl7012",
        "retries": 3,
        "retry_delay": timedelta(seconds=30),
        "retry_policy": facility_retry_policy(),
    },
    tags=["bl7012", "cosmic", "globus", "missed scans"],
) as dag:
    found: Any = task(task_id="compare", pool="globus", multiple_outputs=True)(missed_scans.compare)()
    decision = task.branch(task_id="start_or_not")(missed_scans.start_or_not)(found["days"])
    start = StartRunsOperator(
        task_id="start_runs",
        days=found["days"],
        at_once="{{ params.at_once }}",
        copies_at_once="{{ params.copies_at_once }}",
        note="Started by {{ dag.dag_id }}, run {{ run_id }}",
        timeout=timedelta(days=7),
        pool="missed_scans",
    )
    started: Any = start.output
    report = task(task_id="report", trigger_rule="none_failed_min_one_success")(missed_scans.report)(
        found["rows"], started
    )
    decision >> [start, report]
