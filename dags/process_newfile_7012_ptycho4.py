"""
### A file or folder to NERSC

Copies one file, or a folder with all that is in it, from the beamline's collection (`data7012`) to the same
path below the beamline's folder at NERSC (`nersc7012`). Nothing is reconstructed.

**When it fails.** The last lines of `copy_to_nersc`'s log say what failed, the Globus task's id and what to
do. Clearing it is safe: a living transfer is taken up again, and files that are already there, with the same
checksum, are not sent again.

**Owner.** COSMIC, ALS beamline 7.0.1.2.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task

from cosmic import tasks
from cosmic.parameters import transfer_params
from facilities.globus.operators import GlobusTransferOperator
from facilities.retries import RETRIES, facility_retry_policy

with DAG(
    dag_id="process_newfile_7012_ptycho4",
    dag_display_name="process_newfile_7012_ptycho4: file or folder to NERSC",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2023, 1, 1),  # noqa: DTZ001 - Airflow reads it as UTC
    catchup=False,
    params=transfer_params(),
    max_active_runs=500,
    default_args={
        "owner": "bl7012",
        "retries": RETRIES,
        "retry_delay": timedelta(seconds=10),
        "retry_policy": facility_retry_policy(),
    },
    tags=["bl7012", "cosmic", "globus"],
) as dag:
    plan: Any = task(task_id="check_path", multiple_outputs=True)(tasks.check_path)()

    GlobusTransferOperator(
        task_id="copy_to_nersc",
        globus_conn_id=plan["globus_conn_id"],
        source_collection=plan["source_collection"],
        source_path=plan["source_path"],
        destination_collection=plan["destination_collection"],
        destination_path=plan["destination_path"],
        sync_level="checksum",
        label="{{ dag_run.run_id }}",
        timeout=timedelta(hours=12),
        pool="globus",
    )
