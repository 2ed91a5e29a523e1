"""Where the zero frequency of an illumination mask is, and which of its values means light.

COSMIC's preprocessor writes the mask in Fourier order, zero frequency at [0, 0]; other programs write it
as they write frames, zero frequency in the middle. Nothing in a file says which, but the frames do: the
mask must lie where the light is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reconstruction.arrays import Bool, Real

LEVELS = (0.003, 0.01, 0.03, 0.1, 0.3)  # of the mean frame's peak: where programs put the beam's edge
ALIKE = 0.4  # correlation of a mask with the beam; below it the mask fits in no order
ORDERS = {
    False: "centered, as the frames are",
    True: "in Fourier order (zero frequency at [0, 0])",
}


@dataclass(frozen=True, kw_only=True)
class BeamMask:
    """A mask as the frames are indexed, True in the light, and how the file had it.

    :param order: for a person.
    :param inverted: the file had True outside the light.
    :param fits: False when no reading of the mask lies where the light is; it is of no use then.
    """

    mask: Bool
    order: str
    inverted: bool = False
    fits: bool = True


def recognize(stored: Bool, mean: Real) -> BeamMask:
    """Find how a mask is stored by comparing each possibility with where the mean frame is bright.

    :param stored: (rows, columns), as the file has it.
    :param mean: (rows, columns), mean of the frames, centered.
    """
    if stored.all() or not stored.any():
        return BeamMask(mask=stored, order="everywhere the same")
    beams = [mean > level * float(np.percentile(mean, 99.9)) for level in LEVELS]
    scores = {
        (fourier, inverted): max(
            _correlation(_read(stored, fourier=fourier, inverted=inverted), beam) for beam in beams
        )
        for fourier in (False, True)
        for inverted in (False, True)
    }
    fourier, inverted = max(scores, key=lambda key: scores[key])
    if scores[fourier, inverted] < ALIKE:
        return BeamMask(mask=stored, order=ORDERS[False], fits=False)
    mask = _read(stored, fourier=fourier, inverted=inverted)
    return BeamMask(mask=mask, order=ORDERS[fourier], inverted=inverted)


def _read(stored: Bool, *, fourier: bool, inverted: bool) -> Bool:
    mask: Bool = np.fft.fftshift(stored) if fourier else stored
    return ~mask if inverted else mask


def _correlation(mask: Bool, beam: Bool) -> float:
    a, b = mask - mask.mean(), beam - beam.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / norm if norm else 0.0
