"""What a reconstruction leaves behind: `<prefix>.cxi`, `.h5` (CDTools' layout), `.png`, the view, `.json`.

Each appears whole or not at all (a temporary name, then a rename), and the JSON comes last: where it
is, the reconstruction succeeded.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from reconstruction import VERSION, cdtools_file
from reconstruction.arrays import Bool, Real
from reconstruction.files import hdf5_image, write_whole
from reconstruction.preview import flattened, render, thumbnail
from reconstruction.scan import DATA, DETECTOR, SOURCE, Scan
from reconstruction.solver import Solution
from reconstruction.view import make_view

IMAGE = "entry_1/image_1"
MAX_ERRORS = 1000
SCANNED = 0.1  # of the bright illumination: what counts as having been scanned
ISLAND_CELLS = 128  # per axis
WELL_LIT = 0.4  # the same, and free of the rim's noise


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the figures say besides the solution.

    :param errors_are: what the error of an iteration measures.
    :param final_error: sqrt(sum (sqrt(measured) - sqrt(model))^2 / sum measured), or None when the last error
        is just that.
    :param resolution_m: half period, from two halves of the frames, or None.
    """

    engine: str
    parameters: dict[str, Any]
    seconds: float
    errors_are: str
    geometry: str = "far field"
    final_error: float | None = None
    resolution_m: float | None = None
    warnings: Sequence[str] = field(default_factory=tuple)


def remove_old(prefix: Path) -> None:
    """Take away the JSON of an earlier run, so that its presence speaks for this run."""
    _named(prefix, ".json").unlink(missing_ok=True)


