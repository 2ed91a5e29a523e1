"""Stacks: energies of other pixels and drifts on one grid, what is missing, and that MANTiS opens them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from reconstruction.arrays import Complex, Real
from reconstruction.geometry import far_field_pixel, positions
from reconstruction.program import UsageError
from reconstruction.result import Run, write_result
from reconstruction.scan import ELECTRON_VOLT, LIGHT_SPEED, PLANCK, Scan, ScanError, read_scan
from reconstruction.solver import Solution
from reconstruction.stack import Chosen, make_stacks, parse
from standin.synthetic_scan import SyntheticScan
from support.needs import READERS_PYTHON

SCAN = "NS_230216033"
# Of each energy index: eV (downwards, as some scans go), what absorbs, and the drift in meters, (y, x).
ENERGIES = {
    0: (724.0, 0.5, (0.0, 0.0)),
    1: (718.5, 0.6, (31e-9, -44e-9)),
    2: (711.0, 1.4, (-80e-9, 15e-9)),
    3: (709.5, 0.9, (52e-9, 67e-9)),
    4: (700.0, 0.3, (-11e-9, -90e-9)),
}
BLOBS = np.random.default_rng(7).uniform([-0.9, -0.9, 0.05, 0.2], [0.9, 0.9, 0.12, 0.7], (40, 4)) * (
    1e-6,
    1e-6,
    1e-6,
    1,
)


def transmission(y: Real, x: Real, absorption: float) -> Complex:
    """The sample at these places, meters in the laboratory; without any symmetry."""
    thickness = np.zeros((len(y), len(x)))
    for row, column, radius, height in BLOBS:
        thickness += height * np.exp(-((y[:, None] - row) ** 2 + (x[None, :] - column) ** 2) / radius**2)
    wave: Complex = np.exp((-absorption - 0.4j) * thickness)
    return wave


def write_energy(
    scan: Scan, folder: Path, index: int, region: int = 0, tag: str = "_ptychocam", **changes: Any
) -> Path:
    """A result of one energy, as an engine writes it; `noise` replaces the object by noise."""
    energy, absorption, drift = ENERGIES[index]
    scan = replace(scan, wavelength=PLANCK * LIGHT_SPEED / (energy * ELECTRON_VOLT))
    pixel = far_field_pixel(scan)
    moved = positions(scan, pixel)
    corner = np.floor(moved.min(axis=0)) - 32
    shape = (np.ceil(np.ptp(moved, axis=0)) + 64).astype(int)
    # The detector's rows go along -y and its columns along -x.
    y, x = (-(corner[axis] + np.arange(shape[axis])) * pixel[axis] - drift[axis] for axis in (0, 1))
    obj = transmission(y, x, absorption) * np.exp(
        0.03j * np.arange(shape[1])
    )  # with the ramp of a far-off probe
    rng = np.random.default_rng(index)
    if changes.get("noise"):
        obj = np.exp(0.5j * rng.normal(size=obj.shape))
    lit = np.zeros(shape, dtype=np.float32)
    lit[10:-10, 12:-8] = 1.0
    solution = Solution(
        obj=obj.astype(np.complex64),
        probe=np.ones((1, 64, 64), dtype=np.complex64),
        illuminated=lit,
        corner=corner,
        pixel=pixel,
        background=None,
        errors=[changes.get("error", 0.05)],
    )
    prefix = folder / f"{SCAN}_ccdframes_{index}_{region}{tag}"
    write_result(prefix, scan, solution, Run(engine="ptychocam", parameters={}, seconds=1.0, errors_are=""))
    return prefix


@pytest.fixture(scope="module")
def scan(synthetic: SyntheticScan) -> Scan:
    return read_scan(synthetic.cxi)


@pytest.fixture(scope="module")
def day(scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A day's folder with a result of each energy."""
    folder = tmp_path_factory.mktemp("230216")
    for index in ENERGIES:
        write_energy(scan, folder, index)
    return folder


@pytest.fixture
def copied(day: Path, tmp_path: Path) -> Path:
    """A copy of the day's results, to be changed."""
    return Path(shutil.copytree(day, tmp_path / "230216"))


