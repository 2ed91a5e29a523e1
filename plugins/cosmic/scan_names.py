"""Which files belong to a scan, by their names: its day, energies and regions; and the names of its runs.

A scan is `<prefix>_<yymmdd><number>`, as in `NS_230216033`. It has a file for each energy and region, in the
folder of its day: `2023/02/230216/NS_230216033_ccdframes_<energy>_<region>.cxi`. Old files have no region;
a suffix may come last (`_cosmic2`). Other forms of names are a setting of the site (`scan_names`).

The client on the beamline computer contains this module: Python 3.8, standard library only.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

USUAL_NAMES = (
    "NS_<yymmdd><number>_ccdframes_<energy>_<region>.cxi",
    "NS_<yymmdd><number>_ccdframes_<energy>_<region>_<suffix>.cxi",
)

# `(?![\s\S])` is the end of the text in every dialect; `$` lets a newline through in Python's.
END = r"(?![\s\S])"
# Results, which are no scans whatever their names end in: an engine's, and a whole's or a half's of a split
# reconstruction. A scan that is named as a result would be copied over one.
RESULT_ENDING = r"_(?:(?:cdtools|ptychocam)(?:[._-][A-Za-z0-9._-]{0,250})?|full|half_[0-9]+)\.cxi"

_DAY = r"(?P<day>[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01]))"
_SCAN = rf"(?P<scan>[A-Za-z0-9][A-Za-z0-9._-]*?_{_DAY}[0-9]{{3,}})"
_FRAMES = r"_ccdframes_(?P<energy>[0-9]+)(?:_(?P<region>[0-9]+))?(?P<suffix>[._-].*)?"
_NAME = re.compile(_SCAN)
_FILE = re.compile(_SCAN + _FRAMES)
# Short names leave `_ccdframes` out, so they are known by the usual prefix only.
_GROUPED = re.compile(rf"(?P<usual>NS_[0-9]{{9,}})(?=_[0-9]+_[0-9])|{_SCAN}(?=_ccdframes_[0-9])")
_RUN = re.compile(r"(?:\.[0-9a-f]{8})?(?:__r[0-9]+)?")  # what an id of a run has after its file's name

# What a form of names in the site's settings may hold between < and >.
_DAY_PART = "yymmdd"
_PARTS = {
    _DAY_PART: _DAY,
    "number": "[0-9]{3,}",
    "energy": "[0-9]+",
    "region": "[0-9]+",
    "suffix": "[A-Za-z0-9._-]+",
}

_USUAL_PATH = re.compile(
    r"(?P<folder>(?:[0-9]{2}){2}/[0-9]{2}/[0-9]{6})/"
    r"NS_(?P<day>[0-9]{6})(?P<number>[0-9]{3,})_ccdframes_(?P<i>[0-9]+)_(?P<j>[0-9]+)"
    r"(?P<suffix>_[A-Za-z0-9._-]+)?\.cxi"
)
_PLAIN_SUFFIX = re.compile(r"(?:_[A-Za-z0-9-]+)*")
_LONGEST_STEM = 160  # in a run id, which may have 200 characters


class Scan(NamedTuple):
    """A scan as people call it.

    >>> Scan("NS_230216033", datetime.date(2023, 2, 16)).folder
    '2023/02/230216'
    """

    name: str
    day: datetime.date

    @property
    def folder(self) -> str:
        """Of its files, relative to the collection's root."""
        return day_folder(self.day)

    def path(self, energy: int, region: int | None) -> str:
        """Path of one of its files, relative to the collection's root.

        :param region: None for a file of old, without a region in its name.
        """
        numbers = f"{energy}" if region is None else f"{energy}_{region}"
        return f"{self.folder}/{self.name}_ccdframes_{numbers}.cxi"


class FileOfScan(NamedTuple):
    """What a file's name says.

    :param region: None when the name has none.
    :param suffix: what comes last, such as `_cosmic2`; with it a file is another version of the same frames.
    :param is_general: whether it is named `<scan>_ccdframes_...`; False for a form of the site's settings.
    """

    scan: Scan
    energy: int
    region: int | None = None
    suffix: str = ""
    is_general: bool = True


def scan_name(name: str, forms: Iterable[str] = ()) -> str:
    """Name of the scan to which a file or a run belongs, by the name alone; a lone file is its own scan.

    >>> scan_name("NS_230216033_7_1")
    'NS_230216033'
    >>> scan_name("NS_230216033_ccdframes_7_1_cosmic2")
    'NS_230216033'
    >>> scan_name("calibration.1a2b3c4d")
    'calibration.1a2b3c4d'

    :param name: of a file without `.cxi`, or a run's id, or the part of it before `__`.
    :param forms: further forms of files' names, as in the setting `scan_names`.
    """
    match = _GROUPED.match(name)
    if match:
        return match["usual"] or match["scan"]
    for form in forms:
        match = re.fullmatch(_of_stem(form) + _RUN.pattern, name)
        if match:
            return match["scan"]
    return name


def parse_scan(name: str) -> Scan | None:
    """A scan from its name; None when this is none, as no day is in it."""
    match = _NAME.fullmatch(name)
    day = _date(match["day"]) if match else None
    return Scan(name, day) if day else None


