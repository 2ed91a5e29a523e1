"""Results are opened by the programs that COSMIC has: CDTools, ptychodus, its control software."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from reconstruction.frc import shifted
from reconstruction.geometry import far_field
from reconstruction.scan import read_scan
from standin.synthetic_scan import SyntheticScan
from support.needs import CDTOOLS_PYTHON, READERS_PYTHON

REPOSITORY = Path(__file__).resolve().parents[2]
RESULT_FILES = {".cxi", ".h5", ".png", ".json", "_view_amplitude.gz", "_view_phase.gz"}
PIXEL = 26.045e-9  # lambda z / (N p) of the scan


@dataclass(frozen=True)
class Results:
    """A scan and what ptychocam left beside it; `prefix` as in `<prefix>.h5`."""

    scan: Path
    prefix: Path

    def file(self, suffix: str) -> Path:
        return self.prefix.with_name(self.prefix.name + suffix)


@pytest.fixture(scope="module")
def results(programs: Any, synthetic: SyntheticScan, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Under the names that a scan's first run has at NERSC."""
    scan = tmp_path_factory.mktemp("day") / synthetic.cxi.name
    shutil.copyfile(synthetic.cxi, scan)
    done = programs.run("ptychocam", "-i", "40", "-r", "1", "-T", "1", scan)
    assert done.returncode == 0, done.stderr
    return Results(scan, scan.with_name(scan.name.removesuffix(".cxi") + "_ptychocam"))


