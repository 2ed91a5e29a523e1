"""The alternating-projection solver behind `ptychocam_reconstruction.sh`.

ptychocam is a GPU program that is not public. This one takes the same options and solves the same
problem with NumPy or torch: regularised ptychographical iterative engine (Maiden, Johnson and Li, Optica 4,
736, 2017) over small batches of frames, whose steps alternate between the modulus constraint at the
detector and the overlap constraint at the object. No exit wave is kept, and a batch is computed a few frames
at a time: memory is the frames and little more. Everything is float32 and complex64.

Model of a frame: I = |F(P(r - r_n) O(r))|^2 + b, with P the probe, O the object, b the background.
Sub-pixel positions are kept to a quarter of a pixel, by sixteen Fourier-shifted copies of the probe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconstruction.arrays import Array, Bool, Complex, Int, Real
from reconstruction.backend import Backend, Compute, choose, in_threads
from reconstruction.geometry import far_field_pixel, object_shape, positions
from reconstruction.scan import Scan

FRACTIONS = 4  # sub-pixel steps of the probe, per axis
STEP = 0.9  # of the object towards the projection
REGULARISATION = 0.05  # of the strongest illumination, where the illumination is weak
SAMPLE_BYTES = 192  # of what is computed from one sample of a frame, all at once in memory
MEMORY_SHARE = 1 / 8  # of the frames' memory, for that
MEMORY_FLOOR = 2**23  # bytes of it that never matter


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


@dataclass(frozen=True, kw_only=True)
class _Projection:
    """What the modulus constraint says of some frames; arrays are (frames, rows, columns).

    :param part: the frames' numbers.
    :param gradient: wave minus projected wave, times the conjugate of the probe.
    :param weights: the probe's squared modulus.
    :param numerators: projected wave times the conjugate of the object, when the probe is refined.
    :param denominators: the object's squared modulus, likewise.
    :param ratio: (rows, columns), measured over model, summed over the frames.
    :param squared: sum of the squared differences of amplitudes.
    """

    part: Int
    gradient: Array
    weights: Array
    numerators: Array
    denominators: Array
    ratio: Array
    squared: Array


class Solver:
    """One reconstruction.

    :param probe: first guess, complex, (rows, columns), the beam's axis at index N // 2.
    :param mask: (rows, columns), where the bare beam may be on the detector, or None.
    :param backend: what to compute with; `reconstruction.backend.choose` chooses when None.
    """

    def __init__(
        self,
        scan: Scan,
        options: Options,
        *,
        probe: Complex,
        mask: Bool | None = None,
        backend: Backend | None = None,
    ) -> None:
        self.scan = scan
        self.options = options
        self.backend = backend or choose()
        self.xp = self.backend.xp
        self.shape = scan.detector_shape
        self.pixel = far_field_pixel(scan)
        object_shape(scan, self.pixel)
        self._place(positions(scan, self.pixel))
        self._divide(scan.frames)
        self.frames = self.backend.hold(scan.frames)
        self.good = self._given(scan.good, np.float32)  # one or zero
        self.mask = None if mask is None else self._given(np.fft.ifftshift(mask), np.float32)
        # Waves are multiplied with it, so that their spectra are centered as frames are.
        self.centering = self._given(_centering(self.shape), np.complex64)
        self.ramps = [self._given(_shifts(n), np.complex64) for n in self.shape]
        self.rng = np.random.default_rng(0)
        self.background = self._given(self._first_background(), np.float32)
        self.probe = self._scaled(self._given(probe, np.complex64))
        self.obj = self._zeros(self.obj_shape, self.xp.complex64) + 1
        self.total = float(scan.frames.sum(dtype=np.float64))

    @property
    def computed_with(self) -> str:
        """Library, device and threads, for a person."""
        backend = self.backend
        where = f"CPU, threads: {self.threads}" if backend.device == "cpu" else f"GPU ({backend.device})"
        return f"{backend.name}, {where}"

    @np.errstate(over="ignore", invalid="ignore")  # the errors show it
    def run(self, report: Callable[[int, float], None]) -> Solution:
        """Iterate; `report` is told the iteration, from 1, and its error.

        The error of an iteration is sqrt(sum (sqrt I - sqrt model)^2 / sum I) over the good pixels.

        :raises FloatingPointError: the iterations diverged.
        """
        errors = []
        with in_threads(self.threads) as compute:
            for iteration in range(self.options.iterations):
                error = self._sweep(
                    compute,
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
        corners = quarters // FRACTIONS
        self.copies = (quarters % FRACTIONS) @ np.array([FRACTIONS, 1])
        self.first = smallest
        rows, columns = self.shape
        self.windows = [(slice(r, r + rows), slice(c, c + columns)) for r, c in corners.tolist()]
        covered = corners.max(axis=0) + np.array(self.shape)
        self.obj_shape = (int(covered[0]), int(covered[1]))
        self.batch = int(np.clip(len(moved) // 12, 4, 64))

    def _divide(self, frames: Real) -> None:
        """How many frames are computed with at once, and in how many threads that is done.

        The former does not depend on the latter, so that neither does the result.
        """
        samples = frames[0].size
        self.part = max(1, self.backend.samples // samples)
        allowed = max(MEMORY_SHARE * frames.nbytes, MEMORY_FLOOR) / (SAMPLE_BYTES * self.part * samples)
        self.threads = int(np.clip(allowed, 1, self.backend.threads))

    def _given(self, array: NDArray[Any], dtype: type) -> Array:
        return self.backend.asarray(array.astype(dtype))

    def _zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.zeros(shape, dtype=dtype, device=self.backend.device)

    def _first_background(self) -> Real:
        if self.scan.dark is not None:
            return self.scan.dark
        background = np.zeros(self.shape, dtype=np.float32)
        if self.options.period_bg_refine:
            mean = self.scan.frames.mean(axis=0)[self.scan.good]
            # Refinement multiplies, so it cannot leave zero: begin below the level of the dark corners.
            background += max(0.5 * float(np.percentile(mean, 10)), 1e-3)
        return background

    def _count_scale(self, probe: Array) -> float:
        background = self.backend.numpy(self.background)
        return count_scale(self.scan.frames, background * self.scan.good, self.backend.numpy(probe))

    def _scaled(self, probe: Array) -> Array:
        """The probe, confined to its mask, with the counts of a frame."""
        probe = self._confined(probe)
        if not self.xp.any(probe != 0):
            raise ValueError("the illumination is zero everywhere within the illumination mask")
        return probe * self._count_scale(probe)

    def _confined(self, probe: Array) -> Array:
        fft = self.xp.fft
        return probe if self.mask is None else fft.ifftn(fft.fftn(probe) * self.mask)

    def _sweep(self, compute: Compute, *, refine_probe: bool, refine_background: bool) -> float:
        xp = self.xp
        copies = self._shifted_copies()
        regular = REGULARISATION * xp.max(self._power(self.probe))
        sums = self._probe_sums(copies.shape) if refine_probe else None
        ratios = self._zeros(self.shape, xp.float32) if refine_background else None
        squared = self._zeros((), xp.float64)
        project = partial(self._project, copies, refine_probe, refine_background)
        for batch in self._batches():
            step = self._zeros(self.obj_shape, xp.complex64)
            weight = self._zeros(self.obj_shape, xp.float32) + regular
            for found in compute(project, self._parts(batch)):
                for index, frame in enumerate(found.part):
                    step[self.windows[frame]] -= found.gradient[index, ...]
                    weight[self.windows[frame]] += found.weights[index, ...]
                if sums is not None:
                    sums.add(self.copies[found.part], found)
                if ratios is not None:
                    ratios += found.ratio
                squared += found.squared
            step *= STEP
            step /= weight
            self.obj += step
        if sums is not None:
            self.probe = self._confined(self._fitting(sums))
        if ratios is not None:
            # Expectation maximisation for Poisson counts: stays positive, needs no step size.
            self.background = self.background * ratios / len(self.windows)
        return float(np.sqrt(float(squared) / self.total))

    def _batches(self) -> Iterator[Int]:
        order = self.rng.permutation(len(self.windows))
        for start in range(0, len(order), self.batch):
            yield order[start : start + self.batch]

    def _parts(self, batch: Int) -> Iterator[Int]:
        for start in range(0, len(batch), self.part):
            yield batch[start : start + self.part]

    @np.errstate(over="ignore", invalid="ignore")  # each thread has its own
    def _project(self, copies: Array, for_probe: bool, for_background: bool, part: Int) -> _Projection:
        """What some frames say of the object and the probe, with the object as it is."""
        xp = self.xp
        amplitude = xp.sqrt(self.backend.take(self.frames, part))
        probes = self.backend.take(copies, self.copies[part])
        views = xp.stack([self.obj[self.windows[frame]] for frame in part])
        waves = probes * views
        spectra = xp.fft.fftn(waves, axes=(1, 2), norm="ortho")
        model = xp.sqrt(self._power(spectra) + (self.background + 1e-12))  # never zero: divides
        squared = xp.sum(((amplitude - model) * self.good) ** 2)
        amplitude /= model
        del model
        amplitude *= self.good
        amplitude += 1 - self.good
        spectra *= amplitude
        projected = xp.fft.ifftn(spectra, axes=(1, 2), norm="ortho")
        del spectra
        waves -= projected
        waves *= xp.conj(probes)
        if for_probe:
            projected *= xp.conj(views)
        return _Projection(
            part=part,
            gradient=waves,
            weights=self._power(probes),
            numerators=projected if for_probe else None,
            denominators=self._power(views) if for_probe else None,
            ratio=xp.sum(amplitude**2, axis=0) if for_background else None,
            squared=squared,
        )

    def _power(self, wave: Array) -> Array:
        return self.xp.real(wave) ** 2 + self.xp.imag(wave) ** 2

    def _shifted_copies(self) -> Array:
        """(16, rows, columns): the probe, shifted by quarters of a pixel, times `centering`."""
        fft, spectrum = self.xp.fft, self.xp.fft.fftn(self.probe)
        copies = self._zeros((FRACTIONS**2, *self.shape), self.xp.complex64)
        for copy in range(FRACTIONS**2):
            copies[copy, ...] = fft.ifftn(spectrum * self._ramp(copy)) * self.centering
        return copies

    def _probe_sums(self, shape: tuple[int, ...]) -> _ProbeSums:
        return _ProbeSums(self._zeros(shape, self.xp.complex64), self._zeros(shape, self.xp.float32))

    def _fitting(self, sums: _ProbeSums) -> Array:
        """The probe that fits all frames best: every copy is shifted back, then all are added up."""
        xp, fft = self.xp, self.xp.fft
        numerator = denominator = self._zeros(self.shape, xp.complex64)
        for copy in range(FRACTIONS**2):
            back = xp.conj(self._ramp(copy))
            numerator = numerator + back * fft.fftn(sums.numerators[copy, ...] * xp.conj(self.centering))
            denominator = denominator + back * fft.fftn(xp.astype(sums.denominators[copy, ...], xp.complex64))
        denominator = xp.real(fft.ifftn(denominator))
        return fft.ifftn(numerator) / xp.maximum(denominator, 1e-6 * xp.max(denominator))

    def _ramp(self, copy: int) -> Array:
        """What a spectrum is multiplied with to shift by quarters of a pixel along each axis."""
        rows, columns = self.ramps
        return rows[copy // FRACTIONS, :, None] * columns[copy % FRACTIONS, None, :]

    def _solution(self, errors: list[float]) -> Solution:
        if not self.xp.all(self.xp.isfinite(self.obj)):
            raise FloatingPointError("the object is not finite after the last iteration")
        illuminated = self._zeros(self.obj_shape, self.xp.float32)
        power = self._power(self.probe)
        for window in self.windows:
            illuminated[window] += power
        factor = self._count_scale(self.probe)
        host = self.backend.numpy
        return Solution(
            obj=host(self.obj / factor),
            probe=host(self.probe * factor)[None],
            illuminated=host(illuminated),
            corner=self.first - np.array(self.shape) // 2,
            pixel=self.pixel,
            background=host(self.background),
            errors=errors,
        )


class _ProbeSums:
    """Numerator and denominator of the probe that fits all frames best, for each sub-pixel copy."""

    def __init__(self, numerators: Array, denominators: Array) -> None:
        self.numerators = numerators
        self.denominators = denominators

    def add(self, copies: Int, found: _Projection) -> None:
        for index, copy in enumerate(copies.tolist()):
            self.numerators[copy, ...] += found.numerators[index, ...]
            self.denominators[copy, ...] += found.denominators[index, ...]


def _centering(shape: tuple[int, int]) -> Complex:
    """Moves the zero frequency of a spectrum from [0, 0] to the middle, as `fftshift` does."""
    rows, columns = (np.exp(2j * np.pi * np.arange(n) * (n // 2) / n) for n in shape)
    return np.outer(rows, columns)


def _shifts(n: int) -> Complex:
    """(FRACTIONS, n): Fourier ramps that shift by 0, 1/4, 2/4, 3/4 pixel."""
    fractions = np.arange(FRACTIONS)[:, None] / FRACTIONS
    ramps: Complex = np.exp(-2j * np.pi * fractions * np.fft.fftfreq(n))
    return ramps


def _due(iteration: int, period: int) -> bool:
    return period > 0 and iteration > 0 and iteration % period == 0
