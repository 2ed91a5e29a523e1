"""`stack.sh`: [-e ENGINE] [-n ENERGIES] FOLDER/SCAN makes one aligned stack of energies for each region.

SCAN is what all files of a scan begin with, such as NS_230216033. The newest result of each energy is taken
from FOLDER, `<SCAN>_ccdframes_<energy>_<region>_<engine>*.cxi`; -e is needed where two engines have results.
An energy is missing when its scan is in the folder, another region has it, or -n says that there are more:
it is left out, with a warning.

Each stack is `FOLDER/<SCAN>_<engine>_stack_<region>.nxs`, NXstxm as MANTiS opens it: group `counter0` has the
transmission |O|^2 and group `phase` the phase. All energies lie on the grid of the finest one, along x and y,
where all of them were scanned; `alignment` has the shifts. The `.json` beside it lists the energies in it. In
memory are one energy and the reference.
"""

from __future__ import annotations

import getopt
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from reconstruction.arrays import Bool, Complex, Real
from reconstruction.files import replaced, write_whole
from reconstruction.frc import align, mean_gradient, ramp
from reconstruction.program import UsageError, run, whole_number
from reconstruction.result import IMAGE
from reconstruction.scan import DETECTOR, ELECTRON_VOLT, SOURCE, ScanError

USAGE = "stack.sh [-e ENGINE] [-n ENERGIES] FOLDER/SCAN"
MAX_ENERGIES, MAX_REGIONS = 200, 4
ALIKE = 0.3  # correlation with the reference from which on a shift is believed
TAPS = 3  # half width of the interpolation (Lanczos), in pixels
MIN_SIDE = 16  # pixels that all energies share


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What the command line says; `engine` None: the only one that has results."""

    folder: Path
    scan: str
    engine: str | None = None
    energies: int = 0


@dataclass(frozen=True, kw_only=True)
class Energy:
    """One result; lengths in meters, pairs are (y, x), both growing with the index.

    :param origin: centre of the object's pixel (0, 0).
    :param box: first pixel of the scanned field and the one after its last, (2, 2).
    :param shift: by how much the image is to be moved.
    :param alike: correlation with the reference after it, 0 to 1.
    """

    index: int
    path: Path
    energy_ev: float
    error: float
    pixel: Real
    origin: Real
    box: Real
    contrast: float
    shift: Real
    alike: float = 1.0

    @property
    def field(self) -> Real:
        """Where the scanned field begins and ends once it is moved, (2, 2)."""
        ends: Real = self.origin + (self.box - [[0, 0], [1, 1]]) * self.pixel + self.shift
        return ends


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The pixels of a stack: centre of pixel (0, 0) and pixel size in meters, and how many, (y, x)."""

    origin: Real
    pixel: Real
    shape: tuple[int, int]


def parse(arguments: list[str]) -> Chosen:
    """What to do, from the command line.

    :raises UsageError: saying what is wrong.
    """
    try:
        options, operands = getopt.getopt(arguments, "e:n:")
    except getopt.GetoptError as error:
        raise UsageError(str(error)) from error
    given = dict(options)
    if len(operands) != 1 or not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9._-]*_[0-9]{9,}", Path(operands[0]).name
    ):
        raise UsageError(f"exactly one FOLDER/SCAN is wanted, such as 230216/NS_230216033; got {operands}")
    engine = given.get("-e")
    if engine is not None and not re.fullmatch("[a-z]+", engine):
        raise UsageError(f"-e is {engine!r}; it takes the name of an engine, such as cdtools")
    energies = whole_number(given["-n"], "-n", low=1, high=MAX_ENERGIES) if "-n" in given else 0
    path = Path(operands[0])
    return Chosen(folder=path.parent, scan=path.name, engine=engine, energies=energies)


