"""What happened to one scan, in order: requests about it, its jobs, its transfers, the tries of its tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from dev.chaos.system import Scan, System
from dev.local_airflow.rest import Rest

Event = tuple[float, str]
"""When, in seconds since 1970, and what."""


def history(parts: System, scan: Scan) -> list[str]:
    """A line for each event, with its time in UTC."""
    jobs = [job for job in parts.facility.jobs() if scan.run_id in job["name"]]
    transfers = [task for task in parts.facility.transfers() if scan.run_id in (task["label"] or "")]
    events = [*_jobs(jobs), *_tries(parts.rest, scan)]
    events += _requests(_all_requests(parts), scan, [*jobs, *transfers])
    return [f"{_time(at)}  {what}" for at, what in sorted(events)]


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S.%f}"[:-3]


def _all_requests(parts: System) -> list[dict[str, Any]]:
    with parts.facility.settings.request_log.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _requests(requests: list[dict[str, Any]], scan: Scan, works: list[dict[str, Any]]) -> Iterator[Event]:
    """Those that name the scan, or the id of one of its jobs, transfers and submits."""
    submits = [one["about"] for one in requests if scan.run_id in (one["about"] or "")]
    ids = {str(work.get("job_id") or work.get("task_id")) for work in works}
    ids |= {about.split("task ")[1].split()[0] for about in submits if "task " in about}
    for one in requests:
        text = " ".join(str(one[key] or "") for key in ("path", "query", "about"))
        if any(found in text for found in (scan.stem, scan.run_id, *ids)):
            answer = one["status"] or "no reply"
            fault = f" [{one['fault']}]" if one["fault"] else ""
            took = f" after {one['ended'] - one['time']:.1f} s" if one["ended"] - one["time"] > 1 else ""
            about = f" ({one['about']})" if one["about"] else ""
            path = one["path"].rsplit("/v", 1)[-1]
            yield one["time"], f"{one['service']} {one['method']} {path}{about}: {answer}{took}{fault}"


def _jobs(jobs: list[dict[str, Any]]) -> Iterator[Event]:
    for job in jobs:
        name = f"job {job['job_id']} ({job['name']})"
        if job["submitted"]:
            yield job["submitted"], f"{name} is submitted"
        if job["started"]:
            yield job["started"], f"{name} starts, for the {job['runs']}. time"
        if job["ended"]:
            yield job["ended"], f"{name} ends: {job['state']}, exit code {job['exit_code']}"


def _tries(rest: Rest, scan: Scan) -> Iterator[Event]:
    for task_id in rest.task_instances(DAG_ID, scan.run_id):
        for one in rest.tries(DAG_ID, scan.run_id, task_id):
            name = f"{task_id}, try {one['try_number']}"
            for key, what in (("start_date", "begins"), ("end_date", f"ends: {one['state']}")):
                if one[key]:
                    yield datetime.fromisoformat(one[key]).timestamp(), f"{name} {what}"
