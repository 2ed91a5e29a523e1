"""pty-chi's LSQML, the engine that its documentation recommends first, on one scan, with its defaults.

usage: python pty_chi.py SCAN.cxi OUTPUT.cxi EPOCHS DEFOCUS
"""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # PyPI's cannot load its library with a torch for CPUs only; pty-chi needs none of that
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float limit) -> Tensor")

from ptychi import api
from ptychi.api.task import PtychographyTask
from ptychi.utils import get_suggested_object_size, rescale_probe

from dev.benchmark.picture import write_picture
from reconstruction.geometry import inverse_far_field, propagate
from reconstruction.scan import DATA, DETECTOR, LIGHT_SPEED, PLANCK, SOURCE


def main() -> None:
    """Reconstruct and print a line for each epoch."""
    scan, output, epochs, defocus = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    with h5py.File(scan) as file:
        frames = file[f"{DATA}/data"][()]
        moved = file[f"{DATA}/translation"][()].astype(np.float64)
        distance, pitch = file[f"{DETECTOR}/distance"][()], file[f"{DETECTOR}/x_pixel_size"][()]
        wavelength = PLANCK * LIGHT_SPEED / file[f"{SOURCE}/energy"][()]
    n = frames.shape[-1]
    pixel = wavelength * distance / (n * pitch)
    # ACME's detector: the next row is down, the next column to the left.
    places = -moved[:, [1, 0]] / pixel
    places -= (places.max(axis=0) + places.min(axis=0)) / 2
    focus = inverse_far_field(np.sqrt(frames.mean(axis=0)).astype(np.complex64))
    probe = propagate(focus, pixel=np.array([pixel, pixel]), wavelength=wavelength, distance=defocus)
    probe = rescale_probe(probe[None, None], frames)
    options = api.LSQMLOptions()
    options.data_options.wavelength_m = wavelength
    options.object_options.pixel_size_m = pixel
    options.reconstructor_options.num_epochs = epochs
    options.reconstructor_options.default_device = api.Devices.CPU
    options.reconstructor_options.random_seed = 0
    size = get_suggested_object_size(places, (n, n), extra=20)
    task = PtychographyTask(
        options,
        diffraction_data=frames,
        object_data=torch.ones([1, *size], dtype=torch.complex64),
        probe_data=probe,
        probe_position_x_px=places[:, 1].astype(np.float32),
        probe_position_y_px=places[:, 0].astype(np.float32),
    )
    for epoch in range(1, epochs + 1):
        task.run(1)
        print(f"iteration {epoch} of {epochs}", flush=True)
    obj = task.get_data_to_cpu("object", as_numpy=True)[0]
    write_picture(output, obj, np.array([pixel, pixel]), places + np.array(obj.shape) / 2)


if __name__ == "__main__":
    main()
