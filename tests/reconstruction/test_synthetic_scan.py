"""The synthetic scan: the beamline's names and layout, repeatable, and physically plausible."""

from __future__ import annotations

import datetime
import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from dev.demo.compare import Comparison, compare_with_truth
from dev.demo.orientation import Orientation, all_orientations
from reconstruction import conventions
from reconstruction.arrays import Complex
from reconstruction.result import Run, write_result
from reconstruction.scan import DETECTOR, SOURCE, read_scan
from reconstruction.solver import Solution
from standin.synthetic_scan import Optics, SyntheticScan, make_scan, scan_path


def test_a_scan_is_named_as_the_beamline_names_it() -> None:
    assert scan_path(datetime.date(2023, 2, 16), 33) == "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
    with pytest.raises(ValueError, match="not in 0 to 999"):
        scan_path(datetime.date(2023, 2, 16), 1000)


def test_the_files_are_made_once_and_whole(synthetic: SyntheticScan) -> None:
    assert synthetic.n_frames == 64
    assert synthetic.size == synthetic.cxi.stat().st_size < 2e6
    assert synthetic.truth == synthetic.cxi.with_name("NS_230216033_ccdframes_0_0_truth.h5")
    assert sorted(synthetic.cxi.parent.iterdir()) == [synthetic.cxi, synthetic.truth]
    with h5py.File(synthetic.cxi) as file:
        assert file["cxi_version"][()] == 140
        assert isinstance(file.get("entry_1/data_1/data", getlink=True), h5py.SoftLink)
        assert file[f"{DETECTOR}/basis_vectors"].shape == (2, 3)
        assert file[f"{SOURCE}/energy"][()] == pytest.approx(1.602e-16, rel=1e-3)


def test_the_same_seed_makes_the_same_scan(tmp_path: Path, synthetic: SyntheticScan) -> None:
    optics = Optics(frame=64, photons=2e6)
    again = make_scan(tmp_path / "again.cxi", n_frames=64, step=130e-9, seed=3, optics=optics)
    assert np.array_equal(read_scan(again.cxi).frames, read_scan(synthetic.cxi).frames)
    other = make_scan(tmp_path / "other.cxi", n_frames=64, step=130e-9, seed=4, optics=optics)
    assert not np.array_equal(read_scan(other.cxi).frames, read_scan(synthetic.cxi).frames)


def test_counts_are_plausible_and_gold_absorbs(synthetic: SyntheticScan) -> None:
    scan = read_scan(synthetic.cxi)
    dim = scan.frames[:, :4, :4]  # stray light and readout noise, cut at zero
    assert 0.05 < (dim == 0).mean() < 0.6
    assert np.abs(dim - np.round(dim)).mean() == pytest.approx(0.08, abs=0.04)
    counts = scan.frames.sum(axis=(1, 2))
    assert counts.max() < 2.02e6
    assert counts.min() > 0.3 * 2e6
    with h5py.File(synthetic.truth) as file:
        obj = file["object"][()]
        assert np.abs(obj).max() == pytest.approx(1.0)
        assert np.angle(obj).min() == pytest.approx(-2 * np.pi / 1.2398e-9 * 1.85e-3 * 300e-9, rel=0.1)
        assert (np.abs(file["probe"][()]) ** 2).sum() == pytest.approx(2e6, rel=1e-3)


def test_the_guess_in_the_file_is_near_the_true_probe_but_not_it(synthetic: SyntheticScan) -> None:
    """Near its mirror image: ACME's kernel for the same distance is the conjugate."""
    guess = read_scan(synthetic.cxi).illumination
    assert guess is not None
    with h5py.File(synthetic.truth) as file:
        fine = file["probe"][()]
    true = fine.reshape(64, 2, 64, 2).mean(axis=(1, 3))

    def likeness(probe: Complex) -> float:
        return float(abs(np.vdot(probe, true)) / np.linalg.norm(probe) / np.linalg.norm(true))

    assert 0.6 < likeness(conventions.mirrored(guess)) < 0.98
    assert likeness(guess) < 0.4


def test_too_few_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 frames make no scan"):
        make_scan(tmp_path / "x.cxi", n_frames=8)
    assert list(tmp_path.iterdir()) == []


