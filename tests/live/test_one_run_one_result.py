"""Each run has its own result, whatever its id and date; a scan's runs are found by the scan."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from cosmic.scans import parse_scan_path
from dev.local_airflow.rest import RestError
from support.live import SLOW, Live, Pipeline
from support.missed import Day

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]

RUNS = f"/api/v2/dags/{DAG_ID}/dagRuns"
ENGINE_FILES = ("cxi", "json", "png")


def results_of(pipeline: Pipeline, scan: str) -> dict[str, list[str]]:
    """Endings of the complete results of a scan at NERSC: what comes after the engine's name."""
    copy = pipeline.facility.collection("nersc7012") / scan
    found: dict[str, list[str]] = {}
    for path in copy.parent.glob(f"{copy.stem}_ptychocam*"):
        tag, _, kind = path.name.removeprefix(f"{copy.stem}_ptychocam").partition(".")
        if kind in ENGINE_FILES:
            found.setdefault(tag, []).append(kind)
    assert all(sorted(kinds) == sorted(ENGINE_FILES) for kinds in found.values())
    return found


def result_of(pipeline: Pipeline, run_id: str) -> Path:
    """The result file that a run reports."""
    (result,) = pipeline.rest.xcom(DAG_ID, run_id, "report")["reconstructions"]
    return Path(result["result"])


@dataclass(frozen=True)
class Begun:
    """Runs that all begin at once; each test takes its own.

    :param without_ids: of the scan of the first of April 2024, whose jobs wait to be let go.
    :param with_ids: of that of the second.
    :param dated: scan and run of each year.
    :param on_the_command_line: `airflow dags trigger`, by the id that was given to it.
    """

    without_ids: list[str]
    with_ids: list[str]
    dated: dict[int, tuple[str, str]]
    on_the_command_line: dict[str, subprocess.Popen[str]]


YEARS = (1900, 1970, 2020)
FIRST, SECOND = date(2024, 4, 1), date(2024, 4, 2)
WRONG = {"file_path": "2023/../x.cxi"}
OF_ANOTHER = "NS_230216123456789_0_0"


@pytest.fixture(scope="module")
def begun(live_airflow: Live, engines: None) -> Iterator[Begun]:
    """All of them."""
    pipeline = Pipeline(live_airflow)
    with contextlib.ExitStack() as until_the_end:
        another = {"file_path": pipeline.new_scan(), "do_ptychocam": True}
        commands = {
            run_id: until_the_end.enter_context(start_on_the_command_line(pipeline, conf, run_id))
            for run_id, conf in ((OF_ANOTHER, another), (f"wrong_{uuid.uuid4().hex}", WRONG))
        }
        scan = Day(pipeline, FIRST).scan(1, "hold")
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            without_ids = sorted(pool.map(lambda n: pipeline.start(scan, n_iter=n), (1, 2, 3)))
        scan = Day(pipeline, SECOND).scan(1, "hold")
        with_ids = [
            f"{name}{uuid.uuid4().hex[:8]}" for name in ("by_hand_", "manual__2026-01-01T00:00:00+00:00_")
        ]
        for run_id, n_iter in zip(with_ids, (1, 2), strict=True):
            conf = {"file_path": "/" + scan, "do_ptychocam": True, "n_iter": n_iter}
            pipeline.rest.trigger(DAG_ID, conf, run_id)
        yield Begun(without_ids, with_ids, {year: start_at(pipeline, year) for year in YEARS}, commands)


def start_at(pipeline: Pipeline, year: int) -> tuple[str, str]:
    """A scan, and its run of a date."""
    scan = pipeline.new_scan()
    body: dict[str, Any] = {"logical_date": f"{year}-01-02T03:04:05Z", "conf": {"file_path": scan}}
    return scan, pipeline.rest.call("POST", RUNS, body)["dag_run_id"]


def test_runs_without_an_id_at_the_same_moment_have_the_scans_name_and_results_of_their_own(
    pipeline: Pipeline, begun: Begun
) -> None:
    """As two people who press Trigger."""
    day, runs = Day(pipeline, FIRST), begun.without_ids
    scan = day.path(1)
    name = "NS_240401001_0_0"
    assert runs == [name, f"{name}__r2", f"{name}__r3"]
    for run in runs:
        pipeline.wait_for_task(run, "ptychocam.wait", "deferred")
    assert day.find() == {"on_disk": 1, "running": 1}  # and starts nothing
    pipeline.let_go(scan)
    assert [pipeline.finish(run) for run in runs] == ["success"] * 3
    assert set(results_of(pipeline, scan)) == {"", "_r2", "_r3"}
    for run in runs:
        n_iter = pipeline.rest.run(DAG_ID, run)["conf"]["n_iter"]
        assert result_of(pipeline, run).read_text().splitlines()[:2] == ["-i", str(n_iter)]
    assert len(pipeline.jobs_of(scan)) == 3


def test_runs_with_ids_of_their_own_have_results_of_their_own_and_are_found(
    pipeline: Pipeline, begun: Begun
) -> None:
    """As from `airflow dags trigger`, or a program that makes its own ids."""
    day, ids = Day(pipeline, SECOND), begun.with_ids
    scan = day.path(1)
    for run in ids:
        pipeline.wait_for_task(run, "ptychocam.wait", "deferred")
    assert day.find(which="everything") == {"on_disk": 1, "running": 1}
    pipeline.let_go(scan)
    assert [pipeline.finish(run) for run in ids] == ["success"] * 2
    tags = set(results_of(pipeline, scan))
    assert len(tags) == 2
    assert all(re.fullmatch("_[0-9a-f]{8}", tag) for tag in tags)
    for run, n_iter in zip(ids, (1, 2), strict=True):
        assert result_of(pipeline, run).read_text().splitlines()[:2] == ["-i", str(n_iter)]
    assert day.find() == {"on_disk": 1, "processed": 1}
    assert len(pipeline.jobs_of(scan)) == 2


