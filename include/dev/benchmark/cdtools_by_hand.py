"""CDTools as its documentation uses it: with its own loader of frames, batches and learning rates.

usage: python cdtools_by_hand.py SCAN.cxi OUTPUT.cxi EPOCHS DEFOCUS
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from cdtools.datasets import Ptycho2DDataset
from cdtools.models import FancyPtycho
from cdtools.tools.interactions import translations_to_pixel

from dev.benchmark.picture import write_picture


def main() -> None:
    """Reconstruct and print a line for each epoch."""
    scan, output, epochs, defocus = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    dataset = Ptycho2DDataset.from_cxi(scan)
    dataset.translations *= -1  # COSMIC's files hold the probe's
    model = FancyPtycho.from_dataset(dataset, n_modes=1, propagation_distance=defocus)
    model.translation_offsets.requires_grad = False
    model.weights.requires_grad = False
    final = epochs // 4
    stages = [(epochs - final, 0.02, 10), (final, 0.005, 50)]
    done = 0
    for count, rate, batch in stages:
        for loss in model.Adam_optimize(count, dataset, lr=rate, batch_size=batch, thread=False):
            done += 1
            print(f"iteration {done} of {epochs}, loss {loss:.5g}", flush=True)
    model.tidy_probes()
    moved = translations_to_pixel(model.obj_basis, dataset.translations) - model.min_translation
    write_picture(
        output,
        model.obj.detach().numpy(),
        np.linalg.norm(model.obj_basis.numpy().astype(np.float64), axis=0),
        moved.numpy() + np.array(model.probe.shape[-2:]) // 2,
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
