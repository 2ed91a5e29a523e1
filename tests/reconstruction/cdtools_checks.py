"""Run by CDTools' own interpreter (see test_cdtools.py): what each argument does; prints JSON.

usage: python cdtools_checks.py SCAN.cxi FOLDER
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from scipy.io import savemat

from reconstruction import fancy
from reconstruction.cdtools_engine import Geometry, Parameters
from reconstruction.conventions import sample_moves
from reconstruction.earlier import read_earlier
from reconstruction.epochs import Epochs, Stage
from reconstruction.result import Run, write_result
from reconstruction.scan import Scan, read_scan
from reconstruction.solver import Solution
from reconstruction.workers import Team

FAR = Geometry(near_field=False, distance=50e-6)
QUICK = Parameters(n_init_iter=1, n_final_iter=1)


def model_of(scan: Scan, parameters: Parameters, *, near_field: bool = False) -> Any:
    """CDTools' model as it is before the first epoch."""
    geometry = Geometry(near_field=near_field, distance=parameters.propagation_distance or 0.0)
    name = parameters.probe_initialization
    earlier = None if name is None else read_earlier(Path(name))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fancy._Run(scan, parameters, geometry, Team(), earlier=earlier).model


def probe_of(scan: Scan, parameters: Parameters) -> Any:
    model = model_of(scan, parameters)
    return (model.probe * model.probe_norm).detach().numpy()


