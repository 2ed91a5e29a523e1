"""What the chaos happens to: an Airflow of separate processes and a stand-in facility."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from deployment.standin_settings import standin_beamline, standin_seed
from dev.local_airflow.postgres import programs, running_postgres
from dev.local_airflow.rest import Rest, RestError
from dev.local_airflow.stack import LocalAirflow, running
from standin.testing import SpawnedFacility, spawn

# What is quicker here than at a beamline, so that an hour shows what a month would: a dead worker is
# noticed and a task tried again sooner.
SETTINGS = {
    "AIRFLOW__CORE__PARALLELISM": "6",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
}
# Of the facility, likewise: a job that Slurm starts again does so after seconds instead of minutes.
SITE = {"requeue_delay": 3.0, "kill_wait": 2.0}

# The reconstruction: takes the seconds that the scan says, and fails when it says so.
ENGINE = r"""#!/bin/bash
set -eu
for file; do case $file in *.cxi) break ;; esac; done
read -r seconds what < "$file"
sleep "$seconds"
if [ "$what" = fail ]; then echo "cannot allocate the probe" >&2; exit 3; fi
printf 'result\n' | tee "$COSMIC_OUTPUT.cxi" > "$COSMIC_OUTPUT.h5"
printf '\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1' > "$COSMIC_OUTPUT.png"
printf '{"frames": 1}\n' > "$COSMIC_OUTPUT.json"
"""


@dataclass(frozen=True)
class Scan:
    """One scan of the chaos.

    :param meant: how its run has to end: "success", "program fails", or "no such file" (posted with a path
        at which there is nothing).
    """

    file_path: str
    run_id: str
    meant: str
    seconds: float

    @property
    def stem(self) -> str:
        """Its name without folder and ending."""
        return self.file_path.rsplit("/", 1)[1].removesuffix(".cxi")


@dataclass(frozen=True)
class System:
    """All that runs."""

    airflow: LocalAirflow
    facility: SpawnedFacility
    rest: Rest


def make_scans(count: int, draw: random.Random) -> list[Scan]:
    """So many scans; of forty, three have a program that fails and two are not there."""
    scans = []
    for number in range(count):
        stem = f"NS_230216{number:03}_ccdframes_0_0"
        (meant,) = draw.choices(("success", "program fails", "no such file"), (35, 3, 2))
        path = f"2023/02/230216/{stem}.cxi"
        run_id = stem.replace("_ccdframes", "")
        scans.append(Scan(path, run_id, meant, round(draw.uniform(0.5, 10), 1)))
    return scans


@contextmanager
def system(folder: Path, scans: list[Scan], *, at_once: int, database: str) -> Iterator[System]:
    """Start everything, the scans at the beamline's collection, and stop it at the end.

    :param database: `postgresql` (a server of its own), `sqlite`, or the SQLAlchemy address of an empty
        database.
    """
    with ExitStack() as stack:
        facility = stack.enter_context(spawn(folder / "standin", slots=at_once))
        facility.control("nersc", "set", **SITE)
        _install_engine(facility)
        _put_scans(facility, scans)
        beamline = standin_beamline(facility.description, folder / "beamline.yaml", folder / "scripts")
        settings = SETTINGS | {"AIRFLOW__COSMIC__BEAMLINE_FILE": str(beamline)}
        if database == "postgresql":
            database = stack.enter_context(running_postgres(postgres_programs())).address
        if database != "sqlite":
            settings["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = database
        airflow = LocalAirflow(folder / "airflow", extra=settings)
        stack.enter_context(running(airflow, standin_seed(facility.description)))
        rest = Rest(airflow.url, "admin", airflow.passwords["admin"])
        rest.wait_for_dag(DAG_ID)
        yield System(airflow, facility, rest)


def best_database() -> str:
    """What `system` can use here: `postgresql` where its server is installed, otherwise `sqlite`."""
    return "postgresql" if programs() else "sqlite"


def postgres_programs() -> Path:
    """Where PostgreSQL's programs are.

    :raises RuntimeError: it is not installed.
    """
    found = programs()
    if found is None:
        raise RuntimeError("PostgreSQL is not installed on this machine; use sqlite, or a server's address.")
    return found


def post(rest: Rest, scan: Scan) -> bool:
    """Post a scan as the beamline's client does: 409 means that it is there already."""
    try:
        rest.trigger(DAG_ID, {"file_path": scan.file_path, "do_ptychocam": True}, scan.run_id)
    except RestError as error:
        return error.status == 409
    return True


def _install_engine(facility: SpawnedFacility) -> None:
    script = facility.nersc / "software" / "ptychocam_reconstruction.sh"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(ENGINE)
    script.chmod(0o755)


def _put_scans(facility: SpawnedFacility, scans: list[Scan]) -> None:
    for scan in scans:
        if scan.meant != "no such file":
            path = facility.collection("data7012") / scan.file_path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{scan.seconds} {'fail' if scan.meant == 'program fails' else 'ok'}\n")
