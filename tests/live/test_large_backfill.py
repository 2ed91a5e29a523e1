"""A month of scans: exactly once, though it is broken off, and live scans do not wait for it.

`make test-slow`; `BACKFILL_SCANS` sets the number of scans.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from cosmic.dag_constants import FIND_MISSED_SCANS as FINDER
from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from dev.local_airflow.stack import wait_until
from support.live import Pipeline, install_engines, start_live
from support.missed import Day, all_runs, changed_site

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(6 * 3600)]

SCANS = int(os.environ.get("BACKFILL_SCANS", "1000"))
MONTH = [date(2024, 10, 1) + timedelta(days=number) for number in range(31)]
PREFIX = "2024/10/"
LONG = 5 * 3600.0


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Pipeline]:
    """An Airflow of the test's own, with four worker slots and Globus's three transfers at a time."""
    for live in start_live(tmp_path, slots=20):
        install_engines(live.facility)
        yield Pipeline(live)


def write_month(pipeline: Pipeline, count: int) -> list[str]:
    """That many scans, spread over the month."""
    days = [Day(pipeline, day) for day in MONTH]
    return [days[number % len(days)].scan(1 + number // len(days)) for number in range(count)]


def create(pipeline: Pipeline, behaviour: str, **conf: int) -> int:
    """Start a backfill of the month."""
    body = {
        "dag_id": FINDER,
        "from_date": f"{MONTH[0]}T00:00:00Z",
        "to_date": f"{MONTH[-1]}T00:00:00Z",
        "dag_run_conf": conf,
        "reprocess_behavior": behaviour,
    }
    return int(pipeline.rest.call("POST", "/api/v2/backfills", body)["id"])


def break_off(pipeline: Pipeline, backfill: int) -> None:
    """Cancel the backfill and whatever of the finder goes on, and kill the scheduler and the triggerer."""
    pipeline.rest.call("PUT", f"/api/v2/backfills/{backfill}/cancel")
    going_on = pipeline.rest.call(
        "GET", f"/api/v2/dags/{FINDER}/dagRuns?state=running&state=queued&limit=100"
    )
    for run in going_on["dag_runs"]:
        path = f"/api/v2/dags/{FINDER}/dagRuns/{run['dag_run_id'].replace('+', '%2B')}"
        pipeline.rest.call("PATCH", path, {"state": "failed"})
    pipeline.airflow.restart("scheduler", "triggerer")


def seconds_to_transfer(pipeline: Pipeline) -> float:
    """Post a live scan; seconds from the post until Globus has its transfer."""
    scan = pipeline.new_scan()
    posted = time.time()
    run = pipeline.start(scan, do_ptychocam=False)
    assert wait_until(lambda: pipeline.transfers_of(run), 300, every=1.0), "no transfer of the live scan"
    return float(pipeline.transfers_of(run)[0]["request_time"]) - posted


class Progress:
    """Counts the month's runs and prints the count as it grows."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.began = time.monotonic()
        self._printed: dict[str, int] = {}

    def count(self, state: str = "") -> int:
        """How many there are in this state; all of them without one."""
        query = f"run_id_prefix_pattern={PREFIX}&limit=1" + (f"&state={state}" if state else "")
        found = int(self.pipeline.rest.call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns?{query}")["total_entries"])
        if found >= self._printed.get(state, 0) + 20:
            self._printed[state] = found
            self.say(f"{found} runs {state or 'started'}")
        return found

    def say(self, what: str) -> None:
        """Print a line with the time since the beginning."""
        print(f"{time.monotonic() - self.began:6.0f} s  {what}", flush=True)

    def wait_until(self, number: int, state: str = "") -> None:
        """Wait until so many runs are there, or are in this state."""
        assert wait_until(lambda: self.count(state) >= number, LONG, every=3.0), f"not {number} {state}"


def test_a_month_broken_off_twice_is_processed_exactly_once_and_live_scans_go_first(own: Pipeline) -> None:
    scans = write_month(own, SCANS)
    progress = Progress(own)
    waits: list[float] = []

    with changed_site(own, processing={"parameters": {"do_ptychocam": False}}):
        backfill = create(own, "none", copies_at_once=12)
        for share in (0.2, 0.5):
            progress.wait_until(int(share * SCANS))
            waits.append(seconds_to_transfer(own))
            progress.say(f"a live scan's transfer began {waits[-1]:.1f} s after its post; breaking off")
            break_off(own, backfill)
            backfill = create(own, "completed", copies_at_once=12)
            progress.say("begun again")
        progress.wait_until(SCANS)
        waits.append(seconds_to_transfer(own))
        progress.wait_until(SCANS, "success")

    runs = Counter(run["conf"]["file_path"] for run in all_runs(own, PREFIX))
    transfers = Counter(
        item[0].lstrip("/")
        for task in own.facility.transfers()
        if "/2024/10/" in str(task["items"])
        for item in task["items"]
    )
    print(
        f"\n{SCANS} scans in {time.monotonic() - progress.began:.0f} s; "
        f"runs per scan {Counter(runs.values())}, transfers per scan {Counter(transfers.values())}; "
        "live scans' transfers began after " + ", ".join(f"{seconds:.1f} s" for seconds in waits)
    )
    assert runs == Counter(scans)
    assert transfers == Counter(scans)
    assert max(waits) < 30


def test_while_500_runs_are_backfilled_a_live_scan_starts_its_transfer_within_30_s(own: Pipeline) -> None:
    write_month(own, 500)
    waits = []
    with changed_site(own, processing={"parameters": {"do_ptychocam": False}}):
        create(own, "none")
        progress = Progress(own)
        for started in (5, 15, 25, 35, 45):
            progress.wait_until(started)
            waits.append(seconds_to_transfer(own))
    print("\nlive scans' transfers began after " + ", ".join(f"{seconds:.1f} s" for seconds in waits))
    assert len(all_runs(own, PREFIX)) < 500  # the backfill still went on
    assert max(waits) < 30
