"""A reconstruction takes little more memory than its frames, however many there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from reconstruction.scan import DATA, DETECTOR, GEOMETRY
from standin.synthetic_scan import Optics, make_scan
from support.needs import CDTOOLS_PYTHON

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_SHARE = 1.3  # of the frames in float32


def long_scan(path: Path, times: int) -> int:
    """64 frames of 64 by 64 pixels, so many times over: the bytes of all frames."""
    make_scan(path, n_frames=64, step=130e-9, seed=3, optics=Optics(frame=64))
    with h5py.File(path, "a") as file:
        frames, translations = file[f"{DETECTOR}/data"][()], file[f"{GEOMETRY}/translation"][()]
        for group in (DATA, DETECTOR):
            for name in ("data", "translation"):
                if file.get(f"{group}/{name}", getlink=True) is not None:
                    del file[f"{group}/{name}"]
        del file[f"{GEOMETRY}/translation"], file["metadata"]
        file[f"{GEOMETRY}/translation"] = np.tile(translations, (times, 1))
        shape = (times * len(frames), *frames.shape[1:])
        data = file.create_dataset(f"{DATA}/data", shape, np.float32, chunks=(1, *frames.shape[1:]))
        for start in range(0, len(data), len(frames)):
            data[start : start + len(frames)] = frames
    return times * int(frames.nbytes)


@pytest.mark.parametrize(
    ("python", "arrays"),
    [
        (sys.executable, "numpy"),
        pytest.param(str(CDTOOLS_PYTHON), "torch", marks=pytest.mark.needs("cdtools")),
    ],
    ids=["numpy", "torch"],
)
@pytest.mark.parametrize("times", [80, 240], ids=["84 MB", "252 MB"])
@pytest.mark.timeout(900)
def test_the_peak_of_memory_is_little_more_than_the_frames(
    tmp_path: Path, python: str, arrays: str, times: int
) -> None:
    make_scan(tmp_path / "small.cxi", n_frames=64, step=130e-9, optics=Optics(frame=64))
    size = long_scan(tmp_path / "long.cxi", times)
    done = subprocess.run(
        [python, Path(__file__).with_name("peak_memory.py"), tmp_path / "small.cxi", tmp_path / "long.cxi"],
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY / "include"),
            "OMP_NUM_THREADS": "2",
            "COSMIC_ARRAYS": arrays,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.splitlines()[-1])
    print(f"{size / 1e6:.0f} MB of frames, peak {peak / 1e6:.0f} MB, {peak / size:.2f} of them")
    assert size < peak < MAX_SHARE * size
