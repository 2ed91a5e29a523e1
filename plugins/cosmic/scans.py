"""Checks paths of scans that people and programs give.

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

from cosmic import scan_names
from cosmic.scan_names import END, RESULT_ENDING, Scan
from facilities.errors import UserError

# A segment starts with a letter or digit, so that `..`, hidden files and options cannot be named.
# File systems take names of 255 bytes; results are named after the scan and need the rest.
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
SAFE_PATH_PATTERN = rf"^/?({_SEGMENT}/)*{_SEGMENT}/?{END}"
SCAN_PATH_PATTERN = rf"^(?![\s\S]*{RESULT_ENDING}{END})/?({_SEGMENT}/)*{_SEGMENT}\.cxi{END}"
# A scan as people call it, or the path of one of its files.
_STACK_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}_[0-9]{9,20}"
STACK_PATTERN = (
    rf"^(/?({_SEGMENT}/)*{_STACK_NAME}_ccdframes_[0-9]{{1,4}}_[0-9]{{1,4}}\.cxi|{_STACK_NAME}){END}"
)
MAX_PATH_LENGTH = 400
MAX_QUOTED = 200
_PLAIN = (
    "below the beamline's folder: letters, digits, '.', '_' and '-' between slashes, each part at most 200 "
    "characters and beginning with a letter or digit"
)
SCAN_PATH = f"the path of a scan such as 2023/02/230216/NS_230216033_ccdframes_0_0.cxi ({_PLAIN})"
ANY_PATH = f"the path of a file or folder such as 2023/02/230216 ({_PLAIN})"

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
        return scan_names.folder_day(str(self.relative.parent))

    def is_named(self, forms: Iterable[str]) -> bool:
        """Whether it is in a day's folder and has a scan's name of that day, in one of the site's forms.

        Example: `parse_scan_path("2023/02/230216/NS_230216033_ccdframes_0_0.cxi").is_named(USUAL_NAMES)`
        """
        return scan_names.is_named(str(self.relative), forms)

    @property
    def name(self) -> str:
        """A short name that no other scan has: `NS_230216033_0_0` when the path is a usual one."""
        return scan_names.short_name(str(self.relative))

    def run_id(self, generation: int = 1) -> str:
        """Id of the scan's run of `transfer_auto_recon`: a scan that is posted twice has one run.

        :param generation: 1 is the scan's first run, 2 and up are its reprocessings.
        """
        return scan_names.scan_run_id(str(self.relative), generation)

    def generation(self, run_id: str) -> int:
        """Which of the scan's own runs has this id; 0 for any other id."""
        return scan_names.generation_of(run_id, str(self.relative))

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


def parse_scan_path(text: object) -> ScanPath:
    """Check the path of a scan (a `.cxi` file).

    :raises UserError: the text is not such a path; the message shows one that is.
    """
    return ScanPath(_checked(text, SCAN_PATH_PATTERN, SCAN_PATH))


def parse_whole_scan(text: str) -> Scan:
    """The scan that is meant by its name, such as NS_230216033, or by the path of one of its files.

    :raises UserError: it is neither, or the file is not in the folder of its day.
    """
    path = parse_safe_path(text).relative
    is_file = path.suffix == ".cxi"
    file = scan_names.parse_file(path.stem) if is_file else None
    scan = file.scan if file else None if is_file else scan_names.parse_scan(path.name)
    if scan is None:
        raise UserError(
            f"{text} is neither a scan nor a file of one",
            next_step="give a scan such as NS_230216033, or the path of one of its files.",
        )
    if file and str(path.parent) != scan.folder:
        raise UserError(
            f"{text} is not in the folder of its day, {scan.folder}",
            next_step="stack its energies with stack.sh at NERSC.",
        )
    return scan


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
