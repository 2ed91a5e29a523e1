"""Propagation, positions, and telling the near field from the far field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconstruction.geometry import (
    NEAR_FIELD_VARIABLE,
    far_field,
    far_field_pixel,
    focus_to_sample,
    inverse_far_field,
    is_near_field,
    measure_magnification,
    object_shape,
    positions,
    propagate,
)
from reconstruction.scan import Scan, read_scan
from standin.synthetic_scan import SyntheticScan
from support.needs import REAL_SCAN


@given(rows=st.integers(4, 33), columns=st.integers(4, 33), seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_far_field_propagation_is_unitary(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wave = rng.normal(size=(rows, columns)) + 1j * rng.normal(size=(rows, columns))
    there = far_field(wave)
    assert np.linalg.norm(there) == pytest.approx(np.linalg.norm(wave))
    assert np.allclose(inverse_far_field(there), wave)


def test_the_beams_axis_is_at_the_middle_pixel() -> None:
    flat = far_field(np.ones((16, 17), dtype=complex))
    assert int(np.abs(flat).argmax()) == 8 * 17 + 8


@given(distance=st.floats(-1e-4, 1e-4), seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_angular_spectrum_keeps_power_and_can_be_undone(distance: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wave = rng.normal(size=(24, 20)) + 1j * rng.normal(size=(24, 20))
    pixel = np.array([20e-9, 25e-9])  # coarser than half a wavelength: no evanescent waves
    there = propagate(wave, pixel=pixel, wavelength=1.24e-9, distance=distance)
    back = propagate(there, pixel=pixel, wavelength=1.24e-9, distance=-distance)
    assert np.linalg.norm(there) == pytest.approx(np.linalg.norm(wave))
    assert np.allclose(back, wave, atol=1e-6)


def test_a_gaussian_beam_spreads_as_it_should() -> None:
    pixel, wavelength, waist, distance = 10e-9, 1.24e-9, 200e-9, 100e-6
    x = (np.arange(512) - 256) * pixel
    beam = np.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / waist**2).astype(complex)
    power = np.abs(propagate(beam, pixel=np.full(2, pixel), wavelength=wavelength, distance=distance)) ** 2
    width = 2 * np.sqrt((power.sum(axis=1) * x**2).sum() / power.sum())
    rayleigh = np.pi * waist**2 / wavelength
    assert width == pytest.approx(waist * np.sqrt(1 + (distance / rayleigh) ** 2), rel=1e-3)


def test_positions_follow_cxi(synthetic: SyntheticScan) -> None:
    """The detector's columns run along -x: when the sample moves along +x, the illumination goes on."""
    scan = read_scan(synthetic.cxi)
    pixel = far_field_pixel(scan)
    assert pixel == pytest.approx([1.23984e-9 * 0.121 / (64 * 90e-6)] * 2, rel=1e-4)
    moved = np.zeros((64, 3))
    moved[1, 0], moved[2, 1] = 10 * pixel[1], 4 * pixel[0]
    assert positions(replace(scan, translations=moved), pixel)[:3] == pytest.approx(
        np.array([[0, 0], [0, 10], [4, 0]]), abs=1e-6
    )


def test_lengths_in_wrong_units_are_told(synthetic: SyntheticScan) -> None:
    scan = replace(read_scan(synthetic.cxi), distance=1e-6)
    with pytest.raises(ValueError, match="is a length, the energy or the distance in other units"):
        object_shape(scan, far_field_pixel(scan))


def shadows(magnification: float) -> Scan:
    """Shadows of a random object that a point source casts: the near field without its diffraction."""
    rng = np.random.default_rng(1)
    pitch, distance, n = 55e-6, 1.0, 48
    rough = rng.normal(size=(256, 256))
    shifts = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    smooth = np.mean([np.roll(rough, shift, (0, 1)) for shift in shifts], axis=0) * 5
    steps = rng.integers(-20, 21, size=(60, 2))  # of the shadow, detector pixels
    centre = 104
    frames = np.stack(
        [
            np.exp(smooth[centre - i : centre - i + n, centre - j : centre - j + n] * 0.3) * 100
            for i, j in steps
        ]
    ).astype(np.float32)
    basis = np.array([[0.0, -pitch], [-pitch, 0.0], [0.0, 0.0]])
    translations = steps @ (basis / pitch).T * pitch / magnification
    return Scan(
        path=Path("shadows.cxi"),
        frames=frames,
        good=np.ones((n, n), dtype=np.bool_),
        translations=translations,
        basis=basis,
        distance=distance,
        wavelength=1e-10,
    )


@pytest.mark.parametrize("magnification", [200.0, 40.0, -60.0])
def test_shadows_give_the_magnification(magnification: float) -> None:
    scan = shadows(magnification)
    measured = measure_magnification(scan)
    assert measured.reliable
    assert measured.value == pytest.approx(magnification, rel=0.03)
    assert focus_to_sample(scan, measured.value) == pytest.approx(1.0 / (magnification - 1), rel=0.04)
    assert is_near_field(scan, measured)


def test_the_synthetic_scan_is_far_field_and_its_defocus_is_found(scan: Scan) -> None:
    measured = measure_magnification(scan)
    assert measured.reliable
    assert focus_to_sample(scan, measured.value) == pytest.approx(50e-6, rel=0.3)
    assert not is_near_field(scan, measured)


def test_noise_has_no_magnification() -> None:
    scan = shadows(200.0)
    noise = np.random.default_rng(0).poisson(100, scan.frames.shape).astype(np.float32)
    measured = measure_magnification(replace(scan, frames=noise))
    assert not measured.reliable
    assert not is_near_field(replace(scan, frames=noise), measured)


def test_one_position_has_no_magnification() -> None:
    scan = shadows(200.0)
    assert not measure_magnification(replace(scan, translations=np.zeros_like(scan.translations))).reliable


def test_the_files_flag_and_the_environment_decide_first(
    synthetic: SyntheticScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = read_scan(synthetic.cxi)
    measured = measure_magnification(scan)
    assert is_near_field(replace(scan, near_field=True), measured)
    monkeypatch.setenv(NEAR_FIELD_VARIABLE, "True")
    assert is_near_field(replace(scan, near_field=False), measured)
    monkeypatch.setenv(NEAR_FIELD_VARIABLE, "false")
    assert not is_near_field(replace(scan, near_field=True), measured)
    monkeypatch.setenv(NEAR_FIELD_VARIABLE, "perhaps")
    with pytest.raises(ValueError, match="it takes auto, true or false"):
        is_near_field(scan, measured)


@pytest.mark.needs("real scan")
def test_the_real_near_field_scan_is_recognised() -> None:
    scan = read_scan(REAL_SCAN)
    measured = measure_magnification(scan)
    assert is_near_field(scan, measured)
    assert focus_to_sample(scan, measured.value) == pytest.approx(3.65e-3, rel=0.05)
