"""Days at the beamline, and finding what was missed on them, in a running Airflow."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from cosmic.dag_constants import FIND_MISSED_SCANS as FINDER
from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from cosmic.scan_names import day_folder
from cosmic.scans import parse_scan_path
from support.live import SLOW, Pipeline

SITE = Path(__file__).parents[2] / "include" / "beamline.yaml"
USUAL: dict[str, Any] = yaml.safe_load(SITE.read_text())["processing"]["parameters"]
"""Parameters of scans that nobody posted."""


def run_id(scan: str, generation: int = 1) -> str:
    """Id of a scan's run."""
    return parse_scan_path(scan).run_id(generation)


class Day:
    """A day of its own at the beamline."""

    def __init__(self, pipeline: Pipeline, day: date) -> None:
        self.pipeline = pipeline
        self.day = day
        self.last_run = ""

    def path(self, number: int) -> str:
        """Path of a scan."""
        return f"{day_folder(self.day)}/NS_{self.day:%y%m%d}{number:03}_ccdframes_0_0.cxi"

    def scan(self, number: int, behaviour: str = "ok", *, age: float = 7200.0) -> str:
        """Write a scan, as of `age` seconds ago."""
        path = self.path(number)
        self.pipeline.live.scan(path, behaviour.encode() + b"\n")
        then = time.time() - age
        os.utime(self.pipeline.facility.collection("data7012") / path, (then, then))
        return path

    def find(self, **conf: Any) -> dict[str, int]:
        """Run the DAG for this day and return its row, without the zeros."""
        rest = self.pipeline.rest
        run = rest.trigger(FINDER, {"first_day": self.day.isoformat(), "copies_at_once": 50, **conf})
        self.last_run = run
        assert rest.wait_for_run(FINDER, run, SLOW)["state"] == "success"
        (row,) = rest.xcom(FINDER, run, "report")
        assert row.pop("day") == self.day.isoformat()
        return {key: number for key, number in row.items() if number}

    def finish(self, *scans: str, generation: int = 1) -> list[str]:
        """Wait for the scans' runs; returns their states."""
        return [self.pipeline.finish(run_id(scan, generation)) for scan in scans]


def books(pipeline: Pipeline, prefix: str) -> dict[str, list[str]]:
    """Every run of the scans whose path starts so, by path."""
    found: dict[str, list[str]] = {}
    for run in all_runs(pipeline, prefix):
        found.setdefault(run["conf"]["file_path"], []).append(run["dag_run_id"])
    return found


def all_runs(pipeline: Pipeline, prefix: str) -> list[dict[str, Any]]:
    """Runs of `transfer_auto_recon` whose scan's path starts so."""
    runs: list[dict[str, Any]] = []
    while True:
        query = f"conf_contains={prefix}&limit=100&offset={len(runs)}&order_by=id"
        page = pipeline.rest.call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns?{query}")
        runs += page["dag_runs"]
        if len(runs) >= page["total_entries"] or not page["dag_runs"]:
            return [run for run in runs if run["conf"]["file_path"].startswith(prefix)]


@contextmanager
def changed_site(pipeline: Pipeline, **sections: dict[str, Any]) -> Iterator[None]:
    """Change sections of the running Airflow's `beamline.yaml` until the block ends."""
    path = Path(pipeline.airflow.environment["AIRFLOW__COSMIC__BEAMLINE_FILE"])
    before = path.read_text()
    site = yaml.safe_load(before)
    for name, values in sections.items():
        site[name] = {**site.get(name, {}), **values}
    _replace(path, yaml.safe_dump(site))
    try:
        yield
    finally:
        _replace(path, before)


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
