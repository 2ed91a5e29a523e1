"""Run by the interpreter that has MANTiS (see test_stack.py): opens a stack, as densities, too; prints JSON.

usage: python mantis_opens.py STACK.nxs
"""

from __future__ import annotations

import contextlib
import json
import sys

import numpy as np


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from mantis_xray import file_plugins
        from mantis_xray.analysis import data_stack, data_struct

        plugin = file_plugins.identify(sys.argv[1])
        structure = file_plugins.GetFileStructure(sys.argv[1], plugin)
        stack = data_stack.data(data_struct.h5())
        file_plugins.load(sys.argv[1], stack, plugin, selection=[(0, 0, 0)])
        stack.i0data, stack.evi0 = np.ones(stack.n_ev), stack.ev.copy()
        stack.calculate_optical_density()
    seen = {
        "plugin": plugin.title,
        "entries": {name: list(entry) for name, entry in structure.items()},
        "energies": stack.ev.tolist(),
        "shape": [stack.n_cols, stack.n_rows, stack.n_ev],
        "data_shape": stack.absdata.shape,
        "x": [float(stack.x_dist[0]), float(stack.x_dist[-1])],
        "density": np.median(stack.od3d, axis=(0, 1)).tolist(),
        "corner": float(stack.absdata[1, 2, 0]),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
