"""A scan as people call it, `NS_230216033`: the files of all its energies and regions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime

from cosmic.scans import ScanPath, day_folder, parse_safe_path, parse_scan_path
from facilities.errors import UserError

MAX_ENERGIES, MAX_REGIONS = 200, 4
_NAME = re.compile(r"(?P<scan>[A-Za-z0-9][A-Za-z0-9.-]*_(?P<day>[0-9]{6})[0-9]{3,})")
FILE = re.compile(
    _NAME.pattern + r"_ccdframes_(?P<energy>[0-9]{1,4})_(?P<region>[0-9]{1,4})(?P<rest>[^0-9].*)?"
)
Place = tuple[int, int]  # energy and region


@dataclass(frozen=True)
class Scan:
    """All files of a scan, `<name>_ccdframes_<energy>_<region>.cxi`, in the folder of its day."""

    name: str
    day: date

    @classmethod
    def parse(cls, text: str) -> Scan:
        """From its name, such as NS_230216033, or from the path of one of its files.

        :raises UserError: it is neither, or the file is not in the folder of its day.
        """
        path = parse_safe_path(text).relative
        match = FILE.fullmatch(path.name) if path.name.endswith(".cxi") else _NAME.fullmatch(path.name)
        day = _day(match["day"]) if match else None
        if match is None or day is None:
            raise UserError(
                f"{text} is neither a scan nor a file of one",
                next_step="give a scan such as NS_230216033, or the path of one of its files.",
            )
        if path.name.endswith(".cxi") and str(path.parent) != day_folder(day):
            raise UserError(
                f"{text} is not in the folder of its day, {day_folder(day)}",
                next_step="stack its energies with stack.sh at NERSC.",
            )
        return cls(match["scan"], day)

    def file(self, energy: int, region: int) -> ScanPath:
        """One of its files."""
        return parse_scan_path(f"{day_folder(self.day)}/{self.name}_ccdframes_{energy}_{region}.cxi")

    def places(self, names: Iterable[str]) -> set[Place]:
        """Energies and regions of those of the file names (or stems) that are its files'."""
        matches = (FILE.fullmatch(name) for name in names)
        return {
            (int(match["energy"]), int(match["region"]))
            for match in matches
            if match and match["scan"] == self.name and match["rest"] in (None, ".cxi")
        }


def _day(text: str) -> date | None:
    try:
        return datetime.strptime(text, "%y%m%d").date()  # noqa: DTZ007 - a calendar day
    except ValueError:
        return None
