"""Airflow's own backfill over `find_missed_scans`: command line and REST, every way of reprocessing."""

from __future__ import annotations

import subprocess
import sys
from datetime import date, timedelta
from typing import Any

import pytest

from cosmic.dag_constants import FIND_MISSED_SCANS as FINDER
from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from dev.local_airflow.rest import FINISHED, RestError
from support.live import SLOW, Pipeline
from support.missed import Day, all_runs, changed_site, run_id

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(900)]
SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"

COPY_ONLY = {"do_ptychocam": False}


def days_of(pipeline: Pipeline, first: date, count: int, scans: int) -> list[Day]:
    """Days with that many scans each."""
    days = [Day(pipeline, first + timedelta(days=number)) for number in range(count)]
    for day in days:
        for number in range(1, scans + 1):
            day.scan(number)
    return days


def copying_only(days: list[Day]) -> dict[str, Any]:
    """What to put into `beamline.yaml`: these days' scans are only copied, which is quicker."""
    return {"days": {day.day: COPY_ONLY for day in days}}


def backfill(pipeline: Pipeline, days: list[Day], **changes: Any) -> dict[str, Any]:
    """Create a backfill over REST, as the dialogue in the UI does."""
    body = {
        "dag_id": FINDER,
        "from_date": f"{days[0].day}T00:00:00Z",
        "to_date": f"{days[-1].day}T00:00:00Z",
        "dag_run_conf": {"copies_at_once": 10},
        "reprocess_behavior": "none",
        "max_active_runs": 4,
        "run_backwards": False,
        **changes,
    }
    created: dict[str, Any] = pipeline.rest.call("POST", "/api/v2/backfills", body)
    return created


def finish_backfill(pipeline: Pipeline, days: list[Day], number: int) -> None:
    """Wait until its runs have ended, and close it: Airflow itself only looks every half minute."""

    def over() -> bool:
        return all(run["state"] in FINISHED for run in finders(pipeline, days))

    pipeline.wait_for(over, "the backfill's runs end")
    if not pipeline.rest.call("GET", f"/api/v2/backfills/{number}")["completed_at"]:
        pipeline.rest.call("PUT", f"/api/v2/backfills/{number}/cancel")


def finders(pipeline: Pipeline, days: list[Day]) -> list[dict[str, Any]]:
    """The runs of the finder for these days, by day."""
    query = f"logical_date_gte={days[0].day}T00:00:00Z&logical_date_lte={days[-1].day}T00:00:00Z"
    found = pipeline.rest.call("GET", f"/api/v2/dags/{FINDER}/dagRuns?{query}&order_by=logical_date")
    return list(found["dag_runs"])


def rows(pipeline: Pipeline, days: list[Day]) -> list[dict[str, int]]:
    """Their tables' rows, without the zeros."""
    found = []
    for run in finders(pipeline, days):
        (row,) = pipeline.rest.xcom(FINDER, run["dag_run_id"], "report")
        assert row.pop("day") == run["logical_date"][:10]
        found.append({name: number for name, number in row.items() if number})
    return found


