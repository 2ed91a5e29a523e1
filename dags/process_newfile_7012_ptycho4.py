"""
### A file or folder to NERSC

Copies one file, or a folder with all that is in it, from the beamline's collection (`data7012`) to the same
path below the beamline's folder at NERSC (`nersc7012`). Nothing is reconstructed.

**When it fails.** The last lines of `copy_to_nersc`'s log name what failed, the Globus task's id and what
to do. Clearing it is safe: an active transfer is taken up again, and files that are already there, with the
same checksum, are not sent again.

**Owner.** COSMIC, ALS beamline 7.0.1.2.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from cosmic.dag_constants import COPY_TASK, GLOBUS_CONN_ID, PROCESS_NEWFILE
from cosmic.failures import DEFAULT_ARGS
from cosmic.parameters import TRANSFER, dag_params
from cosmic.plan import plan_transfer
from facilities.globus.operators import GlobusTransferOperator

with DAG(
    dag_id=PROCESS_NEWFILE,
    dag_display_name="process_newfile_7012_ptycho4: file or folder to NERSC",
    doc_md=__doc__,
    schedule=None,
    params=dag_params(TRANSFER),
    max_active_runs=500,
    default_args=DEFAULT_ARGS,
    user_defined_macros={"plan_transfer": plan_transfer},
    tags=["bl7012", "cosmic", "globus"],
) as dag:
    GlobusTransferOperator(
        task_id=COPY_TASK,
        globus_conn_id=GLOBUS_CONN_ID,
        source_collection="{{ plan_transfer(params).source_collection }}",
        source_path="{{ plan_transfer(params).source_path }}",
        destination_collection="{{ plan_transfer(params).destination_collection }}",
        destination_path="{{ plan_transfer(params).destination_path }}",
        sync_level="checksum",
        label="{{ dag_run.run_id }}",
        timeout=timedelta(hours=12),
        pool="globus",
    )
