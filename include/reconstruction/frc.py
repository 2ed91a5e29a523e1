"""Alignment of two reconstructions of one object, and Fourier ring correlation.

Ptychography fixes an object only up to a complex factor, a linear phase ramp (which the probe can
undo) and a shift; they are removed before anything is compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reconstruction.arrays import Complex, Real

OVERSAMPLED = 20  # sub-pixel steps of a registration


@dataclass(frozen=True, kw_only=True)
class RingCorrelation:
    """Fourier ring correlation; `frequency` in cycles per meter."""

    frequency: Real
    correlation: Real
    pixels: Real

    def resolution(self, threshold: Real | float) -> float | None:
        """Half period in meters at which the correlation first falls below the threshold.

        None when there is nothing above the threshold; the Nyquist limit when nothing falls below it.
        """
        above = self.correlation >= threshold
        if not above[1]:
            return None
        fallen = np.flatnonzero(~above[1:])
        last = int(fallen[0]) + 1 if len(fallen) else len(above) - 1
        return 0.5 / float(self.frequency[last])

    def half_bit(self) -> Real:
        """The half-bit threshold for two halves of one data set (van Heel and Schatz, 2005)."""
        root = 1.0 / np.sqrt(np.maximum(self.pixels, 1.0))
        curve: Real = (0.2071 + 1.9102 * root) / (1.2071 + 0.9102 * root)
        return curve


def ring_correlation(first: Complex, second: Complex, pixel: Real) -> RingCorrelation:
    """Correlate two images of one shape ring by ring, up to the Nyquist frequency of the coarser axis.

    :param pixel: meters, (rows, columns).
    """
    window = np.hanning(first.shape[0])[:, None] * np.hanning(first.shape[1])[None, :]
    spectra = [np.fft.fft2((image - np.average(image, weights=window)) * window) for image in (first, second)]
    rows, columns = (np.fft.fftfreq(n, d) for n, d in zip(first.shape, pixel, strict=True))
    radius = np.hypot(rows[:, None], columns[None, :])
    width = 1.0 / (min(first.shape) * float(max(pixel)))
    ring = np.round(radius / width).astype(int).ravel()
    count = min(first.shape) // 2 + 1
    # A Hann window makes neighboring Fourier pixels depend on each other; this many are independent.
    pixels = np.bincount(ring, minlength=count)[:count] / 2.25

    def summed(values: Real) -> Real:
        return np.bincount(ring, weights=values.ravel(), minlength=count)[:count].astype(np.float64)

    across = summed((spectra[0] * spectra[1].conj()).real)
    norm = np.sqrt(summed(np.abs(spectra[0]) ** 2) * summed(np.abs(spectra[1]) ** 2))
    correlation = across / np.maximum(norm, 1e-30)
    return RingCorrelation(frequency=np.arange(count) * width, correlation=correlation, pixels=pixels)


def align(image: Complex, reference: Complex, *, rounds: int = 4) -> tuple[Complex, Real]:
    """Bring `image` onto `reference`: factor, phase ramp, sub-pixel shift. Returns it and the shift (pixels).

    Both of one shape and sampling; the edges wrap around, so leave them out of what is compared.
    """
    current: Complex = image * ramp(image.shape, -mean_gradient(image))
    flat = reference * ramp(reference.shape, -mean_gradient(reference))
    total = np.zeros(2)
    for _ in range(rounds):
        step = _registration(current, flat)
        current, total = shifted(current, step), total + step
        current = current * ramp(current.shape, -mean_gradient(current * flat.conj()))
    current = current * ramp(current.shape, mean_gradient(reference))
    factor = np.vdot(current, reference) / max(float(np.vdot(current, current).real), 1e-30)
    return current * factor, total


def mean_gradient(image: Complex) -> Real:
    """Mean phase step from a pixel to the next, radians, (rows, columns); needs no unwrapping."""
    return np.array(
        [
            np.angle((image[1:] * image[:-1].conj()).sum()),
            np.angle((image[:, 1:] * image[:, :-1].conj()).sum()),
        ]
    )


def ramp(shape: tuple[int, ...], gradient: Real) -> Complex:
    """A wave of magnitude one whose phase grows by `gradient` radians a pixel (rows, columns)."""
    rows, columns = (np.arange(n) - n // 2 for n in shape)
    wave: Complex = np.exp(1j * (gradient[0] * rows[:, None] + gradient[1] * columns[None, :]))
    return wave


def shifted(image: Complex, shift: Real) -> Complex:
    """The image moved by `shift` pixels (rows, columns), in Fourier space; edges wrap around."""
    rows, columns = (np.fft.fftfreq(n) for n in image.shape)
    tilt = np.exp(-2j * np.pi * (shift[0] * rows[:, None] + shift[1] * columns[None, :]))
    out: Complex = np.fft.ifft2(np.fft.fft2(image) * tilt)
    return out


def _registration(image: Complex, reference: Complex) -> Real:
    """Shift that brings image onto reference: the cross-correlation's peak, refined by a Fourier sum."""
    window = np.hanning(image.shape[0])[:, None] * np.hanning(image.shape[1])[None, :]
    spectra = [np.fft.fft2((array - array.mean()) * window) for array in (reference, image)]
    product = spectra[0] * spectra[1].conj()
    coarse = np.abs(np.fft.ifft2(product))
    peak = np.array(np.unravel_index(int(coarse.argmax()), coarse.shape), dtype=float)
    size = np.array(image.shape)
    peak = (peak + size / 2) % size - size / 2
    offsets = np.arange(-OVERSAMPLED, OVERSAMPLED + 1) / OVERSAMPLED
    kernels = [
        np.exp(2j * np.pi * np.outer(centre + offsets, np.fft.fftfreq(n)))
        for centre, n in zip(peak, image.shape, strict=True)
    ]
    fine = np.abs(kernels[0] @ product @ kernels[1].T)
    row, column = np.unravel_index(int(fine.argmax()), fine.shape)
    found: Real = peak + np.array([offsets[row], offsets[column]])
    return found