def models(scan: Scan) -> dict[str, Any]:
    """What can be seen of each argument in the model."""
    plain = probe_of(scan, QUICK)
    with h5py.File(scan.path.with_name(scan.path.name.removesuffix(".cxi") + "_truth.h5")) as file:
        fine = file["probe"][()]
    true = fine.reshape(len(fine) // 2, 2, len(fine) // 2, 2).mean(axis=(1, 3))

    def likeness(probe: Any) -> float:
        return float(abs(np.vdot(probe, true)) / np.linalg.norm(probe) / np.linalg.norm(true))

    confined = probe_of(scan, replace(QUICK, probe_support_radius=10.0))[0]
    rows, columns = np.indices(confined.shape) - (len(confined) - 1) / 2
    fixed = model_of(scan, replace(QUICK, simulate_probe_translation=False))
    moving = model_of(scan, QUICK)
    return {
        "plain_shape": plain.shape,
        "modes_shape": probe_of(scan, replace(QUICK, n_modes=3)).shape,
        "oversampled_shape": probe_of(scan, replace(QUICK, oversampling_factor=2)).shape,
        "right_distance": likeness(plain[0]),
        "wrong_sign": likeness(probe_of(scan, replace(QUICK, propagation_distance=-50e-6))[0]),
        "no_distance": likeness(probe_of(scan, replace(QUICK, propagation_distance=0.0))[0]),
        "outside_support": float(np.abs(confined[np.hypot(rows, columns) > 10.0]).max()),
        "inside_support": float(np.abs(confined).max()),
        "lens_moves": [bool(moving.simulate_probe_translation), bool(fixed.simulate_probe_translation)],
        "plain_background": float((moving.background**2).max()),
        "init_background": float(
            (model_of(scan, replace(QUICK, init_background=True)).background ** 2).max()
        ),
    }


def schedule(scan: Scan) -> dict[str, Any]:
    """Epochs, batches, and what is free in each, of three initial rounds and the last stage, and of none."""
    return {
        "schedule": _schedule(scan, rounds=3, randomization=3.0),
        "no_rounds": _schedule(scan, rounds=0, randomization=3.0),
    }


def _schedule(scan: Scan, *, rounds: int, randomization: float) -> list[Any]:
    seen: list[Any] = []
    parameters = Parameters(
        n_init_rounds=rounds, n_init_iter=4, n_final_iter=5, translation_randomization=randomization
    )
    run = fancy._Run(scan, parameters, FAR, Team())
    original = Epochs.run

    def watched(epochs: Epochs, stage: Stage) -> Any:
        offsets = epochs.model.translation_offsets.detach()
        names = [name for name, _ in epochs.model.named_parameters()]
        free = [stage.free[names.index(name)] for name in ("probe", "weights")]
        seen.append([stage.epochs, stage.step, stage.batch, free, float(offsets.abs().max())])
        return original(epochs, replace(stage, epochs=1))

    Epochs.run = watched  # type: ignore[assignment,method-assign]
    with contextlib.redirect_stdout(sys.stderr):
        run.solve()
    Epochs.run = original  # type: ignore[method-assign]
    return seen


def initialised(scan: Scan, folder: Path) -> dict[str, Any]:
    """A probe and a background that come from an earlier result: ours, and what CDTools itself saves."""
    parameters = Parameters(n_init_iter=8, n_final_iter=4, oversampling_factor=2)
    with contextlib.redirect_stdout(sys.stderr):
        outcome = fancy.reconstruct(scan, parameters, FAR)
        run = fancy._Run(scan, parameters, FAR, Team())
        run.solve()
    figures = write_result(
        folder / "earlier",
        scan,
        outcome.solution,
        Run(engine="cdtools", parameters={}, seconds=1.0, errors_are=""),
    )
    saved = run.model.save_results(run.dataset)
    savemat(folder / "saved.mat", {key: saved[key] for key in ("probe", "background", "oversampling")})
    run.model.save_to_h5(str(folder / "saved.h5"), run.dataset)
    begun = {
        name: replace(parameters, probe_initialization=str(folder / name), init_background=True, n_modes=2)
        for name in ("earlier.cxi", "saved.mat", "saved.h5")
    }
    counts = float(np.percentile(scan.frames.sum(axis=(1, 2)), 98))
    probes = {name: probe_of(scan, again) for name, again in begun.items()}
    return {
        "scale": figures["scale"],
        "counts": counts,
        "begun_shape": probes["earlier.cxi"].shape,
        "same_probe": float(
            np.abs(probes["earlier.cxi"][0] / 2 - outcome.solution.probe[0]).max()
            / np.abs(probes["earlier.cxi"][0]).max()
        ),
        # In CDTools' units: its pixels are means over 2 by 2 samples.
        "brightness": float((np.abs(probes["earlier.cxi"][0] / 2) ** 2).sum() / counts),
        "as_saved": {
            name: float(np.abs(probes[name][0] - saved["probe"][0]).max() / np.abs(saved["probe"]).max())
            for name in ("saved.mat", "saved.h5")
        },
        "same_background": {
            name: float(np.abs(model_of(scan, again).background.detach().numpy() ** 2 - background).max())
            for (name, again), background in zip(
                begun.items(),
                (outcome.solution.background, saved["background"], saved["background"]),
                strict=True,
            )
        },
    }


def resolution_in_a_margin() -> float | None:
    """Of two halves that were lit in the middle third only, as oversampling has it; the pixel is 1 m."""
    rng = np.random.default_rng(0)
    obj = (1 + 0.3 * (rng.normal(size=(150, 150)) + 1j * rng.normal(size=(150, 150)))).astype(np.complex64)
    lit = np.zeros(obj.shape, dtype=np.float32)
    lit[50:100, 50:100] = 1.0
    half = Solution(
        obj=obj,
        probe=np.ones((1, 8, 8), dtype=np.complex64),
        illuminated=lit,
        corner=np.zeros(2),
        pixel=np.ones(2),
        background=None,
        errors=[1.0],
    )
    return fancy._resolution(half, half)


def main() -> None:
    scan, folder = sample_moves(read_scan(Path(sys.argv[1])), "probe"), Path(sys.argv[2])
    seen = {**models(scan), **schedule(scan), **initialised(scan, folder)}
    print(json.dumps({**seen, "resolution_in_a_margin": resolution_in_a_margin()}))


if __name__ == "__main__":
    main()
