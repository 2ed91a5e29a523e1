"""Checks paths of scans, and makes run ids and day folders of them.

A scan is named by its path relative to the root of the beamline's collection, such as
`2023/02/230216/NS_230216033_ccdframes_0_0.cxi`; a leading `/` is allowed and means the same.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import PurePosixPath

from facilities.errors import UserError

# A segment starts with a letter or digit, so that `..`, hidden files and options cannot be named.
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]*"
# `(?![\s\S])` is the end of the text in every dialect; `$` lets a newline through in Python's.
_END = r"(?![\s\S])"
SAFE_PATH_PATTERN = rf"^/?({_SEGMENT}/)*{_SEGMENT}/?{_END}"
SCAN_PATH_PATTERN = rf"^/?({_SEGMENT}/)*{_SEGMENT}\.cxi{_END}"
MAX_PATH_LENGTH = 400

# Airflow allows 250 characters; prefix, hash and `__r<number>` need the rest.
_LONGEST_STEM = 220

_USUAL_NAME = re.compile(
    r"(?P<year>\d{4})/(?P<month>\d{2})/(?P<day>\d{6})/"
    r"NS_(?P<name_day>\d{6})(?P<number>\d{3,})_ccdframes_(?P<i>\d+)_(?P<j>\d+)(?P<suffix>_[A-Za-z0-9._-]+)?\.cxi"
)


@dataclass(frozen=True)
class ScanPath:
    """A checked path of a scan (or of any other file or folder), relative to a collection's root."""

    relative: PurePosixPath

    @property
    def stem(self) -> str:
        """The file's name without `.cxi`."""
        return self.relative.name.removesuffix(".cxi")

    @property
    def day(self) -> date | None:
        """The day in a usual name; None when the name is not of the usual form, or its dates disagree."""
        match = _USUAL_NAME.fullmatch(str(self.relative))
        if match is None or match["day"] != match["name_day"]:
            return None
        try:
            day = datetime.strptime(match["day"], "%y%m%d").date()  # noqa: DTZ007 - a calendar day
        except ValueError:
            return None
        return day if (f"{day.year:04}", f"{day.month:02}") == (match["year"], match["month"]) else None

    def run_id(self, generation: int = 1) -> str:
        """Id of the scan's run of `transfer_auto_recon`: readable, and unique by a hash of the path.

        The beamline computer makes the same id (`include/beamline_client`), so a scan that is posted and
        found missing at the same time still has one run.

        :param generation: 1 is the scan's first run, 2 and up are its deliberate reprocessings.
        """
        path = str(self.relative)
        stem = re.sub(r"\.{2,}", ".", path.removesuffix(".cxi").replace("/", "__"))  # Airflow refuses ".."
        stem = stem[:_LONGEST_STEM].rstrip(".")
        digest = hashlib.sha256(path.encode()).hexdigest()[:8]
        return f"scan__{stem}.{digest}" + (f"__r{generation}" if generation > 1 else "")

    def under(self, root: str) -> str:
        """The path below `root`, with forward slashes."""
        return str(PurePosixPath(root) / self.relative)


def day_folder(day: date) -> str:
    """The folder of a day's scans, relative to the collection's root: `2023/02/230216`."""
    return f"{day:%Y/%m/%y%m%d}"


def parse_scan_path(text: object) -> ScanPath:
    """Check the path of a scan (a `.cxi` file).

    :raises UserError: the text is not such a path; the message shows one that is.
    """
    return ScanPath(
        _checked(text, SCAN_PATH_PATTERN, "a scan", "2023/02/230216/NS_230216033_ccdframes_0_0.cxi")
    )


def parse_safe_path(text: object) -> ScanPath:
    """Check the path of any file or folder below a collection's root.

    :raises UserError: the text is not a plain relative path.
    """
    return ScanPath(_checked(text, SAFE_PATH_PATTERN, "a file or folder", "2023/02/230216"))


def _checked(text: object, pattern: str, what: str, example: str) -> PurePosixPath:
    if isinstance(text, str) and len(text) <= MAX_PATH_LENGTH and re.search(pattern, text):
        return PurePosixPath(text.strip("/"))
    shown = repr(text) if len(repr(text)) <= 200 else repr(text)[:200] + "..."
    raise UserError(
        f"{shown} is not the path of {what} relative to the beamline's collection",
        next_step=(
            "start a new run with a path made of letters, digits, '.', '_' and '-' between slashes "
            f"(no '..', no part that starts with a dot or dash), such as {example}."
        ),
    )