def cli(pipeline: Pipeline, *arguments: str) -> str:
    """Run an `airflow` command; returns what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "airflow", *arguments],
        env=pipeline.airflow.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SLOW,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_command_line_takes_dates_as_they_are_meant(pipeline: Pipeline) -> None:
    days = days_of(pipeline, date(2024, 6, 29), 3, 1)  # over the end of a month
    outside = days_of(pipeline, date(2024, 7, 2), 1, 1)
    command = [
        "backfill",
        "create",
        "--dag-id",
        FINDER,
        "--from-date",
        "2024-06-29",
        "--to-date",
        "2024-07-01",
    ]
    listed = cli(pipeline, *command, "--dry-run")
    assert [day.day.isoformat() in listed for day in (*days, *outside)] == [True] * 3 + [False]
    with changed_site(pipeline, processing=copying_only([*days, *outside])):
        cli(pipeline, *command, "--dag-run-conf", '{"copies_at_once": 10}')
        pipeline.wait_for(lambda: len(finders(pipeline, days)) == 3, "three runs are there")
        for run in finders(pipeline, days):
            assert pipeline.rest.wait_for_run(FINDER, run["dag_run_id"], SLOW)["state"] == "success"
        for created in pipeline.rest.call("GET", f"/api/v2/backfills?dag_id={FINDER}")["backfills"]:
            finish_backfill(pipeline, days, created["id"])
    assert rows(pipeline, days) == [{"on_disk": 1, "missing": 1, "started": 1}] * 3
    assert [day.finish(day.path(1)) for day in days] == [["success"]] * 3
    assert all_runs(pipeline, outside[0].path(1)) == []


def test_backwards_and_with_every_way_of_reprocessing_each_scan_is_processed_once(pipeline: Pipeline) -> None:
    days = days_of(pipeline, date(2024, 8, 1), 2, 1)

    def run(**changes: Any) -> None:
        finish_backfill(pipeline, days, backfill(pipeline, days, **changes)["id"])

    with changed_site(pipeline, processing=copying_only(days)):
        run(run_backwards=True, max_active_runs=1)
        first = finders(pipeline, days)
        assert [run["start_date"] for run in first] == sorted((r["start_date"] for r in first), reverse=True)
        assert rows(pipeline, days) == [{"on_disk": 1, "missing": 1, "started": 1}] * 2
        assert [day.finish(day.path(1)) for day in days] == [["success"]] * 2

        late = days[1].scan(2)
        for behaviour, looked_at in (("none", False), ("failed", False), ("completed", True)):
            run(reprocess_behavior=behaviour)
            assert bool(all_runs(pipeline, late)) is looked_at
        assert [run["dag_run_id"] for run in finders(pipeline, days)] == [run["dag_run_id"] for run in first]
        assert rows(pipeline, days)[1] == {"on_disk": 2, "processed": 1, "missing": 1, "started": 1}
        assert days[1].finish(late) == ["success"]

        # A run that failed: with "failed" only that day is looked at again.
        pipeline.rest.call("PATCH", _run(first[1]), {"state": "failed"})
        more = [day.scan(3) for day in days]
        run(reprocess_behavior="failed")
        assert [len(all_runs(pipeline, scan)) for scan in more] == [0, 1]

        # Everything once more, by the conf of the backfill.
        run(reprocess_behavior="completed", dag_run_conf={"which": "everything", "copies_at_once": 10})
        for day in days:
            assert day.finish(day.path(1), generation=2) == ["success"]
    assert [len(all_runs(pipeline, day.path(1))) for day in days] == [2, 2]


def test_interrupted_and_started_again_each_scan_is_processed_exactly_once(pipeline: Pipeline) -> None:
    days = days_of(pipeline, date(2024, 9, 1), 2, 4)
    scans = [day.path(number) for day in days for number in range(1, 5)]

    def started() -> list[str]:
        return [scan for scan in scans if all_runs(pipeline, scan)]

    with changed_site(pipeline, processing=copying_only(days)):
        conf = {"at_once": 2, "copies_at_once": 2}
        first = backfill(pipeline, days, dag_run_conf=conf)
        pipeline.wait_for(lambda: len(started()) >= 3, "some are started")
        pipeline.rest.call("PUT", f"/api/v2/backfills/{first['id']}/cancel")
        for run in finders(pipeline, days):
            if run["state"] not in FINISHED:
                pipeline.rest.call("PATCH", _run(run), {"state": "failed"})
        pipeline.airflow.restart("scheduler")
        assert len(started()) < len(scans)
        again = backfill(pipeline, days, reprocess_behavior="completed", dag_run_conf=conf)
        finish_backfill(pipeline, days, again["id"])
        for scan in scans:
            assert pipeline.finish(run_id(scan)) == "success"
    assert [len(all_runs(pipeline, scan)) for scan in scans] == [1] * len(scans)
    moved = [task for task in pipeline.facility.transfers() if "/2024/09/" in str(task["items"])]
    assert len(moved) == len(scans)


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"dag_run_conf": {"which": "all"}}, 400, "which must be one of missing, failed, everything"),
        ({"dag_run_conf": {"at_once": 0}}, 400, "at_once must be a whole number from 1 to 400"),
        ({"dag_id": DAG_ID, "dag_run_conf": {"file_path": SCAN}}, 422, "non-periodic"),
        ({"to_date": "2024-08-31T00:00:00Z"}, 422, "must not be after"),
    ],
)
def test_a_backfill_that_cannot_be_is_refused_with_the_reason(
    pipeline: Pipeline, changes: dict[str, Any], status: int, said: str
) -> None:
    with pytest.raises(RestError) as refused:
        backfill(pipeline, [Day(pipeline, date(2024, 9, 10))], **changes)
    assert refused.value.status == status
    assert said in refused.value.detail


def _run(run: dict[str, Any]) -> str:
    return f"/api/v2/dags/{FINDER}/dagRuns/{run['dag_run_id'].replace('+', '%2B')}"
