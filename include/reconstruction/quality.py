"""Whether the error at the end of a reconstruction is that of a picture of the sample."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reconstruction.errors import ScanError
from reconstruction.scan import Scan

FAILED = 1.0  # an object that explains nothing at all has this error
SUSPECT = 0.15  # scans whose picture was wrong ended above it, good ones of the beamline well below
OF_NOISE = 3.0  # times the error that counting alone leaves: a dim scan may end high
DIM = 0.4  # of that error: more is noise than picture


def judge(scan: Scan, error: float, *, refined: bool, find_cause: Callable[[], str] = str) -> tuple[str, ...]:
    """Warnings about the last error, sqrt(sum (sqrt(measured) - sqrt(model))^2 / sum measured).

    :param refined: whether the run refined its illumination.
    :param find_cause: is asked why a picture is wrong; empty when it does not know.
    :raises ScanError: the iterations have diverged, so that there is no picture.
    """
    if not error <= FAILED:
        raise ScanError(
            f"{scan.path}: the reconstruction failed: it ended with an error of {error:.3g}, and above "
            f"{FAILED:g} the picture says less than an empty one. No result was written. "
            f"{_causes(scan, refined, find_cause)}"
        )
    if noise(scan) > DIM:
        return (f"{_dim(scan)}The picture is noisy, or wrong; scan again with a longer exposure.",)
    if error > SUSPECT and error > OF_NOISE * noise(scan):
        return (
            f"The error at the end is {error:.3g}; a good reconstruction of this scan ends near "
            f"{max(noise(scan), 0.05):.2g}. The picture is probably wrong. "
            f"{_causes(scan, refined, find_cause)}",
        )
    return ()


def relative(scan: Scan, mean_square: float) -> float:
    """The error that `judge` takes, from the mean over all good pixels of squared amplitude differences."""
    mean = scan.frames.mean(axis=0, dtype=np.float64)[scan.good].mean()
    return float(np.sqrt(mean_square / max(float(mean), 1e-30)))


def noise(scan: Scan) -> float:
    """The error that counting statistics alone leave."""
    mean = scan.frames.mean(axis=0, dtype=np.float64)
    return float(np.sqrt(np.minimum(mean, 0.25).sum() / max(float(mean.sum()), 1e-30)))


def _dim(scan: Scan) -> str:
    counts = float(scan.frames.sum(dtype=np.float64)) / len(scan.frames)
    return f"The frames are dim, {counts:.3g} counts each: noise alone leaves an error of {noise(scan):.2g}. "


def _causes(scan: Scan, refined: bool, find_cause: Callable[[], str]) -> str:
    known = " The warnings about the file come first." if scan.warnings else ""
    if noise(scan) > DIM:
        return f"{_dim(scan)}Scan again with a longer exposure.{known}"
    if cause := find_cause():
        return cause + known
    if refined:
        before, after = "Look at", "; or refine less often, after more iterations"
    else:
        before = (
            "The illumination was not refined: run it again with period_illu_refine=1, period_bg_refine=1 "
            "and use_illu_mask=true. If that does not help look at"
        )
        after = ""
    return (
        f"{before} the positions (order, sign, unit), the distance and the energy, the first illumination "
        f"and its defocus, and the illumination mask{after}.{known}"
    )
