"""Where things are: pixel sizes, positions in pixels, and whether a scan is near field or far field.

Positions follow CXI: the file holds translations of the sample; the illumination moves the other way
over the object. Arrays are indexed along the detector's own axes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from reconstruction.arrays import Complex, Int, Real
from reconstruction.scan import Scan

MAX_PIXELS = 4e8  # of an object: a COSMIC scan of 0.1 mm at 5 nm
MAX_SAMPLES = 2**25  # of the frames that are correlated with each other
NEAR_FIELD_VARIABLE = "COSMIC_NEAR_FIELD"  # auto (or unset), true, false


@dataclass(frozen=True, kw_only=True)
class Magnification:
    """How far features move over the detector for each meter that the sample moves.

    :param value: the geometric magnification, signed: negative when the focus is behind the sample.
    :param correlation: of the shifts that were measured with those expected; near 1 when frames are shadows.
    """

    value: float
    correlation: float

    @property
    def reliable(self) -> bool:
        return self.correlation > 0.8 and abs(self.value) > 1.0


def far_field_pixel(scan: Scan) -> Real:
    """Pixel size at the object, meters, (rows, columns): lambda z / (N p), as a Fourier transform samples."""
    return scan.wavelength * scan.distance / (np.array(scan.detector_shape) * scan.detector_pitch)


def positions(scan: Scan, pixel: Real) -> Real:
    """Positions of the illumination over the object, in pixels: float64, (n, 2), smallest not zero."""
    directions = scan.basis / np.linalg.norm(scan.basis, axis=0)
    moved: Real = -scan.translations @ directions / pixel
    return moved


def object_shape(scan: Scan, pixel: Real) -> tuple[int, int]:
    """Pixels of the object that the scan covers.

    :raises ValueError: when they are so many that a length in the file must be wrong.
    """
    span = np.ptp(positions(scan, pixel), axis=0) + scan.detector_shape
    if float(span.prod()) > MAX_PIXELS:
        raise ValueError(
            f"{scan.path}: the object would have {span[0]:.3g} by {span[1]:.3g} pixels of "
            f"{pixel[0]:.3g} by {pixel[1]:.3g} m; is a length, the energy or the distance in other units?"
        )
    return int(np.ceil(span[0])), int(np.ceil(span[1]))


def focus_to_sample(scan: Scan, magnification: float) -> float:
    """Distance in meters from a point focus to the sample, from similar triangles."""
    return scan.distance / (magnification - 1.0) if magnification != 1.0 else np.inf


def measure_magnification(scan: Scan, *, neighbors: int = 5, max_frames: int = 150) -> Magnification:
    """Measure how the shadow of the sample moves from frame to frame.

    Frames are divided by their mean (which removes the beam's own structure), pairs of neighboring
    frames are cross-correlated, and the shifts are compared with the translations between them.
    """
    count = max(16, min(max_frames, MAX_SAMPLES // scan.frames[0].size))
    moved = _detector_steps(scan)[:count]
    spectra = _slow_spectra(scan, count)
    shifts, steps = [], []
    for first in range(len(moved)):
        away = np.linalg.norm(moved - moved[first], axis=1)
        for second in np.argsort(away)[1 : neighbors + 1]:
            product = spectra[first] * spectra[second].conj()
            shifts.append(_peak(_from_slow_spectrum(product, scan.detector_shape)))
            steps.append(moved[first] - moved[second])
    return _regression(np.array(steps), np.array(shifts))


def _slow_spectra(scan: Scan, count: int) -> Complex:
    """Spectra of the first frames' shadows below a quarter of a cycle per pixel.

    A frame at a time, and nothing that is known to be zero or a conjugate, which leaves an eighth:
    (count, about rows / 2, about columns / 4).
    """
    mean = scan.frames.mean(axis=0)
    bright = mean > 0.1 * np.percentile(mean[scan.good], 99)
    divisor, lit = np.where(bright, mean, 1.0), float(bright.sum())
    window = np.outer(*(np.hanning(n + 2)[1:-1] for n in scan.detector_shape)).astype(np.float32)
    rows, columns = _slow_rows(len(mean)), scan.detector_shape[1] // 4 + 1
    slow = np.hypot(np.fft.fftfreq(len(mean))[rows, None], np.fft.rfftfreq(mean.shape[1])[:columns]) < 0.25
    spectra = np.empty((min(count, len(scan.frames)), *slow.shape), dtype=np.complex64)
    for index in range(len(spectra)):
        frame = np.where(bright, scan.frames[index] / divisor, 0.0)
        frame /= max(float(frame.sum()) / lit, 1e-9)
        spectra[index] = np.fft.rfft2((frame - bright) * window)[rows, :columns] * slow
    return spectra


def _slow_rows(n: int) -> Int:
    """Indices of the rows of a Fourier transform that are at or below a quarter of a cycle per pixel."""
    rows: Int = np.r_[: n // 4 + 1, n - n // 4 : n]
    return rows


def _from_slow_spectrum(spectrum: Complex, shape: tuple[int, int]) -> Real:
    whole = np.zeros((shape[0], shape[1] // 2 + 1), dtype=np.complex64)
    whole[_slow_rows(shape[0]), : spectrum.shape[1]] = spectrum
    image: Real = np.fft.irfft2(whole, s=shape)
    return image


def _detector_steps(scan: Scan) -> Real:
    """Translations of the sample in detector pixels at magnification 1."""
    directions = scan.basis / np.linalg.norm(scan.basis, axis=0)
    steps: Real = scan.translations @ directions / scan.detector_pitch
    return steps


def _peak(correlation: Real) -> tuple[float, float]:
    shape = correlation.shape
    row, column = (int(k) for k in np.unravel_index(int(correlation.argmax()), shape))
    offsets = []
    for axis, index in ((0, row), (1, column)):
        line = correlation[:, column] if axis == 0 else correlation[row]
        before, at, after = line[index - 1], line[index], line[(index + 1) % shape[axis]]
        curvature = before - 2 * at + after
        fraction = 0.5 * (before - after) / curvature if curvature < 0 else 0.0
        offsets.append((index + fraction + shape[axis] / 2) % shape[axis] - shape[axis] / 2)
    return offsets[0], offsets[1]


def _regression(steps: Real, shifts: Real) -> Magnification:
    """Slope of shifts against steps through zero, without the pairs that disagree by far."""
    keep = np.ones(len(steps), dtype=np.bool_)
    slope = 0.0
    for _ in range(5):
        power = float((steps[keep] ** 2).sum())
        if power == 0.0 or keep.sum() < 4:
            return Magnification(value=0.0, correlation=0.0)
        slope = float((steps[keep] * shifts[keep]).sum()) / power
        error = np.linalg.norm(shifts - slope * steps, axis=1)
        keep = error <= 2.5 * max(float(np.median(error)), 0.25)
    norm = np.sqrt(float((steps**2).sum()) * float((shifts**2).sum()))
    correlation = float((steps * shifts).sum()) / norm if norm else 0.0
    return Magnification(value=slope, correlation=abs(correlation))


def is_near_field(scan: Scan, magnification: Magnification) -> bool:
    """Whether the frames are shadow images that a Fourier transform to the detector cannot sample.

    The file's own flag decides, or the environment; otherwise the beam's size at the sample, which is
    its size on the detector over the magnification: when that exceeds the field of view of a far-field
    reconstruction, lambda z / p, the scan is near field.
    """
    forced = os.environ.get(NEAR_FIELD_VARIABLE, "auto").strip().lower()
    if forced not in ("", "auto"):
        if forced not in ("true", "false"):
            raise ValueError(f"{NEAR_FIELD_VARIABLE} is {forced!r}; it takes auto, true or false.")
        return forced == "true"
    if scan.near_field is not None:
        return scan.near_field
    if not magnification.reliable:
        return False
    at_sample = _beam_extent(scan) * scan.detector_pitch / abs(magnification.value)
    field_of_view = scan.wavelength * scan.distance / scan.detector_pitch
    return bool((at_sample > field_of_view).any())


def _beam_extent(scan: Scan) -> Real:
    """Width of the beam on the detector, in pixels, where the mean frame is above a tenth of its peak."""
    mean = np.where(scan.good, scan.frames.mean(axis=0), 0.0)
    lit = mean > 0.1 * np.percentile(mean, 99)
    return np.array([lit.any(axis=1).sum(), lit.any(axis=0).sum()], dtype=np.float64)


def far_field(wave: Complex) -> Complex:
    """Unitary propagation to the detector; the beam's axis is at index N // 2 in both planes."""
    spectrum = np.fft.fft2(np.fft.ifftshift(wave, axes=(-2, -1)), norm="ortho")
    return np.fft.fftshift(spectrum, axes=(-2, -1))


def inverse_far_field(wave: Complex) -> Complex:
    """The inverse of `far_field`."""
    field = np.fft.ifft2(np.fft.ifftshift(wave, axes=(-2, -1)), norm="ortho")
    return np.fft.fftshift(field, axes=(-2, -1))


def propagate(wave: Complex, *, pixel: Real, wavelength: float, distance: float) -> Complex:
    """Angular-spectrum propagation over `distance` meters; unitary, evanescent waves aside.

    :param wave: complex, (rows, columns), sampled at `pixel` meters.
    """
    rows, columns = (np.fft.fftfreq(n, d) for n, d in zip(wave.shape, pixel, strict=True))
    squared = 1.0 / wavelength**2 - rows[:, None] ** 2 - columns[None, :] ** 2
    # The constant phase of free space is left out, so that it does not swallow float32's precision.
    phase = 2j * np.pi * distance * (np.sqrt(np.maximum(squared, 0.0)) - 1.0 / wavelength)
    kernel = np.where(squared > 0, np.exp(phase), 0.0)
    out: Complex = np.fft.ifft2(np.fft.fft2(wave) * kernel).astype(wave.dtype)
    return out