def make_folder(prefix: Path) -> None:
    """Make the folder of the results and write to it; better now than at the end.

    :raises OSError: when that is not possible.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=prefix.parent, prefix=f".{prefix.name}."):
        pass


def write_result(prefix: Path, scan: Scan, solution: Solution, run: Run) -> dict[str, Any]:
    """Write all files; returns what the JSON holds."""
    region, well_lit = lit(solution.illuminated, SCANNED), lit(solution.illuminated, WELL_LIT)
    image = hdf5_image(lambda file: _fill(file, scan, solution, run, region))
    write_whole(_named(prefix, ".cxi"), image)
    del image  # as large as the object, twice
    model = hdf5_image(lambda file: cdtools_file.fill_file(file, scan, solution))
    write_whole(_named(prefix, ".h5"), model)
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    title = f"{scan.path.name}   {run.engine}   {solution.pixel[0] * 1e9:.3g} nm pixels"
    flat = flattened(solution.obj[box], well_lit[box])
    write_whole(_named(prefix, ".png"), render(flat, well_lit[box], solution.pixel, title))
    view = make_view(flat, region[box], well_lit[box], solution.pixel)
    for suffix, content in view.files.items():
        write_whole(_named(prefix, suffix), content)
    small = thumbnail(flat, well_lit[box], solution.pixel)
    figures = _figures(scan, solution, run) | {
        "view": view.about,
        "thumbnail_png": base64.b64encode(small).decode(),
    }
    write_whole(_named(prefix, ".json"), json.dumps(figures, indent=1, allow_nan=False).encode() + b"\n")
    return figures


def _named(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def lit(illuminated: Real, fraction: float) -> Bool:
    """Where the illumination was more than a fraction of that where most of the light fell.

    That is its mean, weighted by itself: a dark margin, which oversampling makes wide, has no part in it.
    Only what is joined to the brightest place counts: around an oversampled probe are faint copies of it.
    """
    power = illuminated.astype(np.float64)
    bright: Bool = illuminated > fraction * (power**2).sum() / max(float(power.sum()), 1e-30)
    cell = -(-max(bright.shape) // ISLAND_CELLS)
    rows, columns = (-(-n // cell) for n in bright.shape)
    padded = np.zeros((rows * cell, columns * cell))
    padded[: bright.shape[0], : bright.shape[1]] = np.where(bright, power, 0.0)
    cells = padded.reshape(rows, cell, columns, cell).sum(axis=(1, 3))
    joined = np.kron(_joined_to_the_brightest(cells), np.ones((cell, cell), dtype=np.bool_))
    found: Bool = bright & joined[: bright.shape[0], : bright.shape[1]]
    return found


def _joined_to_the_brightest(cells: Real) -> Bool:
    island = np.zeros(np.add(cells.shape, 2), dtype=np.bool_)
    inner = island[1:-1, 1:-1]
    inner.flat[int(cells.argmax())] = True
    size = 0
    while size != (size := int(inner.sum())):
        for axis in (0, 1):
            island |= np.roll(island, 1, axis) | np.roll(island, -1, axis)
        inner &= cells > 0
        island[[0, -1]] = island[:, [0, -1]] = False
    return inner


def _figures(scan: Scan, solution: Solution, run: Run) -> dict[str, Any]:
    errors = [float(f"{error:.6g}") for error in solution.errors]
    final = errors[-1] if run.final_error is None else float(f"{run.final_error:.6g}")
    step = -(-len(errors) // MAX_ERRORS)
    return {
        "engine": run.engine,
        "version": VERSION,
        "scan": str(scan.path),
        "parameters": run.parameters,
        "geometry": run.geometry,
        "frames": len(scan.frames),
        "iterations": len(errors),
        "seconds": round(run.seconds, 3),
        "errors_are": run.errors_are,
        "errors": errors[::step] if step > 1 else errors,
        "final_error": final,  # the same measure for all engines
        "pixel_size_m": [float(p) for p in solution.pixel],
        "object_shape": list(solution.obj.shape),
        "energy_ev": round(scan.energy_ev, 4),
        "wavelength_m": float(f"{scan.wavelength:.8g}"),
        "resolution_m": run.resolution_m,
        "scale": float((np.abs(solution.probe) ** 2).sum()),  # counts that the probe brings to a frame
        "notes": list(scan.notes),  # how what is ambiguous in the file was read
        "warnings": [*scan.warnings, *run.warnings],
        "metadata": dict(scan.metadata),
    }


def _fill(file: h5py.File, scan: Scan, solution: Solution, run: Run, region: Bool) -> None:
    file["cxi_version"] = 160
    file["number_of_entries"] = 1
    file["entry_1/program_name"] = f"{run.engine} {VERSION}"
    image = file.create_group(IMAGE)
    image["data"] = solution.obj
    image["data"].attrs.update(units="transmission (complex, no unit)", axes="y:x")
    image["data_space"], image["data_type"] = "real", "transmission"
    image["dimensionality"], image["is_fft_shifted"] = 2, 0
    image["mask"] = np.where(region, 0, 1).astype(np.uint32)  # CXI: zero is good
    image["mask"].attrs["meaning"] = "1 where the illumination did not reach"
    image["illumination"] = solution.illuminated
    image["illumination"].attrs["units"] = "counts"
    _metres(image, "pixel_size", solution.pixel)
    _metres(image, "image_size", solution.pixel * np.array(solution.obj.shape))
    _metres(image, "origin", solution.corner * solution.pixel)
    image["origin"].attrs["meaning"] = (
        "centre of pixel (0, 0) along the detector's axes, minus the sample's translation"
    )
    image["process_1/command"] = run.engine
    image["process_1/parameters"] = json.dumps(run.parameters)
    image["process_1/errors"] = np.array(solution.errors)
    image["process_1/errors"].attrs["meaning"] = run.errors_are
    # Where ptychocam puts them: arrays like a frame.
    image["process_1/final_illumination"] = solution.probe[0]
    image["process_1/final_illumination"].attrs.update(units="square root of counts", axes="y:x")
    if solution.background is not None:
        image["process_1/final_background"] = solution.background
        image["process_1/final_background"].attrs["units"] = "counts"
    file["entry_1/image_latest"] = h5py.SoftLink(f"/{IMAGE}")
    file[f"{DATA}/data"] = h5py.SoftLink(f"/{IMAGE}/data")
    source = file.create_group(SOURCE)
    source["illumination"] = solution.probe
    source["illumination"].attrs.update(units="square root of counts", axes="mode:y:x")
    _metres(source, "illumination_pixel_size", solution.pixel)
    source["energy"], source["wavelength"] = scan.energy_ev * 1.602176634e-19, scan.wavelength
    source["energy"].attrs["units"], source["wavelength"].attrs["units"] = "J", "m"
    detector = file.create_group(DETECTOR)
    _metres(detector, "distance", scan.distance)
    _metres(detector, "basis_vectors", scan.basis)
    _metres(detector, "corner_position", _corner(scan))
    if solution.background is not None:
        detector["background"] = solution.background
        detector["background"].attrs["units"] = "counts"
    _metres(file, "entry_1/sample_1/geometry_1/translation", scan.translations)


def _corner(scan: Scan) -> Real:
    """Where the detector's first corner is as seen from the sample, meters, (x, y, z)."""
    normal = np.cross(scan.basis[:, 0], scan.basis[:, 1])
    normal *= np.copysign(scan.distance / np.linalg.norm(normal), normal[2])
    corner: Real = normal - scan.basis @ np.array(scan.detector_shape) / 2
    return corner


def _metres(group: h5py.Group, name: str, value: Any) -> None:
    group[name] = value
    group[name].attrs["units"] = "m"
