"""Where CDTools computes: devices, several processes, and how much memory a scan takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from standin.synthetic_scan import Optics, SyntheticScan, make_scan
from support.needs import CDTOOLS_PYTHON

HERE = Path(__file__).resolve().parent
INCLUDE = HERE.parents[1] / "include"
LAUNCH = """
import sys
from reconstruction import program, workers
launch = lambda: workers.launch(2, "reconstruction.cdtools_engine", sys.argv[1:])
sys.exit(program.run("cdtools", "", launch))
"""
LIMIT = 1.3  # times the frames in float32

pytestmark = [pytest.mark.needs("cdtools"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SyntheticScan:
    """49 frames of 48 by 48 pixels: all of them in one batch of the last stage."""
    path = tmp_path_factory.mktemp("tiny") / "NS_230216034_ccdframes_0_0.cxi"
    return make_scan(path, n_frames=49, step=150e-9, seed=5, optics=Optics(frame=48, photons=2e6))


def _python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CDTOOLS_PYTHON, *arguments],
        env=_environment(**environment),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def _environment(**environment: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COSMIC_")}
    return {**inherited, "PYTHONPATH": str(INCLUDE), "OMP_NUM_THREADS": "2", **environment}


def _arguments(scan: Path, *, split: bool = False, first: int = 0, last: int = 1) -> list[str]:
    numbers = ["1", str(first), str(last)]
    return [
        str(scan), str(split).lower(), "1", "1", "5e-05", "true", *numbers, "0", "none", "false", "none"
    ]  # fmt: skip


@pytest.fixture(scope="module")
def devices(tiny: SyntheticScan) -> dict[str, Any]:
    """What `cdtools_devices.py` saw."""
    done = _python(HERE / "cdtools_devices.py", tiny.cxi)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_no_gpu_one_and_several(devices: dict[str, Any]) -> None:
    none, one, four = (devices[f"gpus_{count}"] for count in (0, 1, 4))
    assert (none["device"], none["alone"], none["launched"]) == ("cpu", ["cpu"], [])
    assert (one["device"], one["alone"], one["launched"]) == ("cuda:0", ["cuda:0"], [])
    assert four["alone"] == []
    assert four["launched"] == [[4, "reconstruction.cdtools_engine", ["a.cxi"]]]


def test_frames_that_do_not_fit_a_gpu_stay_in_host_memory(devices: dict[str, Any]) -> None:
    """Half of its free memory, which is 800 bytes here."""
    assert devices["gpus_1"]["frames"] == {"399": "cuda:0", "401": "cpu"}
    assert devices["gpus_0"]["frames"] == {"399": "cpu", "401": "cpu"}


def test_halves_are_those_of_cdtools_without_a_copy(devices: dict[str, Any]) -> None:
    assert devices["halves"] == {"same": [True, True], "views": [True, True], "frames": 49}


def test_two_processes_find_what_one_finds(tiny: SyntheticScan, tmp_path: Path) -> None:
    arguments = _arguments(tiny.cxi, last=8)
    one = _python("-m", "reconstruction.cdtools_engine", *arguments, COSMIC_OUTPUT=str(tmp_path / "one"))
    two = _python("-c", LAUNCH, *arguments, COSMIC_OUTPUT=str(tmp_path / "two"))
    assert (two.returncode, two.stderr) == (0, "")
    assert "computing with CPU, 1 threads, 2 processes" in two.stdout
    assert two.stdout.count("iteration 8 of 8") == 1
    assert "computing with CPU, 2 threads\n" in one.stdout
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert second["errors"] == pytest.approx(first["errors"], rel=1e-3)
    assert second["parameters"]["computed_with"] == "CPU, 1 threads, 2 processes"
    objects = []
    for name in ("one", "two"):
        with h5py.File(tmp_path / f"{name}.cxi") as file:
            objects.append(file["entry_1/image_1/data"][()])
    assert np.abs(objects[0] - objects[1]).max() < 1e-3 * np.abs(objects[0]).max()


def test_what_two_processes_cannot_read_is_told_once(tmp_path: Path) -> None:
    missing = tmp_path / "nothing.cxi"
    done = _python("-c", LAUNCH, *_arguments(missing))
    assert done.returncode == 1
    assert done.stderr == f"cdtools: error: {missing}: there is no such file.\n"


def test_a_process_that_is_killed_ends_all(tiny: SyntheticScan, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [CDTOOLS_PYTHON, "-c", LAUNCH, *_arguments(tiny.cxi, first=100_000)],
        env=_environment(COSMIC_OUTPUT=str(tmp_path / "out")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("iteration 1 of"):
            break
    os.kill(_second(f"COSMIC_OUTPUT={tmp_path / 'out'}"), signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    error = "cdtools: error: process 2 of 2 was killed (SIGKILL); was there enough memory?"
    assert said.splitlines()[-1] == error
    assert not list(tmp_path.glob("out*"))


def _second(variable: str) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_text().split("\0")
        except OSError:
            continue
        if {variable, "RANK=1"} <= set(variables):
            return int(folder.name)
    raise AssertionError("there is no second process")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The memory of a reconstruction of next to nothing, in frames as large: imports, code, one batch."""
    folder = tmp_path_factory.mktemp("peak")
    return _peak(make_scan(folder / "scan.cxi", n_frames=49, optics=Optics()).cxi, folder, split=True)


@pytest.mark.parametrize(
    ("frames", "split"), [(2500, True), (4900, False)], ids=["92 MB and its halves", "181 MB"]
)
def test_memory_is_that_of_the_frames(libraries: int, tmp_path: Path, frames: int, split: bool) -> None:
    path = tmp_path / "scan.cxi"
    make_scan(path, n_frames=frames, step=60e-9, optics=Optics())
    taken = (_peak(path, tmp_path, split=split) - libraries) / (4 * frames * Optics().frame ** 2)
    print(f"{frames} frames: {taken:.2f} times their size, over {libraries / 1e6:.0f} MB")
    assert taken <= LIMIT


def _peak(path: Path, folder: Path, *, split: bool) -> int:
    done = _python(
        HERE / "cdtools_memory.py",
        *_arguments(path, split=split),
        COSMIC_OUTPUT=str(folder / "out"),
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