def test_a_run_cannot_have_the_id_of_another_scan(pipeline: Pipeline) -> None:
    other = pipeline.new_scan()
    conf = {"file_path": pipeline.new_scan(), "do_ptychocam": True}
    with pytest.raises(RestError, match=r"400.*is the id of another scan's run"):
        pipeline.rest.trigger(DAG_ID, conf, parse_scan_path(other).run_id())


def test_a_run_past_the_api_server_cannot_have_it_either(pipeline: Pipeline, begun: Begun) -> None:
    ended_well(begun.on_the_command_line[OF_ANOTHER])
    assert pipeline.finish(OF_ANOTHER) == "failed"
    assert "is the id of another scan's run" in pipeline.rest.log(DAG_ID, OF_ANOTHER, "check_scan")
    scan = pipeline.rest.run(DAG_ID, OF_ANOTHER)["conf"]["file_path"]
    assert pipeline.jobs_of(scan) == pipeline.transfers_of(OF_ANOTHER) == []


def start_on_the_command_line(pipeline: Pipeline, conf: dict[str, Any], run_id: str) -> subprocess.Popen[str]:
    """Begin to start a run past the API server, as an administrator can."""
    arguments = ["dags", "trigger", DAG_ID, "--run-id", run_id, "--conf", json.dumps(conf)]
    return subprocess.Popen(
        [sys.executable, "-m", "airflow", *arguments],
        env=pipeline.airflow.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended_well(command: subprocess.Popen[str]) -> None:
    """Wait for it."""
    said, _ = command.communicate(timeout=SLOW)
    assert command.returncode == 0, said


def test_a_wrong_path_on_airflows_own_command_line_fails_once_with_what_a_path_looks_like(
    pipeline: Pipeline, begun: Begun
) -> None:
    (run,) = begun.on_the_command_line.keys() - {OF_ANOTHER}
    ended_well(begun.on_the_command_line[run])
    assert pipeline.finish(run) == "failed"
    assert pipeline.rest.task_instances(DAG_ID, run)["check_scan"]["try_number"] == 1
    log = pipeline.rest.log(DAG_ID, run, "check_scan")
    assert "file_path must be the path of a scan such as 2023/02/230216/NS_" in log
    assert "schema" not in log


@pytest.mark.parametrize("year", YEARS)
def test_a_run_of_any_date_does_its_work(pipeline: Pipeline, begun: Begun, year: int) -> None:
    scan, run = begun.dated[year]
    assert run == parse_scan_path(scan).run_id()
    assert pipeline.finish(run) == "success"
    assert pipeline.rest.xcom(DAG_ID, run, "report")["scan"] == scan
    assert (pipeline.facility.collection("nersc7012") / scan).read_bytes() == b"ok\n"
    assert len(pipeline.transfers_of(run)) == 1


def test_runs_that_begin_in_2099_hold_up_nobody(pipeline: Pipeline) -> None:
    def active() -> int:
        return sum(
            pipeline.rest.call("GET", f"{RUNS}?state={state}&limit=1")["total_entries"]
            for state in ("queued", "running")
        )

    pipeline.wait_for(lambda: not active(), "the runs of the tests before are over")
    later = [pipeline.new_scan() for _ in range(2)]
    runs = []
    for scan in later:
        body = {"logical_date": None, "run_after": "2099-01-01T00:00:00Z", "conf": {"file_path": scan}}
        runs.append(pipeline.rest.call("POST", RUNS, body)["dag_run_id"])
    try:
        day = Day(pipeline, date(2024, 4, 3))
        scan = day.scan(1)
        assert day.find(at_once=1, copies_at_once=1) == {"on_disk": 1, "missing": 1, "started": 1}
        assert day.finish(scan) == ["success"]
        assert {pipeline.rest.run(DAG_ID, run)["state"] for run in runs} == {"queued"}
    finally:
        for run in runs:
            pipeline.rest.call("DELETE", f"{RUNS}/{run}")


def test_a_copy_that_fails_ends_the_run_at_once_although_perlmutter_is_down(pipeline: Pipeline) -> None:
    pipeline.facility.control("nersc", "maintenance", seconds=3600, announced=True)
    try:
        run = pipeline.start("2023/02/230216/NS_230216998_ccdframes_0_0.cxi")
        assert pipeline.finish(run, SLOW) == "failed"
        assert pipeline.state(run, "copy_to_nersc") == "failed"
        assert pipeline.state(run, "ptychocam.submit") == "upstream_failed"
        assert pipeline.state(run, "report") == "upstream_failed"
    finally:
        pipeline.facility.control("nersc", "end_maintenance")


def test_a_copy_that_was_only_marked_makes_no_success(pipeline: Pipeline) -> None:
    pipeline.facility.control("globus", "bandwidth", bytes_per_second=100)
    try:
        large = "ok\n" + "x" * 10_000
        runs = [pipeline.start(pipeline.new_scan(large), do_ptychocam=engine) for engine in (True, False)]
        for run, state in zip(runs, ("skipped", "success"), strict=True):
            pipeline.wait_for_task(run, "copy_to_nersc", "deferred")
            pipeline.rest.set_task_state(DAG_ID, run, "copy_to_nersc", state)
        assert [pipeline.finish(run) for run in runs] == ["failed"] * 2
    finally:
        pipeline.facility.control("globus", "bandwidth", bytes_per_second=None)
    missing = ("has no result of: transfer, ptychocam", "has no result of: transfer")
    for run, words in zip(runs, missing, strict=True):
        assert words in pipeline.rest.log(DAG_ID, run, "report")
