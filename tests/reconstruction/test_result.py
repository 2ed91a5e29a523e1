"""The files that a reconstruction leaves."""

from __future__ import annotations

import base64
import gzip
import io
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from reconstruction import result
from reconstruction import view as view_module
from reconstruction.preview import (
    MAX_BYTES,
    THUMBNAIL_BYTES,
    THUMBNAIL_SIDE,
    flattened,
    render,
    thumbnail,
)
from reconstruction.result import Run, lit, make_folder, remove_old, write_result
from reconstruction.scan import SOURCE, Scan, read_scan
from reconstruction.solver import Solution
from reconstruction.view import make_view
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


FILES = ["out.cxi", "out.h5", "out.json", "out.png", "out_view_amplitude.gz", "out_view_phase.gz"]


def test_the_files(scan: Scan, solution: Solution, tmp_path: Path) -> None:
    returned = write_result(tmp_path / "out", scan, solution, a_run(resolution_m=2e-8, warnings=("careful",)))
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
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
    assert figures["metadata"]["dwell1"] == 100.0
    assert figures["metadata"]["identifier"] == "NS_230216033_ccdframes_0_0"
    assert "translations" not in figures["metadata"]
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
    assert sorted(p.name for p in tmp_path.iterdir()) == [name for name in FILES if name != "out.json"]


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


def decoded(content: bytes, shape: list[int], scale: dict[str, Any]) -> Any:
    """The values of a viewer's file; not a number where nothing was scanned."""
    high, low = np.frombuffer(gzip.decompress(content), dtype=np.uint8).reshape(2, *shape).astype(np.uint16)
    numbers = high * 256 + low
    values = scale["low"] + (numbers - 1.0) / 65534 * (scale["high"] - scale["low"])
    return np.where(numbers == 0, np.nan, values)


def test_the_viewers_files_have_every_scanned_pixel_and_its_values(
    scan: Scan, solution: Solution, tmp_path: Path
) -> None:
    figures = write_result(tmp_path / "out", scan, solution, a_run())
    about = figures["view"]
    assert about["binned"] == 1
    assert about["shape"] == [70, 80]
    assert about["pixel_size_m"] == [1e-8, 2e-8]
    well_lit = np.ones((70, 80), dtype=np.bool_)
    flat = flattened(solution.obj[10:80, 20:100], well_lit)
    for name, expected in (("amplitude", np.abs(flat)), ("phase", np.angle(flat))):
        part = about[name]
        assert part["pieces"] == 1
        values = decoded((tmp_path / f"out_view_{name}.gz").read_bytes(), about["shape"], part)
        assert values == pytest.approx(expected, abs=(part["high"] - part["low"]) / 60000)
        assert part["low"] <= part["black"] < part["white"] <= part["high"]
        assert part["step"] == 1


def test_what_was_not_scanned_is_no_value_and_noise_of_the_rim_sets_no_range() -> None:
    scanned = np.ones((60, 50), dtype=np.bool_)
    scanned[:, :10] = False
    well_lit = scanned.copy()
    well_lit[:5] = False
    flat = np.exp(0.2j * np.random.default_rng(0).normal(size=(60, 50)))
    flat[2, 20] = 1e6
    view = make_view(flat, scanned, well_lit, np.array([1e-8, 1e-8]))
    values = decoded(view.files["_view_amplitude.gz"], view.about["shape"], view.about["amplitude"])
    assert np.array_equal(np.isnan(values), ~scanned)
    assert view.about["amplitude"]["high"] < 1.01
    assert values[2, 20] == pytest.approx(view.about["amplitude"]["high"])


@pytest.mark.parametrize(("limit", "step", "binned"), [(18_000, 16, 1), (5_000, 1, 2), (1_400, 1, 4)])
def test_a_large_picture_is_coarser_in_its_values_then_binned_and_says_so(
    monkeypatch: pytest.MonkeyPatch, limit: int, step: int, binned: int
) -> None:
    monkeypatch.setattr(view_module, "MAX_BYTES", limit // 4)
    rng = np.random.default_rng(0)
    flat = 1 + 0.1 * rng.normal(size=(101, 100)) + 0j
    flat[50:] += 0.5
    scanned = np.ones(flat.shape, dtype=np.bool_)
    view = make_view(flat, scanned, scanned, np.array([1e-8, 2e-8]))
    about = view.about
    assert all(len(content) <= limit // 4 for content in view.files.values())
    assert 1 < about["amplitude"]["pieces"] <= 4
    names = ["_view_amplitude.gz", "_view_amplitude_2.gz", "_view_amplitude_3.gz", "_view_amplitude_4.gz"]
    pieces = [view.files[name] for name in names[: about["amplitude"]["pieces"]]]
    assert about["binned"] == binned
    assert about["amplitude"]["step"] == step
    assert about["shape"] == [101 // binned, 100 // binned]
    assert about["pixel_size_m"] == pytest.approx([1e-8 * binned, 2e-8 * binned])
    values = decoded(b"".join(pieces), about["shape"], about["amplitude"])
    assert values[1].mean() == pytest.approx(1.0, abs=0.05)
    assert values[-1].mean() == pytest.approx(1.5, abs=0.05)


def test_the_thumbnail_is_small_even_when_it_is_all_noise(
    scan: Scan, solution: Solution, tmp_path: Path
) -> None:
    figures = write_result(tmp_path / "out", scan, solution, a_run())
    noise = np.random.default_rng(0).normal(size=(900, 700)) + 0j
    lit = np.ones(noise.shape, dtype=np.bool_)
    for data in (base64.b64decode(figures["thumbnail_png"]), thumbnail(noise, lit, np.array([1e-8, 1e-8]))):
        assert len(data) < THUMBNAIL_BYTES
        image = Image.open(io.BytesIO(data))
        assert max(image.size) <= THUMBNAIL_SIDE


def test_metadata_is_what_people_read_and_json_can_hold(
    changed: Callable[[Callable[[h5py.File], Any]], Path], solution: Solution, tmp_path: Path
) -> None:
    held: dict[str, Any] = {f"key{n}": n for n in range(200)}
    held = {
        "proposal": "ALS-01234",
        "experimenters": ["Ada", "Emmy"],
        "sample": "x" * 1000,
        "pos_x": [1.0] * 5000,
        "nested": {"a": 1},
        "large": 10**400,
        "bad": float("nan"),
        "empty": "",
        "nothing": None,
        "double_exposure": True,
        **held,
    }

    def edit(file: h5py.File) -> None:
        del file["metadata"]
        file["metadata"] = json.dumps(held)

    figures = write_result(tmp_path / "out", read_scan(changed(edit)), solution, a_run())
    metadata = json.loads((tmp_path / "out.json").read_text())["metadata"]
    assert metadata == figures["metadata"]
    assert metadata["proposal"] == "ALS-01234"
    assert metadata["experimenters"] == "Ada, Emmy"
    assert metadata["sample"] == "x" * 300
    assert metadata["double_exposure"] is True
    assert not metadata.keys() & {"pos_x", "nested", "large", "bad", "empty", "nothing"}
    assert len(metadata) == 80
