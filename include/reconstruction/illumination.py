"""The first guess of the probe, and where the bare beam may be on the detector."""

from __future__ import annotations

import numpy as np

from reconstruction.arrays import Bool, Complex, Real
from reconstruction.geometry import (
    far_field_pixel,
    focus_to_sample,
    inverse_far_field,
    measure_magnification,
    propagate,
)
from reconstruction.scan import Scan

BRIGHT = 0.05  # of the mean frame's peak: what belongs to the beam itself, not to what the sample scattered


def first_probe(scan: Scan) -> tuple[Complex, str]:
    """A guess of the probe at the sample, complex64, like a frame, and where it comes from.

    The file's own illumination when it has one. Otherwise the mean frame's amplitude brought back to the
    focus, and from there to the sample: over the distance that the file states, or else over the one
    that the movement of the sample's shadow gives.
    """
    if scan.illumination is not None:
        return scan.illumination, "the illumination in the file"
    amplitude = np.sqrt(np.where(illumination_mask(scan), _mean_frame(scan), 0.0))
    focus = inverse_far_field(amplitude.astype(np.complex64))
    if scan.defocus is not None:
        distance, source = scan.defocus, "stated in the file"
    else:
        measured = measure_magnification(scan)
        # A slope near zero would be a distance far beyond any focused beam's: then leave the focus as it is.
        distance = focus_to_sample(scan, measured.value) if measured.reliable else 0.0
        source = f"measured from the frames, correlation {measured.correlation:.2f}"
    probe = propagate(focus, pixel=far_field_pixel(scan), wavelength=scan.wavelength, distance=distance)
    return probe, f"the mean frame, {distance * 1e6:.3g} um from the focus ({source})"


def illumination_mask(scan: Scan) -> Bool:
    """The file's illumination mask, or the bright field of the mean frame and two pixels around it."""
    if scan.illumination_mask is not None:
        return scan.illumination_mask
    mean = _mean_frame(scan)
    mask: Bool = mean > BRIGHT * float(np.percentile(mean[scan.good], 99.5))
    for _ in range(2):
        grown = mask.copy()
        for axis in (0, 1):
            grown |= np.roll(mask, 1, axis) | np.roll(mask, -1, axis)
        mask = grown
    return mask


def _mean_frame(scan: Scan) -> Real:
    mean: Real = scan.frames.mean(axis=0)
    if scan.dark is not None:
        mean = np.maximum(mean - scan.dark, 0.0)
    return mean