def _truth_as_a_result(synthetic: SyntheticScan, folder: Path, noise: float) -> Comparison:
    """A result that is the truth itself, coarser, moved by three pixels, tilted, scaled, with noise."""
    scan = read_scan(synthetic.cxi)
    with h5py.File(synthetic.truth) as file:
        fine, origin, pixel = file["object"][()], file["origin"][()], file["pixel_size"][()]
    rows, columns = (n // 2 for n in fine.shape)
    obj = fine[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean(axis=(1, 3))
    obj = np.roll(obj, (3, -2), (0, 1)) * np.exp(0.02j * np.arange(columns)) * 0.5j
    rng = np.random.default_rng(0)
    obj = obj + noise * (rng.normal(size=obj.shape) + 1j * rng.normal(size=obj.shape))
    lit = np.zeros(obj.shape, dtype=np.float32)
    lit[30:-30, 30:-30] = 1.0
    solution = Solution(
        obj=obj.astype(np.complex64),
        probe=np.ones((1, 64, 64), dtype=np.complex64),
        illuminated=lit,
        corner=origin / (2 * pixel),
        pixel=2 * pixel,
        background=None,
        errors=[1.0],
    )
    write_result(folder / "r", scan, solution, Run(engine="test", parameters={}, seconds=1.0, errors_are=""))
    return compare_with_truth(folder / "r.cxi", synthetic.truth)


def test_the_comparison_knows_the_truth_when_it_sees_it(synthetic: SyntheticScan, tmp_path: Path) -> None:
    same = _truth_as_a_result(synthetic, tmp_path, 0.0)
    assert same.correlation > 0.99
    assert same.resolution_nm == pytest.approx(26.05, rel=0.08)  # the pixel
    assert same.shift_nm == pytest.approx((-3 * 26.05, 2 * 26.05), abs=10)
    assert re.match(r"correlation (0.99|1.00)", same.describe())
    noisy = _truth_as_a_result(synthetic, tmp_path, 0.3)
    assert noisy.correlation < 0.7
    assert noisy.resolution_nm is None or noisy.resolution_nm > 1.5 * 26.05


def test_each_orientation_is_told_from_all_others(synthetic: SyntheticScan) -> None:
    """Of a part of the truth itself, with a phase ramp and noise: the right one, and no other comes near."""
    with h5py.File(synthetic.truth) as file:
        truth = file["object"][60:150, 60:140]
    ramp = np.exp(0.05j * np.arange(60) - 0.02j * np.arange(70)[:, None])
    noise = np.random.default_rng(0).normal(size=(2, 70, 60)) * 0.05
    part = truth[10:80, 10:70] * ramp * 0.7j + noise[0] + 1j * noise[1]
    for turns in range(4):
        for mirrored in (False, True):
            for conjugated in (False, True):
                image = part[:, ::-1] if mirrored else part
                image = np.rot90(image, turns)
                tried = all_orientations(image.conj() if conjugated else image, truth)
                best, second = sorted(tried, key=lambda found: found.correlation)[:-3:-1]
                assert (best.quarter_turns, best.mirrored, best.conjugated) == (turns, mirrored, conjugated)
                assert best.correlation > 0.97
                assert second.correlation < 0.8


def test_an_orientation_has_a_name() -> None:
    upright = Orientation(quarter_turns=0, mirrored=False, conjugated=False, correlation=0.99)
    assert upright.upright
    assert upright.describe() == "upright"
    turned = replace(upright, quarter_turns=2, conjugated=True)
    assert not turned.upright
    assert turned.describe() == "rotated by 180 degrees, conjugated"


def test_an_empty_image_scores_nothing(synthetic: SyntheticScan, tmp_path: Path) -> None:
    assert _truth_as_a_result(synthetic, tmp_path, 30.0).correlation < 0.1


def test_a_result_of_another_geometry_is_refused(synthetic: SyntheticScan, tmp_path: Path) -> None:
    _truth_as_a_result(synthetic, tmp_path, 0.0)
    with h5py.File(tmp_path / "r.cxi", "a") as file:
        file["entry_1/image_1/origin"][...] = [1e-3, 0.0]
    with pytest.raises(ValueError, match="is not within the truth: another scan"):
        compare_with_truth(tmp_path / "r.cxi", synthetic.truth)
    with h5py.File(tmp_path / "r.cxi", "a") as file:
        file["entry_1/image_1/pixel_size"][...] = [1.7e-8, 1.7e-8]
    with pytest.raises(ValueError, match="no multiple of the truth's"):
        compare_with_truth(tmp_path / "r.cxi", synthetic.truth)
