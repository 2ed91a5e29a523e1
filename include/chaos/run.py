"""One chaos run: scans go in, faults happen, everything ends, the books are compared."""

from __future__ import annotations

import random
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from chaos.books import DAG_ID, Reckoning, Scan, reckon
from chaos.faults import KINDS, Switches
from facility.testing import SpawnedFacility, spawn
from local_airflow.rest import FINISHED, Rest, RestError
from local_airflow.seed import standin_beamline, standin_seed
from local_airflow.stack import LocalAirflow, running

# What is quicker here than at a beamline, so that an hour shows what a month would: a dead worker is
# noticed and a task tried again sooner.
SETTINGS = {
    "AIRFLOW__CORE__PARALLELISM": "6",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
}

# The reconstruction: takes the seconds that the scan says, and fails when it says so.
ENGINE = r"""#!/bin/bash
set -eu
for file; do case $file in *.cxi) break ;; esac; done
read -r seconds what < "$file"
sleep "$seconds"
if [ "$what" = fail ]; then echo "cannot allocate the probe" >&2; exit 3; fi
printf 'result\n' > "$COSMIC_OUTPUT.cxi"
printf '\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1' > "$COSMIC_OUTPUT.png"
printf '{"frames": 1}\n' > "$COSMIC_OUTPUT.json"
"""

BATCH = 12  # scans that are under way at once
FAILING = 0.05  # of the scans have a program that fails
OUTAGES = (urllib.error.URLError, ConnectionError, TimeoutError, HTTPException)


@dataclass
class Result:
    """What a run was and what came of it."""

    seed: int
    scans: list[Scan] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    reckoning: Reckoning = field(default_factory=Reckoning)
    seconds: float = 0.0
    triggerer_memory: list[float] = field(default_factory=list)  # MiB, over time


class Chaos:
    """Runs `scans` scans with about `faults` faults.

    :param seed: decides which scans, which faults and in which order.
    """

    def __init__(self, folder: Path, *, scans: int, faults: int, seed: int, limit: float = 7200.0) -> None:
        self.folder = folder
        self.random = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self.faults = faults
        self.limit = limit
        self.result = Result(seed, [self._new_scan(number) for number in range(scans)])

    def run(self) -> Result:
        """Run it all.

        :raises TimeoutError: scans were still under way after `limit` seconds.
        """
        started = time.monotonic()
        with self._system() as (airflow, facility):
            switches = Switches(airflow, facility, self.random)
            rest = Rest(airflow.url, "admin", airflow.passwords["admin"])
            rest.wait_for_dag(DAG_ID)
            self._put_scans(facility)
            self._go(rest, switches, started + self.limit)
            self.result.reckoning = reckon(rest, facility, self.result.scans, switches.spoiled_jobs)
        self.result.seconds = time.monotonic() - started
        return self.result

    @contextmanager
    def _system(self) -> Iterator[tuple[LocalAirflow, SpawnedFacility]]:
        with spawn(self.folder / "facility", slots=BATCH) as facility:
            script = facility.nersc / "software" / "ptychocam_reconstruction.sh"
            script.parent.mkdir(parents=True, exist_ok=True)
            script.write_text(ENGINE)
            script.chmod(0o755)
            beamline = standin_beamline(
                facility.description, self.folder / "beamline.yaml", self.folder / "scripts"
            )
            settings = SETTINGS | {"AIRFLOW__COSMIC__BEAMLINE_FILE": str(beamline)}
            airflow = LocalAirflow(self.folder / "airflow", extra=settings)
            with running(airflow, standin_seed(facility.description)):
                yield airflow, facility

    def _new_scan(self, number: int) -> Scan:
        stem = f"NS_230216{number:03}_ccdframes_0_0"
        return Scan(f"2023/02/230216/{stem}.cxi", f"scan__{stem}", self.random.random() < FAILING)

    def _put_scans(self, facility: SpawnedFacility) -> None:
        for scan in self.result.scans:
            path = facility.collection("data7012") / scan.file_path
            path.parent.mkdir(parents=True, exist_ok=True)
            seconds = self.random.uniform(0.5, 8)
            path.write_text(f"{seconds:.1f} {'fail' if scan.fails else 'ok'}\n")

    def _go(self, rest: Rest, switches: Switches, deadline: float) -> None:
        """Post scans, do faults and look, until all have ended."""
        waiting, under_way = list(self.result.scans), set[str]()
        every = max(len(self.result.scans), 1) / max(self.faults, 1)
        done_before = 0
        while waiting or under_way:
            if time.monotonic() > deadline:
                raise TimeoutError(f"Still under way after {self.limit:.0f} s: {sorted(under_way)}")
            under_way -= self._ended(rest, under_way)
            while waiting and len(under_way) < BATCH and self._post(rest, waiting[0]):
                under_way.add(waiting.pop(0).run_id)
            ended = len(self.result.scans) - len(waiting) - len(under_way)
            done = self.result.faults.total()
            # As many faults as scans have come far, spread over the run.
            if done < self.faults and done * every <= ended + len(under_way) / 2:
                self._fault(switches)
            else:
                time.sleep(0.5)
            if done // 20 != done_before // 20:
                self._note(switches.airflow, ended)
            done_before = done
        switches.facility.clear_faults()

    def _fault(self, switches: Switches) -> None:
        (kind,) = self.random.choices(KINDS, weights=[kind.weight for kind in KINDS])
        said = kind.act(switches)
        self.result.faults[kind.name] += 1
        print(f"  fault {self.result.faults.total():4}: {kind.name}: {said}", flush=True)
        time.sleep(self.random.uniform(0.1, 1.5))

    def _post(self, rest: Rest, scan: Scan) -> bool:
        """Post as the beamline's client does: 409 means that it is there already."""
        try:
            rest.trigger(DAG_ID, {"file_path": scan.file_path, "do_ptychocam": True}, scan.run_id)
        except RestError as error:
            return error.status == 409
        except OUTAGES:
            return False
        return True

    def _ended(self, rest: Rest, under_way: set[str]) -> set[str]:
        try:
            found = rest.call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns?limit=100&order_by=-id")["dag_runs"]
        except (RestError, *OUTAGES):
            return set()
        return {run["dag_run_id"] for run in found if run["state"] in FINISHED} & under_way

    def _note(self, airflow: LocalAirflow, ended: int) -> None:
        memory = resident_memory(airflow.processes["triggerer"].pid)
        self.result.triggerer_memory.append(memory)
        print(f"  {ended} of {len(self.result.scans)} scans ended; triggerer {memory:.0f} MiB", flush=True)


def resident_memory(pid: int) -> float:
    """Resident memory of a process in MiB; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)
