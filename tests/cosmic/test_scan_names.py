"""Which scan a file belongs to, by its name: of the usual form, of the general one, and of the site's own."""

from __future__ import annotations

import doctest
import re
import time
from datetime import date
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmic import scan_names
from cosmic.scan_names import (
    USUAL_NAMES,
    FileOfScan,
    Scan,
    parse_file,
    parse_path,
    parse_scan,
    scan_name,
    short_name,
)

NAME = "NS_230216033"
SCAN = Scan(NAME, date(2023, 2, 16))
FOLDER = "2023/02/230216"
FORMS = ["CX-7_<number>.<yymmdd>_<region>.cxi", "T<yymmdd>-<energy>_v<suffix>.cxi", "<yymmdd><number>.cxi"]


def test_the_examples_are_true() -> None:
    assert doctest.testmod(scan_names).failed == 0


@pytest.mark.parametrize(
    ("stem", "file"),
    [
        (f"{NAME}_ccdframes_7_1", FileOfScan(SCAN, 7, 1)),
        (f"{NAME}_ccdframes_199_3_cosmic2", FileOfScan(SCAN, 199, 3, "_cosmic2")),
        (f"{NAME}_ccdframes_0", FileOfScan(SCAN, 0)),
        (f"{NAME}_ccdframes_0_cosmic2", FileOfScan(SCAN, 0, None, "_cosmic2")),
        (f"{NAME}_ccdframes_0_0_2nd", FileOfScan(SCAN, 0, 0, "_2nd")),
        ("a.b-c_2302161033_ccdframes_1_0", FileOfScan(Scan("a.b-c_2302161033", SCAN.day), 1, 0)),
        ("NS_test_230216033_ccdframes_1_0", FileOfScan(Scan("NS_test_230216033", SCAN.day), 1, 0)),
        (NAME, None),
        (f"{NAME}_ccdframes", None),
        (f"{NAME}_ccdframes_x_0", None),
        ("NS_23021603_ccdframes_0_0", None),  # no number of three digits
        ("NS_231316033_ccdframes_0_0", None),  # no day
        ("NS_230230033_ccdframes_0_0", None),
        ("230216033_ccdframes_0_0", None),  # no prefix
        ("calibration", None),
        ("CX-7_001.230216_3", None),
        ("", None),
    ],
)
def test_the_scan_energy_and_region_of_a_file(stem: str, file: FileOfScan | None) -> None:
    assert parse_file(stem) == file
    assert scan_name(stem) == (file.scan.name if file else scan_name(stem))
    path = f"{FOLDER}/{stem}.cxi"
    assert parse_path(path) == file
    for other in (f"2023/02/230217/{stem}.cxi", f"x/{path}", f"{stem}.cxi", f"{FOLDER}/{stem}.h5"):
        assert parse_path(other) is None
    if file and not file.suffix:
        assert file.scan.path(file.energy, file.region) == path


@pytest.mark.parametrize(
    ("stem", "file"),
    [
        ("CX-7_001.230216_3", FileOfScan(Scan("CX-7_001.230216", SCAN.day), 0, 3, "", False)),
        ("T230216-12_v2", FileOfScan(Scan("T230216", SCAN.day), 12, None, "2", False)),
        ("230216033", FileOfScan(Scan("230216033", SCAN.day), 0, None, "", False)),
        (f"{NAME}_ccdframes_7_1", FileOfScan(SCAN, 7, 1)),
        ("CX-7_001.231316_3", None),
        ("CX-8_001.230216_3", None),
    ],
)
def test_a_file_with_a_name_of_the_sites_own_form(stem: str, file: FileOfScan | None) -> None:
    assert parse_file(stem, FORMS) == file
    if file:
        path = f"{FOLDER}/{stem}.cxi"
        assert parse_path(path, FORMS) == file
        for run_id in (stem, short_name(path), f"{short_name(path)}__r12"):
            assert scan_name(run_id, FORMS) == file.scan.name


@pytest.mark.parametrize(
    ("name", "scan"),
    [
        (f"{NAME}_7_1", NAME),
        (f"{NAME}_7_1_cosmic2", NAME),
        (f"{NAME}_7_1__r2", NAME),
        (f"{NAME}_ccdframes_7.1a2b3c4d", NAME),
        (f"{NAME}_ccdframes_7_1_a.b.1a2b3c4d__r2", NAME),
        ("CX_230216033_ccdframes_7_1.1a2b3c4d", "CX_230216033"),
        ("CX_230216033_7_1", "CX_230216033_7_1"),
        (NAME, NAME),
        ("calibration.1a2b3c4d", "calibration.1a2b3c4d"),
        ("manual__2026-11-23T01:00:00.123456+00:00", "manual__2026-11-23T01:00:00.123456+00:00"),
        ("", ""),
    ],
)
def test_runs_and_files_are_grouped_by_scan(name: str, scan: str) -> None:
    assert scan_name(name) == scan


@given(
    st.dates(date(2000, 1, 1), date(2068, 12, 31)),
    st.integers(0, 9999),
    st.integers(0, 199),
    st.none() | st.integers(0, 3),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
)
def test_every_file_of_a_scan_leads_back_to_it(
    day: date, number: int, energy: int, region: int | None, prefix: str
) -> None:
    scan = parse_scan(f"{prefix}_{day:%y%m%d}{number:03}")
    assert scan is not None
    assert scan.day == day
    path = scan.path(energy, region)
    assert parse_path(path) == FileOfScan(scan, energy, region)
    assert scan_name(PurePosixPath(path).stem) == scan.name


@pytest.mark.parametrize("name", [f"{NAME}_0_0", "NS_23021603", "NS_231316033", "", "NS_230216033\n", "x"])
def test_what_is_no_name_of_a_scan(name: str) -> None:
    assert parse_scan(name) is None


@pytest.mark.parametrize("form", USUAL_NAMES)
def test_usual_names_are_of_the_general_form(form: str) -> None:
    name = re.sub("<yymmdd><number>", "230216033", form).replace("<suffix>", "cosmic2")
    file = parse_file(re.sub("<[a-z]+>", "1", name).removesuffix(".cxi"))
    assert file is not None
    assert file.is_general
    assert file.scan == SCAN


@pytest.mark.timeout(60)
def test_a_hundred_thousand_names_are_grouped_in_no_time() -> None:
    names = [f"NS_230216{n // 80:03}_{n % 80}_0" for n in range(50_000)]
    names += [f"CX_230216{n:03}_ccdframes_{n % 80}_0.1a2b3c4d" for n in range(50_000)]
    started = time.process_time()
    assert len({scan_name(name) for name in names}) == 625 + 50_000
    assert time.process_time() - started < 3  # 0.2 s when nothing else runs
    for hostile in ("a_" * 30_000, "_230216000" * 6000, "a_230216000" * 6000, "a." * 30_000 + "_230216000"):
        scan_name(hostile)
        parse_file(hostile)
    assert time.process_time() - started < 6
