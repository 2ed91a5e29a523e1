"""What became of a scan: every combination of file, runs and results."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmic.comparison import (
    WANTED,
    DayAtNersc,
    ScanFile,
    ScanStatus,
    next_generation,
    status_of,
)
from cosmic.runs import ACTIVE
from cosmic.scans import parse_scan_path

FOLDER = "2023/02/230216"
STEM = "NS_230216033_ccdframes_0_0"
NOW = datetime(2023, 2, 17, 15, tzinfo=UTC)
HOUR = timedelta(hours=1)
COPY = {f"{STEM}.cxi": 100}
RESULT = {f"{STEM}_ptychocam.cxi": 5, f"{STEM}_ptychocam.json": 5}
R2 = {f"{STEM}_ptychocam_r2.cxi": 5, f"{STEM}_ptychocam_r2.json": 5}
OTHER = {f"{STEM}_ptychocam_0a1b2c3d.cxi": 5, f"{STEM}_ptychocam_0a1b2c3d.json": 5}


def scan(name: str = f"{STEM}.cxi", size: int | None = 100, age: timedelta = 2 * HOUR) -> ScanFile:
    return ScanFile(parse_scan_path(f"{FOLDER}/{name}"), size, NOW - age)


def status(
    runs: dict[int, str], at_nersc: dict[str, int], *, finished: bool = True, engines: Any = ("ptychocam",)
) -> ScanStatus:
    there = DayAtNersc.from_sizes(at_nersc)
    return status_of(scan(), runs, there, engines=engines, is_finished=finished)


@pytest.mark.parametrize(
    ("runs", "at_nersc", "expected"),
    [
        ({}, {}, ScanStatus.MISSING),
        ({}, COPY, ScanStatus.MISSING),
        ({}, RESULT, ScanStatus.PROCESSED),
        ({}, {f"{STEM}_ptychocam.cxi": 5}, ScanStatus.MISSING),
        ({}, RESULT | {f"{STEM}_ptychocam.json": 0}, ScanStatus.MISSING),
        ({}, {f"{STEM}_cdtools.cxi": 5, f"{STEM}_cdtools.json": 5}, ScanStatus.MISSING),
        ({}, R2, ScanStatus.PROCESSED),
        ({1: "queued"}, {}, ScanStatus.RUNNING),
        ({1: "running"}, COPY | RESULT, ScanStatus.RUNNING),
        ({1: "failed"}, COPY, ScanStatus.FAILED),
        ({1: "failed", 2: "running"}, COPY, ScanStatus.RUNNING),
        ({1: "failed", 2: "success"}, COPY | R2, ScanStatus.PROCESSED),
        ({1: "success", 2: "failed"}, COPY | RESULT, ScanStatus.FAILED),
        ({1: "success"}, COPY | RESULT, ScanStatus.PROCESSED),
        (
            {1: "success"},
            COPY,
            ScanStatus.PROCESSED,
        ),  # the run had its results checked; they were moved since
        ({}, OTHER, ScanStatus.PROCESSED),
        ({0: "running"}, COPY, ScanStatus.RUNNING),  # by hand, under an id that is not the scan's
        ({0: "running", 1: "failed"}, COPY, ScanStatus.RUNNING),
        ({0: "failed"}, COPY, ScanStatus.FAILED),
        ({0: "success"}, COPY | OTHER, ScanStatus.PROCESSED),
        ({0: "success", 1: "failed"}, COPY | OTHER, ScanStatus.PROCESSED),
        ({0: "failed", 1: "success"}, COPY | RESULT, ScanStatus.PROCESSED),
        ({1: "success"}, {}, ScanStatus.MISSING),  # somebody has removed even the copy
    ],
)
def test_runs_and_results_decide(
    runs: dict[int, str], at_nersc: dict[str, int], expected: ScanStatus
) -> None:
    assert status(runs, at_nersc) is expected


def test_without_an_engine_the_copy_decides() -> None:
    assert status({}, COPY, engines=()) is ScanStatus.PROCESSED
    assert status({}, {f"{STEM}.cxi": 99}, engines=()) is ScanStatus.MISSING


def test_all_engines_of_the_day_must_have_run() -> None:
    both = ("cdtools", "ptychocam")
    assert status({}, COPY | RESULT, engines=both) is ScanStatus.MISSING
    assert status({}, RESULT | {f"{STEM}_cdtools.cxi": 1, f"{STEM}_cdtools.json": 1}, engines=both) is (
        ScanStatus.PROCESSED
    )


@pytest.mark.parametrize(
    ("runs", "expected"), [({}, ScanStatus.LEFT_ALONE), ({1: "running"}, ScanStatus.RUNNING)]
)
def test_a_file_that_is_not_finished_is_left_alone(runs: dict[int, str], expected: ScanStatus) -> None:
    assert status(runs, {}, finished=False) is expected


@pytest.mark.parametrize(
    ("file", "finished"),
    [
        (scan(age=HOUR), True),
        (scan(age=HOUR - timedelta(seconds=1)), False),
        (scan(age=-HOUR), False),  # a clock that is ahead
        (scan(size=0), False),
        (scan(size=None), False),
        (ScanFile(scan().path, 100, None), False),
    ],
)
def test_finished_means_old_enough_and_not_empty(file: ScanFile, finished: bool) -> None:
    assert file.is_finished(NOW, HOUR) is finished


STATES = st.dictionaries(
    st.integers(0, 5), st.sampled_from(["queued", "running", "success", "failed"]), max_size=4
)
FILES = st.dictionaries(
    st.sampled_from(
        [*COPY, *RESULT, *R2, *OTHER, f"{STEM}_ptychocam_r7.cxi", f"{STEM}_ptychocam_r7.json", "x.txt"]
    ),
    st.sampled_from([0, 5, 100]),
)


@given(STATES, FILES, st.booleans(), st.sampled_from([(), ("ptychocam",), ("cdtools", "ptychocam")]))
def test_whatever_is_there_nothing_is_started_twice_or_overwritten(
    runs: dict[int, str], sizes: dict[str, int], finished: bool, engines: Any
) -> None:
    there = DayAtNersc.from_sizes(sizes)
    found = status_of(scan(), runs, there, engines=engines, is_finished=finished)
    generation = next_generation(scan(), runs, there, found)
    if ACTIVE & set(runs.values()):
        assert found is ScanStatus.RUNNING
    if found in WANTED["everything"]:
        assert finished
        assert generation not in runs
        assert generation > max(runs, default=0)
    if found is ScanStatus.PROCESSED:
        assert generation not in there.generations(scan())
        assert generation > 1
    assert WANTED["missing"] < WANTED["failed"] < WANTED["everything"]
    assert ScanStatus.RUNNING not in WANTED["everything"]