def make_stacks(chosen: Chosen) -> list[Path]:
    """Write the stack of each region; returns where they are.

    :raises ScanError: no energy of the scan has a result, or those of a region share no field.
    """
    engine, results = find_results(chosen)
    scanned = {(i, j) for i, j, rest in _files(chosen) if rest == ".cxi"} | set(results)
    regions = sorted({j for _, j in scanned})
    indexes = sorted({i for i, _ in scanned} | set(range(chosen.energies)))
    if len(indexes) > MAX_ENERGIES or len(regions) > MAX_REGIONS:
        raise ScanError(
            f"{chosen.folder / chosen.scan}: {len(indexes)} energies of {len(regions)} regions; "
            f"a scan has at most {MAX_ENERGIES} and {MAX_REGIONS}."
        )
    made = []
    for region in regions:
        paths = {i: results[i, region] for i in indexes if (i, region) in results}
        missing = [i for i in indexes if i not in paths]
        energies = list(_readable(paths, missing))
        if missing:
            names = ", ".join(f"{chosen.scan}_ccdframes_{i}_{region}" for i in sorted(missing))
            missed = f"{len(missing)} of {len(indexes)} energies have no result"
            print(f"warning: region {region}: {missed}: {names}", flush=True)
        if not energies:
            continue
        target = chosen.folder / f"{chosen.scan}_{engine}_stack_{region}.nxs"
        write_stack(
            target, aligned(energies), title=f"{chosen.scan}, region {region}, {engine}", missing=missing
        )
        _write_summary(target.with_suffix(".json"), energies, missing)
        print(f"region {region}: {len(energies)} of {len(indexes)} energies: {target}", flush=True)
        made.append(target)
    if not made:
        raise ScanError(f"{chosen.folder / chosen.scan}: no result of {engine} can be read.")
    return made


def _files(chosen: Chosen) -> Iterator[tuple[int, int, str]]:
    """Energy, region and the rest of the name of each file of the scan."""
    pattern = re.compile(re.escape(chosen.scan) + r"_ccdframes_([0-9]{1,4})_([0-9]{1,4})(\D.*)")
    for path in sorted(chosen.folder.iterdir()):
        if match := pattern.fullmatch(path.name):
            yield int(match[1]), int(match[2]), match[3]


def find_results(chosen: Chosen) -> tuple[str, dict[tuple[int, int], Path]]:
    """The engine, and the newest complete result of each energy and region.

    :raises ScanError: there is none, or they are of two engines and none was chosen.
    """
    if not chosen.folder.is_dir():
        raise ScanError(f"{chosen.folder}: there is no such folder.")
    found: dict[str, dict[tuple[int, int], Path]] = {}
    ages: dict[Path, float] = {}
    for i, j, rest in _files(chosen):
        match = re.fullmatch(r"_([a-z]+)(?:_r[0-9]+|_[0-9a-f]{8})?\.json", rest)
        path = chosen.folder / f"{chosen.scan}_ccdframes_{i}_{j}{rest.removesuffix('.json')}.cxi"
        if match and chosen.engine in (None, match[1]) and path.is_file():
            ages[path] = path.with_suffix(".json").stat().st_mtime
            newest = found.setdefault(match[1], {})
            newest[i, j] = max(path, newest.get((i, j), path), key=ages.__getitem__)
    if len(found) != 1:
        names = f"{chosen.scan}_ccdframes_<energy>_<region>_{chosen.engine or '<engine>'}.cxi and .json"
        several = f"results of {' and '.join(sorted(found))}; choose one with -e"
        raise ScanError(f"{chosen.folder}/{names}: {several if found else 'there is none'}.")
    return found.popitem()


def _readable(paths: dict[int, Path], missing: list[int]) -> Iterator[Energy]:
    """The energies whose result can be read; the others are added to those that are missing."""
    for index, path in paths.items():
        try:
            yield read_energy(index, path)
        except ScanError as error:
            print(f"warning: {error}", flush=True)
            missing.append(index)


def read_energy(index: int, path: Path) -> Energy:
    """What there is to know of a result without its object.

    :raises ScanError: it is damaged, or no result of ours.
    """
    obj, pixel, origin, scanned = _read_object(path)
    box = _largest_box(scanned)
    inside = np.abs(obj[box[0, 0] : box[1, 0], box[0, 1] : box[1, 1]])
    try:
        with h5py.File(path, "r") as file:
            energy_ev = float(file[f"{SOURCE}/energy"][()]) / ELECTRON_VOLT
        figures = json.loads(path.with_suffix(".json").read_text())
        error = float(figures["final_error"])
    except (OSError, KeyError, TypeError, ValueError) as wrong:
        raise ScanError(f"{path}: has no energy or no final error ({wrong}).") from wrong
    return Energy(
        index=index,
        path=path,
        energy_ev=energy_ev,
        error=error,
        pixel=pixel,
        origin=origin,
        box=box,
        contrast=float(inside.std() / inside.mean()) if inside.size else 0.0,
        shift=np.zeros(2),
    )


