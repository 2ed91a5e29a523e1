"""The solver recovers what is known, and each option earns its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dev.demo.compare import compare_with_truth
from reconstruction.arrays import Complex
from reconstruction.geometry import measure_magnification
from reconstruction.illumination import Trial, first_guesses, illumination_mask, try_out
from reconstruction.program import Progress
from reconstruction.result import Run, write_result
from reconstruction.scan import Scan
from reconstruction.solver import Options, Solution, Solver
from standin.synthetic_scan import Optics, SyntheticScan, make_scan


def first(scan: Scan) -> Trial:
    return try_out(scan, first_guesses(scan, measure_magnification(scan), expected=15e-6))


def solve(scan: Scan, *, probe: Complex | None = None, **options: int) -> Solution:
    chosen = Options(**{"iterations": 50, **options})  # type: ignore[arg-type]  # a flag is an int here
    mask = illumination_mask(scan) if chosen.use_illu_mask else None
    guess = first(scan).guess.probe if probe is None else probe
    return Solver(scan, chosen, probe=guess, mask=mask).run(Progress(chosen.iterations))


def likeness(scan: Scan, solution: Solution, truth: Path, folder: Path) -> float:
    run = Run(engine="test", parameters={}, seconds=1.0, errors_are="")
    write_result(folder / "out", scan, solution, run)
    return compare_with_truth(folder / "out.cxi", truth).correlation


def test_a_known_object_is_recovered(scan: Scan, synthetic: SyntheticScan, tmp_path: Path) -> None:
    solution = solve(scan, period_illu_refine=1, period_bg_refine=1, use_illu_mask=1)
    assert likeness(scan, solution, synthetic.truth, tmp_path) > 0.98
    assert len(solution.errors) == 50
    assert solution.errors[-1] < 0.3 * solution.errors[0]
    noise = np.sqrt(0.25 * 64**2 / scan.frames.sum(axis=(1, 2)).mean())  # a quarter of a count in a pixel
    assert 0.5 * noise < solution.errors[-1] < 2 * noise
    inner = np.abs(solution.obj[solution.illuminated > 0.4 * np.percentile(solution.illuminated, 95)])
    assert np.percentile(inner, 90) == pytest.approx(1.0, abs=0.15)


def test_refining_the_illumination_matters(scan: Scan, synthetic: SyntheticScan, tmp_path: Path) -> None:
    fixed, refined = solve(scan), solve(scan, period_illu_refine=2)
    assert refined.errors[-1] < 0.6 * fixed.errors[-1]
    better = likeness(scan, refined, synthetic.truth, tmp_path)
    assert better > likeness(scan, fixed, synthetic.truth, tmp_path) + 0.01
    guess = first(scan).guess.probe
    unchanged = abs(np.vdot(fixed.probe[0], guess)) / np.linalg.norm(fixed.probe[0]) / np.linalg.norm(guess)
    assert unchanged == pytest.approx(1.0, abs=1e-4)  # a period of 0 is never


def test_refining_the_background_matters(scan: Scan, synthetic: SyntheticScan, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    strayed = replace(scan, frames=scan.frames + rng.poisson(20.0, scan.frames.shape).astype(np.float32))
    without = solve(strayed, period_illu_refine=1, use_illu_mask=1)
    refined = solve(strayed, period_illu_refine=1, period_bg_refine=1, use_illu_mask=1)
    assert refined.background is not None
    assert refined.background[:8, :8].mean() == pytest.approx(20.2, rel=0.05)
    assert refined.background.min() > 0
    worse = likeness(scan, without, synthetic.truth, tmp_path)
    assert likeness(scan, refined, synthetic.truth, tmp_path) > worse + 0.02


def test_dark_frames_are_the_background(scan: Scan) -> None:
    dark = np.full(scan.detector_shape, 20.0, dtype=np.float32)
    darkened = replace(scan, frames=scan.frames + dark, dark=dark)
    assert (
        solve(darkened, iterations=20).errors[-1]
        < solve(replace(darkened, dark=None), iterations=20).errors[-1]
    )


def test_the_illumination_mask_keeps_stray_light_out_of_the_illumination(scan: Scan) -> None:
    rng = np.random.default_rng(5)
    stray = replace(scan, frames=scan.frames + rng.poisson(20.0, scan.frames.shape).astype(np.float32))
    free = solve(stray, period_illu_refine=1, period_bg_refine=1)
    confined = solve(stray, period_illu_refine=1, period_bg_refine=1, use_illu_mask=1)
    mask = illumination_mask(scan)

    def outside(solution: Solution) -> float:
        power = np.abs(np.fft.fftshift(np.fft.fft2(solution.probe[0]))) ** 2
        return float(power[~mask].sum() / power.sum())

    assert outside(confined) < 1e-6
    assert outside(free) > 1e-3
    assert confined.errors[-1] < free.errors[-1]


def test_a_file_without_illumination_begins_from_the_frames(
    scan: Scan, synthetic: SyntheticScan, tmp_path: Path
) -> None:
    scan = replace(scan, illumination=None, illumination_mask=None)
    trial = first(scan)
    assert trial.guess.origin.startswith("the mean frame, ")
    assert trial.guess.origin.endswith(" um from the focus (measured from the frames)")
    solution = solve(scan, probe=trial.guess.probe, period_illu_refine=1, use_illu_mask=1)
    assert likeness(scan, solution, synthetic.truth, tmp_path) > 0.97
    stated = first(replace(scan, defocus=50e-6))
    assert stated.guess.origin == "the mean frame, 50 um from the focus (stated in the file)"


def test_masked_pixels_do_not_count(scan: Scan, synthetic: SyntheticScan, tmp_path: Path) -> None:
    good = np.random.default_rng(0).random(scan.detector_shape) > 0.05
    frames = scan.frames.copy()
    frames[:, ~good] = 0.0
    holed = replace(scan, frames=frames, good=good)
    solution = solve(holed, period_illu_refine=1)
    assert likeness(scan, solution, synthetic.truth, tmp_path) > 0.97
    blind = solve(replace(holed, good=np.ones_like(good)), period_illu_refine=1)
    assert blind.errors[-1] > 1.5 * solution.errors[-1]


def test_the_same_scan_gives_the_same_result(scan: Scan) -> None:
    first, second = solve(scan, iterations=3), solve(scan, iterations=3)
    assert np.array_equal(first.obj, second.obj)
    assert first.errors == second.errors


def test_oblong_frames(scan: Scan) -> None:
    oblong = replace(
        scan,
        frames=np.ascontiguousarray(scan.frames[:, :, 10:54]),
        good=scan.good[:, 10:54],
        illumination=None,
        illumination_mask=None,
    )
    solution = solve(oblong, period_illu_refine=1, iterations=30)
    assert solution.probe.shape == (1, 64, 44)
    assert solution.pixel[1] / solution.pixel[0] == pytest.approx(64 / 44)
    assert solution.errors[-1] < 0.08


def test_an_empty_mask_is_told(scan: Scan) -> None:
    dark = replace(scan, illumination_mask=np.zeros((64, 64), dtype=np.bool_))
    with pytest.raises(ValueError, match="zero everywhere within the illumination mask"):
        solve(dark, probe=dark.illumination, use_illu_mask=1, iterations=1)


def test_another_seed_is_another_object_and_scores_nothing(
    scan: Scan, synthetic: SyntheticScan, tmp_path: Path
) -> None:
    """The comparison can fail: the truth of another scan does not match."""
    other = make_scan(tmp_path / "other.cxi", n_frames=64, step=130e-9, seed=8, optics=Optics(frame=64))
    solution = solve(scan, period_illu_refine=1, iterations=20)
    assert likeness(scan, solution, other.truth, tmp_path) < 0.5