def read(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        seen = {
            name: file[f"entry0/counter0/{name}"][()] for name in ("data", "energy", "sample_x", "sample_y")
        }
        seen |= {name: file[f"entry0/alignment/{name}"][()] for name in file["entry0/alignment"]}
        seen["phase"] = file["entry0/phase/data"][()]
    return seen


def test_energies_are_aligned_on_one_grid(copied: Path) -> None:
    """The same place is at the same pixel of each energy, to a tenth of a pixel, upright."""
    (path,) = make_stacks(Chosen(folder=copied, scan=SCAN))
    assert path.name == "NS_230216033_ptychocam_stack_0.nxs"
    seen = read(path)
    order = sorted(ENERGIES, key=lambda index: ENERGIES[index][0])
    assert seen["energy"] == pytest.approx([ENERGIES[index][0] for index in order], rel=1e-6)
    assert seen["energy_index"].tolist() == order
    assert list(seen["missing_energy_index"]) == []
    y, x = seen["sample_y"] * 1e-6, seen["sample_x"] * 1e-6
    assert seen["data"].shape == (5, len(y), len(x))
    assert (np.diff(y) > 0).all()
    assert (np.diff(x) > 0).all()
    finest = 1.2398e-6 / 724 * 0.121 / (64 * 90e-6)
    assert np.diff(x) == pytest.approx(finest, rel=1e-3)
    drifts = np.array([ENERGIES[index][2] for index in order])
    reference = order.index(2)  # where the sample absorbs most
    assert seen["shift"][reference].tolist() == [0.0, 0.0]
    assert seen["shift"] * 1e-6 == pytest.approx(drifts[reference] - drifts, abs=0.1 * finest)
    assert (seen["correlation"] > 0.9).all()
    for number, index in enumerate(order):
        true = (
            np.abs(transmission(y - drifts[reference, 0], x - drifts[reference, 1], ENERGIES[index][1])) ** 2
        )
        assert np.abs(seen["data"][number] - true).max() < 0.06
        assert np.abs(seen["data"][number] - true).mean() < 0.01
        turned = true[::-1, ::-1]
        assert np.abs(seen["data"][number] - turned).mean() > 0.03
    true_phase = np.angle(transmission(y - drifts[reference, 0], x - drifts[reference, 1], 0.0))
    likeness = np.corrcoef(seen["phase"][0].ravel(), true_phase.ravel())[0, 1]
    assert likeness > 0.9


def test_what_is_missing_is_listed(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / f"{SCAN}_ccdframes_1_0_ptychocam.json").unlink()  # its reconstruction never ended
    damaged = copied / f"{SCAN}_ccdframes_3_0_ptychocam.cxi"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    (copied / f"{SCAN}_ccdframes_5_0.cxi").write_text("a scan that nobody has reconstructed")
    (path,) = make_stacks(Chosen(folder=copied, scan=SCAN, energies=8))
    seen = read(path)
    assert sorted(seen["energy_index"]) == [0, 2, 4]
    assert list(seen["missing_energy_index"]) == [1, 3, 5, 6, 7]
    said = capsys.readouterr().out
    assert f"warning: {damaged}: a damaged result" in said
    names = ", ".join(f"{SCAN}_ccdframes_{index}_0" for index in (1, 3, 5, 6, 7))
    assert f"warning: region 0: 5 of 8 energies have no result: {names}\n" in said
    assert "region 0: 3 of 8 energies" in said


def test_each_region_has_its_stack_and_the_newest_results(
    scan: Scan, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_energy(scan, copied, 0, region=1)
    write_energy(scan, copied, 4, region=1)
    again = write_energy(scan, copied, 4, region=1, tag="_ptychocam_r2", error=0.01)
    os.utime(again.with_name(again.name + ".json"), (2e9, 2e9))
    first, second = make_stacks(Chosen(folder=copied, scan=SCAN))
    assert len(read(first)["energy"]) == 5
    assert [name.decode() for name in read(second)["result"]] == [
        f"{SCAN}_ccdframes_4_1_ptychocam_r2.cxi",
        f"{SCAN}_ccdframes_0_1_ptychocam.cxi",
    ]
    assert "region 1: 3 of 5 energies have no result" in capsys.readouterr().out


def test_an_energy_that_resembles_nothing_is_not_moved(
    scan: Scan, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_energy(scan, copied, 1, noise=True, error=0.6)
    (path,) = make_stacks(Chosen(folder=copied, scan=SCAN))
    seen = read(path)
    number = seen["energy_index"].tolist().index(1)
    assert seen["shift"][number].tolist() == [0.0, 0.0]
    assert (
        "ccdframes_1_0_ptychocam.cxi was not moved: it resembles the reference at 711.00 eV too little"
        in (capsys.readouterr().out)
    )
    assert np.delete(np.abs(seen["shift"]).max(axis=1) > 0, [number, 2]).any()


def test_two_engines_need_a_choice(scan: Scan, copied: Path) -> None:
    write_energy(scan, copied, 0, tag="_cdtools")
    with pytest.raises(ScanError, match="results of cdtools and ptychocam; choose one with -e"):
        make_stacks(Chosen(folder=copied, scan=SCAN))
    (path,) = make_stacks(Chosen(folder=copied, scan=SCAN, engine="cdtools"))
    assert len(read(path)["energy"]) == 1


def test_what_cannot_be_stacked_is_said(scan: Scan, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in (
        Chosen(folder=copied, scan="NS_230216034"),
        Chosen(folder=copied, scan=SCAN, engine="sharp"),
    ):
        with pytest.raises(ScanError, match="there is none"):
            make_stacks(missing)
    with pytest.raises(ScanError, match="no such folder"):
        make_stacks(Chosen(folder=copied / "x", scan=SCAN))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(ScanError, match=r"needs 0\.0 GB, and 0\.0 GB are free"):
        make_stacks(Chosen(folder=copied, scan=SCAN))
    monkeypatch.undo()
    (copied / f"{SCAN}_ccdframes_200_0.cxi").touch()
    elsewhere = copied / f"{SCAN}_ccdframes_3_0_ptychocam.cxi"
    with h5py.File(elsewhere, "a") as file:
        file["entry_1/image_1/origin"][...] += 1e-4
    with pytest.raises(ScanError, match="are they of one region"):
        make_stacks(Chosen(folder=copied, scan=SCAN))
    for region in range(1, 5):
        (copied / f"{SCAN}_ccdframes_0_{region}.cxi").touch()
    with pytest.raises(ScanError, match="6 energies of 5 regions; a scan has at most 200 and 4"):
        make_stacks(Chosen(folder=copied, scan=SCAN))
    with pytest.raises(ScanError, match="201 energies of 5 regions"):
        make_stacks(Chosen(folder=copied, scan=SCAN, energies=200))
    assert not list(copied.glob("*.nxs"))
    assert not list(copied.glob(".*"))


def test_memory_does_not_grow_with_the_energies(copied: Path) -> None:
    def peak(count: int) -> int:
        for number in range(count):
            for suffix in (".cxi", ".json"):
                name = f"{SCAN}_ccdframes_{{}}_0_ptychocam{suffix}"
                if number not in ENERGIES:
                    shutil.copyfile(copied / name.format(number % 5), copied / name.format(number))
        tracemalloc.start()
        make_stacks(Chosen(folder=copied, scan=SCAN))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few = peak(5)
    assert peak(40) < 1.2 * few


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exactly one FOLDER/SCAN is wanted"),
        (["a/NS_230216033", "b"], "exactly one FOLDER/SCAN is wanted"),
        (["a/NS_230216033_ccdframes_0_0.cxi"], "exactly one FOLDER/SCAN is wanted"),
        (["-n", "0", "a/NS_230216033"], "-n is '0'; it takes a whole number from 1 to 200"),
        (["-n", "201", "a/NS_230216033"], "-n is '201'"),
        (["-e", "../x", "a/NS_230216033"], "-e is '../x'; it takes the name of an engine"),
        (["-x", "a/NS_230216033"], "option -x not recognized"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(arguments)
    assert message in str(caught.value)


def test_arguments() -> None:
    assert parse(["NS_230216033"]) == Chosen(folder=Path(), scan="NS_230216033")
    assert parse(["a/x_y-z.1_230216033"]) == Chosen(folder=Path("a"), scan="x_y-z.1_230216033")
    everything = ["-e", "cdtools", "-n", "80", "/x y/XS_230216033"]
    assert parse(everything) == Chosen(
        folder=Path("/x y"), scan="XS_230216033", engine="cdtools", energies=80
    )


@pytest.mark.needs("readers")
def test_mantis_opens_a_stack_of_the_installed_program(programs: Any, copied: Path) -> None:
    done = subprocess.run(
        [programs.prefix / "stack.sh", copied / SCAN],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    path = copied / "NS_230216033_ptychocam_stack_0.nxs"
    assert f"region 0: 5 of 5 energies: {path}" in done.stdout
    opened = subprocess.run(
        [READERS_PYTHON, Path(__file__).with_name("mantis_opens.py"), path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert opened.returncode == 0, opened.stderr
    seen, held = json.loads(opened.stdout), read(path)
    assert seen["plugin"] == "NXstxm"
    assert seen["entries"] == {"entry0": ["counter0", "phase"]}
    assert seen["energies"] == held["energy"].tolist()
    columns, rows = len(held["sample_x"]), len(held["sample_y"])
    assert seen["shape"] == seen["data_shape"] == [columns, rows, 5]
    assert seen["x"] == [held["sample_x"][0], held["sample_x"][-1]]
    assert seen["corner"] == pytest.approx(float(held["data"][0, 2, 1]))
    assert int(np.argmax(seen["density"])) == 2  # 711 eV, the third


def test_a_stack_without_results_fails_as_a_command(programs: Any, tmp_path: Path) -> None:
    done = subprocess.run(
        [programs.prefix / "stack.sh", tmp_path / SCAN],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"stack: error: {tmp_path}/{SCAN}_ccdframes_<energy>_<region>_<engine>.cxi")
