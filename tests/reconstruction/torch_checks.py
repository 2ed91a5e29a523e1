"""Run by CDTools' interpreter, which has torch (see test_backend.py): NumPy beside torch; prints JSON.

usage: python torch_checks.py SCAN.cxi
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reconstruction.backend import VARIABLE, Backend, choose
from reconstruction.conventions import sample_moves
from reconstruction.geometry import measure_magnification
from reconstruction.illumination import first_guesses, illumination_mask, try_out
from reconstruction.scan import Scan, read_scan
from reconstruction.solver import Options, Solution, Solver

OPTIONS = Options(iterations=20, period_illu_refine=1, period_bg_refine=1, use_illu_mask=True)


def backend(name: str) -> Backend:
    os.environ[VARIABLE] = name
    return choose()


def solve(scan: Scan, using: Backend) -> Solution:
    """From the first illumination to the end."""
    guesses = first_guesses(scan, measure_magnification(scan), expected=50e-6)
    guess = try_out(scan, guesses, using).guess
    solver = Solver(scan, OPTIONS, probe=guess.probe, mask=illumination_mask(scan), backend=using)
    return solver.run(lambda *_: None)


def differences(found: Solution, wanted: Solution) -> dict[str, float]:
    """The largest, in parts of the largest value."""
    assert found.background is not None
    pairs: dict[str, tuple[Any, Any]] = {
        "object": (found.obj, wanted.obj),
        "probe": (found.probe, wanted.probe),
        "background": (found.background, wanted.background),
        "illuminated": (found.illuminated, wanted.illuminated),
        "errors": (found.errors, wanted.errors),
    }
    return {
        name: float(np.abs(np.subtract(one, other)).max() / np.abs(other).max())
        for name, (one, other) in pairs.items()
    }


def refusal(name: str) -> str:
    try:
        return backend(name).name
    except ValueError as error:
        return str(error)


def main() -> None:
    scan = sample_moves(read_scan(Path(sys.argv[1])), "probe")
    on_cpu = backend("torch")
    small = replace(on_cpu, samples=2**12)  # of little memory, so that all threads are used
    wanted, found = solve(scan, backend("numpy")), solve(scan, on_cpu)
    seen: dict[str, Any] = {
        "name": on_cpu.name,
        "numpy and torch": differences(found, wanted),
        "threads": differences(*(solve(scan, replace(small, threads=threads)) for threads in (3, 1))),
        "frames on the host": differences(solve(scan, replace(on_cpu, room=0.0)), found),
        "has a GPU": torch.cuda.is_available(),
        "cuda": refusal("cuda"),
        "by itself": backend("auto").name,
    }
    if torch.cuda.is_available():
        seen["GPU"] = differences(solve(scan, backend("cuda")), wanted)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
