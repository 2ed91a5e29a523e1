"""Writes runs that wait into Airflow's database: `python -m dev.benchmark.waits FILE`, with its settings.

FILE is JSON, `{"jobs": [Slurm job ids], "transfers": [Globus task ids], "interval": seconds}`. Each job has a
run whose transfer has ended; each transfer has one whose job is still to come. All are what they would be
after the tasks had deferred; only the workers' part, a few seconds a task, is left out.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow._shared.timezones import timezone
from airflow.models.dag_version import DagVersion
from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from sqlalchemy.orm import Session

from cosmic.dag_constants import COPY_TASK, GLOBUS_CONN_ID, SUPERFACILITY_CONN_ID, TRANSFER_AUTO_RECON
from dev.benchmark.scale_facility import run_id_of
from facilities.globus.trigger import GlobusTaskTrigger
from facilities.superfacility.triggers import SlurmJobTrigger
from facilities.waiting import WaitTrigger

JOB_TASK = "ptychocam.wait"
_LIMIT = timedelta(days=7)
_AT_ONCE = 500


def write_waits(job_ids: list[str], transfer_ids: list[str], interval: float) -> None:
    """Write a run for each job and each transfer.

    :param interval: seconds between two answers that each wait wants.
    """
    deadline = time.time() + _LIMIT.total_seconds()
    common: dict[str, Any] = {
        "deadline": deadline,
        "min_poll_interval": interval,
        "max_poll_interval": interval,
    }
    waits: Iterator[WaitTrigger[Any]] = iter((
        *(
            SlurmJobTrigger(
                superfacility_conn_id=SUPERFACILITY_CONN_ID, machine="perlmutter", remote_id=job_id, **common
            )
            for job_id in job_ids
        ),
        *(
            GlobusTaskTrigger(globus_conn_id=GLOBUS_CONN_ID, remote_id=task_id, **common)
            for task_id in transfer_ids
        ),
    ))  # fmt: skip
    with create_session() as session:
        version = DagVersion.get_latest_version(TRANSFER_AUTO_RECON, session=session)
        dag = SerializedDagModel.get_dag(TRANSFER_AUTO_RECON, session=session)
        if version is None or dag is None:
            raise RuntimeError(f"{TRANSFER_AUTO_RECON} is not in the database yet.")
        numbered = enumerate(waits)
        while some := [wait for _, wait in zip(range(_AT_ONCE), numbered, strict=False)]:
            _write(session, dag, version, some)


def _write(
    session: Session, dag: Any, version: DagVersion, waits: list[tuple[int, WaitTrigger[Any]]]
) -> None:
    now = timezone.utcnow()
    triggers = [Trigger.from_object(trigger) for _, trigger in waits]
    runs = [_run(number, version) for number, _ in waits]
    session.add_all([*triggers, *runs])
    session.flush()
    rows = []
    for run, trigger, (_, wait) in zip(runs, triggers, waits, strict=True):
        waits_for = JOB_TASK if isinstance(wait, SlurmJobTrigger) else COPY_TASK
        for task_id in (COPY_TASK, JOB_TASK):
            row = TaskInstance.insert_mapping(
                run.run_id, dag.get_task(task_id), -1, dag_version_id=version.id, dag_run=run
            )
            if task_id == waits_for:
                row |= {
                    "state": TaskInstanceState.DEFERRED, "start_date": now, "try_number": 1,
                    "trigger_id": trigger.id, "trigger_timeout": now + _LIMIT + timedelta(minutes=5),
                    "next_method": "ended", "next_kwargs": {},
                }  # fmt: skip
            elif task_id == COPY_TASK:
                row |= {
                    "state": TaskInstanceState.SUCCESS,
                    "start_date": now,
                    "end_date": now,
                    "try_number": 1,
                }
            rows.append(row)
    session.bulk_insert_mappings(TaskInstance.__mapper__, rows)
    session.commit()
    session.expunge_all()


def _run(number: int, version: DagVersion) -> DagRun:
    now = timezone.utcnow()
    run_id = run_id_of(number)
    stem = run_id.removesuffix("_0_0")
    run = DagRun(
        TRANSFER_AUTO_RECON,
        run_id,
        run_after=now,
        queued_at=now,
        start_date=now,
        conf={"file_path": f"2023/02/{stem[3:9]}/{stem}_ccdframes_0_0.cxi", "do_ptychocam": True},
        state=DagRunState.RUNNING,
        run_type=DagRunType.MANUAL,
        triggered_by=DagRunTriggeredByType.REST_API,
    )
    run.created_dag_version_id = version.id
    return run


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    write_waits(given["jobs"], given["transfers"], given["interval"])
