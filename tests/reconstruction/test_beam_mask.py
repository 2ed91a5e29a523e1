"""The illumination mask is recognized in both orders, and inverted, by where the frames have light."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from reconstruction.beam_mask import recognize
from reconstruction.scan import DETECTOR
from standin.synthetic_scan import Optics, make_scan
from support.damage import FRAMES


@pytest.mark.parametrize(
    "optics",
    [
        Optics(frame=64),
        Optics(frame=64, photons=2e4),
        Optics(frame=96),
        Optics(frame=48),
        Optics(frame=36),  # the beam nearly fills the frame
        Optics(frame=64, stop_fraction=0.0),
        Optics(frame=64, stop_fraction=0.6),
    ],
    ids=["usual", "dim", "large frame", "small frame", "tiny frame", "no stop", "wide stop"],
)
def test_a_mask_is_recognized(optics: Optics, tmp_path: Path) -> None:
    scan = make_scan(tmp_path / "scan.cxi", n_frames=49, step=130e-9, seed=5, optics=optics)
    with h5py.File(scan.cxi) as file:
        fourier = file[f"{DETECTOR}/probe_mask"][()] != 0
        mean = file[FRAMES][()].mean(axis=0)
    centered = np.fft.fftshift(fourier)
    for stored, order, inverted in (
        (fourier, "in Fourier order", False),
        (centered, "centered", False),
        (~fourier, "in Fourier order", True),
        (~centered, "centered", True),
    ):
        found = recognize(stored, mean)
        assert found.order.startswith(order)
        assert found.inverted is inverted
        assert found.fits
        assert np.array_equal(found.mask, centered)


def test_a_mask_without_a_shape_is_taken_as_it_is() -> None:
    everywhere = np.ones((16, 16), dtype=np.bool_)
    found = recognize(everywhere, np.random.default_rng(0).random((16, 16)))
    assert found.mask.all()
    assert found.order == "everywhere the same"


def test_a_mask_that_is_nowhere_near_the_light_does_not_fit() -> None:
    rows, columns = np.indices((64, 64)) - 32
    light = np.exp(-(np.hypot(rows, columns) ** 2) / 50)
    assert not recognize(np.hypot(rows - 20, columns) < 5, light).fits