def _read_object(path: Path) -> tuple[Complex, Real, Real, Bool]:
    """Object, pixel, origin and where it was scanned, turned so that its indexes grow with y and with x."""
    try:
        with h5py.File(path, "r") as file:
            obj, scanned = file[f"{IMAGE}/data"][()], file[f"{IMAGE}/mask"][()] == 0
            pixel, origin = file[f"{IMAGE}/pixel_size"][()], file[f"{IMAGE}/origin"][()]
            basis = file[f"{DETECTOR}/basis_vectors"][()]
    except (OSError, KeyError) as error:
        raise ScanError(f"{path}: a damaged result ({error}).") from error
    if not scanned.any() or not np.isfinite(obj).all():
        raise ScanError(f"{path}: nothing was scanned, or the object is not finite.")
    if abs(basis[0, 0]) > abs(basis[1, 0]):  # the detector's rows go along x
        obj, scanned, pixel, origin, basis = obj.T, scanned.T, pixel[::-1], origin[::-1], basis[:, ::-1]
    for axis, along in enumerate((basis[1, 0], basis[0, 1])):
        if along < 0:
            obj, scanned = np.flip(obj, axis), np.flip(scanned, axis)
            origin = origin.copy()
            origin[axis] = -(origin[axis] + (obj.shape[axis] - 1) * pixel[axis])
    return obj, pixel, origin, scanned


def _largest_box(scanned: Bool) -> Real:
    """The bounding box, shrunk side by side until nine tenths of each side are scanned."""
    rows, columns = np.flatnonzero(scanned.any(axis=1)), np.flatnonzero(scanned.any(axis=0))
    box = np.array([[rows[0], columns[0]], [rows[-1] + 1, columns[-1] + 1]])
    while (box[1] - box[0]).min() > MIN_SIDE:
        view = scanned[box[0, 0] : box[1, 0], box[0, 1] : box[1, 1]]
        filled = np.array([[view[0].mean(), view[:, 0].mean()], [view[-1].mean(), view[:, -1].mean()]])
        end, axis = np.unravel_index(int(filled.argmin()), filled.shape)
        if filled[end, axis] >= 0.9:
            break
        box[end, axis] += 1 if end == 0 else -1
    return box


def aligned(energies: Sequence[Energy]) -> list[Energy]:
    """The energies in order, each with its shift onto one of them.

    That one has the strongest contrast of those whose error is not above twice the median's.
    """
    usual = 2 * float(np.median([energy.error for energy in energies]))
    reference = max((e for e in energies if e.error <= usual), key=lambda energy: energy.contrast)
    grid = common_grid(energies)
    target = on_grid(reference, grid)
    moved = []
    for energy in sorted(energies, key=lambda energy: (energy.energy_ev, energy.index)):
        found = energy if energy is reference else _onto(energy, target, grid)
        if found.alike < ALIKE:
            print(
                f"warning: {energy.path.name} was not moved: it resembles the reference at "
                f"{reference.energy_ev:.2f} eV too little (correlation {found.alike:.2f})",
                flush=True,
            )
            found = replace(found, shift=np.zeros(2))
        moved.append(found)
    return moved


