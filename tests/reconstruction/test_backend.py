"""What the solver computes with changes how long it takes, not what it finds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from reconstruction import backend
from reconstruction.backend import VARIABLE, Backend, choose
from reconstruction.scan import Scan
from reconstruction.solver import Options, Solution, Solver
from standin.synthetic_scan import SyntheticScan
from support.needs import CDTOOLS_PYTHON

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIONS = Options(iterations=6, period_illu_refine=1, period_bg_refine=1)


@pytest.fixture
def numpy(monkeypatch: pytest.MonkeyPatch) -> Backend:
    monkeypatch.setenv(VARIABLE, "numpy")
    return choose()


def solve(scan: Scan, using: Backend) -> tuple[Solver, Solution]:
    assert scan.illumination is not None
    solver = Solver(scan, OPTIONS, probe=scan.illumination, backend=using)
    return solver, solver.run(lambda *_: None)


def test_the_number_of_threads_changes_nothing(scan: Scan, numpy: Backend) -> None:
    small = replace(numpy, samples=2**12)
    one, first = solve(scan, replace(small, threads=1))
    three, second = solve(scan, replace(small, threads=3))
    assert (one.threads, three.threads) == (1, 3)
    assert np.array_equal(first.obj, second.obj)
    assert np.array_equal(first.probe, second.probe)
    assert first.errors == second.errors


def test_frames_computed_at_once_change_nothing_but_rounding(scan: Scan, numpy: Backend) -> None:
    one, first = solve(scan, replace(numpy, samples=1))
    all_of_a_batch, second = solve(scan, replace(numpy, samples=2**24))
    assert (one.part, all_of_a_batch.part) == (1, 2**24 // 64**2)
    assert np.abs(first.obj - second.obj).max() < 1e-5
    assert first.errors == pytest.approx(second.errors, rel=1e-5)


def test_threads_that_would_take_too_much_memory_are_not_used(scan: Scan, numpy: Backend) -> None:
    solver, _ = solve(scan, replace(numpy, threads=1000, samples=2**12))
    assert solver.threads == 2**23 // (192 * 2**12)  # 8 MB of what is computed at once


def test_an_error_in_a_thread_is_an_error(scan: Scan, numpy: Backend) -> None:
    solver, _ = solve(scan, replace(numpy, threads=2))
    solver.frames = solver.frames[:10]
    with pytest.raises(IndexError):
        solver.run(lambda *_: None)


def test_what_is_not_finite_is_no_result(scan: Scan, numpy: Backend) -> None:
    frames = scan.frames.copy()
    frames[3, 20, 20] = np.inf
    with pytest.raises(FloatingPointError, match="the error of iteration 1 is nan"):
        solve(replace(scan, frames=frames), replace(numpy, threads=2))


def test_another_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "jax")
    with pytest.raises(ValueError, match="COSMIC_ARRAYS is 'jax'; it takes auto, numpy, torch or cuda"):
        choose()


@pytest.mark.parametrize("name", ["torch", "cuda"])
def test_torch_that_is_missing_is_refused_or_not_used(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(backend, "find_spec", lambda _: None)
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(ValueError, match=f"COSMIC_ARRAYS is '{name}', but .*python.* has no torch; install"):
        choose()
    monkeypatch.setenv(VARIABLE, "auto")
    assert choose().name == f"NumPy {np.__version__}"


def test_a_result_says_what_it_was_computed_with(
    programs: Any, synthetic: SyntheticScan, tmp_path: Path, figures: Callable[[Path], dict[str, Any]]
) -> None:
    done = programs.run(
        "ptychocam",
        *programs.QUICK,
        synthetic.cxi,
        output=tmp_path / "out",
        COSMIC_ARRAYS="numpy",
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    used = f"NumPy {np.__version__}, CPU, threads: 1"
    assert f"computing with {used}\n" in done.stdout
    assert figures(tmp_path / "out")["parameters"]["computed_with"] == used
    with h5py.File(tmp_path / "out.cxi") as file:
        held = json.loads(file["entry_1/image_1/process_1/parameters"][()])
    assert held["computed_with"] == used


def test_a_setting_that_is_wrong_fails_the_program(
    programs: Any, synthetic: SyntheticScan, tmp_path: Path
) -> None:
    done = programs.run("ptychocam", synthetic.cxi, output=tmp_path / "out", COSMIC_ARRAYS="cupy")
    assert done.returncode == 1
    assert done.stderr == (
        "ptychocam: error: COSMIC_ARRAYS is 'cupy'; it takes auto, numpy, torch or cuda.\n"
    )


@pytest.mark.needs("cdtools")
@pytest.mark.timeout(450)
def test_torch_finds_what_numpy_finds(synthetic: SyntheticScan) -> None:
    done = subprocess.run(
        [CDTOOLS_PYTHON, Path(__file__).with_name("torch_checks.py"), synthetic.cxi],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "include"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["name"].startswith("torch ")
    assert max(seen["numpy and torch"].values()) < 1e-4, seen
    assert max(seen["threads"].values()) == 0.0, seen
    assert max(seen["frames on the host"].values()) == 0.0, seen
    if seen["has a GPU"]:
        assert max(seen["GPU"].values()) < 1e-4, seen
        assert seen["by itself"].startswith("torch ")
    else:
        assert seen["cuda"].startswith("COSMIC_ARRAYS is 'cuda', but torch finds no GPU here; ask for a node")
        assert seen["by itself"].startswith("NumPy ")
