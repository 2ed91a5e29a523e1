"""Checks paths of scans, and makes run ids and day folders of them.

A scan is named by its path relative to the root of the beamline's collection, such as
`2023/02/230216/NS_230216033_ccdframes_0_0.cxi`; a leading `/` is allowed and means the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
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
# Results, which are no scans whatever their names end in: an engine's, and a whole's or a half's of a split
# reconstruction. A scan that is named as a result would be copied over one.
_RESULT_ENDING = r"_(?:(?:cdtools|ptychocam)(?:[._-][A-Za-z0-9._-]{0,250})?|full|half_[0-9]+)\.cxi"
SCAN_PATH_PATTERN = rf"^(?![\s\S]*{_RESULT_ENDING}{_END})/?({_SEGMENT}/)*{_SEGMENT}\.cxi{_END}"
# A scan as people call it, or the path of one of its files.
_STACK_NAME = r"[A-Za-z0-9][A-Za-z0-9.-]{0,99}_[0-9]{9,20}"
STACK_PATTERN = (
    rf"^(/?({_SEGMENT}/)*{_STACK_NAME}_ccdframes_[0-9]{{1,4}}_[0-9]{{1,4}}\.cxi|{_STACK_NAME}){_END}"
)
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
# What a form of names in the beamline's settings may hold between < and >.
_PARTS = {"number": "[0-9]{3,}", "energy": "[0-9]+", "region": "[0-9]+", "suffix": "[A-Za-z0-9._-]+"}
_DAY_PART = "yymmdd"
USUAL_NAMES = (
    "NS_<yymmdd><number>_ccdframes_<energy>_<region>.cxi",
    "NS_<yymmdd><number>_ccdframes_<energy>_<region>_<suffix>.cxi",
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
        """The day whose folder this is in; None when it is in no day's folder."""
        folder = self.relative.parent
        try:
            day = datetime.strptime(folder.name, "%y%m%d").date()  # noqa: DTZ007 - a calendar day
        except ValueError:
            return None
        return day if str(folder) == day_folder(day) else None

    def is_named(self, forms: Iterable[str]) -> bool:
        """Whether it is in a day's folder and has a scan's name of that day, in one of the site's forms.

        Example: `parse_scan_path("2023/02/230216/NS_230216033_ccdframes_0_0.cxi").is_named(USUAL_NAMES)`
        """
        day = self.day
        return day is not None and any(
            re.fullmatch(name_pattern(form).replace(_DAY_PART, f"{day:%y%m%d}"), self.relative.name)
            for form in forms
        )

    @property
    def name(self) -> str:
        """A short name that no other scan has: `NS_230216033_0_0` when the path is a usual one.

        The folder follows from such a name. Any other path has its file's name and a hash: `test.1a2b3c4d`.
        Neither has `__` in it, and only the second kind has a dot. The client on the beamline computer makes
        the same names (`include/beamline_client/naming.py`).
        """
        path = str(self.relative)
        match = _USUAL_NAME.fullmatch(path)
        dated = match is not None and self.day is not None and match["day"] == match["name_day"]
        if match and dated and _PLAIN_SUFFIX.fullmatch(match["suffix"] or ""):
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


def is_result(name: str) -> bool:
    """Whether a file's name is one of a result, ours or COSMIC's, and so never a scan's."""
    return re.search(_RESULT_ENDING + _END, name) is not None


def name_pattern(form: str) -> str:
    """The pattern of a form of names, in which `yymmdd` stands for the day.

    :param form: such as `NS_<yymmdd><number>_ccdframes_<energy>_<region>.cxi`.
    :raises ValueError: it is not such a form; the message says what one is.
    """
    literals, parts = re.split(r"<[^<>]*>", form), re.findall(r"<([^<>]*)>", form)
    known = {**_PARTS, _DAY_PART: _DAY_PART}
    if (
        parts.count(_DAY_PART) != 1
        or not set(parts) <= set(known)
        or not form.endswith(".cxi")
        or not re.fullmatch(r"[A-Za-z0-9._-]*", "".join(literals))
        or (literals[0] or "0")[0] in "._-"
        or _DAY_PART in "".join(literals)
        or is_result(re.sub(r"<[^<>]*>", "0", form))
    ):
        raise ValueError(
            f"must be letters, digits, '.', '_', '-' and, each between < and >, yymmdd once and any of "
            f"{', '.join(_PARTS)}; begin with a letter or digit, end in .cxi, and be no result's name"
        )
    patterns = [known[part] for part in parts]
    return "".join(
        re.escape(literal) + pattern for literal, pattern in zip(literals, [*patterns, ""], strict=True)
    )


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
