"""
### Jobs and transfers that nobody waits for any more

Every ten minutes: lists the living Slurm jobs and Globus tasks of ours, asks Airflow about the runs and tasks
that they belong to, and cancels those whose run is over or whose tasks are. Usually there are none: a job or
transfer is cancelled at once when its task or run is ended. This is for what an outage or a crash at the same
moment has left behind.

**Left alone** is whatever is between two tries, cleared or waiting, and what another Airflow has started.

**What you see.** The log names each job and transfer that was cancelled, and why; so does the result.

**When it fails.** The last lines of the log say what to do. While a service does not answer, the task
succeeds, says so, and the next one looks again.

**Owner.** COSMIC, ALS beamline 7.0.1.2.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG, task

from cosmic import tasks
from cosmic.beamline import ENGINES
from facilities.retries import facility_retry_policy

# Tasks that look after one job or transfer, the one that submits it first.
CARERS = {
    "transfer_auto_recon": [["copy_to_nersc"], *([f"{name}.submit", f"{name}.wait"] for name in ENGINES)],
    "process_newfile_7012_ptycho4": [["copy_to_nersc"]],
    "test_cosmicDTN_transfers": [["copy_file"], ["remove_copy"]],
}

with DAG(
    dag_id="cancel_abandoned_work",
    dag_display_name="cancel_abandoned_work: jobs and transfers that nobody waits for",
    doc_md=__doc__,
    schedule="*/10 * * * *",
    start_date=datetime(2023, 1, 1),  # noqa: DTZ001 - Airflow reads it as UTC
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "bl7012",
        "retries": 1,
        "retry_delay": timedelta(seconds=30),
        "retry_policy": facility_retry_policy(),
    },
    tags=["bl7012", "cosmic", "globus", "nersc"],
) as dag:
    task(task_id="cancel_abandoned", execution_timeout=timedelta(minutes=8))(tasks.cancel_abandoned)(CARERS)
