"""No wrong picture without a word: what is wrong with a scan's file is refused, or said in the result.

Each row changes a good file. A row that is reconstructed has a picture of the sample, or a warning that names
the cause.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dev.demo.orientation import find_orientation
from reconstruction import ptychocam
from reconstruction.scan import DETECTOR, SOURCE, ScanError
from reconstruction.solver import Options
from standin.synthetic_scan import Layout, Optics, SyntheticScan, make_scan
from support import damage

Changed = Callable[[Callable[[h5py.File], Any]], Path]
USUAL = Options(iterations=20, period_illu_refine=1, period_bg_refine=1, use_illu_mask=True)  # COSMIC's
PIXELS = [f"{DETECTOR}/{name}" for name in ("basis_vectors", "x_pixel_size", "y_pixel_size")]
MASK, PROBE_MASK = f"{DETECTOR}/mask", f"{DETECTOR}/probe_mask"


@dataclass(frozen=True)
class Row:
    """What is changed, and what a user sees.

    :param warning: in the result; "" for none at all.
    :param correlation: with the truth, upright.
    """

    name: str
    edit: damage.Edit
    warning: str = ""
    correlation: float = 0.97


REFUSED = [
    Row("two frames", damage.only(frames=2, positions=2), "has 2 frames and 2 positions: too few"),
    Row("two positions", damage.only(positions=2), "has 64 frames and 2 positions: too few"),
    Row("all frames empty", damage.empty_frames(1.0), "The shutter was shut"),
    Row("nearly all frames empty", damage.empty_frames(0.9), "frames are empty; 6 with light are too few"),
    Row("all NaN", damage.not_numbers(...), "values that are not numbers"),
    Row("NaN in most frames", damage.not_numbers(slice(5, None)), "59 of 64 frames hold values that are not"),
    Row("one position", damage.one_position, "the positions are all equal"),
    Row("tiny span", damage.scaled(1e-3, damage.TRANSLATIONS), "less than 3 of the object's pixels"),
    Row("huge steps", damage.scaled(1e12, damage.TRANSLATIONS), "they overlap in no unit"),
    Row("a distance of nothing", damage.scaled(1e-9, f"{DETECTOR}/distance"), "not the detector's distance"),
    Row("an energy of nothing", damage.scaled(1e-9, f"{SOURCE}/energy"), "CXI wants joules"),
    Row(
        "virtual frames left behind", damage.virtual_frames, "kept in other files, and 4 of these are missing"
    ),
    Row("a part of them left behind", partial(damage.virtual_frames, missing=1), "missing here: part_0.h5"),
    Row(
        "linked frames left behind", damage.external_frames, "/frames in the file frames.h5, which is missing"
    ),
    Row("a filter", damage.filtered_frames, "compressed with the HDF5 filter 32008"),
    Row("random floats", damage.random_bytes("<f4"), "64 of 64 frames hold values that are not"),
    Row("random integers", damage.random_bytes("<u2"), "the frames are noise"),
    Row("random bytes", damage.random_bytes("u1"), "the frames are noise"),
    Row("no frames", damage.without_frames, "holds no frames, only what is written before the first one"),
    Row("frames without counts", damage.dimmed(1e-4), "the reconstruction failed: it ended with an error of"),
    Row(
        "a third of the distance",
        damage.scaled(1 / 3, f"{DETECTOR}/distance"),
        "A distance of 0.121 m, 3 times that in the file, explains the frames",
    ),
    Row(
        "three times the energy",
        damage.scaled(3.0, f"{SOURCE}/energy"),
        "the energy of 3000 eV, the detector's pixel size, or the positions' unit is wrong by about this",
    ),
    Row("empty frames' data set", damage.only(frames=0, positions=0), "aborted before the first one"),
]

RECONSTRUCTED = [
    Row("as ACME writes it", damage.as_it_is),
    Row("a centered mask", damage.centered_mask),
    Row("energy in the metadata alone", damage.energy_in_metadata_alone),
    Row("virtual frames", partial(damage.virtual_frames, missing=0)),
    Row("an inverted illumination mask", damage.inverted(PROBE_MASK), "zero in the beam"),
    Row(
        "a mask off the beam",
        damage.mask_off_the_beam,
        "not lie where the frames have light",
        correlation=0.0,
    ),
    Row("an inverted mask", damage.inverted(MASK, bad=30), "detector's mask marks 99% of the pixels"),
    Row("an inverted mask of a perfect detector", damage.inverted(MASK), "detector's mask marks 100% of"),
    Row("5 % empty", damage.empty_frames(0.05), "3 of 64 frames are empty"),
    Row("20 % empty", damage.empty_frames(0.2), "13 of 64 frames are empty"),
    Row("a NaN frame", damage.not_numbers(7), "1 of 64 frames hold values that are not numbers"),
    Row("a NaN pixel", damage.not_numbers((slice(None), 30, 31)), "1 pixels are not numbers"),
    Row("hot pixels", damage.hot_pixels(20, 1e5), "20 hot pixels"),
    Row("dimmer hot pixels", damage.hot_pixels(20, 500.0), "hot pixels"),
    Row("a little saturated", damage.saturated(0.5), "saturated"),
    Row("much saturated", damage.saturated(0.05), "saturated", correlation=0.0),
    Row("mm", damage.scaled(1e3, f"{DETECTOR}/distance"), "distance is in mm by its size"),
    Row("um pixels", damage.scaled(1e6, *PIXELS), "basis_vectors is in um by its size"),
    Row("eV", damage.scaled(1 / 1.60218e-19, f"{SOURCE}/energy"), "energy is in eV by its size"),
    Row("keV", damage.scaled(1e-3 / 1.60218e-19, f"{SOURCE}/energy"), "energy is in keV by its size"),
    Row("um positions", damage.scaled(1e6, damage.TRANSLATIONS), "translation is in um by its size"),
    Row("mm positions", damage.scaled(1e3, damage.TRANSLATIONS), "translation is in mm by its size"),
    Row("darks subtracted", damage.dark_frames_kept, "the dark frames were subtracted already"),
    Row("fewer frames", damage.only(frames=49), "has 49 frames and 64 positions"),
    Row("fewer positions", damage.only(positions=49), "has 64 frames and 49 positions"),
    Row("aborted", damage.only(frames=49, positions=49), "has 49 of the 64 points that were planned"),
    Row(
        "no first illumination",
        damage.illumination(lambda probe: probe * np.nan),
        "illumination was not used",
    ),
    Row(
        "a first illumination of one pixel",
        damage.illumination(damage.one_lit_pixel),
        "The illumination in the file was not used",
    ),
    Row(
        "nine frames",
        damage.only(frames=9, positions=9),
        "has 9 of the 64 points that were planned",
        correlation=0.8,
    ),
    Row("negated positions", damage.scaled(-1.0, damage.TRANSLATIONS), "sample is", correlation=0.0),
    Row("half the step", damage.scaled(0.5, damage.TRANSLATIONS), "0.5 times that in", correlation=0.0),
    Row(
        "three times the distance",
        damage.scaled(3.0, f"{DETECTOR}/distance"),
        "A distance of 0.121 m, 0.333 times that in the file, explains the frames",
        correlation=0.0,
    ),
    Row("half as far again", damage.scaled(1.5, f"{DETECTOR}/distance"), "0.667 times that", correlation=0.0),
    Row("a bright frame", damage.brighter(100.0, 17), "1 of 64 frames is 9"),
    Row("three bright frames", damage.brighter(20.0, slice(20, 23)), "3 of 64 frames are 1"),
    Row("dim frames", damage.dimmed(1e-3), "The frames are dim", correlation=0.0),
    Row("shuffled positions", damage.shuffled_positions, "wrong. Look at the positions", correlation=0.0),
]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> SyntheticScan:
    """64 frames of 48 by 48 pixels: sixty reconstructions take a quarter less time."""
    path = tmp_path_factory.mktemp("scan") / "NS_230216033_ccdframes_0_0.cxi"
    optics, layout = Optics(frame=48, photons=2e6), Layout(corner_position=True)
    return make_scan(path, n_frames=64, step=130e-9, seed=3, optics=optics, layout=layout)


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_what_cannot_be_reconstructed_is_refused(row: Row, changed: Changed, tmp_path: Path) -> None:
    path = changed(row.edit)
    with pytest.raises(ScanError) as caught:
        ptychocam.reconstruct(USUAL, path)
    assert row.warning in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert not list(tmp_path.glob("*_ptychocam*"))


@pytest.mark.parametrize("row", RECONSTRUCTED, ids=lambda row: row.name)
def test_what_is_reconstructed_is_right_or_has_a_warning(
    row: Row, changed: Changed, synthetic: SyntheticScan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(row.edit)
    ptychocam.reconstruct(USUAL, path)
    held = json.loads(path.with_name("changed_ptychocam.json").read_text())
    warnings = "\n".join(held["warnings"])
    assert row.warning in warnings
    assert bool(row.warning) == bool(warnings)
    printed = capsys.readouterr().out
    assert all(f"warning: {warning}" in printed for warning in held["warnings"])
    found = find_orientation(path.with_name("changed_ptychocam.cxi"), synthetic.truth)
    assert row.correlation == 0.0 or found.upright
    assert found.correlation >= row.correlation


@pytest.mark.parametrize(
    "optics",
    [
        Optics(frame=64, photons=2e5),
        Optics(frame=64, photons=2e8, background=0.0, readout=0.0),
        Optics(frame=64, background=20.0),
        Optics(frame=64, stop_fraction=0.0),
        Optics(frame=64, energy_ev=1500.0),
    ],
    ids=["dim", "bright", "stray light", "no central stop", "another energy"],
)
def test_a_good_scan_has_no_warning(optics: Optics, tmp_path: Path) -> None:
    path = make_scan(tmp_path / "good.cxi", n_frames=49, step=130e-9, seed=3, optics=optics).cxi
    ptychocam.reconstruct(USUAL, path)
    held = json.loads(path.with_name("good_ptychocam.json").read_text())
    assert held["warnings"] == []
    assert held["notes"] == [f"{PROBE_MASK} is in Fourier order (zero frequency at [0, 0])."]


@pytest.mark.parametrize(
    ("edit", "code", "said"),
    [(damage.only(frames=2, positions=2), 1, "too few"), (damage.empty_frames(0.05), 0, "")],
)
def test_the_exit_code_says_whether_there_is_a_picture(
    programs: Any, changed: Changed, edit: damage.Edit, code: int, said: str
) -> None:
    path = changed(edit)
    done = programs.run("ptychocam", "-i", "10", "-r", "1", "-M", path)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == code
    assert path.with_name("changed_ptychocam.json").exists() == (code == 0)
