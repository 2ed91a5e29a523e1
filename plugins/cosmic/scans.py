"""Checks paths of scans, and makes run ids and day folders of them.

A scan is named by its path relative to the root of the beamline's collection, such as
`2023/02/230216/NS_230216033_ccdframes_0_0.cxi`; a leading `/` is allowed and means the same.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import PurePosixPath

from facilities.errors import UserError

# A segment starts with a letter or digit, so that `..`, hidden files and options cannot be named.
# File systems take names of 255 bytes; results are named after the scan and need the rest.
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
# `(?![\s\S])` is the end of the text in every dialect; `$` lets a newline through in Python's.
_END = r"(?![\s\S])"
SAFE_PATH_PATTERN = rf"^/?({_SEGMENT}/)*{_SEGMENT}/?{_END}"
# A scan that is named as a result would be copied over one.
RESULT_ENDING = r"_(?:cdtools|ptychocam)(?:_r[0-9]+|_[0-9a-f]{8})?\.cxi"
SCAN_PATH_PATTERN = rf"^(?![\s\S]*{RESULT_ENDING}{_END})/?({_SEGMENT}/)*{_SEGMENT}\.cxi{_END}"
MAX_PATH_LENGTH = 400
MAX_QUOTED = 200
_PLAIN = (
    "below the beamline's folder: letters, digits, '.', '_' and '-' between slashes, each part at most 200 "
    "characters and beginning with a letter or digit"
)
SCAN_PATH = f"the path of a scan such as 2023/02/230216/NS_230216033_ccdframes_0_0.cxi ({_PLAIN})"
ANY_PATH = f"the path of a file or folder such as 2023/02/230216 ({_PLAIN})"

_LONGEST_STEM = 160  # in a run id, which may have 200 characters

_USUAL_NAME = re.compile(
    r"(?P<year>\d{4})/(?P<month>\d{2})/(?P<day>\d{6})/"
    r"NS_(?P<name_day>\d{6})(?P<number>\d{3,})_ccdframes_(?P<i>\d+)_(?P<j>\d+)(?P<suffix>_[A-Za-z0-9._-]+)?\.cxi"
)
_PLAIN_SUFFIX = re.compile(r"(_[A-Za-z0-9-]+)*")
_RUN_ID = re.compile(r"(NS_[0-9]{9,}_[0-9]+_[0-9]+(_[A-Za-z0-9-]+)*|.+\.[0-9a-f]{8})(__r[0-9]+)?")


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

    @property
    def name(self) -> str:
        """A short name that no other scan has: `NS_230216033_0_0` when the path is a usual one.

        The folder follows from such a name. Any other path has its file's name and a hash: `test.1a2b3c4d`.
        Neither has `__` in it, and only the second kind has a dot. The client on the beamline computer makes
        the same names (`include/beamline_client/naming.py`).
        """
        path = str(self.relative)
        match = _USUAL_NAME.fullmatch(path)
        if match and self.day and _PLAIN_SUFFIX.fullmatch(match["suffix"] or ""):
            numbers = f"{match['name_day']}{match['number']}_{match['i']}_{match['j']}"
            return f"NS_{numbers}{match['suffix'] or ''}"
        stem = re.sub(r"_{2,}", "_", re.sub(r"\.{2,}", ".", self.stem))[:_LONGEST_STEM].rstrip(".")
        return f"{stem}.{hashlib.sha256(path.encode()).hexdigest()[:8]}"

    def run_id(self, generation: int = 1) -> str:
        """Id of the scan's run of `transfer_auto_recon`: a scan that is posted twice has one run.

        :param generation: 1 is the scan's first run, 2 and up are its reprocessings.
        """
        return self.name + (f"__r{generation}" if generation > 1 else "")

    def generation(self, run_id: str) -> int:
        """Which of the scan's own runs has this id; 0 for any other id."""
        if run_id == self.name:
            return 1
        match = re.fullmatch(re.escape(self.name) + r"__r([1-9][0-9]{0,8})", run_id)
        return int(match[1]) if match and int(match[1]) > 1 else 0

    def check_run_id(self, run_id: str) -> None:
        """Check that a run of this scan may have this id.

        :raises UserError: it has the form of an id that is made from a scan, but is none of this scan's.
        """
        if _RUN_ID.fullmatch(run_id) and not self.generation(run_id):
            raise UserError(
                f"The run id {run_id} is the id of another scan's run, not of {self.relative}",
                next_step=f"start a run without an id, or with {self.name}, or {self.name}__r2 to reprocess.",
            )

    def result_tag(self, dag_id: str, run_id: str, run_after: datetime) -> str:
        """What the names of a run's results end in, so that no two runs have the same.

        Nothing for the scan's first run, `_r2` for a reprocessing, a hash for a run with an id of its own.
        """
        generation = self.generation(run_id)
        if generation:
            return f"_r{generation}" if generation > 1 else ""
        identity = "\n".join((dag_id, run_id, run_after.astimezone(UTC).isoformat()))
        return f"_{hashlib.sha256(identity.encode()).hexdigest()[:8]}"

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
    return ScanPath(_checked(text, SCAN_PATH_PATTERN, SCAN_PATH))


def parse_safe_path(text: object) -> ScanPath:
    """Check the path of any file or folder below a collection's root.

    :raises UserError: the text is not a plain relative path.
    """
    return ScanPath(_checked(text, SAFE_PATH_PATTERN, ANY_PATH))


def quoted(value: object) -> str:
    """A value in a message: on one line, and not too long."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "..."


def _checked(text: object, pattern: str, kind: str) -> PurePosixPath:
    if isinstance(text, str) and len(text) <= MAX_PATH_LENGTH and re.search(pattern, text):
        return PurePosixPath(text.strip("/"))
    raise UserError(f"{quoted(text)} is not {kind}", next_step="correct the path.")
