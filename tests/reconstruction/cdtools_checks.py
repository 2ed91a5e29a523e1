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

from reconstruction import fancy
from reconstruction.cdtools_engine import Geometry, Parameters, decide_geometry
from reconstruction.result import Run, write_result
from reconstruction.scan import Scan, read_scan

QUICK = Parameters(n_init_iter=1, n_final_iter=1)


def model_of(scan: Scan, parameters: Parameters, *, near_field: bool = False) -> Any:
    """CDTools' model as it is before the first epoch."""
    geometry = Geometry(near_field=near_field, distance=parameters.propagation_distance)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fancy._Run(scan, fancy._dataset(scan), parameters, geometry, "").model


def probe_of(scan: Scan, parameters: Parameters) -> Any:
    model = model_of(scan, parameters)
    return (model.probe * model.probe_norm).detach().numpy()


def message(scan: Scan, parameters: Parameters) -> str:
    try:
        model_of(scan, parameters)
    except ValueError as error:
        return str(error)
    return ""


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
    """Epochs, batches, and what is free in each, of three initial rounds and the last stage."""
    seen: list[Any] = []
    parameters = Parameters(n_init_rounds=3, n_init_iter=4, n_final_iter=5, translation_randomization=3.0)
    run = fancy._Run(scan, fancy._dataset(scan), parameters, Geometry(near_field=False, distance=50e-6), "")
    original = run.model.Adam_optimize

    def watched(count: int, dataset: Any, **options: Any) -> Any:
        offsets = run.model.translation_offsets.detach()
        free = [run.model.probe.requires_grad, run.model.weights.requires_grad]
        seen.append([count, options["lr"], free, float(offsets.abs().max())])
        return original(1, dataset, **options)

    run.model.Adam_optimize = watched
    with contextlib.redirect_stdout(sys.stderr):
        run.solve()
    return {"schedule": seen}


def initialised(scan: Scan, folder: Path) -> dict[str, Any]:
    """A probe and a background that come from an earlier result."""
    geometry = decide_geometry(scan, QUICK)
    parameters = Parameters(n_init_iter=8, n_final_iter=4, oversampling_factor=2)
    with contextlib.redirect_stdout(sys.stderr):
        outcome = fancy.reconstruct(scan, parameters, geometry)
    figures = write_result(
        folder / "earlier",
        scan,
        outcome.solution,
        Run(engine="cdtools", parameters={}, seconds=1.0, errors_are=""),
    )
    again = replace(
        parameters, probe_initialization=str(folder / "earlier.cxi"), init_background=True, n_modes=2
    )
    begun = probe_of(scan, again)
    model = model_of(scan, again)
    text = folder / "text.cxi"
    text.write_text("no")
    empty = folder / "empty.cxi"
    h5py.File(empty, "w").close()
    return {
        "scale": figures["scale"],
        "counts": float(np.percentile(scan.frames.sum(axis=(1, 2)), 98)),
        "same_probe": float(np.abs(begun[0] / 2 - outcome.solution.probe[0]).max() / np.abs(begun[0]).max()),
        "same_background": float(
            np.abs(model.background.detach().numpy() ** 2 - outcome.solution.background).max()
        ),
        "begun_shape": begun.shape,
        "missing": message(scan, replace(QUICK, probe_initialization="no such.cxi")),
        "text": message(scan, replace(QUICK, probe_initialization=str(text))),
        "empty": message(scan, replace(QUICK, probe_initialization=str(empty))),
        "other_size": message(scan, replace(QUICK, probe_initialization=str(folder / "earlier.cxi"))),
    }


def main() -> None:
    scan, folder = read_scan(Path(sys.argv[1])), Path(sys.argv[2])
    print(json.dumps({**models(scan), **schedule(scan), **initialised(scan, folder)}))


if __name__ == "__main__":
    main()
