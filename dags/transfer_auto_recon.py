"""
### A scan to NERSC, and its reconstruction

Copies one scan from the beamline's collection to NERSC's with Globus, runs the chosen reconstructions
(ptychocam, CDTools) as Slurm jobs on Perlmutter, checks the results and gathers their figures.

**Started by** the beamline computer when a scan ends, by `find_missed_scans` or `watch_scans`, or by hand
with *Trigger*. No engine chosen: the scan is only copied.

**What you see.** `copy_to_nersc` and the `wait` tasks are *deferred* (purple) for as long as the transfer or
the job takes; their logs show the progress, their buttons open the Globus task and NERSC's list of jobs. The
tab *Result* of the run shows what it does and, in the end, figures and previews. `submit` is deferred while
Perlmutter is not up; its log has the reason and the end of the outage, when NERSC names one.

**Stacks.** When all files of a scan of several energies are done, `report` starts `stack_scan`.

**Run ids.** A scan's first run is named after it (`NS_230216033_0_0`), a later one `NS_230216033_0_0__r2`,
`__r3`; leave the id empty to get the next. Results lie beside the scan, `_r2` in their names; no two runs
write the same files.

**When it fails.** The tab *Result* and the last lines of the red task's log name what failed, its id and what
to do, with the command that runs the scan again, with more time or memory where the job lacked it.
Clearing a task is safe: an active transfer or job is taken up again, a finished one is not repeated, a failed
one is sent again. To run a failed reconstruction again clear its `submit` task. Marking a waiting task as
failed cancels its transfer or job.

**Owner.** COSMIC, ALS beamline 7.0.1.2.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, TaskGroup

from cosmic.dag_constants import (
    COPY_TASK,
    GLOBUS_CONN_ID,
    SUPERFACILITY_CONN_ID,
    TRANSFER_AUTO_RECON,
)
from cosmic.failures import DEFAULT_ARGS
from cosmic.parameters import ENGINES, RECONSTRUCTION, dag_params
from cosmic.plan import check_scan, skip_without_plan
from cosmic.results import RECONSTRUCTIONS, collect, report
from facilities.globus.operators import GlobusTransferOperator
from facilities.superfacility.operators import SfapiSubmitJobOperator
from facilities.superfacility.sensors import ResubmittingSlurmJobSensor

with DAG(
    dag_id=TRANSFER_AUTO_RECON,
    dag_display_name="transfer_auto_recon: scan to NERSC and reconstruction",
    doc_md=__doc__,
    schedule=None,
    params=dag_params(RECONSTRUCTION),
    max_active_runs=500,
    max_active_tasks=64,
    default_args=DEFAULT_ARGS,
    template_searchpath=str(Path(__file__).parents[1] / "include" / "job_scripts"),
    tags=["bl7012", "cosmic", "ptychography", "globus", "nersc"],
) as dag:
    plan: Any = check_scan()

    copy: Any = GlobusTransferOperator(
        task_id=COPY_TASK,
        globus_conn_id=GLOBUS_CONN_ID,
        source_collection=plan["source_collection"],
        source_path=plan["source_path"],
        destination_collection=plan["destination_collection"],
        destination_path=plan["destination_path"],
        sync_level="checksum",
        label="{{ dag_run.run_id }}",
        timeout=timedelta(hours=12),
        pool="globus",
        outlets=[Asset("cosmic_scans_at_nersc")],
    )

    results: Any = []
    for engine in ENGINES:
        with TaskGroup(engine):
            submit = SfapiSubmitJobOperator(
                task_id="submit",
                superfacility_conn_id=SUPERFACILITY_CONN_ID,
                machine=plan["machine"],
                template=f"{engine}.sh.j2",
                template_context=plan[engine],
                resources=plan[f"{engine}_resources"],
                job_name=f"{engine}-{{{{ ti.xcom_pull(task_ids='check_scan', key='name') }}}}",
                script_copy_dir=plan["job_script_folder"],
                pool="nersc",
                pre_execute=skip_without_plan,
            )
            wait: Any = ResubmittingSlurmJobSensor(
                task_id="wait",
                superfacility_conn_id=SUPERFACILITY_CONN_ID,
                machine=plan["machine"],
                job_id=submit.output,
                min_poll_interval=2.0,  # one request for all jobs, however many wait
                resubmit=3,
                more_resources="{{ params.more_resources }}",
                timeout=timedelta(days=7).total_seconds(),
                pool="nersc",
            )
            collected = collect.override(outlets=[RECONSTRUCTIONS])(
                engine, plan["machine"], plan[engine], wait.output
            )
        copy >> submit >> wait >> collected
        results.append(collected)

    [copy, *results] >> report(plan["scan"], plan["engines"], copy.output, results)
