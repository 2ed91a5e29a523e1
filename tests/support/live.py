"""A whole running Airflow with a stand-in facility, and what tests do with it."""

from __future__ import annotations

import base64
import io
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cosmic.dag_constants import CANCEL_ABANDONED_WORK as CLEAN_UP
from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from cosmic.scans import parse_scan_path
from deployment.standin_settings import standin_beamline, standin_seed
from dev.local_airflow.rest import Rest
from dev.local_airflow.stack import LocalAirflow, running, wait_until
from reconstruction.view import make_view
from standin.testing import SpawnedFacility, spawn

ENGINE = Path(__file__).parents[1] / "live" / "engine.sh"
SLOW = 300.0  # seconds that anything here may take on a busy machine
FINISHED_JOBS = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"}


def install_engines(facility: Any) -> None:
    """Put `engine.sh` in place of both reconstruction scripts."""
    software: Path = facility.nersc / "software"
    software.mkdir(parents=True, exist_ok=True)
    Image.new("L", (32, 16), 128).save(software / "preview.png")
    content, figures = example_figures()
    for name, picture in content.items():
        (software / name).write_bytes(picture)
    (software / "figures.json").write_text(json.dumps(figures))
    for engine in ("ptychocam", "cdtools"):
        shutil.copy(ENGINE, software / f"{engine}_reconstruction.sh")


def example_figures() -> tuple[dict[str, bytes], dict[str, Any]]:
    """The viewer's two files, by the names that `engine.sh` takes, and the figures with them.

    A picture of 48 by 64 pixels of 10 nm, whose first five columns were not scanned: its amplitude grows from
    left to right, its phase from top to bottom; hostile values are in its warnings and metadata.
    """
    rows, columns = np.mgrid[:48, :64]
    scanned = columns >= 5
    flat = (0.2 + 0.01 * columns) * np.exp(1j * (-1.0 + 0.04 * rows))
    view = make_view(flat, scanned, scanned, np.array([1e-8, 1e-8]))
    image = io.BytesIO()
    Image.fromarray((columns * 4).astype(np.uint8)).save(image, "PNG")
    figures = {
        "engine": "ptychocam",
        "version": "1.0.0",
        "frames": 4,
        "iterations": 10,
        "final_error": 0.25,
        "errors_are": "an example's",
        "errors": [1.0 / (n + 1) for n in range(10)],
        "pixel_size_m": [1e-8, 1e-8],
        "object_shape": [48, 64],
        "energy_ev": 707.5,
        "resolution_m": 2e-8,
        "notes": ["positions are <i>the probe's</i>"],
        "warnings": ["<b>bold</b>"],
        "parameters": {"iterations": 10, "positions": "probe"},
        "metadata": {"proposal": "ALS-01234", "sample": "<script>alert(1)</script>", "dwell1": 100.0},
        "view": view.about,
        "thumbnail_png": base64.b64encode(image.getvalue()).decode(),
    }
    return {name.removeprefix("_"): content for name, content in view.files.items()}, figures


