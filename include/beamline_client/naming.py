"""Names of scans: paths below the beamline's collection, and the run ids that follow from them.

`cosmic.scans` makes the same run ids, so that a scan that is submitted and found missing has one run.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from typing import Optional

from beamline_client.errors import InputError
from beamline_client.parameters import FILE_PATH

EXAMPLE = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
_USUAL_PATH = re.compile(
    r"(?P<year>\d{4})/(?P<month>\d{2})/(?P<day>\d{6})/"
    r"NS_(?P<scan_day>\d{6})(?P<number>\d{3,})_ccdframes_(?P<i>\d+)_(?P<j>\d+)(?P<suffix>_[A-Za-z0-9._-]+)?\.cxi",
    re.ASCII,
)
_PLAIN_SUFFIX = re.compile(r"(?:_[A-Za-z0-9-]+)*")
_SCAN = re.compile(r"NS_(?P<day>\d{6})\d{3,}", re.ASCII)
_RUN_ID = re.compile(r"[A-Za-z0-9_.~:+-]+")
_MAX_STEM = 160  # in a run id, which may have 200 characters


def normalize_path(path: str) -> str:
    """The scan's path below the collection's root, without the leading `/`: the DAG's own rule.

    :raises InputError: not a relative path of safe characters that ends in `.cxi`.
    """
    if len(path) > FILE_PATH.max_length:
        raise InputError(f"The path {path[:60]!r}... is longer than {FILE_PATH.max_length} characters.")
    if not re.search(FILE_PATH.pattern, path):
        raise InputError(
            f"The path {path!r} cannot be a scan: it must end in .cxi, have only letters, digits, '.', '_', "
            f"'-' between single slashes, no part that starts with '.', '_' or '-', and no result's name "
            f"(..._ptychocam.cxi), as in {EXAMPLE}."
        )
    return path.lstrip("/")


def unusual_name(path: str) -> Optional[str]:
    """Why a normalized path is not named as the beamline names its scans, or None when it is."""
    match = _USUAL_PATH.fullmatch(path)
    if not match:
        return f"it is not named like {EXAMPLE}"
    year, month, day = match["year"], match["month"], match["day"]
    if day != match["scan_day"]:
        return f"the folder's date {day} and the scan's {match['scan_day']} differ"
    if day[:2] != year[2:] or day[2:4] != month:
        return f"the folders {year}/{month} and {day} do not agree"
    try:
        datetime.date(int(year), int(month), int(day[4:]))
    except ValueError:
        return f"{year}-{month}-{day[4:]} is not a date"
    return None


def is_scan(text: str) -> bool:
    """Whether this is the name of a scan, which has a file for each energy and region: `NS_230216033`."""
    return _SCAN.fullmatch(text) is not None


def is_file_of(scan: str, path: str) -> bool:
    """Whether the file at a normalized path belongs to the scan `NS_<yymmdd><nnn>`, by its name."""
    return path.startswith(f"{folder_of(scan)}/{scan}_ccdframes_")


def folder_of(name: str) -> str:
    """The folder below the collection's root that follows from the name of a scan, or of a file of it.

        >>> folder_of("NS_230216033_ccdframes_0_0")
        '2023/02/230216'

    :raises InputError: no folder follows from it.
    """
    match = _SCAN.match(name)
    if not match:
        raise InputError(f"{name[:100]!r} does not begin like NS_230216033: no folder follows from it.")
    day = match["day"]
    return f"20{day[:2]}/{day[2:4]}/{day}"


def scan_name(path: str) -> str:
    """A short name of a normalized path, which no other has: `NS_230216033_0_0` when it is a usual one.

    Any other path has its file's name and a hash of the path: `test.1a2b3c4d`.
    """
    match = _USUAL_PATH.fullmatch(path)
    if match and not unusual_name(path) and _PLAIN_SUFFIX.fullmatch(match["suffix"] or ""):
        numbers = f"{match['scan_day']}{match['number']}_{match['i']}_{match['j']}"
        return f"NS_{numbers}{match['suffix'] or ''}"
    stem = path.rsplit("/", 1)[-1][: -len(".cxi")]
    stem = re.sub(r"_{2,}", "_", re.sub(r"\.{2,}", ".", stem))[:_MAX_STEM].rstrip(".")
    return f"{stem}.{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def scan_run_id(path: str, generation: int = 1) -> str:
    """The run id of a normalized path.

    :param generation: 1 is the scan's run; 2 and up its deliberate reprocessings.
    """
    return scan_name(path) + (f"__r{generation}" if generation > 1 else "")


def generation_of(run_id: str, path: str) -> int:
    """Which run of the scan at `path` this is; 0 when the run has an id of another kind."""
    first = scan_name(path)
    if run_id == first:
        return 1
    match = re.fullmatch(re.escape(first) + r"__r([1-9]\d{0,8})", run_id, re.ASCII)
    return int(match[1]) if match and int(match[1]) > 1 else 0


def is_run_id(text: str) -> bool:
    """Whether Airflow could have a run with this id."""
    return _RUN_ID.fullmatch(text) is not None and ".." not in text and text != "."
