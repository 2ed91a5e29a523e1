"""
### Scans that were missed

Compares, for each day of its data interval, what the beamline's collection holds with what is at NERSC and
with the runs of `transfer_auto_recon`, and starts a run for each scan that was not processed. Its result is
a table, a line per day: scans on disk, processed, running, failed, missing, left alone, started.

**Started** every day at 15:00 UTC for the day before, by a backfill for any range of days, or by hand for
`first_day` to `last_day`. `which` chooses missing scans only, failed ones too, or everything; `dry_run` only
lists. The parameters of the runs are those of the day (`processing` in `beamline.yaml`).

**Live scans go first.** A run is started only while fewer than `at_once` runs are active and fewer than
`copies_at_once` of them have not finished their transfer; otherwise `start_runs` waits (purple). One run of
this DAG at a time starts runs (pool `missed_scans`). To stop it, mark `start_runs` as failed: what is started
continues, the rest is not started.

**When it fails.** The last lines of the red task's log name what failed and what to do. Clearing is safe: a
scan has one run id, so none is started twice. A scan that is left alone (young, or being written) is compared
again with its day; a file that is not named as a scan is never started.

**Owner.** COSMIC, ALS beamline 7.0.1.2.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from cosmic.dag_constants import FIND_MISSED_SCANS
from cosmic.failures import DEFAULT_ARGS
from cosmic.missed_scans import compare, report, start_or_not
from cosmic.parameters import MISSED_SCANS, dag_params
from cosmic.throttle import StartRunsOperator
from cosmic.timetable import BeamlineDays

with DAG(
    dag_id=FIND_MISSED_SCANS,
    dag_display_name="find_missed_scans: start what was not processed",
    doc_md=__doc__,
    schedule=BeamlineDays(hours_after=15),
    catchup=False,
    params=dag_params(MISSED_SCANS),
    max_active_runs=4,
    default_args=DEFAULT_ARGS,
    tags=["bl7012", "cosmic", "globus", "missed scans"],
) as dag:
    found: Any = compare()
    start: Any = StartRunsOperator(
        task_id="start_runs",
        days=found["days"],
        at_once="{{ params.at_once }}",
        copies_at_once="{{ params.copies_at_once }}",
        note="Started by {{ dag.dag_id }}, run {{ run_id }}",
        timeout=timedelta(days=7),
        pool="missed_scans",
    )
    result = report(found["rows"], start.output)

    start_or_not(found["days"]) >> [start, result]
