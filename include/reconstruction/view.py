"""Amplitude and phase for the viewer on a scan's page: every pixel, in files that NERSC's API can hand out.

Each is gzip of uint16, row by row: the high bytes of all pixels, then the low bytes (a tenth smaller so). 0
is a pixel that was not scanned; any other n stands for `low + (n - 1) / 65534 * (high - low)`, and the ends
also for all that is beyond them. A picture that is larger than a file may be is cut into pieces, to be put
together again before they are unpacked.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Any

import numpy as np

from reconstruction.arrays import Bool, Complex, Real

MAX_BYTES = 5_000_000  # of a file; the API hands out 5,242,880
MAX_PIECES = 4  # files of a picture: ten million pixels
TOP = 65535
COARSE = 16  # steps of the numbers where every pixel fits only so: 4096 values are left
RIM = 4.0  # times the range of the well lit part: what is beyond it is noise of the rim


@dataclass(frozen=True)
class View:
    """Files by suffix, and what the figures say of them.

    `about` has `shape` (rows, columns) and `pixel_size_m`, both of the pictures; `binned`: how many pixels of
    the object, per axis, one of them is the mean of; and for `amplitude` and `phase` (rad) each `pieces`
    (files), `low` and `high`, `step` (of the numbers), and `black` and `white`, a range that shows it well.
    """

    files: dict[str, bytes]
    about: dict[str, Any]


def make_view(flat: Complex, scanned: Bool, well_lit: Bool, pixel: Real) -> View:
    """The files; pictures that `MAX_PIECES` of `MAX_BYTES` do not hold are binned by two.

    :param flat: complex, (rows, columns), without a ramp of the phase: `reconstruction.preview.flattened`.
    :param scanned: like flat; the rest is left out.
    :param well_lit: like flat, the part that sets the range.
    :param pixel: meters, (rows, columns).
    """
    binned = 1
    while True:
        parts = {
            "amplitude": _part(np.abs(flat), scanned, well_lit),
            "phase": _part(np.angle(flat), scanned, well_lit, bound=np.pi),
        }
        if all(_fits(content) for content, _ in parts.values()) or min(flat.shape) < 4:
            break
        flat, scanned, well_lit = _halved(flat, scanned, well_lit)
        binned *= 2
    files: dict[str, bytes] = {}
    about: dict[str, Any] = {
        "shape": list(flat.shape),
        "pixel_size_m": [float(p) * binned for p in pixel],
        "binned": binned,
    }
    for name, (content, scale) in parts.items():
        pieces = [content[at : at + MAX_BYTES] for at in range(0, len(content), MAX_BYTES)]
        about[name] = {"pieces": len(pieces), **scale}
        files |= {f"_view_{name}{f'_{n}' if n > 1 else ''}.gz": piece for n, piece in enumerate(pieces, 1)}
    return View(files, about)


def _fits(content: bytes) -> bool:
    return len(content) <= MAX_PIECES * MAX_BYTES


def _part(
    values: Real, scanned: Bool, well_lit: Bool, bound: float = np.inf
) -> tuple[bytes, dict[str, float]]:
    """A picture, and how its numbers are read."""
    black, white = (float(v) for v in np.percentile(values[well_lit], (0.5, 99.5)))
    margin = RIM * max(white - black, 1e-6)
    low = max(float(values[scanned].min()), black - margin, -bound)
    high = max(min(float(values[scanned].max()), white + margin, bound), low + 1e-6)
    numbers = np.clip((values - low) / (high - low), 0.0, 1.0) * (TOP - 1)
    for step in (1, COARSE):
        whole = 1 + np.minimum(np.round(numbers / step) * step, TOP - 1)
        pixels = np.where(scanned, whole, 0).astype(np.uint16)
        planes = np.stack((pixels >> 8, pixels & 255)).astype(np.uint8)
        content = gzip.compress(planes.tobytes(), 6, mtime=0)
        if _fits(content):
            break
    scale = {"low": low, "high": high, "black": black, "white": white}
    return content, {name: float(f"{value:.7g}") for name, value in scale.items()} | {"step": step}


def _halved(flat: Complex, scanned: Bool, well_lit: Bool) -> tuple[Complex, Bool, Bool]:
    """Means of two by two pixels; an odd row or column at the end is left out."""
    rows, columns = (n // 2 for n in flat.shape)

    def cells(array: Any) -> Any:
        return array[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2)

    counted = np.maximum(cells(scanned).sum(axis=(1, 3)), 1)
    mean = cells(np.where(scanned, flat, 0)).sum(axis=(1, 3)) / counted
    return mean, cells(scanned).any(axis=(1, 3)), cells(well_lit).any(axis=(1, 3))
