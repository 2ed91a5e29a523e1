"""
### Flight check

Proves, before a scan needs it, that everything between the beamline and NERSC works: both services
accept our clients, the Superfacility client does not expire too soon, and a small file really gets across
(`datamovement_test/test.txt` is copied to `test_<unique>.txt` beside it within `nersc7012`, read back,
compared and removed).

**When it fails.** `check_nersc` or `check_globus`: credentials; the log names the client and says how to
renew it. `copy_file`: Globus or the permissions of the collection. `compare`: the file did not arrive whole.

**When.** Daily, before the day's first scans, and by hand after every change of keys or settings.

**Owner.** COSMIC, ALS beamline 7.0.1.2.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, task

from cosmic import flight_check
from facilities.globus.operators import GlobusDeleteOperator, GlobusTransferOperator
from facilities.retries import facility_retry_policy

with DAG(
    dag_id="test_cosmicDTN_transfers",
    dag_display_name="test_cosmicDTN_transfers: flight check",
    doc_md=__doc__,
    # 7 or 8 in the morning at the beamline; a fresh installation waits for the next one.
    schedule=CronTriggerTimetable("0 15 * * *", timezone="UTC", run_immediately=timedelta(0)),
    start_date=datetime(2023, 1, 1),  # noqa: DTZ001 - Airflow reads it as UTC
    catchup=False,
    params=flight_check.flight_check_params(),
    default_args={
        "owner": "bl7012",
        "retries": 2,
        "retry_delay": timedelta(seconds=30),
        "retry_policy": facility_retry_policy(),
    },
    tags=["bl7012", "cosmic", "globus", "nersc", "check"],
) as dag:
    globus = task(task_id="check_globus", pool="globus")(flight_check.check_globus)()
    nersc = task(task_id="check_nersc", pool="nersc")(flight_check.check_nersc)()
    file: Any = task(task_id="prepare_file", pool="nersc", multiple_outputs=True)(flight_check.prepare_file)()
    copy = GlobusTransferOperator(
        task_id="copy_file",
        globus_conn_id=file["globus_conn_id"],
        source_collection=file["collection"],
        source_path=file["source_path"],
        destination_collection=file["collection"],
        destination_path=file["copy_path"],
        label="{{ dag_run.run_id }}",
        timeout=timedelta(hours=1),
        pool="globus",
    )
    compared = task(task_id="compare", pool="nersc")(flight_check.compare)(
        file["source_file"], file["copy_file"]
    )
    remove = GlobusDeleteOperator(
        task_id="remove_copy",
        globus_conn_id=file["globus_conn_id"],
        collection=file["collection"],
        path=file["copy_path"],
        ignore_missing=True,
        label="{{ dag_run.run_id }}",
        timeout=timedelta(hours=1),
        pool="globus",
    )
    [globus, nersc] >> file
    # A teardown: it also runs when the comparison failed, and does not hide that it did.
    copy >> compared >> remove.as_teardown(setups=copy)
