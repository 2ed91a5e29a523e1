"""Reading CXI files: the layouts in use, and what a user is told about a file that is none."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from reconstruction.scan import DATA, DETECTOR, GEOMETRY, SOURCE, ScanError, read_scan
from standin.synthetic_scan import SyntheticScan
from support import damage

Changed = Callable[[Callable[[h5py.File], Any]], Path]


def test_the_beamlines_layout(synthetic: SyntheticScan) -> None:
    scan = read_scan(synthetic.cxi)
    assert scan.frames.shape == (64, 64, 64)
    assert scan.frames.dtype == np.float32
    assert scan.energy_ev == pytest.approx(1000.0, rel=1e-5)
    assert scan.wavelength == pytest.approx(1.23984e-9, rel=1e-4)
    assert scan.distance == pytest.approx(0.121)
    assert scan.detector_pitch == pytest.approx([90e-6, 90e-6])
    assert scan.good.all()
    assert scan.illumination is not None
    assert scan.illumination_mask is not None
    assert scan.dark is None
    assert scan.near_field is None
    assert scan.warnings == ()


def _only_in_the_detector_group(file: h5py.File) -> None:
    del file[f"{DATA}/data"], file[f"{DATA}/translation"], file[f"{DETECTOR}/translation"]


def _broken_links(file: h5py.File) -> None:
    del file[f"{DATA}/data"]
    file[f"{DATA}/data"] = h5py.SoftLink("/nowhere")


def _pixel_sizes_and_corner(file: h5py.File) -> None:
    del file[f"{DETECTOR}/basis_vectors"], file[f"{DETECTOR}/distance"], file[f"{DETECTOR}/y_pixel_size"]


def _columns_and_wavelength(file: h5py.File) -> None:
    basis = file[f"{DETECTOR}/basis_vectors"][()]
    del file[f"{DETECTOR}/basis_vectors"], file[f"{SOURCE}/energy"]
    file[f"{DETECTOR}/basis_vectors"] = np.repeat(basis[None], 64, axis=0)
    file[f"{SOURCE}/wavelength"] = [1.2398419843320026e-9]


@pytest.mark.parametrize(
    "edit", [_only_in_the_detector_group, _broken_links, _pixel_sizes_and_corner, _columns_and_wavelength]
)
def test_other_layouts_say_the_same(
    changed: Changed, synthetic: SyntheticScan, edit: Callable[[h5py.File], None]
) -> None:
    ours, theirs = read_scan(synthetic.cxi), read_scan(changed(edit))
    assert np.array_equal(ours.frames, theirs.frames)
    assert np.array_equal(ours.translations, theirs.translations)
    assert theirs.basis == pytest.approx(ours.basis)
    assert theirs.distance == pytest.approx(ours.distance)
    assert theirs.wavelength == pytest.approx(ours.wavelength, rel=1e-5)


def test_masked_negative_and_broken_pixels_are_taken_out(changed: Changed) -> None:
    def edit(file: h5py.File) -> None:
        mask = np.zeros((64, 64), dtype=np.uint32)
        mask[0, 0], mask[0, 1] = 1, 0x1000
        file[f"{DETECTOR}/mask"][...] = mask
        file[f"{DETECTOR}/data"][3, 5, 6] = np.nan
        file[f"{DETECTOR}/data"][3, 7, 7] = -4.0
        file[f"{DETECTOR}/data_dark"] = np.full((5, 64, 64), 0.25)

    scan = read_scan(changed(edit))
    assert not scan.good[0, 0]
    assert scan.good[0, 1]
    assert not scan.good[5, 6]
    assert scan.good.sum() == 64 * 64 - 2
    assert scan.frames.min() == 0.0
    assert np.isfinite(scan.frames).all()
    assert scan.warnings == ("1 pixels are not numbers in some frame; masked.",)
    assert scan.dark is not None
    assert scan.dark == pytest.approx(np.full((64, 64), 0.25))


def _delete(*names: str) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        for name in names:
            del file[name]

    return edit


def _replace(name: str, value: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_delete("entry_1"), "entry_1: missing; this is HDF5 but not CXI"),
        (
            _delete("metadata", f"{DATA}/data", f"{DETECTOR}/data"),
            f"the frames are missing; looked for {DATA}/data",
        ),
        (_replace(f"{DETECTOR}/data", np.ones((64, 64))), f"{DATA}/data: has shape"),
        (_replace(f"{DETECTOR}/data", np.ones((64, 64, 4))), "too little to reconstruct"),
        (_replace(f"{DETECTOR}/data", np.ones((1, 64, 64))), "too few to determine an object and a probe"),
        (_replace(f"{DETECTOR}/data", np.zeros((64, 64, 64))), "no counts in any good pixel"),
        (_replace(f"{DETECTOR}/data", [b"a"]), f"{DATA}/data: holds object, not numbers"),
        (_delete(f"{GEOMETRY}/translation"), f"the translations are missing; looked for {DATA}/translation"),
        (_replace(f"{GEOMETRY}/translation", np.full((64, 3), np.nan)), "values that are not numbers"),
        (_replace(f"{GEOMETRY}/translation", 1e9 * np.arange(192.0).reshape(64, 3)), "CXI wants meters"),
        (_replace(f"{GEOMETRY}/translation", np.zeros(64)), "not (n, 3)"),
        (
            _delete("metadata", f"{SOURCE}/energy"),
            f"the photon energy is missing; looked for {SOURCE}/energy",
        ),
        (_replace(f"{SOURCE}/energy", 1e9), f"{SOURCE}/energy: gives a photon energy of 1e+09 J"),
        (_replace(f"{SOURCE}/energy", [1.0, 2.0]), f"{SOURCE}/energy: holds an array of shape (2,)"),
        (_replace(f"{DETECTOR}/distance", 0.0), f"{DETECTOR}/distance: is zero"),
        (_replace(f"{DETECTOR}/distance", np.inf), f"{DETECTOR}/distance: is inf"),
        (
            _delete(f"{DETECTOR}/distance", f"{DETECTOR}/corner_position"),
            f"the distance to the detector is missing; looked for {DETECTOR}/distance",
        ),
        (
            _delete(*(f"{DETECTOR}/{name}" for name in ("basis_vectors", "x_pixel_size", "y_pixel_size"))),
            f"the detector's pixel size is missing; looked for {DETECTOR}/basis_vectors",
        ),
        (_replace(f"{DETECTOR}/basis_vectors", np.zeros((2, 3))), "is not two vectors of three numbers"),
        (_replace(f"{SOURCE}/illumination", np.ones((5, 5))), f"{SOURCE}/illumination: has shape (5, 5)"),
        (_replace(f"{DETECTOR}/probe_mask", np.ones((5, 5))), f"{DETECTOR}/probe_mask: has shape (5, 5)"),
    ],
)
def test_a_file_that_cannot_be_used_names_what_is_wrong(
    changed: Changed, edit: Callable[[h5py.File], None], message: str
) -> None:
    path = changed(edit)
    with pytest.raises(ScanError) as caught:
        read_scan(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_what_is_no_file_at_all(tmp_path: Path, synthetic: SyntheticScan) -> None:
    with pytest.raises(ScanError, match="there is no such file"):
        read_scan(tmp_path / "missing.cxi")
    with pytest.raises(ScanError, match="not a regular file"):
        read_scan(tmp_path)
    text = tmp_path / "text.cxi"
    text.write_text("not HDF5")
    with pytest.raises(ScanError, match="not an HDF5 file, so not CXI"):
        read_scan(text)
    whole = synthetic.cxi.read_bytes()
    cut = tmp_path / "cut.cxi"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ScanError, match="damaged HDF5 file"):
        read_scan(cut)


def test_damage_within_the_frames_is_told(tmp_path: Path, changed: Changed) -> None:
    def compress(file: h5py.File) -> None:
        frames = file[f"{DETECTOR}/data"][()]
        del file[f"{DETECTOR}/data"]
        file.create_dataset(f"{DETECTOR}/data", data=frames, chunks=(1, 64, 64), compression="gzip")

    whole = changed(compress)
    with h5py.File(whole) as file:
        chunk = file[f"{DETECTOR}/data"].id.get_chunk_info(10)
    damaged = bytearray(whole.read_bytes())
    damaged[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path = tmp_path / "damaged.cxi"
    path.write_bytes(damaged)
    with pytest.raises(ScanError, match="damaged HDF5 file"):
        read_scan(path)


def test_useless_intensities_are_left_out_and_told(changed: Changed) -> None:
    scan = read_scan(changed(lambda file: file.update({f"{SOURCE}/illumination_intensities": np.ones(3)})))
    assert scan.intensities is None
    assert "not one positive number for each frame" in scan.warnings[0]


def test_reading_takes_the_frames_memory_and_little_more(tmp_path: Path, synthetic: SyntheticScan) -> None:
    """Also of a file from which frames and pixels are left out."""
    path = tmp_path / "large.cxi"
    shutil.copyfile(synthetic.cxi, path)
    with h5py.File(path, "a") as file:
        frames = np.kron(file[damage.FRAMES][()], np.ones((8, 4, 4), dtype=np.float32))
        frames[3] = np.nan
        frames[5] = 0.0
        damage.replace(file, damage.FRAMES, frames)
        damage.replace(file, damage.TRANSLATIONS, np.repeat(file[damage.TRANSLATIONS][()], 8, axis=0))
        for name in (f"{DETECTOR}/mask", f"{DETECTOR}/probe_mask", f"{SOURCE}/illumination"):
            del file[name]
    size = frames.nbytes
    del frames
    tracemalloc.start()
    try:
        scan = read_scan(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(scan.frames) == 64 * 8 - 2
    assert peak < 1.2 * size
