"""Compares a reconstruction with the truth of a synthetic scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from reconstruction.arrays import Bool, Complex, Real
from reconstruction.frc import align, ring_correlation

IMAGE = "entry_1/image_1"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Over the scanned region only.

    :param correlation: 0 to 1, of the two complex transmissions without their means, after alignment;
        without the mean, so that an empty image scores nothing.
    :param resolution_nm: half period at which the Fourier ring correlation with the truth falls below
        one half, or None when it never was above.
    :param shift_nm: how far the object was moved to match, (rows, columns).
    """

    correlation: float
    resolution_nm: float | None
    shift_nm: tuple[float, float]

    def describe(self) -> str:
        """One line for a table."""
        resolution = "none" if self.resolution_nm is None else f"{self.resolution_nm:.1f} nm"
        return f"correlation {self.correlation:.3f}, resolution {resolution}"


def compare_with_truth(reconstruction: Path, truth: Path) -> Comparison:
    """Compare the object in a reconstruction's CXI file with the truth that `make_scan` wrote.

    :raises ValueError: when the two cannot be of one scan.
    """
    with h5py.File(reconstruction, "r") as file:
        obj, scanned = file[f"{IMAGE}/data"][()], file[f"{IMAGE}/mask"][()] == 0
        pixel, origin = file[f"{IMAGE}/pixel_size"][()], file[f"{IMAGE}/origin"][()]
    with h5py.File(truth, "r") as file:
        true_obj, true_pixel, true_origin = file["object"][()], file["pixel_size"][()], file["origin"][()]
    region = largest_box(scanned)
    true_view = _resampled(true_obj, true_pixel, origin_of=(region, origin, pixel), true_origin=true_origin)
    aligned, shift = align(obj[region], true_view)
    inside = _inner(aligned.shape, shift)
    rings = ring_correlation(aligned[inside], true_view[inside], pixel)
    resolution = rings.resolution(0.5)
    return Comparison(
        correlation=complex_correlation(aligned[inside], true_view[inside]),
        resolution_nm=None if resolution is None else 1e9 * resolution,
        shift_nm=(float(shift[0] * pixel[0] * 1e9), float(shift[1] * pixel[1] * 1e9)),
    )


def largest_box(scanned: Bool) -> tuple[slice, slice]:
    """The bounding box, shrunk side by side until nine tenths of each side are scanned."""
    rows, columns = np.flatnonzero(scanned.any(axis=1)), np.flatnonzero(scanned.any(axis=0))
    if not len(rows):
        raise ValueError("The reconstruction's mask says that nothing was scanned.")
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    while bottom - top > 16 and right - left > 16:
        box = scanned[top:bottom, left:right]
        sides = {"top": box[0], "bottom": box[-1], "left": box[:, 0], "right": box[:, -1]}
        worst = min(sides, key=lambda side: float(sides[side].mean()))
        if sides[worst].mean() >= 0.9:
            break
        top, bottom = top + (worst == "top"), bottom - (worst == "bottom")
        left, right = left + (worst == "left"), right - (worst == "right")
    return slice(top, bottom), slice(left, right)


def _inner(shape: tuple[int, ...], shift: Real) -> tuple[slice, slice]:
    """Without the edges, which an alignment in Fourier space wraps around; a quarter of a side at most."""
    moved = np.ceil(np.abs(shift)).astype(int) + 1
    rows, columns = (max(2, n // 20, min(n // 4, int(k))) for n, k in zip(shape, moved, strict=True))
    return slice(rows, -rows), slice(columns, -columns)


def _resampled(
    true_obj: Complex,
    true_pixel: Real,
    *,
    origin_of: tuple[tuple[slice, slice], Real, Real],
    true_origin: Real,
) -> Complex:
    """The truth, low-passed to the reconstruction's pixels, at the region's place."""
    region, origin, pixel = origin_of
    factor = pixel / true_pixel
    whole = np.round(factor).astype(int)
    if np.abs(factor - whole).max() > 0.01 or (whole < 1).any():
        raise ValueError(
            f"The pixels, {pixel} m, are no multiple of the truth's {true_pixel} m: another scan?"
        )
    start = (origin + np.array([region[0].start, region[1].start]) * pixel - true_origin) / true_pixel
    begin = np.round(start).astype(int)
    size = np.array([region[0].stop - region[0].start, region[1].stop - region[1].start]) * whole
    if (begin < 0).any() or (begin + size > true_obj.shape).any():
        raise ValueError(
            f"The scanned region, from {begin} by {size} pixels, is not within the truth: another scan?"
        )
    fine = true_obj[begin[0] : begin[0] + size[0], begin[1] : begin[1] + size[1]]
    # Means of whole cells, whose centres lie (whole - 1) / 2 further on; the alignment takes up the rest.
    cells = fine.reshape(size[0] // whole[0], whole[0], size[1] // whole[1], whole[1])
    coarse: Complex = cells.mean(axis=(1, 3))
    return coarse


def complex_correlation(first: Complex, second: Complex) -> float:
    a, b = first - first.mean(), second - second.mean()
    return float(abs(np.vdot(a, b)) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))
