"""The reckoning: what Airflow says of each scan against what really happened at the facilities."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from facility.testing import SpawnedFacility
from local_airflow.rest import Rest

DAG_ID = "transfer_auto_recon"


@dataclass
class Reckoning:
    """Scans by what became of them; every list but `survived` has to be empty."""

    survived: list[str] = field(default_factory=list)
    failed_as_meant: list[str] = field(default_factory=list)  # their program fails: told so, not repeated
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    orphaned: list[str] = field(default_factory=list)
    wrong_message: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether everything that was promised holds."""
        return not (self.lost or self.doubled or self.orphaned or self.wrong_message)


@dataclass(frozen=True)
class Scan:
    """One scan of the chaos: its path, its run and whether its program is meant to fail."""

    file_path: str
    run_id: str
    fails: bool

    @property
    def stem(self) -> str:
        """Its name without folder and ending."""
        return self.file_path.rsplit("/", 1)[1].removesuffix(".cxi")


def reckon(rest: Rest, facility: SpawnedFacility, scans: list[Scan], spoiled_jobs: set[str]) -> Reckoning:
    """Compare the books.

    :param spoiled_jobs: ids of jobs that a fault has ended; they do not count as done.
    """
    result = Reckoning()
    jobs, transfers = facility.jobs(), facility.transfers()
    for scan in scans:
        own_jobs = [job for job in jobs if scan.stem in job["name"]]
        own_transfers = [task for task in transfers if task["label"].startswith(scan.run_id)]
        _judge_end(result, rest, scan)
        _judge_jobs(result, scan, own_jobs, spoiled_jobs)
        _judge_transfers(result, scan, own_transfers)
    return result


def _judge_end(result: Reckoning, rest: Rest, scan: Scan) -> None:
    state = rest.run(DAG_ID, scan.run_id)["state"]
    if not scan.fails:
        (result.survived if state == "success" else result.lost).append(f"{scan.run_id}: {state}")
        return
    if state != "failed":
        result.wrong_message.append(f"{scan.run_id}: its program fails, and the run is {state}")
        return
    wait = rest.task_instances(DAG_ID, scan.run_id)["ptychocam.wait"]
    log = rest.log(DAG_ID, scan.run_id, "ptychocam.wait", max(wait["try_number"], 1))
    told = "UserError" in log and "exit code 3" in log and "cannot allocate the probe" in log
    (result.failed_as_meant if told else result.wrong_message).append(f"{scan.run_id}: {wait['state']}")


def _judge_jobs(result: Reckoning, scan: Scan, jobs: list[dict[str, Any]], spoiled: set[str]) -> None:
    whole = [job for job in jobs if job["job_id"] not in spoiled]
    states = Counter(job["state"] for job in jobs)
    if len(whole) > 1 or any(job["runs"] > 1 + job["restarts"] for job in jobs):
        result.doubled.append(f"{scan.run_id}: jobs {dict(states)}")
    if not whole and f"{scan.run_id}: success" in result.survived:
        result.lost.append(f"{scan.run_id}: success without a job")
    result.orphaned += [f"{scan.run_id}: job {job['job_id']} {job['state']}" for job in jobs if job["active"]]


def _judge_transfers(result: Reckoning, scan: Scan, transfers: list[dict[str, Any]]) -> None:
    moved = sum(task["files_moved"] for task in transfers)
    if moved > 1:
        result.doubled.append(f"{scan.run_id}: {moved} files moved by {len(transfers)} transfers")
    if moved < 1:
        result.lost.append(f"{scan.run_id}: no file was moved")
    result.orphaned += [
        f"{scan.run_id}: transfer {task['task_id']} {task['status']}"
        for task in transfers
        if task["status"] not in ("SUCCEEDED", "FAILED")
    ]
