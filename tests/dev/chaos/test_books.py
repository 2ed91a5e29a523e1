"""The reckoning finds what must not be: it is only worth as much as what it would not let pass."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dev.chaos.books import Reckoning, reckon
from dev.chaos.faults import Fault
from dev.chaos.memory import MemorySample, longest_life
from dev.chaos.run import Result
from dev.chaos.system import Scan
from dev.chaos.table import table

SCAN = Scan("2023/02/230216/NS_230216001_ccdframes_0_0.cxi", "NS_230216001_0_0", "success", 1.0)
FAILS = Scan(SCAN.file_path, SCAN.run_id, "program fails", 1.0)
MISSING = Scan(SCAN.file_path, SCAN.run_id, "no such file", 1.0)
TOLD = "facilities.errors.UserError: The job failed (exit code 3) cannot allocate the probe"


def job(state: str = "COMPLETED", **fields: Any) -> dict[str, Any]:
    values = {
        "job_id": "1",
        "name": f"ptychocam-{SCAN.run_id}-0-g0",
        "runs": 1,
        "restarts": 0,
        "exit_code": "0:0",
    }
    values |= {"submitted": None, "started": None, "ended": None}
    return {**values, "state": state, "active": state in ("RUNNING", "PENDING"), **fields}


def transfer(moved: int = 1, status: str = "SUCCEEDED") -> dict[str, Any]:
    return {
        "label": f"{SCAN.run_id}-0-1",
        "files_moved": moved,
        "status": status,
        "task_id": "task-of-globus",
    }


def books(
    scan: Scan,
    jobs: list[dict[str, Any]],
    transfers: list[dict[str, Any]],
    *,
    state: str = "success",
    spoiled: dict[str, str] | None = None,
    ended: set[str] | None = None,
    log: str = TOLD,
    requests: Path = Path(os.devnull),
) -> Reckoning:
    """The reckoning of one scan."""
    task = {"state": "failed", "try_number": 1}
    tries = [{**task, "start_date": "2023-02-16T08:00:01Z", "end_date": "2023-02-16T08:00:09Z"}]
    settings = SimpleNamespace(request_log=requests)
    parts: Any = SimpleNamespace(
        facility=SimpleNamespace(jobs=lambda: jobs, transfers=lambda: transfers, settings=settings),
        rest=SimpleNamespace(
            tries=lambda *_: tries,
            run=lambda *_: {"state": state},
            task_instances=lambda *_: {"ptychocam.wait": task, "copy_to_nersc": task},
            log=lambda *_: log,
        ),
    )
    return reckon(parts, [scan], spoiled or {}, ended or set())


def test_a_scan_that_went_well() -> None:
    result = books(SCAN, [job()], [transfer(0, "FAILED"), transfer()])
    assert result.clean
    assert result.succeeded == [SCAN.run_id]


def test_a_job_that_the_facility_lost_and_its_successor_are_right() -> None:
    lost = job("NODE_FAIL")
    assert books(SCAN, [lost, job(job_id="2")], [transfer()], spoiled={"1": "name"}).clean
    assert books(SCAN, [job(runs=2, restarts=1)], [transfer()]).clean  # Slurm started it again


@pytest.mark.parametrize(
    ("jobs", "transfers", "what"),
    [
        ([job(), job(job_id="2")], [transfer()], "doubled"),
        ([job(), job("CANCELLED", job_id="2")], [transfer()], "doubled"),  # it ran for nothing
        ([job(runs=2)], [transfer()], "doubled"),
        ([job()], [transfer(), transfer()], "doubled"),
        ([job()], [transfer(2)], "doubled"),
        ([], [transfer()], "lost"),
        ([job("FAILED")], [transfer()], "lost"),
        ([job()], [transfer(0)], "lost"),
        ([job()], [], "lost"),
        ([job(), job("PENDING", job_id="2", runs=0)], [transfer()], "orphaned"),
        ([job()], [transfer(), transfer(0, "ACTIVE")], "orphaned"),
        ([job()], [transfer(), transfer(0, "INACTIVE")], "orphaned"),
    ],
)
def test_what_must_not_be_is_found(
    jobs: list[dict[str, Any]], transfers: list[dict[str, Any]], what: str
) -> None:
    result = books(SCAN, jobs, transfers)
    assert not result.clean
    assert result.bad_runs == {SCAN.run_id}
    found = [name for name in ("lost", "doubled", "orphaned", "wrong_message") if getattr(result, name)]
    assert found == [what]


def test_a_job_that_found_its_work_claimed_is_counted_and_is_no_second_one() -> None:
    result = books(SCAN, [job(), job("FAILED", job_id="2", exit_code="93:0")], [transfer()])
    assert result.clean
    assert result.refused == [f"{SCAN.run_id}: job 2"]


def test_what_happened_to_a_scan_that_broke_a_promise_is_shown_in_order(tmp_path: Path) -> None:
    begin = datetime(2023, 2, 16, 8, tzinfo=UTC).timestamp()
    name, api = f"ptychocam-{SCAN.run_id}-0-g0", "/nersc/api/v1.2"
    entry = {"service": "nersc", "query": "", "status": 200, "fault": None, "about": None, "method": "GET"}
    submit = {"method": "POST", "fault": "delay", "about": f"{name}, task 770001", "status": None}
    lines = [
        {
            **entry,
            "time": begin + 2,
            "ended": begin + 40.5,
            "path": f"{api}/compute/jobs/perlmutter",
            **submit,
        },
        {**entry, "time": begin + 3, "ended": begin + 3.1, "path": f"{api}/tasks/770001"},
        {**entry, "time": begin + 4, "ended": begin + 4.1, "path": f"{api}/tasks/990001"},
    ]
    log = tmp_path / "requests.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    times: dict[str, Any] = {"submitted": begin + 5, "started": begin + 6, "ended": begin + 8}
    jobs = [job(job_id="31000001", **times), job(job_id="31000002")]
    result = books(SCAN, jobs, [transfer()], requests=log)
    post = f"POST 1.2/compute/jobs/perlmutter ({name}, task 770001)"
    assert result.histories[SCAN.run_id] == [
        "08:00:01.000  copy_to_nersc, try 1 begins",
        "08:00:01.000  ptychocam.wait, try 1 begins",
        f"08:00:02.000  nersc {post}: no reply after 38.5 s [delay]",
        "08:00:03.000  nersc GET 1.2/tasks/770001: 200",
        f"08:00:05.000  job 31000001 ({name}) is submitted",
        f"08:00:06.000  job 31000001 ({name}) starts, for the 1. time",
        f"08:00:08.000  job 31000001 ({name}) ends: COMPLETED, exit code 0:0",
        "08:00:09.000  copy_to_nersc, try 1 ends: failed",
        "08:00:09.000  ptychocam.wait, try 1 ends: failed",
    ]
    shown = table(Result(7, [SCAN], "sqlite", reckoning=result))
    assert f"\nWhat happened to {SCAN.run_id}:\n  08:00:01.000  copy_to_nersc, try 1 begins\n" in shown


def test_a_run_that_failed_without_being_meant_to_is_lost_and_told_with_its_error() -> None:
    result = books(SCAN, [job()], [transfer()], state="failed")
    assert "ptychocam.wait (try 1): facilities.errors.UserError" in result.lost[0]


def test_a_run_that_has_not_ended_is_lost() -> None:
    assert books(SCAN, [job()], [transfer()], state="running").lost


def test_a_failure_has_to_be_told_in_its_class() -> None:
    failed = [job("FAILED")]
    assert books(FAILS, failed, [transfer()], state="failed").failed_as_meant
    assert books(FAILS, failed, [transfer()], state="failed", log="TransientError: no answer").wrong_message
    assert books(FAILS, failed, [transfer()], state="success").wrong_message
    assert books(FAILS, [*failed, job("FAILED", job_id="2")], [transfer()], state="failed").doubled


def test_a_file_that_is_not_there_is_told_and_moves_and_runs_nothing() -> None:
    told = "NotFoundError: There is no /a on the source collection. Nothing was submitted."
    assert books(MISSING, [], [], state="failed", log=told).clean
    assert books(MISSING, [], [transfer()], state="failed", log=told).doubled
    assert books(MISSING, [job()], [], state="failed", log=told).doubled


def test_a_run_that_a_person_has_ended_leaves_nothing_and_did_nothing_twice() -> None:
    ended = {SCAN.run_id}
    for jobs in ([], [job("CANCELLED")], [job()]):
        for transfers in ([], [transfer(0, "FAILED")], [transfer()]):
            result = books(SCAN, jobs, transfers, state="failed", ended=ended)
            assert result.clean
            assert result.ended_by_a_person == [SCAN.run_id]
    assert books(SCAN, [job("RUNNING")], [transfer()], state="failed", ended=ended).orphaned
    assert books(SCAN, [job(), job(job_id="2")], [transfer()], state="failed", ended=ended).doubled
    assert books(SCAN, [job()], [transfer()], state="success", ended=ended).succeeded  # it was too late


def test_the_table_tells_it_all() -> None:
    result = Result(7, [SCAN], "sqlite")
    result.faults = [
        Fault("lost submit", "said", frozenset({SCAN.run_id})),
        Fault("lost submit", "said", frozenset({"another run"})),
        Fault("Globus request", "said", happened=False),
    ]
    result.reckoning = books(SCAN, [job(), job(job_id="2")], [transfer()])
    result.memory = [MemorySample(0.0, 1, 250.0), MemorySample(60.0, 1, 400.0), MemorySample(120.0, 1, 401.0)]
    lines = table(result).splitlines()
    assert "Seed 7: 1 scans, 2 faults, 0 s; database: sqlite" in lines
    assert "lost submit                      2         1" in lines
    assert not any("Globus request" in line for line in lines)
    assert f"      {SCAN.run_id}: jobs {{'COMPLETED': 2}}, 2 of them unspoiled" in lines
    assert "triggerer's memory: 250 MiB at the beginning, 401 at the end, 401 at most" in lines
    told = "400 MiB in the first third, 401 in the last"
    assert f"in its longest life, 1.0 min once settled: {told} (too short)" in lines


@pytest.mark.parametrize(
    ("growth", "minutes", "grows"), [(0.0, 10, False), (10.0, 10, True), (-5.0, 10, False), (10.0, 4, False)]
)
def test_a_triggerer_whose_memory_grows_fails_the_run(growth: float, minutes: int, grows: bool) -> None:
    """It jumps while it imports, in its first minute; then MiB a minute. Its successor starts small."""
    result = Result(7, [SCAN], "sqlite")
    ages = range(minutes * 6 + 7)
    result.memory = [
        MemorySample(10.0 * i, 1, 300.0 if i < 6 else 400 + growth * (i - 6) / 6 + i % 2) for i in ages
    ]
    result.memory += [MemorySample(10.0 * (len(ages) + i), 2, 300.0 + i) for i in range(20)]
    life = longest_life(result.memory)
    assert life is not None
    assert life.seconds == 60.0 * minutes
    assert life.grows is grows
    assert result.passed is not grows
    assert ("IT GROWS" in table(result)) is grows
