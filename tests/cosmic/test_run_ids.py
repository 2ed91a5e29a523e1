"""One scan, one name; one run, one id and one set of result files."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.utils.types import DagRunType
from hypothesis import example, given
from hypothesis import strategies as st

from cosmic.parameters import ENGINES
from cosmic.scan_names import is_result
from cosmic.scans import SCAN_PATH_PATTERN, parse_scan_path
from facilities.errors import UserError

USUAL = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
DAG = "transfer_auto_recon"
THEN = datetime(2023, 2, 16, 20, 15, 30, 123456, tzinfo=UTC)

# Usual paths, and those that come near to them.
_NAMES = st.builds(
    "{}/NS_{}_ccdframes_{}.cxi".format,
    st.sampled_from(["2023/02/230216", "2023/02/230217", "2024/02/230216", "x"]),
    st.sampled_from(["230216033", "2302160330", "230217033", "23021603"]),
    st.from_regex(r"[0-9]{1,2}_[0-9]{1,2}(_{1,2}(r2|0|a-b|x\.604f27d5|A|a))?", fullmatch=True),
)
PATHS = st.one_of(
    _NAMES.filter(lambda text: re.search(SCAN_PATH_PATTERN, text) is not None),
    st.from_regex(SCAN_PATH_PATTERN).filter(lambda text: len(text) <= 400),
)
GENERATIONS = st.integers(min_value=1, max_value=10**8)


@pytest.mark.parametrize(
    ("path", "run_id"),
    [
        (USUAL, "NS_230216033_0_0"),
        ("/" + USUAL, "NS_230216033_0_0"),
        ("2023/02/230216/NS_2302161033_ccdframes_1_12_cosmic2.cxi", "NS_2302161033_1_12_cosmic2"),
        ("2023/02/230216/NS_230216033_ccdframes_0_0__r2.cxi", "NS_230216033_ccdframes_0_0_r2.57bb17a5"),
        ("2023/02/230216/NS_230216033_ccdframes_0_0_a.b.cxi", "NS_230216033_ccdframes_0_0_a.b.72ef6eeb"),
        ("2023/02/230217/NS_230216033_ccdframes_0_0.cxi", "NS_230216033_ccdframes_0_0.f094aaab"),
        ("scheduled__x..y.cxi", "scheduled_x.y.01b66aad"),
    ],
)
def test_the_id_is_short_and_has_not_changed(path: str, run_id: str) -> None:
    """A change would process everything that is known under the old id once more."""
    scan = parse_scan_path(path)
    assert (scan.run_id(), scan.run_id(3)) == (run_id, f"{run_id}__r3")


@given(PATHS, GENERATIONS)
def test_airflow_takes_every_id(text: str, generation: int) -> None:
    run_id = parse_scan_path(text).run_id(generation)
    assert len(run_id) <= 200
    assert re.fullmatch(r"[A-Za-z0-9_.~:+-]+", run_id)
    assert ".." not in run_id
    assert DagRunType.from_run_id(run_id) is DagRunType.MANUAL


@given(PATHS, PATHS, st.integers(1, 20), st.integers(1, 20))
@example(USUAL, "2023/02/230216/NS_230216033_ccdframes_0_0__r2.cxi", 2, 1)
@example(USUAL, "2023/02/230216/NS_230216033_ccdframes_0_0_x.604f27d5.cxi", 1, 1)
def test_two_scans_have_two_ids_and_each_knows_its_own(one: str, other: str, m: int, n: int) -> None:
    this, that = parse_scan_path(one), parse_scan_path(other)
    assert (this.run_id(m) == that.run_id(n)) == (this == that and m == n)
    assert that.generation(this.run_id(m)) == (m if this == that else 0)


@pytest.mark.parametrize(
    "ending", ["__r1", "__r0", "__r02", "__r-2", "__r2 ", "_r2", "__r2__r2", "__r9" + 9 * "9"]
)
def test_what_only_looks_like_a_reprocessing_is_an_id_of_its_own(ending: str) -> None:
    assert parse_scan_path(USUAL).generation(f"NS_230216033_0_0{ending}") == 0


OTHER_IDS = st.text(st.sampled_from("abr2_.~:+-"), min_size=1, max_size=8).map("by_hand".__add__)


@given(
    st.lists(
        st.tuples(
            PATHS,
            st.one_of(st.integers(1, 12), OTHER_IDS),
            st.integers(0, 5).map(lambda seconds: THEN + timedelta(seconds=seconds)),
            st.sampled_from(ENGINES),
        ),
        min_size=2,
        max_size=8,
    )
)
def test_no_two_runs_have_the_same_result_files_and_no_scan_lies_where_a_result_does(runs: list[Any]) -> None:
    owners: dict[str, Any] = {}
    copies = {str(parse_scan_path(path).relative) for path, *_ in runs}
    for path, which, run_after, engine in runs:
        scan = parse_scan_path(path)
        run_id = scan.run_id(which) if isinstance(which, int) else which
        name = f"{scan.relative.with_suffix('')}_{engine}{scan.result_tag(DAG, run_id, run_after)}"
        # A scan's own run has one identity, whenever it is made; one that is made again continues its work.
        owner = (scan, engine, run_id) if isinstance(which, int) else (scan, engine, run_id, run_after)
        assert owners.setdefault(name, owner) == owner
        assert f"{name}.cxi" not in copies


def test_a_run_with_an_id_of_its_own_has_its_files_in_every_time_zone() -> None:
    scan = parse_scan_path(USUAL)
    assert scan.result_tag(DAG, "NS_230216033_0_0", THEN) == ""
    assert scan.result_tag(DAG, "NS_230216033_0_0__r2", THEN) == "_r2"
    there = THEN.astimezone(timezone(timedelta(hours=-8)))
    tag = scan.result_tag(DAG, "by hand", THEN)
    assert re.fullmatch("_[0-9a-f]{8}", tag)
    assert scan.result_tag(DAG, "by hand", there) == tag
    assert scan.result_tag(DAG, "by hand", THEN + timedelta(microseconds=1)) != tag


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tag", ["", "_r2", "_0a1b2c3d"])
def test_a_result_is_no_scan(engine: str, tag: str) -> None:
    name = f"2023/02/230216/NS_230216033_ccdframes_0_0_{engine}{tag}.cxi"
    assert is_result(name)
    with pytest.raises(UserError, match="not the path of a scan"):
        parse_scan_path(name)


def test_an_id_of_another_scan_is_refused() -> None:
    scan = parse_scan_path(USUAL)
    for right in (scan.run_id(), scan.run_id(2), "by_hand", "manual__2026-11-23T01:00:00.123456+00:00"):
        scan.check_run_id(right)
    for wrong in ("NS_230216034_0_0", "NS_230216034_0_0__r2", "NS_230216033_0_0_x", "test.0a1b2c3d__r7"):
        with pytest.raises(UserError, match="the id of another scan's run"):
            scan.check_run_id(wrong)
