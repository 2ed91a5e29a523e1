"""
### Scans that we notice ourselves

For a beamline that does not post its scans. A watcher in the triggerer lists the beamline's folders of today
and yesterday at an interval; this DAG runs whenever it has seen new, finished scans, and starts a run of
`transfer_auto_recon` for each, with the parameters of the day (`processing` in `beamline.yaml`).

**Off by default.** On with `watcher.enabled: true` in `beamline.yaml`; no restart is needed. Posting and
watching at the same time is safe: a scan has one run id, so it is started once.

**When it fails.** The last lines of the red task's log say what to do; clearing it is safe. When no runs
come though there are scans: see the triggerer's log for "The scan folder cannot be listed", and whether
this DAG is paused. What the watcher could not see while Airflow was down, `find_missed_scans` finds.

**Owner.** COSMIC, ALS beamline 7.0.1.2.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG, task

from cosmic.noticed_scans import start_noticed
from cosmic.watcher import SCAN_FOLDER
from facilities.retries import facility_retry_policy

with DAG(
    dag_id="watch_scans",
    dag_display_name="watch_scans: start what is new",
    doc_md=__doc__,
    schedule=[SCAN_FOLDER],
    start_date=datetime(2023, 1, 1),  # noqa: DTZ001 - Airflow reads it as UTC
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "bl7012",
        "retries": 5,
        "retry_delay": timedelta(seconds=10),
        "retry_policy": facility_retry_policy(),
    },
    tags=["bl7012", "cosmic", "globus"],
) as dag:
    task(task_id="start_runs")(start_noticed)()
