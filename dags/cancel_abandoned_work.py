"""
### Jobs and transfers that no task waits for

Every two minutes: lists the active Slurm jobs and Globus tasks that this Airflow has submitted, asks Airflow
about the runs and tasks that own them, and cancels those whose run is over or whose tasks are. Most are
cancelled at once when their waiting task is ended. This is for the rest: a task that was marked before it
waited, a run that was failed between a submit and its wait, a worker killed in its submit, an outage.

**Left alone** is whatever is between two tries, cleared or waiting, and what another Airflow has started.

**What you see.** The log names each job and transfer that was cancelled, and why; so does the result. Usually
there are none, and the task takes a second. It also removes pictures that were kept for the pages longer than
`[cosmic] kept_results_days`; nothing is removed at NERSC.

**When it fails.** The last lines of the log name what to do. While a service does not answer, the task
succeeds, with a warning in its log, and the next run asks again.

**Owner.** COSMIC, ALS beamline 7.0.1.2.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, task

import facilities.globus.orphans
import facilities.superfacility.orphans  # noqa: F401 - both register what finds their work
from cosmic import kept_results
from cosmic.beamline import beamline
from cosmic.dag_constants import (
    CANCEL_ABANDONED_WORK,
    COPY_TASK,
    FLIGHT_CHECK,
    GLOBUS_CONN_ID,
    PROCESS_NEWFILE,
    STACK_SCAN,
    SUPERFACILITY_CONN_ID,
    TRANSFER_AUTO_RECON,
)
from cosmic.failures import DEFAULT_ARGS
from cosmic.parameters import ENGINES
from facilities.orphans import CleanupResult, OrphanCleanup

# By DAG: groups of tasks that own one job or transfer, the one that submits it first.
OWNING_TASKS: dict[str, list[tuple[str, ...]]] = {
    TRANSFER_AUTO_RECON: [(COPY_TASK,), *((f"{name}.submit", f"{name}.wait") for name in ENGINES)],
    PROCESS_NEWFILE: [(COPY_TASK,)],
    STACK_SCAN: [("submit", "wait")],
    FLIGHT_CHECK: [("copy_file",), ("remove_copy",)],
}


@task(execution_timeout=timedelta(minutes=8))
def cancel_abandoned() -> CleanupResult:
    """Cancel jobs and transfers that no task waits for, and remove old pictures of the pages."""
    cleanup = OrphanCleanup(OWNING_TASKS)
    cleanup.cancel_orphans("superfacility", SUPERFACILITY_CONN_ID, machine=beamline().job.machine)
    cleanup.cancel_orphans("globus", GLOBUS_CONN_ID)
    kept_results.remove_old()
    return cleanup.result


with DAG(
    dag_id=CANCEL_ABANDONED_WORK,
    dag_display_name="cancel_abandoned_work: jobs and transfers that no task waits for",
    doc_md=__doc__,
    schedule="*/2 * * * *",
    catchup=False,
    max_active_runs=1,
    default_args={**DEFAULT_ARGS, "retries": 1},  # the next run comes soon
    tags=["bl7012", "cosmic", "globus", "nersc"],
) as dag:
    cancel_abandoned()
