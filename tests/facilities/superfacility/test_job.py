"""Rows of squeue and sacct, as Slurm really writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilities.superfacility.slurm import SlurmJob, SlurmState, by_id, read_row, read_rows, seconds

PACIFIC = ZoneInfo("America/Los_Angeles")
DATA = Path(__file__).parent / "data" / "sacct_all.txt"  # recorded: sacct -X -P --format=ALL, Slurm 22.05


def _recorded() -> list[dict[str, str]]:
    head, *lines = DATA.read_text().splitlines()
    columns = [column.lower() for column in head.split("^_")]
    return [dict(zip(columns, line.split("^_"), strict=True)) for line in lines]


def _job(job_id: str) -> SlurmJob:
    return by_id(read_rows(_recorded(), "sacct", PACIFIC), [job_id])[job_id]


@pytest.mark.parametrize(
    ("job_id", "state", "exit_code", "signal", "elapsed"),
    [
        ("4", SlurmState.COMPLETED, 0, 0, 2),
        ("7", SlurmState.FAILED, 3, 0, 0),
        ("8", SlurmState.TIMEOUT, 0, 0, 78),
        ("12", SlurmState.CANCELLED, 0, 0, 0),
        ("29", SlurmState.NODE_FAIL, 0, 0, 4),
        ("54", SlurmState.FAILED, 0, 9, 1),
        ("61", SlurmState.FAILED, 0, 53, 0),
    ],
)
def test_recorded_rows(job_id: str, state: SlurmState, exit_code: int, signal: int, elapsed: int) -> None:
    job = _job(job_id)
    assert (job.state, job.exit_code, job.signal, job.elapsed) == (state, exit_code, signal, elapsed)


def test_a_recorded_row_in_full() -> None:
    job = _job("4")
    assert job.name == "ok"
    assert job.submitted == "2026-11-22T17:16:02-08:00"
    assert job.limit == 60
    assert job.queue_seconds == 0.0
    assert job.node_hours == pytest.approx(2 / 3600)
    assert (job.node_list, job.qos, job.reason, job.work_dir) == ("vm", "regular", None, "/scratch")


def test_a_job_that_never_began_has_no_times_and_no_node() -> None:
    job = _job("22")
    assert (job.started, job.node_list, job.queue_seconds, job.reason) == (None, None, None, "Dependency")


def test_an_array_stands_for_the_task_that_failed() -> None:
    assert _job("24").job_id == "24_2"
    assert _job("24_3").state is SlurmState.COMPLETED


def test_an_array_with_a_task_that_runs_is_not_final() -> None:
    rows = [row | {"state": "RUNNING"} if row["jobid"] == "24_1" else row for row in _recorded()]
    assert by_id(read_rows(rows, "sacct", PACIFIC), ["24"])["24"].state is SlurmState.RUNNING


@pytest.mark.parametrize("turned", [False, True])
def test_of_the_rows_of_a_requeued_job_the_newest_counts(turned: bool) -> None:
    rows = [
        {"jobid": "30", "state": "NODE_FAIL", "submit": "2026-11-22T17:20:04"},
        {"jobid": "30", "state": "PENDING", "submit": "2026-11-22T17:20:08", "start": "Unknown"},
    ]
    snapshots = read_rows(rows[::-1] if turned else rows, "sacct", PACIFIC)
    assert by_id(snapshots, ["30"])["30"].state is SlurmState.PENDING


def test_steps_are_not_jobs() -> None:
    rows = [{"jobid": "8.batch", "state": "CANCELLED"}, {"jobid": "8", "state": "TIMEOUT"}]
    assert [job.job_id for job in read_rows(rows, "sacct", PACIFIC)] == ["8"]


def test_the_placeholder_name_is_no_name() -> None:
    job = read_row({"jobid": "8", "jobname": "allocation", "state": "PENDING"}, "sacct", PACIFIC)
    assert job is not None
    assert job.name is None


def test_a_row_that_is_refused_by_sbatch_is_known_as_such() -> None:
    row = {"jobid": "8", "state": "FAILED", "nodelist": "None assigned", "elapsedraw": "0", "exitcode": "1:0"}
    job = read_row(row, "sacct", PACIFIC)
    assert job is not None
    assert job.rejected
    assert not _job("7").rejected


def test_a_waiting_job_of_squeue() -> None:
    row = {
        "jobid": "80", "name": "ptychocam", "state": "PENDING", "reason": "Priority", "time": "0:00",
        "start_time": "2026-11-22T19:00:00", "time_limit": "1-04:00:00", "submit_time": "2026-11-22T17:00:00",
        "nodes": "2", "nodelist": "", "priority": "69119",
    }  # fmt: skip
    job = read_row(row, "squeue", PACIFIC)
    assert job is not None
    assert (job.reason, job.started, job.start_estimate) == ("Priority", None, "2026-11-22T19:00:00-08:00")
    assert (job.elapsed, job.limit, job.nodes, job.node_list) == (0, 100_800, 2, None)


def test_rows_that_cannot_be_read_are_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    assert read_rows([None, "text", {}, {"jobid": ""}, {"jobid": "8"}], "sacct", PACIFIC)[0].job_id == "8"
    assert caplog.text.count("cannot be read") == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00:01:18", 78), ("5:00", 300), ("1-00:00:00", 86_400), ("2-03:04:05", 183_845), ("59", 59),
        ("00:00.500", 0),
        ("UNLIMITED", None), ("INVALID", None), ("Partition_Limit", None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_durations(text: str | None, expected: int | None) -> None:
    assert seconds(text) == expected


VALUES = st.one_of(
    st.none(), st.text(max_size=12), st.integers(), st.sampled_from(["Unknown", "9" * 400, "-1", "0:0"])
)


@given(
    st.lists(st.one_of(st.none(), VALUES, st.dictionaries(st.sampled_from(sorted(_recorded()[0])), VALUES)))
)
def test_no_row_breaks_the_reader(rows: list[Any]) -> None:
    for origin in ("sacct", "squeue"):
        snapshots = read_rows(rows, origin, PACIFIC)
        found = by_id(snapshots, [job.job_id for job in snapshots])
        for job in found.values():
            assert SlurmJob.from_dict(json.loads(json.dumps(job.to_dict()))) == job
            assert job.node_hours == job.node_hours
