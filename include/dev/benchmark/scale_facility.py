"""The stand-in's part of `make bench-scale`: many jobs and transfers that wait; some end when asked to."""

from __future__ import annotations

import concurrent.futures
import json
import os
import time
from dataclasses import dataclass
from typing import Any

from airflow.sdk import Connection

from cosmic.dag_constants import GLOBUS_CONN_ID, SUPERFACILITY_CONN_ID
from facilities.globus.connection import GlobusSettings
from facilities.globus.hook import GlobusHook
from facilities.globus.submission import TransferRequest
from standin.testing import SpawnedFacility, until

SCRIPT = """#!/bin/bash
#SBATCH -A als_g -C gpu -q regular -t 60 --hold
#SBATCH --job-name=bench
true
"""
_AT_ONCE = 500
_BYTES = 10_000
_SETTLED = 3.0  # seconds in which no transfer ends any more
_TRICKLE = 0.1  # bytes per second of all transfers together: none ends


def run_id_of(number: int) -> str:
    """Id of the run of a wait: jobs are counted first, then transfers."""
    return f"NS_2302{number // 1000 + 10:02}{number % 1000:03}_0_0"


@dataclass(frozen=True)
class Waiting:
    """The work that is waited for."""

    facility: SpawnedFacility
    job_ids: list[str]
    transfer_ids: list[str]

    def end_jobs(self, count: int) -> list[str]:
        """Let jobs run that wait, from all over; returns the ids of their runs when they have ended."""
        chosen = self.job_ids[:: max(len(self.job_ids) // count, 1)][:count]
        for job_id in chosen:
            self.facility.control("nersc", "release", job_id=job_id)
        until(lambda: self._completed() >= set(chosen), within=600)
        return [run_id_of(self.job_ids.index(job_id)) for job_id in chosen]

    def end_transfers(self, count: int) -> list[str]:
        """Let transfers go on until so many have ended; returns the ids of their runs."""
        self.facility.control("globus", "bandwidth", bytes_per_second=None)
        until(lambda: len(self._succeeded()) >= count, within=600)
        self.facility.control("globus", "bandwidth", bytes_per_second=_TRICKLE)
        before = -1
        while before != (before := len(self._succeeded())):  # what was under way ends, too
            time.sleep(_SETTLED)
        places = {task_id: len(self.job_ids) + place for place, task_id in enumerate(self.transfer_ids)}
        return [run_id_of(places[task_id]) for task_id in self._succeeded()]

    def _completed(self) -> set[str]:
        return {job["job_id"] for job in self.facility.jobs() if job["state"] == "COMPLETED"}

    def _succeeded(self) -> list[str]:
        return [task["task_id"] for task in self.facility.transfers() if task["status"] == "SUCCEEDED"]


def submit(facility: SpawnedFacility, seed: dict[str, Any], jobs: int, transfers: int) -> Waiting:
    """Submit so many jobs and transfers; all of them wait."""
    for conn_id in (GLOBUS_CONN_ID, SUPERFACILITY_CONN_ID):
        os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"] = json.dumps(seed["connections"][conn_id])
    job_ids: list[str] = []
    while len(job_ids) < jobs:
        count = min(_AT_ONCE, jobs - len(job_ids))
        job_ids += facility.control("nersc", "submit_many", script=SCRIPT, count=count)["job_ids"]
    facility.control("globus", "bandwidth", bytes_per_second=_TRICKLE)
    facility.control("globus", "pending_limit", limit=transfers + 1)
    settings = GlobusSettings.from_connection(
        Connection(conn_id=GLOBUS_CONN_ID, **_fields(seed["connections"][GLOBUS_CONN_ID])), GLOBUS_CONN_ID
    )
    hook = GlobusHook(settings=settings)
    ids = {name: entry["id"] for name, entry in facility.description["collections"].items()}
    folder = facility.collection("data7012") / "bench"
    folder.mkdir(parents=True, exist_ok=True)

    def transfer(number: int) -> str:
        (folder / f"{number}.cxi").write_bytes(bytes(_BYTES))
        path = f"/bench/{number}.cxi"
        request = TransferRequest(ids["data7012"], path, ids["nersc7012"], path, f"bench {number}", False)
        return hook.submit(request, hook.new_submission_id())

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        transfer_ids = list(pool.map(transfer, range(transfers)))
    hook.close()
    return Waiting(facility, job_ids, transfer_ids)


def _fields(connection: dict[str, Any]) -> dict[str, Any]:
    return {**connection, "extra": json.dumps(connection["extra"])}
