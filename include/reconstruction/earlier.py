"""Reading the probe and the background of an earlier result: ours, or one that CDTools saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from reconstruction.arrays import Complex, Real
from reconstruction.scan import DETECTOR, SOURCE

OURS = {"probe": f"{SOURCE}/illumination", "background": f"{DETECTOR}/background"}


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What an earlier result begins the next with.

    :param probe: complex64, (modes, rows, columns).
    :param in_counts: the probe's power is a frame's counts; in CDTools' files it is that times the square of
        the oversampling, because its detector pixels are means.
    :param background: float32, like a frame, counts; or None.
    """

    path: Path
    probe: Complex
    in_counts: bool
    background: Real | None = None

    def check(self, detector_shape: tuple[int, int], oversampling: int) -> None:
        """Check that it fits a scan.

        :raises ValueError: its arrays have other sizes.
        """
        wanted, has = tuple(oversampling * n for n in detector_shape), self.probe.shape[-2:]
        if has != wanted:
            raise ValueError(
                f"{self.path}: its probe has {has} pixels and this scan's {wanted}; "
                "probe_initialization takes a result with the same frame size and oversampling."
            )
        dark = detector_shape if self.background is None else self.background.shape
        if dark != detector_shape:
            raise ValueError(f"{self.path}: its background has {dark} pixels and a frame {detector_shape}.")

    def inner(self, shape: tuple[int, int]) -> Complex:
        """The middle of its first mode: what it is without oversampling."""
        rows, columns = ((have - n) // 2 for have, n in zip(self.probe.shape[-2:], shape, strict=True))
        return self.probe[0, rows : rows + shape[0], columns : columns + shape[1]]


def read_earlier(path: Path) -> Earlier:
    """Probe and background of a CXI file of ours, or of a `.h5` or `.mat` file as CDTools writes it.

    :raises ValueError: when the file holds no probe.
    """
    if not path.is_file():
        raise ValueError(f"probe_initialization: {path}: there is no such file.")
    in_counts = False
    if h5py.is_hdf5(path):
        with h5py.File(path, "r", locking=False) as file:
            in_counts = OURS["probe"] in file
            names = OURS if in_counts else {key: key for key in OURS}
            held = {
                key: file[name][()] for key, name in names.items() if isinstance(file.get(name), h5py.Dataset)
            }
    elif path.suffix == ".mat":
        from scipy.io import loadmat  # noqa: PLC0415 - SciPy comes with CDTools

        held = loadmat(path)
    else:
        raise ValueError(f"probe_initialization: {path}: neither HDF5 (CXI, .h5) nor a MATLAB file.")
    return _checked(path, held, in_counts)


def _checked(path: Path, held: Mapping[str, Any], in_counts: bool) -> Earlier:
    probe, background = held.get("probe"), held.get("background")
    if probe is None or np.ndim(probe) not in (2, 3) or not np.issubdtype(np.asarray(probe).dtype, np.number):
        raise ValueError(
            f"probe_initialization: {path}: holds no probe ({OURS['probe']} in a CXI file, "
            "'probe' in a .h5 or .mat file)."
        )
    stack = np.asarray(probe, dtype=np.complex64)
    return Earlier(
        path=path,
        probe=stack.reshape(-1, *stack.shape[-2:]),
        in_counts=in_counts,
        background=None if background is None else np.asarray(background, np.float32),
    )
