"""Measures what a scan costs besides its transfer and its job: seconds, and requests to each facility."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime
from statistics import median
from typing import Any, NamedTuple

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from cosmic.scan_names import short_name
from dev.local_airflow.rest import Rest
from standin.nersc.options import Options
from standin.testing import SpawnedFacility

REPEATS = 5

# A reconstruction that takes a known time and leaves what a real one leaves.
ENGINE = r"""#!/bin/bash
set -eu
sleep 3
printf 'result\n' | tee "$COSMIC_OUTPUT.cxi" > "$COSMIC_OUTPUT.h5"
printf '\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1' > "$COSMIC_OUTPUT.png"
printf '{"frames": 1}\n' > "$COSMIC_OUTPUT.json"
"""


class Scan(NamedTuple):
    """One scan's seconds from post to success, those of its transfer and job, and its requests.

    A job's end where it is in Slurm's accounting.
    """

    total: float
    transfer: float
    job: float
    requests: Counter[str]

    @property
    def own(self) -> float:
        """Seconds that are ours and Airflow's."""
        return self.total - self.transfer - self.job


def install_engine(facility: SpawnedFacility) -> None:
    """Install the quick reconstruction at the facility."""
    script = facility.nersc / "software" / "ptychocam_reconstruction.sh"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(ENGINE)
    script.chmod(0o755)


def measure_scan(rest: Rest, facility: SpawnedFacility, number: int) -> Scan:
    """Run one scan of 4 MB alone."""
    file_path = f"2023/02/230216/NS_230216{number:03}_ccdframes_0_0.cxi"
    path = facility.collection("data7012") / file_path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(4_000_000))
    facility.clear_requests()
    run_id = f"bench_{number}"
    total = measure_run(rest, DAG_ID, run_id, {"file_path": file_path, "do_ptychocam": True})
    transfer = next(task for task in facility.transfers() if task["label"].startswith(run_id))
    name = short_name(file_path)
    job = next(job for job in facility.jobs() if job["name"].startswith(f"ptychocam-{name}"))
    requests = Counter(_service(request["path"]) for request in facility.requests())
    moving = transfer["completion_time"] - transfer["request_time"]
    # Nobody can see that a job has ended before the accounting does.
    return Scan(total, moving, job["ended"] + Options.sacct_lag - job["submitted"], requests)


def measure_run(rest: Rest, dag_id: str, run_id: str, conf: dict[str, Any] | None = None) -> float:
    """Seconds from the post to the end of a run, by Airflow's records.

    :raises RuntimeError: the run did not succeed.
    """
    posted = time.time()
    rest.trigger(dag_id, conf, run_id)
    run = rest.wait_for_run(dag_id, run_id)
    if run["state"] != "success":
        raise RuntimeError(f"Run {run_id} of {dag_id} ended as {run['state']}.")
    return datetime.fromisoformat(run["end_date"]).timestamp() - posted


def middle(values: list[float], digits: int = 2) -> str:
    """The median with the range.

    >>> middle([1.0, 2.0, 4.0], digits=1)
    '2.0 (1.0 to 4.0)'
    """
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _service(path: str) -> str:
    if "/nersc/" not in path:
        return "Globus"
    return "NERSC status (public)" if "/status" in path else "NERSC"
