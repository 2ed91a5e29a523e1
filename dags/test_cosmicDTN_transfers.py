"""
### Flight check

Proves, before a scan needs it, that everything between the beamline and NERSC works: both services
accept our clients, both collections accept Globus's, the Superfacility client does not expire too soon, and
a small file really gets across (`datamovement_test/test.txt` is copied to `test_<unique>.txt` beside it
within `nersc7012`, read back, compared and removed).

**When it fails.** `check_nersc` or `check_globus`: credentials; the log names the client and how to renew
it, or the collection that refuses it and what to ask of its manager. `copy_file`: Globus or the permissions
of the collection. `compare`: the file did not arrive whole.

**When.** Daily, before the day's first scans, and by hand after every change of keys or settings.

**Owner.** COSMIC, ALS beamline 7.0.1.2.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable

from cosmic.dag_constants import FLIGHT_CHECK, GLOBUS_CONN_ID
from cosmic.failures import DEFAULT_ARGS
from cosmic.flight_check import check_globus, check_nersc, compare, prepare_file
from cosmic.parameters import FLIGHT_CHECK as PARAMETERS
from cosmic.parameters import dag_params
from facilities.globus.operators import GlobusDeleteOperator, GlobusTransferOperator

with DAG(
    dag_id=FLIGHT_CHECK,
    dag_display_name="test_cosmicDTN_transfers: flight check",
    doc_md=__doc__,
    # 7 or 8 in the morning at the beamline; a fresh installation waits for the next one.
    schedule=CronTriggerTimetable("0 15 * * *", timezone="UTC", run_immediately=timedelta(0)),
    catchup=False,
    params=dag_params(PARAMETERS),
    default_args={**DEFAULT_ARGS, "retries": 2},  # it is to fail soon
    tags=["bl7012", "cosmic", "globus", "nersc", "check"],
) as dag:
    file: Any = prepare_file()
    copy = GlobusTransferOperator(
        task_id="copy_file",
        globus_conn_id=GLOBUS_CONN_ID,
        source_collection=file["collection"],
        source_path=file["source_path"],
        destination_collection=file["collection"],
        destination_path=file["copy_path"],
        label="{{ dag_run.run_id }}",
        timeout=timedelta(hours=1),
        pool="globus",
    )
    compared = compare(file["source_file"], file["copy_file"])
    remove = GlobusDeleteOperator(
        task_id="remove_copy",
        globus_conn_id=GLOBUS_CONN_ID,
        collection=file["collection"],
        path=file["copy_path"],
        ignore_missing=True,
        label="{{ dag_run.run_id }}",
        timeout=timedelta(hours=1),
        pool="globus",
    )

    # A teardown: it also runs when the comparison failed, and does not hide that it did.
    [check_globus(), check_nersc()] >> file >> copy >> compared >> remove.as_teardown(setups=copy)
