"""The alternating-projection solver behind `ptychocam_reconstruction.sh`.

ptychocam is a GPU program that is not public. This one takes the same options and solves the same
problem on a CPU: regularised ptychographical iterative engine (Maiden, Johnson and Li, Optica 4, 736,
2017) over small batches of frames, whose steps alternate between the modulus constraint at the
detector and the overlap constraint at the object. No exit wave is kept: memory is the frames and
little more. Everything is float32 and complex64.

Model of a frame: I = |F(P(r - r_n) O(r))|^2 + b, with P the probe, O the object, b the background.
Sub-pixel positions are kept to a quarter of a pixel, by sixteen Fourier-shifted copies of the probe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reconstruction.arrays import Bool, Complex, Int, Real
from reconstruction.geometry import far_field_pixel, object_shape, positions
from reconstruction.scan import Scan

FRACTIONS = 4  # sub-pixel steps of the probe, per axis
STEP = 0.9  # of the object towards the projection
REGULARISATION = 0.05  # of the strongest illumination, where the illumination is weak


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line chooses; a period of 0 means never, as in SHARP and ptychocam."""

    iterations: int = 500
    period_illu_refine: int = 0
    period_bg_refine: int = 0
    use_illu_mask: bool = False


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a solver found; arrays are indexed as the detector is.

    :param obj: complex64, (rows, columns), transmission.
    :param probe: complex64, (modes, rows, columns), square root of counts.
    :param illuminated: float32, like obj, sum of the probe's intensity over all positions.
    :param corner: position in pixels of the object's pixel (0, 0), in the frame of `geometry.positions`.
    :param background: float32, like a frame, counts; or None.
    :param model: CDTools' own results, when it found the solution (`reconstruction.cdtools_file`).
    """

    obj: Complex
    probe: Complex
    illuminated: Real
    corner: Real
    pixel: Real
    background: Real | None
    errors: list[float]
    model: Mapping[str, Any] | None = None


def count_scale(frames: Real, background: Real, probe: Complex) -> float:
    """Factor that gives the probe as many counts as the frame that lost least to the sample.

    Probe and object share one free factor; this choice makes the clearest part of the object about one.
    """
    counts = frames.sum(axis=(1, 2)) - background.sum()
    power = float((np.abs(probe) ** 2).sum())
    return float(np.sqrt(max(float(np.percentile(counts, 98)), 1.0) / power))


class Solver:
    """One reconstruction.

    :param probe: first guess, complex, (rows, columns), the beam's axis at index N // 2.
    :param mask: (rows, columns), where the bare beam may be on the detector, or None.
    """

    def __init__(self, scan: Scan, options: Options, *, probe: Complex, mask: Bool | None = None) -> None:
        self.options = options
        self.shape = scan.detector_shape
        self.pixel = far_field_pixel(scan)
        # Frames are kept in the order of the Fourier transform, so that no wave is ever shifted.
        self.frames = np.fft.ifftshift(scan.frames, axes=(1, 2))
        self.good = np.fft.ifftshift(scan.good)
        self.mask = None if mask is None else np.fft.ifftshift(mask)
        self.rng = np.random.default_rng(0)
        object_shape(scan, self.pixel)
        self._place(positions(scan, self.pixel))
        self.background = self._first_background(scan)
        self.probe = self._scaled(probe.astype(np.complex64))
        self.obj = np.ones(self.obj_shape, dtype=np.complex64)
        self.total = float(self.frames.sum(dtype=np.float64))

    def run(self, report: Callable[[int, float], None]) -> Solution:
        """Iterate; `report` is told the iteration, from 1, and its error.

        The error of an iteration is sqrt(sum (sqrt I - sqrt model)^2 / sum I) over the good pixels.
        """
        errors = []
        for iteration in range(self.options.iterations):
            error = self._sweep(
                refine_probe=_due(iteration, self.options.period_illu_refine),
                refine_background=_due(iteration, self.options.period_bg_refine),
            )
            if not np.isfinite(error):
                raise FloatingPointError(f"the error of iteration {iteration + 1} is {error}")
            errors.append(error)
            report(iteration + 1, error)
        return self._solution(errors)

    def _place(self, moved: Real) -> None:
        smallest = np.floor(moved.min(axis=0))
        quarters: Int = np.round((moved - smallest) * FRACTIONS).astype(np.int64)
        # Whole pixels choose the window, quarters the copy of the probe.
        self.corners = quarters // FRACTIONS
        self.copies = (quarters % FRACTIONS) @ np.array([FRACTIONS, 1])
        self.first = smallest
        rows, columns = self.corners.max(axis=0) + np.array(self.shape)
        self.obj_shape = (int(rows), int(columns))
        self.batch = int(np.clip(len(moved) // 12, 4, 64))

    def _first_background(self, scan: Scan) -> Real:
        if scan.dark is not None:
            return np.fft.ifftshift(scan.dark)
        background = np.zeros(self.shape, dtype=np.float32)
        if self.options.period_bg_refine:
            mean = scan.frames.mean(axis=0)[scan.good]
            # Refinement multiplies, so it cannot leave zero: begin below the level of the dark corners.
            background += max(0.5 * float(np.percentile(mean, 10)), 1e-3)
        return background

    def _scaled(self, probe: Complex) -> Complex:
        """The probe, confined to its mask, with the counts of a frame."""
        probe = self._confined(probe)
        if not probe.any():
            raise ValueError("the illumination is zero everywhere within the illumination mask")
        factor = count_scale(self.frames, self.background * self.good, probe)
        scaled: Complex = (probe * factor).astype(np.complex64)
        return scaled

    def _confined(self, probe: Complex) -> Complex:
        if self.mask is None:
            return probe
        confined: Complex = np.fft.ifft2(np.fft.fft2(probe) * self.mask).astype(np.complex64)
        return confined

    def _sweep(self, *, refine_probe: bool, refine_background: bool) -> float:
        copies = self._shifted_copies()
        strongest = float((np.abs(self.probe) ** 2).max())
        sums = _ProbeSums(copies.shape) if refine_probe else None
        ratios = np.zeros(self.shape, dtype=np.float32)
        squared = 0.0
        for batch in self._batches():
            probes = copies[self.copies[batch]]
            views = self._views(batch)
            waves = probes * views
            spectra = np.fft.fft2(waves, norm="ortho")
            model = np.abs(spectra) ** 2 + self.background
            frames = self.frames[batch]
            squared += float((((np.sqrt(frames) - np.sqrt(model)) * self.good) ** 2).sum(dtype=np.float64))
            fraction = np.where(self.good, frames / np.maximum(model, 1e-12), 1.0)
            projected = np.fft.ifft2(spectra * np.sqrt(fraction), norm="ortho")
            self._update_object(batch, probes, projected - waves, strongest)
            if sums is not None:
                sums.add(self.copies[batch], views, projected)
            ratios += fraction.sum(axis=0)
        if sums is not None:
            self.probe = self._confined(sums.probe(self._ramps(sign=1.0)))
        if (
            refine_background
        ):  # expectation maximisation for Poisson counts: stays positive, needs no step size
            self.background *= ratios / len(self.frames)
        return float(np.sqrt(squared / self.total))

    def _batches(self) -> Iterator[Int]:
        order = self.rng.permutation(len(self.frames))
        for start in range(0, len(order), self.batch):
            yield order[start : start + self.batch]

    def _views(self, batch: Int) -> Complex:
        windows = np.lib.stride_tricks.sliding_window_view(self.obj, self.shape)
        rows, columns = self.corners[batch].T
        view: Complex = windows[rows, columns]
        return view

    def _update_object(self, batch: Int, probes: Complex, change: Complex, strongest: float) -> None:
        step = np.zeros_like(self.obj)
        weight = np.zeros(self.obj_shape, dtype=np.float32)
        change = change * probes.conj()
        power = np.abs(probes) ** 2
        for index, (row, column) in enumerate(self.corners[batch]):
            window = np.s_[row : row + self.shape[0], column : column + self.shape[1]]
            step[window] += change[index]
            weight[window] += power[index]
        self.obj += np.float32(STEP) * step / (weight + np.float32(REGULARISATION * strongest))

    def _ramps(self, *, sign: float) -> Complex:
        """Fourier ramps that shift by 0, 1/4, 2/4, 3/4 pixel along each axis: (16, rows, columns)."""
        axes = []
        for n in self.shape:
            shifts = np.arange(FRACTIONS)[:, None] / FRACTIONS
            axes.append(np.exp(sign * 2j * np.pi * shifts * np.fft.fftfreq(n)[None, :]))
        grid = axes[0][:, None, :, None] * axes[1][None, :, None, :]
        ramps: Complex = grid.reshape(FRACTIONS**2, *self.shape).astype(np.complex64)
        return ramps

    def _shifted_copies(self) -> Complex:
        shifted = np.fft.ifft2(np.fft.fft2(self.probe) * self._ramps(sign=-1.0))
        copies: Complex = shifted.astype(np.complex64)
        return copies

    def _solution(self, errors: list[float]) -> Solution:
        illuminated = np.zeros(self.obj_shape, dtype=np.float32)
        power = np.abs(self.probe) ** 2
        for row, column in self.corners:
            illuminated[row : row + self.shape[0], column : column + self.shape[1]] += power
        factor = count_scale(self.frames, self.background * self.good, self.probe)
        return Solution(
            obj=(self.obj / factor).astype(np.complex64),
            probe=(self.probe * factor).astype(np.complex64)[None],
            illuminated=illuminated,
            corner=self.first - np.array(self.shape) // 2,
            pixel=self.pixel,
            background=np.fft.fftshift(self.background),
            errors=errors,
        )


class _ProbeSums:
    """Numerator and denominator of the probe that fits all frames best, for each sub-pixel copy."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.numerator = np.zeros(shape, dtype=np.complex64)
        self.denominator = np.zeros(shape, dtype=np.float32)

    def add(self, copies: Int, views: Complex, projected: Complex) -> None:
        products = views.conj() * projected
        powers = np.abs(views) ** 2
        for index, copy in enumerate(copies):
            self.numerator[copy] += products[index]
            self.denominator[copy] += powers[index]

    def probe(self, ramps: Complex) -> Complex:
        """Shift every copy back, add them up, divide."""
        numerator = np.fft.ifft2((np.fft.fft2(self.numerator) * ramps).sum(axis=0))
        denominator = np.fft.ifft2((np.fft.fft2(self.denominator) * ramps).sum(axis=0)).real
        probe: Complex = (numerator / np.maximum(denominator, 1e-6 * denominator.max())).astype(np.complex64)
        return probe


def _due(iteration: int, period: int) -> bool:
    return period > 0 and iteration > 0 and iteration % period == 0
