"""Names of scans: what is taken, what is refused and how it is said."""

from __future__ import annotations

import re
import string
from datetime import date
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmic.scans import SAFE_PATH_PATTERN, SCAN_PATH_PATTERN, parse_safe_path, parse_scan_path
from facilities.errors import UserError

USUAL = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
BAD_PATHS = [
    "",
    "/",
    ".cxi",
    "../x.cxi",
    "2023/../../x.cxi",
    "2023/..cxi/../x.cxi",
    "2023//x.cxi",
    "//x.cxi",
    "-rf.cxi",
    "2023/-o/x.cxi",
    ".ssh/x.cxi",
    "x.cxi\n",
    "x\n.cxi",
    "x.cxi\x00",
    "a b.cxi",
    "a'b.cxi",
    'a"b.cxi',
    "$(id).cxi",
    "`id`.cxi",
    "a;b.cxi",
    "a\\b.cxi",
    "é.cxi",
    "~/x.cxi",
    "x.h5",
    "x.cxi/",
    "x.cxi?y",
    "a" * 400 + ".cxi",
    None,
    7,
    ["x.cxi"],
]


@pytest.mark.parametrize("text", [USUAL, "/" + USUAL, USUAL.replace(".cxi", "_cosmic2.cxi")])
def test_usual_paths_are_taken(text: str) -> None:
    scan = parse_scan_path(text)
    assert str(scan.relative) == text.lstrip("/")
    assert scan.day == date(2023, 2, 16)
    assert scan.under("/global/x") == "/global/x/" + text.lstrip("/")
    assert scan.under("/") == "/" + text.lstrip("/")


@pytest.mark.parametrize("text", BAD_PATHS)
def test_bad_paths_are_refused_and_shown(text: object) -> None:
    with pytest.raises(UserError) as refused:
        parse_scan_path(text)
    assert "is not the path of a scan" in str(refused.value)
    assert USUAL in str(refused.value)
    assert len(str(refused.value)) < 700
    assert repr(text)[:150] in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "x.cxi",
        "2023/02/230216/NS_230217033_ccdframes_0_0.cxi",
        "2024/02/230216/NS_230216033_ccdframes_0_0.cxi",
        "2023/13/231301/NS_231301033_ccdframes_0_0.cxi",
    ],
)
def test_unusual_names_are_taken_without_a_day(text: str) -> None:
    assert parse_scan_path(text).day is None


def test_folders_are_taken_where_any_path_is() -> None:
    assert str(parse_safe_path("/2023/02/230216/").relative) == "2023/02/230216"
    with pytest.raises(UserError, match="not the path of a file or folder"):
        parse_safe_path("2023/../x")


@given(st.text(alphabet=string.printable + "é\x00 ", max_size=60))
def test_whatever_is_taken_stays_below_the_root_and_needs_no_quoting(text: str) -> None:
    try:
        path = parse_safe_path(text)
    except UserError:
        assert re.search(SAFE_PATH_PATTERN, text) is None
        return
    below = PurePosixPath(path.under("/root/of/it"))
    assert below.parts[:4] == ("/", "root", "of", "it")
    assert ".." not in below.parts
    assert re.fullmatch(r"[A-Za-z0-9._/-]+", str(path.relative))
    assert not any(part.startswith(("-", ".")) for part in path.relative.parts)


@given(st.from_regex(SCAN_PATH_PATTERN).filter(lambda text: len(text) <= 400))
def test_what_the_rest_api_lets_through_the_task_takes(text: str) -> None:
    assert parse_scan_path(text).relative.suffix == ".cxi"
