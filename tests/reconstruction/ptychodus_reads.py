"""Run by the interpreter that has ptychodus (see test_readers.py): reads a scan and a result; prints JSON.

usage: python ptychodus_reads.py SCAN.cxi RESULT.h5 OUT.npz
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from ptychodus.plugins.cxi_file import CXIDiffractionFileReader
from ptychodus.plugins.h5_product_file import H5ProductFileIO


def main() -> None:
    dataset = CXIDiffractionFileReader().read(Path(sys.argv[1]))
    metadata = dataset.get_metadata()
    frames = np.concatenate([array.get_patterns() for array in dataset])
    product = H5ProductFileIO().read(Path(sys.argv[2]))
    geometry = product.object_.get_geometry()
    positions = product.probe_positions
    np.savez(
        sys.argv[3],
        obj=product.object_.get_array(),
        probe=product.probes.get_array(),
        columns=geometry.map_probe_positions_to_object_x_px(positions),
        rows=geometry.map_probe_positions_to_object_y_px(positions),
    )
    seen = {
        "frames": frames.shape,
        "counts": float(frames.sum(dtype=np.float64)),
        "distance": metadata.detector_distance_m,
        "pitch": metadata.detector_pixel_geometry.width_m,
        "scan_energy": metadata.photon_energy_eV,
        "name": product.metadata.name,
        "energy": product.metadata.photon_energy_eV,
        "pixel": [geometry.pixel_height_m, geometry.pixel_width_m],
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
