"""Looks things up in a CXI file, and refuses what cannot be read here: filters, data in other files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np

from reconstruction.arrays import Real
from reconstruction.errors import ScanError

MAX_VALUES, MAX_TEXT, MAX_NAMES, LARGEST = 80, 300, 20, 1e300  # of `Stored.short_metadata`


class Stored:
    """An open file; what has to be said about it is collected here.

    :ivar metadata: what the control system knew, from the JSON text at the root of COSMIC's files; empty
        where there is none.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self.file = file
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.metadata = self._metadata()

    def fail(self, where: str, what: str) -> NoReturn:
        """:raises ScanError: always."""
        raise ScanError(f"{self.path}: {where}: {what}.")

    def find(self, places: Sequence[str]) -> tuple[str, h5py.Dataset] | None:
        """The first of the places that holds numbers."""
        for place in places:
            item = self.file.get(place)  # None for a broken link, too
            if isinstance(item, h5py.Dataset):
                if item.dtype.kind not in "biufc":
                    self.fail(place, f"holds {item.dtype}, not numbers")
                _check_readable(self.path, place, item)
                return place, item
        for place in places:
            _check_link(self.path, self.file, place)
        return None

    def required(self, places: Sequence[str], what: str) -> tuple[str, h5py.Dataset]:
        """As `find`; `what`, such as `the frames are`, begins the error."""
        found = self.find(places)
        if found is None:
            raise ScanError(f"{self.path}: {what} missing; looked for {', '.join(places)}.")
        return found

    def optional(self, places: Sequence[str]) -> tuple[str, Real] | None:
        """The place and its values, or None."""
        found = self.find(places)
        return None if found is None else (found[0], np.asarray(found[1][()]))

    def scalar(self, *places: str) -> float | None:
        """One finite number, or None."""
        found = self.optional(places)
        if found is None:
            return None
        place, value = found
        if value.size != 1 or value.dtype.kind == "c":
            self.fail(place, f"holds an array of shape {value.shape}, not one real number")
        number = float(value.reshape(-1)[0])
        if not np.isfinite(number):
            self.fail(place, f"is {number}")
        return number

    def short_metadata(self) -> dict[str, Any]:
        """Numbers, texts and lists of a few names of `metadata`; arrays, such as all positions, are left out.

        JSON can hold them: a number that is none, such as NaN, is left out, too.
        """
        short = {name[:MAX_TEXT]: _short(value) for name, value in self.metadata.items()}
        return dict(
            list({name: value for name, value in short.items() if value is not None}.items())[:MAX_VALUES]
        )

    def _metadata(self) -> dict[str, Any]:
        item = self.file.get("metadata")
        if not isinstance(item, h5py.Dataset) or item.shape != ():
            return {}
        try:
            held = json.loads(item[()])
        except (TypeError, ValueError):
            return {}
        return held if isinstance(held, dict) else {}


def _short(value: Any) -> Any:
    """A value as it is shown to people; None: it is not short, or no value."""
    if isinstance(value, str):
        return value[:MAX_TEXT] or None
    if isinstance(value, bool) or (isinstance(value, (int, float)) and -LARGEST < value < LARGEST):
        return value
    if isinstance(value, list) and 0 < len(value) <= MAX_NAMES and all(isinstance(v, str) for v in value):
        return ", ".join(value)[:MAX_TEXT]
    return None


def _check_readable(path: Path, place: str, dataset: h5py.Dataset) -> None:
    """Refuse what HDF5 would fail on with no reason, or fill with zeros without a word.

    :raises ScanError: naming the compression filter, or the files, that are missing.
    """
    filters = dataset.id.get_create_plist()
    for index in range(filters.get_nfilters()):
        number, _, _, name = filters.get_filter(index)
        if not h5py.h5z.filter_avail(number):
            called = name.decode(errors="replace").strip() or "unnamed"
            raise ScanError(
                f"{path}: {place}: is compressed with the HDF5 filter {number} ({called}), which is not "
                "installed here. Write the file without it (h5repack -f NONE, where the filter is), or "
                "install the filter (such as with hdf5plugin) and name its folder in HDF5_PLUGIN_PATH."
            )
    missing = [*_missing_sources(path, dataset), *_missing_external(path, dataset)]
    if missing:
        raise ScanError(
            f"{path}: {place}: its data are kept in other files, and {len(missing)} of these are missing "
            f"here: {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}. Copy them too, or write "
            "the scan into one file (h5repack)."
        )


def _check_link(path: Path, file: h5py.File, place: str) -> None:
    """Refuse a link to another file that is not there.

    :raises ScanError: naming that file.
    """
    link = file.get(place, getlink=True)
    if isinstance(link, h5py.ExternalLink):  # and `find` could not open it
        raise ScanError(
            f"{path}: {place}: is a link to {link.path} in the file {link.filename}, which is missing here. "
            "Copy it too, or write the scan into one file (h5repack)."
        )


def _missing_sources(path: Path, dataset: h5py.Dataset) -> list[str]:
    """Sources of a virtual data set that are not there; HDF5 reads zeros where they should be."""
    if not dataset.is_virtual:
        return []
    missing = []
    for source in dataset.virtual_sources():
        name, inside = source.file_name, source.dset_name
        if "%b" in name:  # numbered files: HDF5 looks for one after the other
            name = name.replace("%b", "0")
        found = path if name == "." else _beside(path, name)
        if found is None:
            missing.append(name)
        elif found != path and not _holds(found, inside):
            missing.append(f"{inside} in {name}")
    return sorted(set(missing))


def _missing_external(path: Path, dataset: h5py.Dataset) -> list[str]:
    names = [name for name, _, _ in dataset.external or ()]
    return [name for name in names if _beside(path, name) is None]


def _beside(path: Path, name: str) -> Path | None:
    for candidate in (path.parent / name, Path(name)):
        if candidate.is_file():
            return candidate
    return None


def _holds(path: Path, place: str) -> bool:
    try:
        with h5py.File(path, "r", locking=False) as file:
            return place in file
    except OSError:
        return False
