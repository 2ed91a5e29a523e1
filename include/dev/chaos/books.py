"""The reckoning: what Airflow says of each scan against what really happened at the facilities."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from dev.chaos.history import history
from dev.chaos.system import Scan, System
from dev.local_airflow.rest import Rest
from facilities.superfacility.claims import EXIT_CODE

# What the log of the failed task of a scan that is meant to fail must tell.
TOLD = {
    "program fails": ("ptychocam.wait", ("UserError", "exit code 3", "cannot allocate the probe")),
    "no such file": ("copy_to_nersc", ("NotFoundError", "on the source collection", "Nothing was submitted")),
}
_CLASS = re.compile(r"facilities\.errors\.(\w+)|\b(\w+Error): ")


@dataclass
class Reckoning:
    """Scans by what became of them, a line each; those of `clean` have to be empty.

    :ivar histories: of the scans that broke a promise, by run id.
    """

    succeeded: list[str] = field(default_factory=list)
    failed_as_meant: list[str] = field(default_factory=list)  # and told so, in the right class
    ended_by_a_person: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    orphaned: list[str] = field(default_factory=list)
    wrong_message: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # jobs that found their work claimed, and did nothing
    bad_runs: set[str] = field(default_factory=set)
    histories: dict[str, list[str]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether everything that was promised holds."""
        return not (self.lost or self.doubled or self.orphaned or self.wrong_message)

    def bad(self, kind: list[str], scan: Scan, what: str) -> None:
        """Note what must not be."""
        kind.append(f"{scan.run_id}: {what}")
        self.bad_runs.add(scan.run_id)


def reckon(parts: System, scans: list[Scan], spoiled: dict[str, str], ended: set[str]) -> Reckoning:
    """Compare the books, when all has ended.

    :param ended: run ids that a person has ended (unless they had succeeded before): these may lack a job or
        transfer, but must not leave one.
    :param spoiled: ids of jobs that a fault has ended for good: to each belongs a successor.
    """
    result = Reckoning()
    jobs, transfers = parts.facility.jobs(), parts.facility.transfers()
    for scan in scans:
        own_jobs = [job for job in jobs if scan.run_id in job["name"]]
        own_transfers = [task for task in transfers if task["label"].startswith(f"{scan.run_id}-")]
        if scan.run_id in ended and parts.rest.run(DAG_ID, scan.run_id)["state"] == "failed":
            result.ended_by_a_person.append(scan.run_id)
            wanted = range(2)
        else:
            _judge_end(result, parts.rest, scan)
            wanted = range(0, 1) if scan.meant == "no such file" else range(1, 2)
        _judge_jobs(result, scan, own_jobs, spoiled, least=wanted.start)
        _judge_transfers(result, scan, own_transfers, wanted)
        if scan.run_id in result.bad_runs:
            result.histories[scan.run_id] = history(parts, scan)
    return result


def _judge_end(result: Reckoning, rest: Rest, scan: Scan) -> None:
    state = rest.run(DAG_ID, scan.run_id)["state"]
    if scan.meant == "success":
        if state == "success":
            result.succeeded.append(scan.run_id)
        else:
            result.bad(result.lost, scan, f"{state}; {why(rest, scan.run_id)}")
        return
    task_id, words = TOLD[scan.meant]
    if state != "failed":
        result.bad(result.wrong_message, scan, f"{scan.meant}, and its run is {state}")
        return
    log = _last_log(rest, scan.run_id, task_id)
    if missing := [word for word in words if word not in log]:
        what = f"{scan.meant}, but not told: {', '.join(missing)}; {why(rest, scan.run_id)}"
        result.bad(result.wrong_message, scan, what)
    else:
        result.failed_as_meant.append(f"{scan.run_id}: {scan.meant} ({words[0]})")


def why(rest: Rest, run_id: str) -> str:
    """Which tasks of a run failed, and the last error that each log tells."""
    told = []
    for task_id, task in rest.task_instances(DAG_ID, run_id).items():
        if task["state"] == "failed":
            lines = _last_log(rest, run_id, task_id).splitlines()
            error = next((line for line in reversed(lines) if _CLASS.search(line)), "no error in the log")
            told.append(f"{task_id} (try {task['try_number']}): {error[:300]}")
    return "; ".join(told) or "no task failed"


def _last_log(rest: Rest, run_id: str, task_id: str) -> str:
    task = rest.task_instances(DAG_ID, run_id)[task_id]
    return rest.log(DAG_ID, run_id, task_id, max(task["try_number"], 1))


def _judge_jobs(
    result: Reckoning, scan: Scan, jobs: list[dict[str, Any]], spoiled: dict[str, str], *, least: int
) -> None:
    states = dict(Counter(job["state"] for job in jobs))
    completed = [job for job in jobs if job["state"] == "COMPLETED"]
    refused = [job for job in jobs if job["exit_code"] == f"{EXIT_CODE}:0"]
    result.refused += [f"{scan.run_id}: job {job['job_id']}" for job in refused]
    # A job that a fault has ended has a successor; any other is one more than the scan needs, once it ran.
    ran = [job for job in jobs if job["runs"] and job["job_id"] not in spoiled and job not in refused]
    if len(completed) > 1 or len(ran) > 1 or any(job["runs"] > 1 + job["restarts"] for job in jobs):
        result.bad(result.doubled, scan, f"jobs {states}, {len(ran)} of them unspoiled")
    if scan.meant == "success" and len(completed) < least:
        result.bad(result.lost, scan, f"no job has completed: {states}")
    if scan.meant == "no such file" and jobs:
        result.bad(result.doubled, scan, f"a job without a file: {states}")
    for job in jobs:
        if job["active"]:
            result.bad(result.orphaned, scan, f"job {job['job_id']} is {job['state']}")


def _judge_transfers(result: Reckoning, scan: Scan, transfers: list[dict[str, Any]], wanted: range) -> None:
    moved = sum(task["files_moved"] for task in transfers)
    if moved not in wanted:
        kind = result.doubled if moved >= wanted.stop else result.lost
        result.bad(kind, scan, f"{moved} files moved by {len(transfers)} transfers")
    for task in transfers:
        if task["status"] not in ("SUCCEEDED", "FAILED"):
            result.bad(result.orphaned, scan, f"transfer {task['task_id']} is {task['status']}")
