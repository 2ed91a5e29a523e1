"""What a benchmarked program leaves: the part of a result that is compared with the truth."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from dev.demo.compare import IMAGE
from reconstruction.arrays import Complex, Real


def write_picture(path: Path, obj: Complex, pixel: Real, probe_centers: Real) -> None:
    """Write an object and where it was scanned.

    :param pixel: meters, (rows, columns).
    :param probe_centers: (n, 2), pixels of the object.
    """
    first, last = (np.round(edge(probe_centers, axis=0)).astype(int) for edge in (np.min, np.max))
    mask = np.ones(obj.shape, dtype=np.uint32)
    mask[first[0] : last[0] + 1, first[1] : last[1] + 1] = 0
    with h5py.File(path, "w") as file:
        file[f"{IMAGE}/data"], file[f"{IMAGE}/mask"], file[f"{IMAGE}/pixel_size"] = obj, mask, pixel
