"""CDTools, for real: the synthetic scan, the near-field scan of a Siemens star, and every argument."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dev.demo.compare import compare_with_truth
from dev.demo.orientation import find_orientation
from reconstruction.scan import DETECTOR
from standin.synthetic_scan import Optics, SyntheticScan, make_scan
from support import damage
from support.needs import CDTOOLS_PYTHON, REAL_SCAN

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.needs("cdtools"), pytest.mark.timeout(450)]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SyntheticScan:
    """49 frames of 48 by 48 pixels."""
    path = tmp_path_factory.mktemp("tiny") / "NS_230216034_ccdframes_0_0.cxi"
    return make_scan(path, n_frames=49, step=150e-9, seed=5, optics=Optics(frame=48, photons=2e6))


@pytest.fixture(scope="session")
def checks(tiny: SyntheticScan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `cdtools_checks.py` saw."""
    done = subprocess.run(
        [
            CDTOOLS_PYTHON,
            Path(__file__).with_name("cdtools_checks.py"),
            tiny.cxi,
            tmp_path_factory.mktemp("checks"),
        ],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "include"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_the_synthetic_scan_and_its_resolution(
    programs: Any, tiny: SyntheticScan, tmp_path: Path, figures: Callable[[Path], dict[str, Any]]
) -> None:
    output = tmp_path / "out"
    arguments = ["true", "1", "1", "5e-05", "true", "1", "20", "4", "0", "none", "false", "none"]
    done = programs.run("cdtools", tiny.cxi, *arguments, output=output)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "far field" in done.stdout
    assert "half 2 of 2, iteration 24 of 24" in done.stdout
    made = figures(output)
    assert made["geometry"] == "far field"
    assert made["iterations"] == 24
    assert made["errors"][-1] < 0.2 * made["errors"][0]
    with h5py.File(tiny.cxi) as file:
        light = float(file[f"{DETECTOR}/data"][()].mean())
    assert made["final_error"] == pytest.approx((made["errors"][-1] / light) ** 0.5, rel=1e-3)
    assert made["final_error"] < 0.3
    assert made["parameters"]["run_split_reconstructions"] is True
    likeness = compare_with_truth(tmp_path / "out.cxi", tiny.truth)
    assert likeness.correlation > 0.95
    assert likeness.resolution_nm is not None
    pixel = made["pixel_size_m"][0]
    assert pixel <= made["resolution_m"] < 3 * pixel
    assert (tmp_path / "out.png").stat().st_size < 300_000
    halves = [figures(tmp_path / f"out_half_{number}") for number in (1, 2)]
    assert sum(half["frames"] for half in halves) == 49
    for held in halves:
        assert held["final_error"] == pytest.approx((held["errors"][-1] / light) ** 0.5, rel=0.1)
    assert min(half["frames"] for half in halves) > 15
    for number in (1, 2):
        half = compare_with_truth(tmp_path / f"out_half_{number}.cxi", tiny.truth)
        assert 0.8 < half.correlation < likeness.correlation


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (damage.empty_frames(0.05), "2 of 49 frames are empty"),
        (damage.shuffled_positions, "The picture is probably wrong"),
        (damage.scaled(1 / 3, f"{DETECTOR}/distance"), "3 times that in the file, explains the frames"),
    ],
    ids=["empty frames", "shuffled", "too near"],
)
def test_a_damaged_scan_has_a_warning(
    programs: Any, tiny: SyntheticScan, tmp_path: Path, edit: damage.Edit, said: str
) -> None:
    path = tmp_path / "changed.cxi"
    shutil.copyfile(tiny.cxi, path)
    with h5py.File(path, "a") as file:
        edit(file)
    arguments = ["false", "1", "1", "5e-05", "true", "1", "20", "6", "0", "none", "false", "none"]
    done = programs.run("cdtools", path, *arguments, output=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    warnings = json.loads((tmp_path / "out.json").read_text())["warnings"]
    (warning,) = [warning for warning in warnings if said in warning]
    assert f"warning: {warning}" in done.stdout
    if "were left out" in warning:
        found = find_orientation(tmp_path / "out.cxi", tiny.truth)
        assert found.upright
        assert found.correlation > 0.9
        assert warnings == [warning]


@pytest.mark.needs("real scan")
def test_the_real_scan_is_a_siemens_star(
    programs: Any, tmp_path: Path, figures: Callable[[Path], dict[str, Any]]
) -> None:
    """With the far field's defaults for the distance: the geometry is found from the frames."""
    arguments = ["false", "1", "1", "5e-05", "true", "1", "10", "4", "0", "none", "false", "none"]
    done = programs.run("cdtools", REAL_SCAN, *arguments, output=tmp_path / "star", COSMIC_POSITIONS="sample")
    assert done.returncode == 0, done.stderr
    made = figures(tmp_path / "star")
    assert made["geometry"] == "near field"
    assert made["parameters"]["distance_used"] == pytest.approx(3.65e-3, rel=0.05)
    assert "propagation_distance 5e-05 m was not used" in made["warnings"][0]
    assert made["pixel_size_m"] == pytest.approx([1.8e-7, 1.8e-7], rel=0.03)
    assert _spokes(tmp_path / "star.cxi") == 28


def _spokes(path: Path) -> int:
    """How often the phase goes up and down on circles around the star's middle, wherever that is."""
    with h5py.File(path) as file:
        obj, scanned = file["entry_1/image_1/data"][()], file["entry_1/image_1/mask"][()] == 0
    phase = np.angle(obj * np.exp(-1j * np.angle(obj[scanned].sum())))
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    centre = [(np.flatnonzero(scanned.any(axis=k))[[0, -1]].mean()) for k in (1, 0)]
    best = (0.0, 0)
    for row in range(-8, 9):
        for column in range(-8, 9):
            rows = np.round(centre[0] + row + np.outer((50, 56, 62), np.sin(angle))).astype(int)
            columns = np.round(centre[1] + column + np.outer((50, 56, 62), np.cos(angle))).astype(int)
            power = np.abs(np.fft.rfft(phase[rows, columns], axis=1)[:, 1:120]) ** 2
            share = (power / power.sum(axis=1, keepdims=True)).mean(axis=0)
            best = max(best, (float(share.max()), int(share.argmax()) + 1))
    assert best[0] > 0.5
    return best[1]


def test_modes_oversampling_and_support_shape_the_probe(checks: dict[str, Any]) -> None:
    assert checks["plain_shape"] == [1, 48, 48]
    assert checks["modes_shape"] == [3, 48, 48]
    assert checks["oversampled_shape"] == [1, 96, 96]
    assert checks["outside_support"] == 0.0
    assert checks["inside_support"] > 0.0


def test_the_propagation_distance_makes_the_guess(checks: dict[str, Any]) -> None:
    assert checks["right_distance"] > 0.6
    assert checks["right_distance"] > checks["wrong_sign"] + 0.1
    assert checks["right_distance"] > checks["no_distance"] + 0.1


def test_the_moving_lens_and_the_first_background(checks: dict[str, Any]) -> None:
    assert checks["lens_moves"] == [True, False]
    assert checks["init_background"] > 1.0 > checks["plain_background"]


def test_the_schedule(checks: dict[str, Any]) -> None:
    rounds = checks["schedule"]
    assert [(count, step, batch) for count, step, batch, _, _ in rounds] == [
        (4, 0.05, 10),
        (3, 0.02, 25),
        (4, 0.05, 10),
        (3, 0.02, 25),
        (4, 0.05, 25),
        (5, 0.005, 200),
    ]
    probe_free, intensities_free = zip(*(free for *_, free, _ in rounds), strict=True)
    assert probe_free == (True, False, True, False, True, True)
    assert intensities_free == (False, False, False, False, False, True)
    jitter = [largest for *_, largest in rounds]
    assert all(1.0 < largest <= 1.5 for largest in jitter[:4])  # three pixels from side to side
    assert jitter[4:] == [0.0, 0.0]


def test_no_round_is_one(checks: dict[str, Any]) -> None:
    """As in the beamline's flow, whose last round is always run."""
    (first, last) = checks["no_rounds"]
    assert first[:3] == [4, 0.05, 25]
    assert 1.0 < first[-1] <= 1.5
    assert last[:3] == [5, 0.005, 200]
    assert last[-1] == 0.0


def test_an_earlier_result_begins_the_next(checks: dict[str, Any]) -> None:
    assert checks["scale"] == pytest.approx(checks["counts"], rel=0.05)  # counts, whatever the oversampling
    assert checks["begun_shape"] == [2, 96, 96]
    assert checks["same_probe"] < 1e-5
    assert max(checks["same_background"].values()) < 1e-3


def test_cdtools_own_results_begin_the_next_as_bright_as_they_are(checks: dict[str, Any]) -> None:
    assert max(checks["as_saved"].values()) < 1e-5
    assert checks["brightness"] == pytest.approx(1.0, rel=0.05)


def test_the_resolution_of_halves_with_a_wide_margin(checks: dict[str, Any]) -> None:
    assert checks["resolution_in_a_margin"] == pytest.approx(1.0, rel=0.1)
