"""The files that a reconstruction leaves."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from reconstruction import result
from reconstruction.preview import MAX_BYTES, render
from reconstruction.result import Run, lit, make_folder, remove_old, write_result
from reconstruction.scan import SOURCE, Scan, read_scan
from reconstruction.solver import Solution
from standin.synthetic_scan import SyntheticScan


@pytest.fixture
def scan(synthetic: SyntheticScan) -> Scan:
    return read_scan(synthetic.cxi)


@pytest.fixture
def solution() -> Solution:
    rng = np.random.default_rng(0)
    lit = np.zeros((90, 120), dtype=np.float32)
    lit[10:80, 20:100] = 5.0
    return Solution(
        obj=(1 + 0.1 * rng.normal(size=(90, 120)) + 0.1j).astype(np.complex64),
        probe=np.full((2, 64, 64), 2.0, dtype=np.complex64),
        illuminated=lit,
        corner=np.array([-45.0, -60.5]),
        pixel=np.array([1e-8, 2e-8]),
        background=np.ones((64, 64), dtype=np.float32),
        errors=[float(1 / (k + 1)) for k in range(2500)],
    )


def a_run(**changes: Any) -> Run:
    return Run(
        **{
            "engine": "test",
            "parameters": {"n": 1},
            "seconds": 1.23456,
            "errors_are": "amplitudes",
            **changes,
        }
    )


def test_the_four_files(scan: Scan, solution: Solution, tmp_path: Path) -> None:
    returned = write_result(tmp_path / "out", scan, solution, a_run(resolution_m=2e-8, warnings=("careful",)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.cxi", "out.h5", "out.json", "out.png"]
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures == returned
    assert figures["engine"] == "test"
    assert figures["iterations"] == 2500
    assert len(figures["errors"]) <= 1000
    assert figures["errors"][0] == 1.0
    assert figures["final_error"] == pytest.approx(1 / 2500)
    assert figures["pixel_size_m"] == [1e-8, 2e-8]
    assert figures["object_shape"] == [90, 120]
    assert figures["resolution_m"] == 2e-8
    assert figures["scale"] == pytest.approx(2 * 64 * 64 * 4)
    assert figures["warnings"] == ["careful"]
    assert figures["frames"] == 64
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    with h5py.File(tmp_path / "out.cxi") as file:
        assert np.array_equal(file["entry_1/data_1/data"][()], solution.obj)
        assert file["entry_1/image_1/data"].attrs["units"].startswith("transmission")
        assert file["entry_1/image_1/pixel_size"].attrs["units"] == "m"
        assert file["entry_1/image_1/origin"][()] == pytest.approx([-4.5e-7, -1.21e-6])
        assert (file["entry_1/image_1/mask"][()] == 0).sum() == 70 * 80
        assert file[f"{SOURCE}/illumination"].shape == (2, 64, 64)
        assert file[f"{SOURCE}/energy"][()] == pytest.approx(1000 * 1.602176634e-19)


def test_the_json_comes_last(
    scan: Scan, solution: Solution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(result, "render", fail)
    with pytest.raises(OSError, match="No space left"):
        write_result(tmp_path / "out", scan, solution, a_run())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.cxi", "out.h5"]


def test_a_figure_that_is_not_a_number_makes_no_json(scan: Scan, solution: Solution, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_result(tmp_path / "out", scan, solution, a_run(seconds=float("nan")))
    assert not (tmp_path / "out.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.cxi", "out.h5", "out.png"]


def test_a_folder_that_cannot_be_used_is_found_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file" / "deep" / "out")
    make_folder(tmp_path / "a" / "b" / "out")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    remove_old(tmp_path / "nowhere" / "out")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(("rows", "columns"), [(1500, 1500), (40, 900), (900, 40), (17, 16)])
def test_the_preview_is_small_even_when_it_is_all_noise(rows: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(rows, columns)) + 1j * rng.normal(size=(rows, columns))
    data = render(noise, np.ones((rows, columns), dtype=np.bool_), np.array([5e-9, 5e-9]), "noise")
    assert len(data) <= MAX_BYTES < 300_000
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.format == "PNG"
    assert len(np.unique(np.asarray(image))) > 50


@pytest.mark.parametrize("size", [(100, 90), (500, 700)])
def test_what_was_scanned_is_found_in_a_wide_dark_margin(size: tuple[int, int]) -> None:
    """With faint copies of it at its sides, as an oversampled probe has them."""
    illuminated = np.full(size, 0.2, dtype=np.float32)
    illuminated[40:60, 30:50] = 100.0
    illuminated[60:64, 40] = 50.0
    illuminated[40:60, :20] = illuminated[80:90, 30:50] = 30.0
    found = lit(illuminated, 0.1)
    expected = np.zeros(size, dtype=np.bool_)
    expected[40:60, 30:50] = expected[60:64, 40] = True
    assert np.array_equal(found, expected)


def test_everything_lit_and_nothing_lit() -> None:
    assert lit(np.ones((40, 300), dtype=np.float32), 0.1).all()
    assert not lit(np.zeros((4, 4), dtype=np.float32), 0.1).any()