def run_script(python: Path, script: str, *arguments: Path) -> dict[str, Any]:
    """What a script of this folder prints."""
    done = subprocess.run(
        [python, Path(__file__).with_name(script), *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY / "include"),
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_controls_stack_reader_finds_object_energy_and_pixel(results: Results) -> None:
    """Every root group named like an entry is an energy; the pixel is that of the detector's corner."""
    with h5py.File(results.file(".cxi")) as file:
        (entry,) = [name for name in file if "entry" in name]
        amplitude = np.abs(file[f"{entry}/image_1/data"][()])
        energy = file[f"{entry}/instrument_1/source_1/energy"][()] * 6.242e18
        x, y, z = file[f"{entry}/instrument_1/detector_1/corner_position"][()]
    aperture = np.sqrt(x**2 + y**2) / np.sqrt(2) / z
    assert amplitude.ndim == 2
    assert np.median(amplitude) == pytest.approx(1, abs=0.3)
    assert energy == pytest.approx(1000, rel=1e-3)
    assert 1239.852e-9 / energy / 2 / aperture == pytest.approx(PIXEL, rel=1e-3)


def test_what_ptychocam_itself_leaves_is_in_its_place(results: Results) -> None:
    with h5py.File(results.file(".cxi")) as file:
        latest = file["entry_1/image_latest"]
        assert isinstance(file.get("entry_1/image_latest", getlink=True), h5py.SoftLink)
        assert latest["data"] == file["entry_1/image_1/data"]
        illumination = latest["process_1/final_illumination"][()]
        background = latest["process_1/final_background"][()]
        probe = file["entry_1/instrument_1/source_1/illumination"][()]
    assert illumination.shape == background.shape == (64, 64)
    assert np.array_equal(illumination, probe[0])
    assert (background > 0).all()


def test_controls_scan_browser_finds_the_result_by_its_name(results: Results) -> None:
    (path,) = results.scan.parent.glob("NS_230216033_ccdframes_*.h5")
    with h5py.File(path) as file, h5py.File(results.file(".cxi")) as cxi:
        obj, probe = file["obj"][()], file["probe"][()]
        assert np.array_equal(obj, cxi["entry_1/image_1/data"][()])
        assert np.array_equal(probe, cxi["entry_1/instrument_1/source_1/illumination"][()])
        for name in ("obj_basis", "probe_basis"):
            assert np.linalg.norm(file[name][:, 0]) == pytest.approx(PIXEL, rel=1e-3)
            # Along the detector's axes, in their direction: no reader has to turn the object.
            directions = cxi["entry_1/instrument_1/detector_1/basis_vectors"][()]
            directions /= np.linalg.norm(directions, axis=0)
            assert file[name][()] / PIXEL == pytest.approx(directions, abs=1e-3)
        assert 1239.8e-9 / np.atleast_1d(file["wavelength"][()])[0] == pytest.approx(1000, rel=1e-3)


def test_a_second_run_leaves_the_files_of_the_first(results: Results, programs: Any) -> None:
    before = {path: path.read_bytes() for path in results.scan.parent.iterdir()}
    again = results.prefix.with_name(results.prefix.name + "_r2")
    done = programs.run("ptychocam", *programs.QUICK, results.scan, output=again)
    assert done.returncode == 0, done.stderr
    made = set(results.scan.parent.iterdir()) - set(before)
    try:
        assert {path: path.read_bytes() for path in before} == before
        assert {path.name.removeprefix(again.name) for path in made} == RESULT_FILES
    finally:
        for path in made:
            path.unlink()


@pytest.mark.needs("cdtools")
def test_cdtools_goes_on_from_both_programs_results(results: Results, programs: Any, tmp_path: Path) -> None:
    few = ["false", "2", "1", "5e-05", "true", "1", "3", "1", "0", "none", "false", "none"]
    done = programs.run("cdtools", results.scan, *few, output=tmp_path / "cdtools")
    assert done.returncode == 0, done.stderr
    once = ["false", "1", "1", "0", "false", "1", "0", "1", "0", "none", "false", "none"]
    forced = programs.run("cdtools", results.scan, *once, output=tmp_path / "near", COSMIC_NEAR_FIELD="true")
    assert forced.returncode == 0, forced.stderr
    files = [results.file(".h5"), tmp_path / "cdtools.h5", tmp_path / "near.h5"]
    seen = run_script(CDTOOLS_PYTHON, "cdtools_goes_on.py", results.scan, *files)
    for path, epochs in zip(files, (3, 3 + 4, 3 + 1), strict=True):
        model = seen[path.stem]
        assert model["same"]
        assert model["epoch"] == epochs
        assert model["losses"][2] < model["losses"][0]
        assert model["likeness"] > 0.99
        assert model["off_by"] < 1e-12  # the file's positions, or all of them the other way
        with h5py.File(path) as file:
            assert set(model["saved"]) - {"cdtools_version"} <= set(file)
    assert seen["cdtools"]["losses"][0] < 0.5 * seen["anew"]
    assert seen["cdtools"]["basis"] == pytest.approx(np.array(seen[files[0].stem]["basis"]), rel=1e-4)
    assert seen[files[0].stem]["losses"][0] < 0.05 * seen["anew"]


@pytest.mark.needs("readers")
def test_ptychodus_reads_scan_and_result(results: Results, tmp_path: Path) -> None:
    arrays = tmp_path / "arrays.npz"
    seen = run_script(READERS_PYTHON, "ptychodus_reads.py", results.scan, results.file(".h5"), arrays)
    scan = read_scan(results.scan)
    assert seen["frames"] == list(scan.frames.shape)
    assert seen["counts"] == pytest.approx(float(scan.frames.sum(dtype=np.float64)), rel=1e-6)
    assert seen["distance"] == pytest.approx(scan.distance)
    assert seen["pitch"] == pytest.approx(scan.detector_pitch[1])
    assert seen["scan_energy"] == pytest.approx(1000, rel=1e-4)
    assert seen["energy"] == pytest.approx(1000, rel=1e-4)
    assert seen["name"] == "NS_230216033_ccdframes_0_0"
    assert seen["pixel"] == pytest.approx([PIXEL, PIXEL], rel=1e-3)
    with np.load(arrays) as read, h5py.File(results.file(".cxi")) as cxi:
        background = cxi["entry_1/image_1/process_1/final_background"][()]
        assert np.array_equal(read["obj"][0], cxi["entry_1/image_1/data"][()])
        # Object, probe and positions belong together: with ptychodus' own places they give the frames.
        middles = np.stack([read["rows"], read["columns"]], axis=1)
        error = frames_error(scan.frames, read["obj"][0], read["probe"][0, 0], middles, background)
    assert error < 0.06


def frames_error(frames: Any, obj: Any, probe: Any, middles: Any, background: Any) -> float:
    """sqrt(sum (sqrt I - sqrt model)^2 / sum I); `middles`: of the probe, (n - 1) / 2, on the object."""
    size, squared = len(probe), 0.0
    for frame, start in zip(frames, middles - (len(probe) - 1) / 2, strict=True):
        row, column = np.floor(start + 1e-6).astype(int)
        wave = shifted(probe, start - (row, column)) * obj[row : row + size, column : column + size]
        model = np.abs(far_field(wave)) ** 2 + background
        squared += float(((np.sqrt(frame) - np.sqrt(model)) ** 2).sum())
    return float(np.sqrt(squared / frames.sum(dtype=np.float64)))