def parse_file(stem: str, forms: Iterable[str] = ()) -> FileOfScan | None:
    """The scan, energy and region of a file, by its name without `.cxi`; None for a lone file.

    >>> parse_file("NS_230216033_ccdframes_7_1").region
    1

    :param forms: further forms of files' names, as in the setting `scan_names`.
    """
    match = _FILE.fullmatch(stem)
    is_general = match is not None
    for form in () if is_general else forms:
        match = match or re.fullmatch(_of_stem(form), stem)
    day = _date(match["day"]) if match else None
    if match is None or day is None:
        return None
    parts = match.groupdict()
    region = parts.get("region")
    return FileOfScan(
        Scan(parts["scan"], day),
        int(parts.get("energy") or 0),
        None if region is None else int(region),
        parts.get("suffix") or "",
        is_general,
    )


def parse_path(path: str, forms: Iterable[str] = ()) -> FileOfScan | None:
    """The scan, energy and region of the file at a path; None when it is not in the folder of its day.

    :param path: relative to the collection's root, without a leading slash.
    """
    folder, _, name = path.rpartition("/")
    file = parse_file(name[: -len(".cxi")], forms) if name.endswith(".cxi") else None
    return file if file and file.scan.folder == folder else None


def day_folder(day: datetime.date) -> str:
    """The folder of a day's scans, relative to the collection's root: `2023/02/230216`."""
    return f"{day:%Y/%m/%y%m%d}"


def is_result(name: str) -> bool:
    """Whether a file's name is one of a result, ours or COSMIC's, and so never a scan's."""
    return re.search(RESULT_ENDING + END, name) is not None


@lru_cache(maxsize=None)
def name_pattern(form: str) -> str:
    """The pattern of a form of names, with the groups `scan`, `day`, and those of its other parts.

    The scan's name ends with the day and the number, whichever comes last.

    :param form: such as `NS_<yymmdd><number>_ccdframes_<energy>_<region>.cxi`.
    :raises ValueError: it is not such a form; the message says what one is.
    """
    literals, parts = re.split(r"<[^<>]*>", form), re.findall(r"<([^<>]*)>", form)
    if (
        parts.count(_DAY_PART) != 1
        or len(parts) != len(set(parts))
        or not set(parts) <= set(_PARTS)
        or not form.endswith(".cxi")
        or not re.fullmatch(r"[A-Za-z0-9._-]*", "".join(literals))
        or (literals[0] or "0")[0] in "._-"
        or _DAY_PART in "".join(literals)
        or is_result(re.sub(r"<[^<>]*>", "0", form))
    ):
        raise ValueError(
            "must be letters, digits, '.', '_', '-' and, each between < and >, yymmdd once and any of "
            f"{', '.join(part for part in _PARTS if part != _DAY_PART)}, each at most once; begin with a "
            "letter or digit, end in .cxi, and be no result's name"
        )
    last = max(index for index, part in enumerate(parts) if part in (_DAY_PART, "number"))
    pattern = "(?P<scan>"
    for index, part in enumerate(parts):
        pattern += re.escape(literals[index])
        pattern += _PARTS[part] if part == _DAY_PART else f"(?P<{part}>{_PARTS[part]})"
        pattern += ")" if index == last else ""
    return pattern + re.escape(literals[-1])


def is_named(path: str, forms: Iterable[str]) -> bool:
    """Whether a file is in the folder of a day and has a name of that day in one of these forms."""
    folder, _, name = path.rpartition("/")
    day = folder_day(folder)
    return day is not None and any(
        re.fullmatch(name_pattern(form).replace(_DAY, f"(?P<day>{day:%y%m%d})"), name) for form in forms
    )


def folder_day(folder: str) -> datetime.date | None:
    """The day whose folder this is, relative to the collection's root; None when it is no day's."""
    day = _date(folder.rpartition("/")[2])
    return day if day and folder == day_folder(day) else None


def short_name(path: str) -> str:
    """A short name that no other file has: `NS_230216033_0_0` when the path is a usual one.

    The folder follows from such a name. Any other path has its file's name and a hash: `test.1a2b3c4d`.
    Neither has `__` in it, and only the second kind has a dot.

    :param path: relative to the collection's root, without a leading slash; it ends in `.cxi`.
    """
    match = _USUAL_PATH.fullmatch(path)
    if match and is_named(path, USUAL_NAMES) and _PLAIN_SUFFIX.fullmatch(match["suffix"] or ""):
        return f"NS_{match['day']}{match['number']}_{match['i']}_{match['j']}{match['suffix'] or ''}"
    stem = path.rpartition("/")[2]
    stem = stem[: -len(".cxi")] if stem.endswith(".cxi") else stem
    stem = re.sub(r"_{2,}", "_", re.sub(r"\.{2,}", ".", stem))[:_LONGEST_STEM].rstrip(".")
    return f"{stem}.{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def scan_run_id(path: str, generation: int = 1) -> str:
    """Id of a file's run: a file that is sent twice has one.

    :param generation: 1 is its first run, 2 and up are its reprocessings.
    """
    return short_name(path) + (f"__r{generation}" if generation > 1 else "")


def generation_of(run_id: str, path: str) -> int:
    """Which of a file's own runs has this id; 0 for any other id."""
    name = short_name(path)
    if run_id == name:
        return 1
    match = re.fullmatch(re.escape(name) + r"__r([1-9][0-9]{0,8})", run_id)
    return int(match[1]) if match and int(match[1]) > 1 else 0


def _of_stem(form: str) -> str:
    pattern = name_pattern(form)
    return pattern[: -len(re.escape(".cxi"))]


@lru_cache(maxsize=10_000)  # an index of scans asks for each file of many days
def _date(text: str) -> datetime.date | None:
    try:
        return datetime.datetime.strptime(text, "%y%m%d").date()  # noqa: DTZ007 - a calendar day
    except ValueError:
        return None
