"""`find_missed_scans` in a running Airflow: what it finds, what it starts, and what it leaves alone."""

from __future__ import annotations

import os
import time
from datetime import date
from typing import Any

import pytest

from cosmic.scans import day_folder, parse_scan_path
from support.live import DAG_ID, Pipeline

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

FINDER = "find_missed_scans"


class Day:
    """A day of its own at the beamline."""

    def __init__(self, pipeline: Pipeline, day: date) -> None:
        self.pipeline = pipeline
        self.day = day

    def scan(self, number: int, behaviour: str = "ok", *, age: float = 7200.0) -> str:
        """A scan that was last written to `age` seconds ago."""
        path = f"{day_folder(self.day)}/NS_{self.day:%y%m%d}{number:03}_ccdframes_0_0.cxi"
        self.pipeline.live.scan(path, behaviour.encode() + b"\n")
        then = time.time() - age
        os.utime(self.pipeline.facility.collection("data7012") / path, (then, then))
        return path

    def find(self, **conf: Any) -> dict[str, int]:
        """Run the DAG for this day and return its row."""
        rest = self.pipeline.rest
        run = rest.trigger(FINDER, {"first_day": self.day.isoformat(), "copies_at_once": 50, **conf})
        assert rest.wait_for_run(FINDER, run, 240)["state"] == "success"
        (row,) = rest.xcom(FINDER, run, "report")
        assert row.pop("day") == self.day.isoformat()
        return {key: number for key, number in row.items() if number}

    def finish_all(self, *scans: str, generation: int = 1) -> list[str]:
        """Wait for the scans' runs; returns their states."""
        return [self.pipeline.finish(run_id(scan, generation), 180) for scan in scans]


def run_id(scan: str, generation: int = 1) -> str:
    """Id of a scan's run."""
    return parse_scan_path(scan).run_id(generation)


def test_missing_scans_are_started_once_and_the_rest_is_left_alone(pipeline: Pipeline) -> None:
    day = Day(pipeline, date(2024, 3, 1))
    missing, posted, failing = day.scan(1), day.scan(2), day.scan(3, "fail 3")
    young = day.scan(4, age=0)
    for scan in (posted, failing):
        pipeline.rest.trigger(DAG_ID, {"file_path": scan, "do_ptychocam": True}, run_id(scan))
    assert day.finish_all(posted, failing) == ["success", "failed"]

    listed = day.find(dry_run=True)
    assert listed == {"on_disk": 4, "processed": 1, "failed": 1, "missing": 1, "left_alone": 1}
    assert day.find() == listed | {"started": 1}
    assert day.finish_all(missing) == ["success"]
    assert pipeline.rest.run(DAG_ID, run_id(missing))["conf"] == {"do_ptychocam": True, "file_path": missing}
    assert FINDER in pipeline.rest.run(DAG_ID, run_id(missing))["note"]

    assert day.find() == {"on_disk": 4, "processed": 2, "failed": 1, "left_alone": 1}
    assert [len(pipeline.jobs_of(scan)) for scan in (missing, posted, failing, young)] == [1, 1, 1, 0]
