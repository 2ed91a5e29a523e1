"""What became of a scan: every combination of file, runs and results."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmic.comparison import (
    LIVING_RUN_STATES,
    WANTED,
    DayAtNersc,
    ScanFile,
    Verdict,
    judge,
    next_generation,
    scans_in,
)
from cosmic.scans import parse_scan_path

FOLDER = "2023/02/230216"
STEM = "NS_230216033_ccdframes_0_0"
NOW = datetime(2023, 2, 17, 15, tzinfo=UTC)
HOUR = timedelta(hours=1)
COPY = {f"{STEM}.cxi": 100}
RESULT = {f"{STEM}_ptychocam.cxi": 5, f"{STEM}_ptychocam.json": 5}
R2 = {f"{STEM}_ptychocam_r2.cxi": 5, f"{STEM}_ptychocam_r2.json": 5}


def scan(name: str = f"{STEM}.cxi", size: int | None = 100, age: timedelta = 2 * HOUR) -> ScanFile:
    return ScanFile(parse_scan_path(f"{FOLDER}/{name}"), size, NOW - age)


def verdict(
    runs: dict[int, str], at_nersc: dict[str, int], *, finished: bool = True, engines: Any = ("ptychocam",)
) -> Verdict:
    there = DayAtNersc.from_sizes(at_nersc)
    return judge(scan(), runs, there, engines=engines, is_finished=finished)


@pytest.mark.parametrize(
    ("runs", "at_nersc", "expected"),
    [
        ({}, {}, Verdict.MISSING),
        ({}, COPY, Verdict.MISSING),
        ({}, RESULT, Verdict.PROCESSED),
        ({}, {f"{STEM}_ptychocam.cxi": 5}, Verdict.MISSING),
        ({}, RESULT | {f"{STEM}_ptychocam.json": 0}, Verdict.MISSING),
        ({}, {f"{STEM}_cdtools.cxi": 5, f"{STEM}_cdtools.json": 5}, Verdict.MISSING),
        ({}, R2, Verdict.PROCESSED),
        ({1: "queued"}, {}, Verdict.RUNNING),
        ({1: "running"}, COPY | RESULT, Verdict.RUNNING),
        ({1: "failed"}, COPY, Verdict.FAILED),
        ({1: "failed", 2: "running"}, COPY, Verdict.RUNNING),
        ({1: "failed", 2: "success"}, COPY | R2, Verdict.PROCESSED),
        ({1: "success", 2: "failed"}, COPY | RESULT, Verdict.FAILED),
        ({1: "success"}, COPY | RESULT, Verdict.PROCESSED),
        ({1: "success"}, COPY, Verdict.PROCESSED),  # the run had its results checked; they were moved since
        ({1: "success"}, {}, Verdict.MISSING),  # somebody has removed even the copy
    ],
)
def test_runs_and_results_decide(runs: dict[int, str], at_nersc: dict[str, int], expected: Verdict) -> None:
    assert verdict(runs, at_nersc) is expected


def test_without_an_engine_the_copy_decides() -> None:
    assert verdict({}, COPY, engines=()) is Verdict.PROCESSED
    assert verdict({}, {f"{STEM}.cxi": 99}, engines=()) is Verdict.MISSING


def test_all_engines_of_the_day_must_have_run() -> None:
    both = ("cdtools", "ptychocam")
    assert verdict({}, COPY | RESULT, engines=both) is Verdict.MISSING
    assert verdict({}, RESULT | {f"{STEM}_cdtools.cxi": 1, f"{STEM}_cdtools.json": 1}, engines=both) is (
        Verdict.PROCESSED
    )


@pytest.mark.parametrize(("runs", "expected"), [({}, Verdict.LEFT_ALONE), ({1: "running"}, Verdict.RUNNING)])
def test_a_file_that_is_not_finished_is_left_alone(runs: dict[int, str], expected: Verdict) -> None:
    assert verdict(runs, {}, finished=False) is expected


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


def test_reconstructions_that_were_copied_back_are_no_scans() -> None:
    files = [
        scan(),
        scan(f"{STEM}_ptychocam.cxi"),
        scan(f"{STEM}_cdtools_r2.cxi"),
        scan(f"{STEM}_cosmic2.cxi"),
    ]
    alone = scan("NS_230216034_ccdframes_0_0_ptychocam.cxi")  # odd, but of no scan that is there
    assert [file.path.stem for file in scans_in([*files, alone])] == [
        STEM,
        f"{STEM}_cosmic2",
        "NS_230216034_ccdframes_0_0_ptychocam",
    ]


STATES = st.dictionaries(
    st.integers(1, 5), st.sampled_from(["queued", "running", "success", "failed"]), max_size=4
)
FILES = st.dictionaries(
    st.sampled_from([*COPY, *RESULT, *R2, f"{STEM}_ptychocam_r7.cxi", f"{STEM}_ptychocam_r7.json", "x.txt"]),
    st.sampled_from([0, 5, 100]),
)


@given(STATES, FILES, st.booleans(), st.sampled_from([(), ("ptychocam",), ("cdtools", "ptychocam")]))
def test_whatever_is_there_nothing_is_started_twice_or_overwritten(
    runs: dict[int, str], sizes: dict[str, int], finished: bool, engines: Any
) -> None:
    there = DayAtNersc.from_sizes(sizes)
    found = judge(scan(), runs, there, engines=engines, is_finished=finished)
    generation = next_generation(scan(), runs, there, found)
    if LIVING_RUN_STATES & set(runs.values()):
        assert found is Verdict.RUNNING
    if found in WANTED["everything"]:
        assert finished
        assert generation not in runs
        assert generation > max(runs, default=0)
    if found is Verdict.PROCESSED:
        assert generation not in there.generations(scan())
        assert generation > 1
    assert WANTED["missing"] < WANTED["failed"] < WANTED["everything"]
    assert Verdict.RUNNING not in WANTED["everything"]
