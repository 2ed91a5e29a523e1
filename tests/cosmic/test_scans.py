"""Names of scans: what is taken, what is refused and how it is said."""

from __future__ import annotations

import re
import string
import time
from datetime import date
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmic.parameters import ENGINES
from cosmic.scan_names import USUAL_NAMES, day_folder, is_result, name_pattern
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
    assert scan.is_named(USUAL_NAMES)
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
def test_unusual_names_are_taken_but_are_no_scans_of_a_day(text: str) -> None:
    assert not parse_scan_path(text).is_named(USUAL_NAMES)


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


days = st.dates(date(2000, 1, 1), date(2068, 12, 31))  # two digits of a year
endings = st.from_regex(r"([._-][A-Za-z0-9._-]{0,20})?", fullmatch=True)
forms = st.sampled_from(
    [
        *USUAL_NAMES,
        "NS_<yymmdd><number>_ccdframes_<energy>.cxi",
        "NS_<yymmdd><number>_ccdframes_<energy>_<region>_cosmic2.cxi",
        "CX-7_<number>.<yymmdd>_<region>.cxi",
        "<yymmdd><number>.cxi",
    ]
)


def name_of(form: str, day: date, numbers: list[int]) -> str:
    """A name of the form: the numbers in its parts, one after the other."""
    parts = iter(numbers)
    form = form.replace("<yymmdd>", f"{day:%y%m%d}")
    return re.sub("<[a-z]+>", lambda part: f"{next(parts):0{3 if part[0] == '<number>' else 1}}", form)


numbers = st.lists(st.integers(0, 9999), min_size=4, max_size=4)


@given(forms, days, numbers)
def test_a_name_of_a_form_is_a_scan_of_its_own_day_only(form: str, day: date, parts: list[int]) -> None:
    name = name_of(form, day, parts)
    scan = parse_scan_path(f"{day_folder(day)}/{name}")
    assert scan.day == day
    assert scan.is_named([form])
    assert scan.is_named(["XX_<yymmdd>.cxi", form])
    assert not scan.is_named(["XX_<yymmdd>.cxi"])
    assert not scan.is_named([])
    other = date(day.year + 1, 1, 1)
    assert not parse_scan_path(f"{day_folder(other)}/{name}").is_named([form])
    assert not parse_scan_path(name).is_named([form])
    assert not parse_scan_path(f"x/{day_folder(day)}/{name}").is_named([form])


@given(forms, days, numbers, st.sampled_from(ENGINES), endings)
def test_results_are_no_scans_whatever_their_names_end_in(
    form: str, day: date, parts: list[int], engine: str, ending: str
) -> None:
    stem = name_of(form, day, parts).removesuffix(".cxi")
    for name in (f"{stem}_{engine}{ending}", f"{stem}_full", f"{stem}_half_1", f"{stem}_half_2"):
        assert is_result(f"{name}.cxi")
        with pytest.raises(UserError, match="is not the path of a scan"):
            parse_scan_path(f"{day_folder(day)}/{name}.cxi")
        for suffix in (".h5", ".mat", ".png", ".json"):
            with pytest.raises(UserError, match="is not the path of a scan"):
                parse_scan_path(f"{day_folder(day)}/{name}{suffix}")


@pytest.mark.parametrize(
    "name", ["NS_230216033_ccdframes_0_0_fuller.cxi", "NS_230216033_ccdframes_0_0_cdtools2.cxi", "half_1.cxi"]
)
def test_names_that_only_resemble_a_results_are_scans(name: str) -> None:
    assert not is_result(name)
    assert parse_scan_path(name).relative.name == name


@pytest.mark.parametrize(
    "form",
    [
        "",
        "NS_<yymmdd>",
        "NS.cxi",
        "<yymmdd><yymmdd>.cxi",
        "NS_<yymmdd><day>.cxi",
        "NS_yymmdd_<yymmdd>.cxi",
        "NS_<yymmdd>(a|b)*.cxi",
        "a/<yymmdd>.cxi",
        "../<yymmdd>.cxi",
        ".<yymmdd>.cxi",
        "NS_<yymmdd>.cxi\n",
        "NS_<yymmdd>_ptychocam.cxi",
        "NS_<yymmdd>_half_<region>.cxi",
    ],
)
def test_a_wrong_form_is_refused(form: str) -> None:
    with pytest.raises(ValueError, match="yymmdd once and any of number, energy, region, suffix"):
        name_pattern(form)


@given(st.text(alphabet="NSa7_-.<>()*+?[]\\|^$ \n", max_size=12), days)
def test_a_form_takes_nothing_but_its_own_letters(text: str, day: date) -> None:
    form = f"{text}<yymmdd>.cxi"
    try:
        name_pattern(form)
    except ValueError:
        return
    assert re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)?", text)
    scan = parse_scan_path(f"{day_folder(day)}/{text}{day:%y%m%d}.cxi")
    assert scan.is_named([form])
    assert not parse_scan_path(f"{day_folder(day)}/x{text}{day:%y%m%d}.cxi").is_named([form])


@pytest.mark.timeout(60)
def test_a_hostile_text_costs_little() -> None:
    """As long as a request may be: a pattern that looks through the rest at each place takes seconds."""
    started = time.process_time()
    for text in ("_cdtools" * 8000, "a_cdtools" * 7000 + ".cxi!", "a/" * 32_000, "_half_1" * 9000):
        assert re.search(SCAN_PATH_PATTERN, text) is None
    assert time.process_time() - started < 2
