"""One scan, one run id."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from cosmic.scans import SCAN_PATH_PATTERN, parse_scan_path

USUAL = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
PATHS = st.from_regex(SCAN_PATH_PATTERN).filter(lambda text: len(text) <= 400)
GENERATIONS = st.integers(min_value=1, max_value=10**8)


def test_the_id_is_readable_and_has_not_changed() -> None:
    """A change would process everything that is known under the old id once more."""
    assert parse_scan_path(USUAL).run_id() == "scan__2023__02__230216__NS_230216033_ccdframes_0_0.604f27d5"
    assert parse_scan_path("/" + USUAL).run_id(3).endswith("NS_230216033_ccdframes_0_0.604f27d5__r3")


@given(PATHS, GENERATIONS)
def test_airflow_takes_every_id(text: str, generation: int) -> None:
    run_id = parse_scan_path(text).run_id(generation)
    assert len(run_id) <= 250
    assert re.fullmatch(r"[A-Za-z0-9_.~:+-]+", run_id)
    assert ".." not in run_id or ".." in text


@given(PATHS, PATHS)
def test_two_scans_have_two_ids(one: str, other: str) -> None:
    same_scan = one.strip("/") == other.strip("/")
    assert (parse_scan_path(one).run_id() == parse_scan_path(other).run_id()) == same_scan
