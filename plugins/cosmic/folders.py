"""A day's folder on the beamline's collection and at NERSC, listed through Globus, page by page."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date

from cosmic.beamline import Collection
from cosmic.comparison import DayAtNersc, ScanFile, scans_in
from cosmic.scans import ScanPath, day_folder, parse_safe_path, parse_scan_path
from facilities.errors import NotFoundError, UserError
from facilities.globus.hook import GlobusHook
from facilities.globus.model import FileEntry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DayAtBeamline:
    """The scans of a day, and the names of `.cxi` files that are not named as scans of that day."""

    scans: list[ScanFile]
    odd_names: list[str]


def list_beamline(hook: GlobusHook, collection: Collection, day: date) -> DayAtBeamline:
    """List a day's scans on the beamline's collection; no folder means no scans.

    :raises NotFoundError: the collection itself does not have its root.
    """
    files: list[ScanFile] = []
    odd: list[str] = []
    for entry in _entries(hook, collection, day, "~*.cxi"):
        path = _scan_path(day, entry.name)
        if path is None:
            odd.append(entry.name)
        else:
            files.append(ScanFile(path, entry.size, entry.last_modified))
    return DayAtBeamline(scans_in(files), odd)


def list_nersc(hook: GlobusHook, collection: Collection, day: date) -> DayAtNersc:
    """List what is at NERSC of a day; no folder means nothing.

    :raises NotFoundError: the collection itself does not have its root.
    """
    return DayAtNersc.from_sizes({entry.name: entry.size or 0 for entry in _entries(hook, collection, day)})


def shorten(texts: Iterable[str], most: int = 10) -> str:
    """The first few of many, and how many more there are."""
    shown = list(texts)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more


def _entries(
    hook: GlobusHook, collection: Collection, day: date, name_filter: str | None = None
) -> Iterator[FileEntry]:
    folder = parse_safe_path(day_folder(day)).under(collection.path)
    try:
        for entry in hook.list_folder(str(collection.id), folder, name_filter=name_filter):
            if entry.type == "file":
                yield entry
    except NotFoundError:
        # A day without beam has no folder. A wrong root has none on any day, and must not pass for that.
        next(iter(hook.list_folder(str(collection.id), collection.path, page_size=1)), None)
        log.info("%s: there is no folder %s on %s.", day, folder, collection.name)


def _scan_path(day: date, name: str) -> ScanPath | None:
    try:
        path = parse_scan_path(f"{day_folder(day)}/{name}")
    except UserError:
        return None
    return path if path.day == day else None
