"""Alignment and Fourier ring correlation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconstruction.arrays import Complex
from reconstruction.frc import align, ramp, ring_correlation, shifted

PIXEL = np.array([10e-9, 10e-9])


def blobs(seed: int = 0, n: int = 64) -> Complex:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:n, :n]
    thickness = np.zeros((n, n))
    for _ in range(12):
        row, column = rng.uniform(12, n - 12, 2)
        thickness += np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 2.5**2))
    image: Complex = np.exp((-0.5 - 1.0j) * thickness)
    return image


@given(
    shift=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    gradient=st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)),
    size=st.floats(0.2, 5.0),
    phase=st.floats(-3.1, 3.1),
)
@settings(max_examples=25)
def test_alignment_undoes_what_ptychography_leaves_open(
    shift: tuple[float, float], gradient: tuple[float, float], size: float, phase: float
) -> None:
    reference = blobs()
    moved = shifted(reference, np.array(shift)) * ramp(reference.shape, np.array(gradient))
    aligned, found = align(moved * size * np.exp(1j * phase), reference)
    assert found == pytest.approx(-np.array(shift), abs=0.15)
    inner = np.s_[8:-8, 8:-8]
    assert np.abs(aligned - reference)[inner].max() < 0.12


def test_identical_images_agree_everywhere() -> None:
    rings = ring_correlation(blobs(), blobs(), PIXEL)
    assert rings.correlation == pytest.approx(np.ones(33))
    assert rings.resolution(0.5) == pytest.approx(0.5 / rings.frequency[-1])
    assert rings.resolution(0.5) == pytest.approx(10e-9, rel=1e-6)  # Nyquist: half a period is a pixel


def test_unrelated_images_do_not_agree() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(64, 64)) + 1j * rng.normal(size=(64, 64)) for _ in range(2))
    rings = ring_correlation(first, second, PIXEL)
    assert np.abs(rings.correlation[6:]).max() < 0.35
    assert rings.resolution(rings.half_bit()) is None


@pytest.mark.parametrize("cut", [0.15, 0.3])
def test_common_detail_up_to_a_frequency_is_found(cut: float) -> None:
    """Noise that both images share below a frequency and each has of its own above it."""
    rng = np.random.default_rng(1)
    rough = [np.fft.fft2(rng.normal(size=(128, 128))) for _ in range(3)]
    radius = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None, :])
    images = [np.fft.ifft2(np.where(radius < cut, rough[0], own)) for own in rough[1:]]
    rings = ring_correlation(images[0], images[1], PIXEL)
    assert rings.resolution(rings.half_bit()) == pytest.approx(0.5 * 10e-9 / cut, rel=0.12)
    assert rings.resolution(0.5) == pytest.approx(0.5 * 10e-9 / cut, rel=0.12)
