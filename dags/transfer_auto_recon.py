"""
### A scan to NERSC, and its reconstruction

Copies one scan from the beamline's collection to NERSC's with Globus, runs the chosen reconstructions
(ptychocam, CDTools) as Slurm jobs on Perlmutter, checks the results and gathers their figures.

**Started by** the beamline computer when a scan ends (`include/beamline_computer`), by `find_missed_scans`,
or by hand with *Trigger*. No engine chosen: the scan is only copied.

**What you see.** `copy_to_nersc` and the `wait` tasks are *deferred* (purple) for as long as the transfer or
the job takes; their logs tell the progress, their buttons lead to the Globus task and the Slurm job.

**When it fails.** Read the last lines of the red task's log: they say what failed, its id and what to do.
Clearing a task is safe: a living transfer or job is taken up again, a finished one is not repeated, a failed
one is sent again. To run a failed reconstruction again clear its `submit` task. Marking a waiting task as
failed cancels its transfer or job.

**Owner.** COSMIC, ALS beamline 7.0.1.2.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, TaskGroup, task

from cosmic import tasks
from cosmic.beamline import ENGINES
from cosmic.parameters import reconstruction_params
from facilities.globus.operators import GlobusTransferOperator
from facilities.retries import RETRIES, facility_retry_policy
from facilities.superfacility.operators import SfapiSubmitJobOperator
from facilities.superfacility.resubmission import ResubmittingSlurmJobSensor
from facilities.superfacility.sensors import SystemStatusSensor

SCANS_AT_NERSC = Asset("cosmic_scans_at_nersc")
RECONSTRUCTIONS = Asset("cosmic_reconstructions")

with DAG(
    dag_id="transfer_auto_recon",
    dag_display_name="transfer_auto_recon: scan to NERSC and reconstruction",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2023, 1, 1),  # noqa: DTZ001 - Airflow reads it as UTC
    catchup=False,
    params=reconstruction_params(),
    max_active_runs=500,
    max_active_tasks=64,
    default_args={
        "owner": "bl7012",
        "retries": RETRIES,
        "retry_delay": timedelta(seconds=10),
        "retry_policy": facility_retry_policy(),
    },
    template_searchpath=str(Path(__file__).parents[1] / "include" / "job_scripts"),
    tags=["bl7012", "cosmic", "ptychography", "globus", "nersc"],
) as dag:
    plan: Any = task(task_id="check_scan", multiple_outputs=True)(tasks.check_scan)()

    copy = GlobusTransferOperator(
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
        outlets=[SCANS_AT_NERSC],
    )

    engines = task.branch(task_id="choose_engines")(tasks.choose_engines)(plan["engines"])
    transfer_only = EmptyOperator(task_id="transfer_only")
    engines >> transfer_only

    results: Any = []
    for engine in ENGINES:
        with TaskGroup(engine):
            perlmutter_is_up = SystemStatusSensor(
                task_id="perlmutter_is_up",
                superfacility_conn_id=plan["superfacility_conn_id"],
                machine=plan["machine"],
                timeout=timedelta(days=7).total_seconds(),
            )
            job = SfapiSubmitJobOperator(
                task_id="submit",
                superfacility_conn_id=plan["superfacility_conn_id"],
                machine=plan["machine"],
                template=f"{engine}.sh.j2",
                template_context=plan[engine],
                resources=plan[f"{engine}_resources"],
                job_name=f"{engine}-{{{{ ti.xcom_pull(task_ids='check_scan', key='stem') }}}}",
                script_copy_dir=plan["job_script_folder"],
                pool="nersc",
            )
            wait = ResubmittingSlurmJobSensor(
                task_id="wait",
                superfacility_conn_id=plan["superfacility_conn_id"],
                machine=plan["machine"],
                job_id=job.output,
                min_poll_interval=2.0,  # one request for all jobs, however many wait
                resubmit=3,
                more_resources="{{ params.more_resources }}",
                timeout=timedelta(days=7).total_seconds(),
                pool="nersc",
            )
            finished: Any = wait.output
            collected = task(
                task_id="collect", pool="nersc", multiple_outputs=False, outlets=[RECONSTRUCTIONS]
            )(tasks.collect)(engine, finished)
            engines >> perlmutter_is_up
            [copy, perlmutter_is_up] >> job >> wait
            results.append(collected)

    copied: Any = copy.output
    report = task(task_id="report", multiple_outputs=False, trigger_rule="none_failed_min_one_success")(
        tasks.report
    )(plan["scan"], copied, results)
    [copy, transfer_only] >> report
