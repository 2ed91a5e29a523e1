"""Whether the object's pixels are too large or too small: a distance, an energy or positions that are wrong.

An object's pixel is wavelength times distance over the detector's width. When it is wrong by a factor so are
all positions, in pixels, and no reconstruction comes near to the frames. With the right factor one does soon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from reconstruction.geometry import Magnification, far_field_pixel, object_shape
from reconstruction.illumination import first_guesses, try_out
from reconstruction.scan import Scan

FACTORS = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 2.0, 3.0, 4.0)
MAX_GUESSES = 4  # the likeliest first illuminations
DETERMINED = 6.0  # measured pixels for each pixel of the object: with fewer, anything can be explained
CLEARLY = 0.6  # of the error as the file has it, and of the errors with most other factors


def wrong_scale(scan: Scan, measured: Magnification, *, expected: float) -> str:
    """What is wrong by which factor, for a person; empty when no other scale explains the frames.

    It takes a few iterations with each factor, on neighboring frames.

    :param scan: of which a reconstruction has not come near to the frames, or which seems to be near field.
    :param expected: meters from the focus to the sample, as the beamline is set up.
    """
    errors = {factor: _error(scan, factor, measured, expected) for factor in FACTORS}
    best = min(errors, key=errors.__getitem__)
    if not _stands_out(errors, best):
        return ""
    return (
        f"A distance of {scan.distance * best:.3g} m, {best:.3g} times that in the file, explains the frames "
        f"(error {errors[best]:.2g} after a few iterations, not {errors[1.0]:.2g}): the distance of "
        f"{scan.distance:.3g} m, the energy of {scan.energy_ev:.4g} eV, the detector's pixel size, or the "
        "positions' unit is wrong by about this factor. Correct it and reconstruct again."
    )


def _stands_out(errors: Mapping[float, float], best: float) -> bool:
    others = [error for factor, error in errors.items() if factor != best and np.isfinite(error)]
    return bool(
        best != 1.0
        and np.isfinite(errors[1.0])
        and len(others) > 2
        and errors[best] < CLEARLY * min(float(np.median(others)), errors[1.0])
    )


def _error(scan: Scan, factor: float, measured: Magnification, expected: float) -> float:
    """After the first iterations; infinite where these frames cannot tell."""
    other = replace(scan, distance=scan.distance * factor)
    try:
        pixels = np.prod(object_shape(other, far_field_pixel(other)))
        if scan.frames.size < DETERMINED * float(pixels):
            return np.inf
        trial = try_out(other, first_guesses(other, measured, expected=expected)[:MAX_GUESSES])
    except (ValueError, FloatingPointError):  # too large an object; or it has diverged
        return np.inf
    return min(trial.errors.values())