class Pipeline:
    """What a test does with the running system."""

    def __init__(self, live: Live) -> None:
        self.airflow = live.airflow
        self.facility = live.facility
        self.rest = live.rest
        self.live = live

    def new_scan(self, behaviour: str = "ok") -> str:
        """A scan of its own at the beamline; the engine does what `behaviour` says."""
        number = uuid.uuid4().int % 10**9
        return self.live.scan(
            f"2023/02/230216/NS_230216{number:09}_ccdframes_0_0.cxi", behaviour.encode() + b"\n"
        )

    def start(self, scan: str, **conf: Any) -> str:
        """Start a run for the scan; ptychocam unless the keywords say otherwise. Returns the run's id."""
        return self.rest.trigger(DAG_ID, {"file_path": scan, "do_ptychocam": True, **conf})

    def finish(self, run_id: str, timeout: float = SLOW) -> str:
        """Wait for the run's end; returns its state."""
        return str(self.rest.wait_for_run(DAG_ID, run_id, timeout)["state"])

    def state(self, run_id: str, task_id: str) -> str | None:
        """State of a task."""
        state: str | None = self.rest.task_instances(DAG_ID, run_id)[task_id]["state"]
        return state

    def wait_for_task(self, run_id: str, task_id: str, *states: str, timeout: float = SLOW) -> None:
        """Wait until a task is in one of these states."""
        if not wait_until(lambda: self.state(run_id, task_id) in states, timeout):
            seen = {t: i["state"] for t, i in self.rest.task_instances(DAG_ID, run_id).items()}
            raise AssertionError(f"{task_id} is not {' or '.join(states)} after {timeout} s: {seen}")

    def wait_until_polled(self, run_id: str, task_id: str, remote_id: str) -> None:
        """Wait until a task waits, and the triggerer has polled for it.

        When a person ends a task before that, only the clean-up cancels its work, up to two minutes later.

        :param remote_id: of the transfer or job that the task waits for.
        """
        self.wait_for_task(run_id, task_id, "deferred")
        self.wait_for(
            lambda: any(remote_id in request["query"] for request in self.facility.requests()),
            f"a poll for {remote_id}",
        )

    def worker_starts(self, run_id: str) -> Counter[str]:
        """How often each task has been started in a worker, by Airflow's audit log."""
        path = f"/api/v2/eventLogs?dag_id={DAG_ID}&run_id={run_id}&event=running&limit=100"
        return Counter(entry["task_id"] for entry in self.rest.call("GET", path)["event_logs"])

    def jobs_of(self, scan: str) -> list[dict[str, Any]]:
        """Every job that was ever submitted for a scan, from the facility's books."""
        self.wait_for(self._all_have_names, "accounting has the names of all jobs")
        name = f"-{parse_scan_path(scan).name}"
        return [job for job in self.facility.jobs() if f"{name}-" in job["name"] or f"{name}_" in job["name"]]

    def _all_have_names(self) -> bool:
        """Slurm's own accounting calls a job "allocation" at first."""
        return not {job["name"] for job in self.facility.jobs()} & {"", "allocation"}

    def job_states(self, scan: str) -> list[str]:
        """The states of all jobs of a scan."""
        return [job["state"] for job in self.jobs_of(scan)]

    def transfers_of(self, run_id: str) -> list[dict[str, Any]]:
        """Every transfer that was ever submitted for a run, from the facility's books."""
        return [task for task in self.facility.transfers() if task["label"].startswith(f"{run_id}-")]

    def let_go(self, scan: str) -> None:
        """Let a job that holds go on."""
        path = self.facility.collection("nersc7012") / f"{scan}.go"
        path.touch()

    def clean_up(self, of_run: str) -> list[str]:
        """Start the clean-up of orphans as a person would; what it has cancelled of a run, now or before."""
        asked = self.rest.trigger(CLEAN_UP)
        # One at a time: a scheduled one that comes meanwhile may be first, and must be in the list.
        assert self.rest.wait_for_run(CLEAN_UP, asked)["state"] == "success"
        cancelled: list[str] = []
        for run in self.rest.call("GET", f"/api/v2/dags/{CLEAN_UP}/dagRuns?limit=100&order_by=-id")[
            "dag_runs"
        ]:
            run_id = run["dag_run_id"]
            assert self.rest.wait_for_run(CLEAN_UP, run_id)["state"] == "success"
            cancelled += self.rest.xcom(CLEAN_UP, run_id, "cancel_abandoned")["cancelled"]
        return [line for line in cancelled if of_run in line]

    def wait_for(self, condition: Callable[[], object], what: str, timeout: float = SLOW) -> None:
        """Wait until a condition holds."""
        assert wait_until(condition, timeout), f"not within {timeout} s: {what}"


@dataclass
class Live:
    """A whole Airflow (four processes) that talks to a stand-in facility."""

    airflow: LocalAirflow
    facility: SpawnedFacility
    rest: Rest  # as admin

    def scan(self, name: str, content: bytes = b"frames") -> str:
        """Put a file into the beamline's collection; returns its `file_path`."""
        path = self.facility.collection("data7012") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return name


def start_live(
    folder: Path, *, extra: dict[str, str] | None = None, **facility_settings: Any
) -> Iterator[Live]:
    """Start an Airflow and a stand-in below `folder`; a generator for fixtures."""
    with spawn(folder / "standin", **facility_settings) as standin:
        beamline = standin_beamline(standin.description, folder / "beamline.yaml", folder / "scripts")
        settings = {
            "AIRFLOW__COSMIC__BEAMLINE_FILE": str(beamline),
            "AIRFLOW__CORE__PARALLELISM": "4",
            # After that the waits of a triggerer that was killed go on in another (default 30).
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
        }
        airflow = LocalAirflow(folder / "airflow", extra=settings | (extra or {}))
        with running(airflow, standin_seed(standin.description)):
            rest = Rest(airflow.url, "admin", airflow.passwords["admin"])
            rest.wait_for_dag(DAG_ID)
            yield Live(airflow, standin, rest)
