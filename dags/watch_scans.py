"""
### Scans as they appear

For a beamline that does not post its scans. Every minute: lists the beamline's folders of today and
yesterday, and starts a run of `transfer_auto_recon` for each finished scan that has none, with the parameters
of the day (`processing` in `beamline.yaml`). A scan counts as finished when its file has not changed for
`min_age_minutes`.

**Off by default**: the DAG is paused. Turn it on with the switch on its page, or
`airflow dags unpause watch_scans`. Posting and watching at the same time is safe: a scan has one run id, so
it is started once.

**When it fails.** The last lines of the red task's log name what failed and what to do. While a service does
not answer, the task retries; what was not started meanwhile is started when it answers again, and what was
missed while Airflow was down for longer, `find_missed_scans` starts.

**Owner.** COSMIC, ALS beamline 7.0.1.2.
"""

from __future__ import annotations

from airflow.sdk import DAG

from cosmic.dag_constants import WATCH_SCANS
from cosmic.failures import DEFAULT_ARGS
from cosmic.missed_scans import start_new_scans
from cosmic.parameters import NEW_SCANS, dag_params

with DAG(
    dag_id=WATCH_SCANS,
    dag_display_name="watch_scans: start what is new",
    doc_md=__doc__,
    schedule="* * * * *",
    catchup=False,
    is_paused_upon_creation=True,
    max_active_runs=1,
    params=dag_params(NEW_SCANS),
    default_args=DEFAULT_ARGS,
    tags=["bl7012", "cosmic", "globus"],
) as dag:
    start_new_scans()
