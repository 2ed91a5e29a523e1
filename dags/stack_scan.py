"""
### One stack of a scan's energies per region

Runs `stack.sh` at NERSC as a Slurm job: the newest result of each energy of a scan (`NS_230216033`), aligned,
in one file for each region that MANTiS opens, `<scan>_<engine>_stack_<region>.nxs`, beside the results.

**Starts by itself** some minutes (`stack.wait_minutes` in `beamline.yaml`) after the last file of a scan of
several energies is done. When more energies come later, or one is reprocessed, it starts again; the run id
has the number of results. Such a run makes nothing, and is green with skipped tasks, while a file of the scan
is running, failed, or has no run: its tab *Result* says which. **By hand** for any scan; a scan that is
not complete is refused then, unless `incomplete` is on. The energies that are missing are in the result of
`collect`. One run at a time.

**When it fails.** The last lines of the red task's log name what failed and what to do. Clearing a task is
safe: an active job is taken up again. To make a stack again clear `submit`, or start a new run.

**Owner.** COSMIC, ALS beamline 7.0.1.2.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset

from cosmic.dag_constants import STACK_SCAN, SUPERFACILITY_CONN_ID
from cosmic.failures import DEFAULT_ARGS
from cosmic.parameters import STACK, dag_params
from cosmic.stacks import check_energies, collect_stacks
from facilities.superfacility.operators import SfapiSubmitJobOperator
from facilities.superfacility.sensors import ResubmittingSlurmJobSensor

with DAG(
    dag_id=STACK_SCAN,
    dag_display_name="stack_scan: the energies of a scan in one file",
    doc_md=__doc__,
    schedule=None,
    params=dag_params(STACK),
    max_active_runs=1,  # two stacks of a scan would write the same files
    default_args=DEFAULT_ARGS,
    template_searchpath=str(Path(__file__).parents[1] / "include" / "job_scripts"),
    tags=["bl7012", "cosmic", "ptychography", "nersc"],
) as dag:
    plan: Any = check_energies.override(task_id="check")()

    submit = SfapiSubmitJobOperator(
        task_id="submit",
        superfacility_conn_id=SUPERFACILITY_CONN_ID,
        machine=plan["machine"],
        template="stack.sh.j2",
        template_context=plan["job"],
        resources=plan["resources"],
        job_name="{{ ti.xcom_pull(task_ids='check', key='job_name') }}",
        script_copy_dir=plan["job_script_folder"],
        pool="nersc",
    )
    wait: Any = ResubmittingSlurmJobSensor(
        task_id="wait",
        superfacility_conn_id=SUPERFACILITY_CONN_ID,
        machine=plan["machine"],
        job_id=submit.output,
        resubmit=3,
        timeout=timedelta(days=2).total_seconds(),
        pool="nersc",
    )
    collected: Any = collect_stacks.override(task_id="collect", outlets=[Asset("cosmic_stacks")])(
        plan["machine"], plan["prefix"], plan["regions"], wait.output
    )

    plan >> submit >> wait >> collected
