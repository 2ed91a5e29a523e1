"""Writes runs of `transfer_auto_recon` into Airflow's database as the scheduler and the tasks leave them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

from airflow.models.asset import AssetEvent, AssetModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from cosmic.dag_constants import TRANSFER_AUTO_RECON
from cosmic.parameters import RECONSTRUCTION
from cosmic.scan_names import day_folder
from facilities.failures import ERROR_KEY

ASSET = "cosmic_reconstructions"
CONF = {name: parameter.default for name, parameter in RECONSTRUCTION.items()} | {"do_ptychocam": True}
_CHUNK = 2000


def write_runs(
    session: Session, count: int, *, per_day: int = 1000, last_day: date = date(2026, 6, 30)
) -> None:
    """Write `count` runs, `per_day` a day up to `last_day`: one in fifty failed, the others with a result.

    They are of scans of one file each, but for every tenth scan, which has twenty.
    """
    asset_id = asset(session)
    chance = random.Random(1)
    runs: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    tasks: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    first_id = (session.scalar(select(DagRun.id).order_by(DagRun.id.desc()).limit(1)) or 0) + 1
    days = -(-count // per_day)
    for number, (day, scan, energy) in enumerate(_files(count, per_day, last_day, days)):
        name = f"NS_{day:%y%m%d}{scan:03}"
        path = f"{day_folder(day)}/{name}_ccdframes_{energy}_0.cxi"
        run_id = f"{name}_{energy}_0"
        posted = datetime(day.year, day.month, day.day, 16, tzinfo=UTC) + timedelta(
            seconds=number % per_day * 30
        )
        failed = chance.random() < 0.02
        run = run_row(run_id, path, "failed" if failed else "success", posted, took=timedelta(minutes=12))
        runs.append(run | {"id": first_id + number})
        if failed:
            tasks.append(task_row(run_id, "ptychocam.wait", "failed", posted))
            errors.append(xcom_row(first_id + number, run_id, "ptychocam.wait", posted, key=ERROR_KEY, value={
                "what": "the probe has no support", "id": "Slurm job 12", "state": "FAILED",
                "next_step": "read the end of its output.", "run_again": "", "details": "line\n" * 60,
            }))  # fmt: skip
        else:
            extra = facts(name, path, proposal=f"ALS-{day.month:05}", error=chance.uniform(0.01, 0.2))
            events.append(event_row(asset_id, run_id, "ptychocam", posted + timedelta(minutes=12), extra))
        if len(runs) >= _CHUNK:
            _write(session, runs, tasks, errors, events)
    _write(session, runs, tasks, errors, events)


def asset(session: Session) -> int:
    """Id of the asset of results."""
    found = session.scalar(select(AssetModel.id).where(AssetModel.name == ASSET))
    if found is None:
        row = AssetModel(name=ASSET, uri=ASSET, group="asset", extra={})
        session.add(row)
        session.flush()
        found = row.id
    return found


def run_row(
    run_id: str, path: str, state: str, posted: datetime, *, took: timedelta | None = None, **more: Any
) -> dict[str, Any]:
    """A row of `dag_run`."""
    return {
        "dag_id": TRANSFER_AUTO_RECON,
        "run_id": run_id,
        "run_type": "manual",
        "state": state,
        "conf": CONF | {"file_path": path},
        "run_after": posted,
        "queued_at": posted,
        "start_date": posted + timedelta(seconds=1) if state != "queued" else None,
        "end_date": None if took is None else posted + took,
        "created_at": posted,
        "updated_at": posted if took is None else posted + took,
        "clear_number": 0,
        "span_status": "ended",
        "context_carrier": {
            "__var": {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"},
            "__type": "dict",
        },
        **more,
    }


def task_row(run_id: str, task_id: str, state: str, when: datetime) -> dict[str, Any]:
    """A row of `task_instance`."""
    return {
        "id": uuid.uuid4(),
        "dag_id": TRANSFER_AUTO_RECON,
        "run_id": run_id,
        "task_id": task_id,
        "state": state,
        "map_index": -1,
        "pool": "nersc",
        "pool_slots": 1,
        "queue": "default",
        "priority_weight": 1,
        "start_date": when,
        "try_number": 1,
        "max_tries": 1,
        "executor_config": {},
    }


def xcom_row(
    dag_run_id: int, run_id: str, task_id: str, when: datetime, *, key: str, value: Any
) -> dict[str, Any]:
    """A row of `xcom`."""
    return {
        "dag_run_id": dag_run_id,
        "dag_id": TRANSFER_AUTO_RECON,
        "run_id": run_id,
        "task_id": task_id,
        "map_index": -1,
        "key": key,
        "value": value,
        "timestamp": when,
    }


def event_row(
    asset_id: int, run_id: str, engine: str, when: datetime, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """A row of `asset_event`, of a result."""
    return {
        "asset_id": asset_id,
        "extra": dict(extra),
        "source_task_id": f"{engine}.collect",
        "source_dag_id": TRANSFER_AUTO_RECON,
        "source_run_id": run_id,
        "source_map_index": -1,
        "timestamp": when,
    }


def facts(scan: str, path: str, **more: Any) -> dict[str, Any]:
    """The `extra` of a result's asset event, as `collect` writes it."""
    return {
        "scan": scan,
        "file": path,
        "engine": "ptychocam",
        "proposal": "ALS-01234",
        "sample": "battery particles 3",
        "energy_ev": 706.2,
        "error": 0.0521,
        "resolution_m": 1.2e-8,
        "warnings": 0,
    } | more


def _files(count: int, per_day: int, last_day: date, days: int) -> Iterator[tuple[date, int, int]]:
    """Day, number of the scan in its day, and energy of each file."""
    written = 0
    for n in range(days):
        day = last_day - timedelta(days=days - 1 - n)
        of_day = scan = 0
        while of_day < per_day and written < count:
            scan += 1
            for energy in range(20 if scan % 10 == 0 else 1):
                if of_day < per_day and written < count:
                    yield day, scan, energy
                    of_day += 1
                    written += 1


def _write(session: Session, runs: Any, tasks: Any, errors: Any, events: Any) -> None:
    for table, rows in ((DagRun, runs), (TaskInstance, tasks), (XComModel, errors), (AssetEvent, events)):
        if rows:
            session.execute(insert(table.__table__), rows)
            rows.clear()
    session.commit()
