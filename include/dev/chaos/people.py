"""What people do to runs while everything else goes wrong."""

from __future__ import annotations

import random
import urllib.error
from dataclasses import dataclass, field
from http.client import HTTPException

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from dev.chaos.system import Scan
from dev.local_airflow.rest import Rest, RestError

OUTAGES = (urllib.error.URLError, ConnectionError, TimeoutError, HTTPException, RestError)
LIVING = ("queued", "scheduled", "running", "deferred", "up_for_retry")


@dataclass
class People:
    """Ends runs and clears tasks, of scans whose runs would succeed.

    :param under_way: run ids of the scans that are under way; somebody else keeps it up to date.
    :ivar ended: run ids that a person has ended, or has tried to: the reply may have been lost.
    """

    rest: Rest
    draw: random.Random
    scans: list[Scan]
    under_way: set[str]
    ended: set[str] = field(default_factory=set)

    def end_a_run(self) -> str | None:
        """Set a run to failed, as with the button in the UI."""
        run_id = self._pick()
        if run_id is None:
            return None
        self.ended.add(run_id)
        try:
            self.rest.call("PATCH", f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}", {"state": "failed"})
        except OUTAGES as error:
            return f"{run_id}: {str(error)[:80]}"
        return run_id

    def clear_the_job(self) -> str | None:
        """Clear the submit and all that follows, while it is going on: the living job is taken up again."""
        run_id = self._pick()
        if run_id is None:
            return None
        try:
            tasks = self.rest.task_instances(DAG_ID, run_id)
            if tasks["ptychocam.wait"]["state"] not in LIVING:
                return None
            self.rest.clear(DAG_ID, run_id, ["ptychocam.submit"])
        except OUTAGES as error:
            return f"{run_id}: {str(error)[:80]}"
        return run_id

    def _pick(self) -> str | None:
        runs = [scan.run_id for scan in self.scans if scan.meant == "success"]
        living = [run_id for run_id in runs if run_id in self.under_way and run_id not in self.ended]
        return self.draw.choice(living) if living else None
