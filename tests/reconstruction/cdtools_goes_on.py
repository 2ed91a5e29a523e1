"""Run by CDTools' own interpreter (see test_readers.py): opens results and goes on from them; prints JSON.

usage: python cdtools_goes_on.py SCAN.cxi RESULT.h5...
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cdtools.datasets import Ptycho2DDataset
from cdtools.models import FancyPtycho

from reconstruction.frc import align

STEP = {"lr": 0.001, "batch_size": 16, "thread": False}


def goes_on(scan: str, path: str) -> dict[str, Any]:
    """The model of a result, and its loss in each of three epochs."""
    model = FancyPtycho.from_results_h5(path)
    dataset = Ptycho2DDataset.from_cxi(scan)
    file_translations = dataset.translations.clone()
    dataset.translations = model.original_translations
    before = model.obj.detach().numpy().copy()
    saved = model.save_results()
    same = np.array_equal(saved["obj"], before) and np.array_equal(saved["state_dict"]["obj"], before)
    torch.manual_seed(0)
    losses = [float(loss) for loss in model.Adam_optimize(3, dataset, **STEP)]
    after = model.obj.detach().numpy()
    inner = tuple(slice(n // 4, -n // 4) for n in before.shape)
    aligned, _ = align(after[inner], before[inner])
    signs = [
        float(np.abs(np.array(sign * file_translations - model.original_translations)).max())
        for sign in (1, -1)
    ]
    return {
        "losses": losses,
        "epoch": model.epoch,
        "likeness": float(
            abs(np.vdot(aligned, before[inner])) / np.linalg.norm(aligned) / np.linalg.norm(before[inner])
        ),
        "same": bool(same),
        "basis": saved["obj_basis"].tolist(),
        "off_by": min(signs),
        "saved": sorted(saved),
    }


def anew(scan: str) -> float:
    """The loss of the first epoch of a model that begins without a result."""
    dataset = Ptycho2DDataset.from_cxi(scan)
    model = FancyPtycho.from_dataset(dataset, propagation_distance=50e-6)
    return next(float(loss) for loss in model.Adam_optimize(1, dataset, **STEP))


def main() -> None:
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen: dict[str, Any] = {Path(path).stem: goes_on(sys.argv[1], path) for path in sys.argv[2:]}
        seen["anew"] = anew(sys.argv[1])
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
