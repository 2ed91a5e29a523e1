"""`find_missed_scans` and `watch_scans` in a running Airflow: what they find, start, and leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from functools import partial
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pytest
import requests

from cosmic.dag_constants import FIND_MISSED_SCANS as FINDER
from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from cosmic.dag_constants import WATCH_SCANS
from support.live import SLOW, Pipeline
from support.missed import USUAL, Day, all_runs, changed_site, run_id

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(900)]


def test_missing_scans_are_started_once_then_the_failed_and_the_rest_is_left_alone(
    pipeline: Pipeline,
) -> None:
    day = Day(pipeline, date(2024, 3, 1))
    missing, posted, failing = day.scan(1), day.scan(2), day.scan(3, "fail 3")
    young = day.scan(4, age=0)
    for scan in (posted, failing):
        pipeline.rest.trigger(DAG_ID, {"file_path": scan, "do_ptychocam": True}, run_id(scan))
    assert day.finish(posted, failing) == ["success", "failed"]

    listed = day.find(dry_run=True)
    assert listed == {"on_disk": 4, "processed": 1, "failed": 1, "missing": 1, "left_alone": 1}
    assert day.find() == listed | {"started": 1}
    assert day.finish(missing) == ["success"]
    run = pipeline.rest.run(DAG_ID, run_id(missing))
    assert run["conf"] == {**USUAL, "file_path": missing}
    assert FINDER in run["note"]
    address = f"{pipeline.airflow.url}/cosmic/dags/{FINDER}/runs/{quote(day.last_run)}"
    token = {"Authorization": f"Bearer {pipeline.rest.token}"}
    page = requests.get(address, headers=token, timeout=30).text
    assert "<th>left alone</th>" in page
    assert f"<td>{day.day}</td>" in page

    day.scan(3, "ok")
    assert day.find(which="failed") == {
        **{"on_disk": 4, "processed": 2, "failed": 1, "left_alone": 1},
        "started": 1,
    }
    assert day.finish(failing, generation=2) == ["success"]
    assert day.find() == {"on_disk": 4, "processed": 3, "left_alone": 1}
    assert [len(pipeline.jobs_of(scan)) for scan in (missing, posted, failing, young)] == [1, 1, 2, 0]


def test_everything_is_reprocessed_under_a_new_identity_and_keeps_the_old_result(pipeline: Pipeline) -> None:
    day = Day(pipeline, date(2024, 3, 2))
    scan = day.scan(1)
    assert day.find() == {"on_disk": 1, "missing": 1, "started": 1}
    assert day.finish(scan) == ["success"]
    with changed_site(pipeline, processing={"days": {day.day: {"n_iter": 7}}}):
        assert day.find(which="everything") == {"on_disk": 1, "processed": 1, "started": 1}
    assert day.finish(scan, generation=2) == ["success"]
    assert pipeline.rest.run(DAG_ID, run_id(scan, 2))["conf"]["n_iter"] == 7
    folder = (pipeline.facility.collection("nersc7012") / scan).parent
    stem = folder / scan.rsplit("/", 1)[1].removesuffix(".cxi")
    assert all(
        (folder / f"{stem.name}_ptychocam{tag}.{kind}").exists()
        for tag in ("", "_r2")
        for kind in ("cxi", "json", "png")
    )


def test_no_more_are_started_than_may_go_on_at_once(pipeline: Pipeline) -> None:
    day = Day(pipeline, date(2024, 3, 3))
    scans = [day.scan(number, "hold") for number in (1, 2, 3)]
    rest = pipeline.rest
    conf = {"first_day": day.day.isoformat(), "at_once": 1, "copies_at_once": 5}
    finder = rest.trigger(FINDER, conf)
    for scan in scans:
        pipeline.wait_for(partial(pipeline.jobs_of, scan), "the next is started")
        assert sum(job["state"] in ("PENDING", "RUNNING") for s in scans for job in pipeline.jobs_of(s)) == 1
        pipeline.let_go(scan)
    assert rest.wait_for_run(FINDER, finder, SLOW)["state"] == "success"
    assert day.finish(*scans) == ["success"] * 3
    assert [len(pipeline.jobs_of(scan)) for scan in scans] == [1, 1, 1]
    assert "1 of 3 runs are started" in rest.log(FINDER, finder, "start_runs")


@contextmanager
def watching(pipeline: Pipeline) -> Iterator[None]:
    """`watch_scans` is on until the block ends."""
    address = f"/api/v2/dags/{WATCH_SCANS}"
    assert pipeline.rest.call("GET", address)["is_paused"] is True
    pipeline.rest.call("PATCH", address, {"is_paused": False})
    try:
        yield
    finally:
        pipeline.rest.call("PATCH", address, {"is_paused": True})


def test_new_scans_are_started_once_the_watcher_is_on(pipeline: Pipeline) -> None:
    day = Day(pipeline, datetime.now(ZoneInfo("America/Los_Angeles")).date())
    scans = [day.scan(number) for number in (901, 902)]
    pipeline.rest.trigger(DAG_ID, {"file_path": scans[0]}, run_id(scans[0]))
    with watching(pipeline):
        pipeline.wait_for(lambda: all_runs(pipeline, scans[1]), "the new one is started")
        scans.append(day.scan(903))
        pipeline.wait_for(lambda: all_runs(pipeline, scans[2]), "and one that comes later")
        scans.append(day.scan(904))
        for component in ("scheduler", "triggerer"):
            pipeline.airflow.kill(component)
        pipeline.airflow.start("scheduler", "triggerer")
        pipeline.airflow.wait_ready()
        pipeline.wait_for(lambda: all_runs(pipeline, scans[3]), "and one after a crash")
    assert day.finish(*scans) == ["success"] * 4
    assert [len(all_runs(pipeline, scan)) for scan in scans] == [1, 1, 1, 1]
    run = pipeline.rest.run(DAG_ID, run_id(scans[2]))
    assert run["conf"] == {**USUAL, "file_path": scans[2]}
    assert WATCH_SCANS in run["note"]