def _onto(energy: Energy, target: Complex, grid: Grid) -> Energy:
    image, shift = align(on_grid(energy, grid), target, rounds=2)
    edges = np.minimum(np.ceil(np.abs(shift)).astype(int) + 1, np.array(grid.shape) // 4)
    inner = np.s_[edges[0] : -edges[0], edges[1] : -edges[1]]
    # Without the phase's ramp, which is arbitrary, and the means, in which all energies are alike.
    flat = ramp(target.shape, -mean_gradient(target))
    first, second = (array[inner] - array[inner].mean() for array in (image * flat, target * flat))
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return replace(
        energy, shift=shift * grid.pixel, alike=float(abs(np.vdot(first, second))) / max(norm, 1e-30)
    )


def common_grid(energies: Sequence[Energy]) -> Grid:
    """The finest pixels among the energies, where all of them were scanned.

    :raises ScanError: they share less than 16 pixels.
    """
    pixel = np.min([energy.pixel for energy in energies], axis=0)
    start = np.max([energy.field[0] for energy in energies], axis=0)
    stop = np.min([energy.field[1] for energy in energies], axis=0)
    shape = np.floor((stop - start) / pixel + 1e-6).astype(int) + 1
    if shape.min() < MIN_SIDE:
        raise ScanError(
            f"{energies[0].path}: it and the other energies share a field of {shape[0]} by {shape[1]} "
            "pixels; are they of one region?"
        )
    return Grid(origin=start, pixel=pixel, shape=(int(shape[0]), int(shape[1])))


def on_grid(energy: Energy, grid: Grid) -> Complex:
    """The energy's object, moved by its shift and interpolated at the grid's pixels."""
    image = _read_object(energy.path)[0]
    for axis in (0, 1):
        places = grid.origin[axis] + np.arange(grid.shape[axis]) * grid.pixel[axis] - energy.shift[axis]
        image = np.moveaxis(
            _interpolated(np.moveaxis(image, axis, 0), (places - energy.origin[axis]) / energy.pixel[axis]),
            0,
            axis,
        )
    return image


def _interpolated(image: Complex, places: Real) -> Complex:
    """Rows of the image at places between its rows; the outermost rows go on beyond the edges."""
    whole = np.floor(places).astype(int)
    offsets = np.arange(1 - TAPS, TAPS + 1)
    distances = (places - whole)[:, None] - offsets
    weights = np.sinc(distances) * np.sinc(distances / TAPS)
    weights /= weights.sum(axis=1, keepdims=True)
    out: Complex = np.zeros((len(places), image.shape[1]), dtype=image.dtype)
    for column, offset in enumerate(offsets):
        rows = np.clip(whole + offset, 0, len(image) - 1)
        out += weights[:, column, None].astype(np.float32) * image[rows]
    return out


def write_stack(path: Path, energies: Sequence[Energy], *, title: str, missing: Sequence[int]) -> None:
    """Write the stack of energies that have their shifts, whole or not at all.

    :raises ScanError: the disk has too little room.
    """
    grid = common_grid(energies)
    needed = 2 * 4 * len(energies) * grid.shape[0] * grid.shape[1] + 2**20
    free = shutil.disk_usage(path.parent).free
    if free < needed:  # on a full disk the HDF5 library crashes the process
        raise ScanError(f"{path}: needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free.")
    with replaced(path) as temporary, h5py.File(temporary, "w") as file:
        entry = _group(file, "entry0", "NXentry")
        entry["definition"], entry["title"] = _texts("NXstxm"), _texts(title)
        transmission = _data_group(entry, "counter0", energies, grid, "transmission, |O|^2")
        phase = _data_group(entry, "phase", energies, grid, "phase of O, rad, without its mean and its ramp")
        for number, energy in enumerate(energies):
            obj = on_grid(energy, grid)
            obj *= ramp(grid.shape, -mean_gradient(obj))
            transmission[number] = np.abs(obj) ** 2
            phase[number] = np.angle(obj * np.exp(-1j * np.angle(obj.sum())))
        _alignment(entry, energies, missing)


def _write_summary(path: Path, energies: Sequence[Energy], missing: Sequence[int]) -> None:
    """Write which energies are in the stack beside it, with the job that made it."""
    values = {
        "job_id": os.environ.get("SLURM_JOB_ID"),
        "energy_index": sorted(energy.index for energy in energies),
        "missing_energy_index": sorted(missing),
    }
    write_whole(path, json.dumps(values).encode())


def _group(parent: h5py.Group, name: str, kind: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = kind
    return group


def _texts(*texts: str) -> Any:
    return np.array([text.encode() for text in texts])


def _data_group(
    entry: h5py.Group, name: str, energies: Sequence[Energy], grid: Grid, meaning: str
) -> h5py.Dataset:
    """The axes of a stack, and its frames, which are still to be written."""
    group = _group(entry, name, "NXdata")
    group.attrs["signal"], group.attrs["axes"] = "data", _texts("energy", "sample_y", "sample_x")
    group["stxm_scan_type"] = _texts("sample image stack")
    _values(group, "energy", [energy.energy_ev for energy in energies], "eV")
    for axis, coordinate in enumerate(("sample_y", "sample_x")):
        places = grid.origin[axis] + np.arange(grid.shape[axis]) * grid.pixel[axis]
        _values(group, coordinate, places * 1e6, "um")
    group["count_time"] = np.zeros(len(energies))  # MANTiS wants it; what was measured is not known here
    frames = group.create_dataset("data", (len(energies), *grid.shape), np.float32)
    frames.attrs["long_name"] = meaning
    return frames


def _alignment(entry: h5py.Group, energies: Sequence[Energy], missing: Sequence[int]) -> None:
    group = _group(entry, "alignment", "NXprocess")
    _values(group, "shift", [energy.shift * 1e6 for energy in energies], "um")
    group["shift"].attrs["meaning"] = "by how much each energy was moved, (y, x)"
    group["correlation"] = [energy.alike for energy in energies]
    group["energy_index"] = [energy.index for energy in energies]
    group["missing_energy_index"] = np.array(sorted(missing), dtype=np.int64)
    group["result"] = _texts(*(energy.path.name for energy in energies))


def _values(group: h5py.Group, name: str, values: Any, units: str) -> None:
    group[name] = np.asarray(values, dtype=np.float64)
    group[name].attrs["units"] = units


def main() -> int:
    """The command."""

    def work() -> None:
        make_stacks(parse(sys.argv[1:]))

    return run("stack", USAGE, work)


if __name__ == "__main__":
    sys.exit(main())
