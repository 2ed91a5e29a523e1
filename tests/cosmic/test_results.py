"""The check of what a finished job left at NERSC, on a stand-in of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cosmic import kept_results
from cosmic.dag_constants import SUPERFACILITY_CONN_ID
from cosmic.results import RECONSTRUCTIONS, RESULT_SUFFIXES, Reconstruction, collect
from facilities.errors import UserError
from standin.testing import Facility
from support.live import example_figures
from support.superfacility import connection_to, use_connection

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x02\0\0\0\x01"
FIGURES = {
    "frames": 4,
    "iterations": 10,
    "final_error": 0.25,
    "pixel_size_m": [1e-8, 1e-8],
    "warnings": ["careful"],
}
JOB = {"job_id": "17", "state": "COMPLETED", "stdout": "/x/y_17.out"}


@pytest.fixture
def prefix(standin: Facility, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The four files of a result, under names that begin with it."""
    use_connection(monkeypatch, SUPERFACILITY_CONN_ID, connection_to(standin))
    prefix = standin.nersc / "NS_230216033_ccdframes_0_0_ptychocam"
    content = {".cxi": b"object", ".h5": b"model", ".png": PNG, ".json": json.dumps(FIGURES).encode()}
    for suffix in RESULT_SUFFIXES:
        prefix.with_name(prefix.name + suffix).write_bytes(content[suffix])
    return prefix


@pytest.fixture
def collected(prefix: Path) -> Callable[[], Reconstruction]:
    """Run the task."""

    def run() -> Reconstruction:
        found: Reconstruction = collect.function("ptychocam", "perlmutter", {"output": str(prefix)}, JOB)
        return found

    return run


def test_a_whole_result_is_collected(prefix: Path, collected: Callable[[], Reconstruction]) -> None:
    result = collected()
    assert result["result"] == f"{prefix}.cxi"
    assert result["bytes"] == 6
    assert result["preview_size"] == [2, 1]
    assert result["quality"]["final_error"] == 0.25
    assert result["warnings"] == ["careful"]


@pytest.mark.parametrize("suffix", [".cxi", ".h5", ".png", ".json"])
@pytest.mark.parametrize("how", ["is missing", "is empty"])
def test_a_result_without_one_of_its_files_is_none(
    prefix: Path, collected: Callable[[], Reconstruction], suffix: str, how: str
) -> None:
    file = prefix.with_name(prefix.name + suffix)
    if how == "is missing":
        file.unlink()
    else:
        file.write_bytes(b"")
    with pytest.raises(UserError) as refused:
        collected()
    assert f"{file} {how}" in str(refused.value)
    assert "Slurm job 17" in str(refused.value)
    assert "/x/y_17.out" in refused.value.next_step
    assert "see that the programs at NERSC are this version's" in refused.value.next_step


SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
RUN = SimpleNamespace(
    run_id="NS_230216033_0_0", run_after=datetime(2026, 11, 25, 23, tzinfo=UTC), conf={"file_path": SCAN}
)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is kept."""
    monkeypatch.setenv("AIRFLOW__COSMIC__KEPT_RESULTS", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def in_a_run(prefix: Path, kept: Path) -> Callable[[], dict[str, Any]]:
    """Run the task as in a run; gives the extra of its asset event."""

    def run() -> dict[str, Any]:
        events = {RECONSTRUCTIONS: SimpleNamespace(extra={})}
        plan = {"output": str(prefix)}
        collect.function("ptychocam", "perlmutter", plan, JOB, dag_run=RUN, outlet_events=events)
        extra: dict[str, Any] = events[RECONSTRUCTIONS].extra
        return extra

    return run


def write_whole_result(prefix: Path, **changes: Any) -> dict[str, Any]:
    """A result as the present programs write it."""
    content, figures = example_figures()
    figures |= changes
    for name, picture in content.items():
        prefix.with_name(f"{prefix.name}_{name}").write_bytes(picture)
    prefix.with_name(f"{prefix.name}.json").write_text(json.dumps(figures))
    return figures


def read(name: str) -> bytes | None:
    return kept_results.read(RUN, "ptychocam", name)


def test_what_pages_show_is_kept_and_lists_get_the_facts(
    prefix: Path, in_a_run: Callable[[], dict[str, Any]]
) -> None:
    figures = write_whole_result(prefix)
    assert in_a_run() == {
        "scan": "NS_230216033",
        "file": SCAN,
        "engine": "ptychocam",
        "proposal": "ALS-01234",
        "sample": "<script>alert(1)</script>",
        "energy_ev": 707.5,
        "error": 0.25,
        "resolution_m": 2e-8,
        "warnings": 1,
    }
    assert json.loads(read("figures.json") or b"") == figures
    assert read("preview.png") == PNG
    assert (read("thumbnail.png") or b"").startswith(b"\x89PNG")
    for name in ("amplitude", "phase"):
        assert read(f"{name}.gz") == prefix.with_name(f"{prefix.name}_view_{name}.gz").read_bytes()


def test_a_result_of_an_older_release_is_one_without_pictures_and_few_facts(
    in_a_run: Callable[[], dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cosmic"):
        extra = in_a_run()
    assert extra["proposal"] is extra["sample"] is extra["energy_ev"] is extra["resolution_m"] is None
    assert extra["error"] == 0.25
    assert read("preview.png") == PNG
    assert read("thumbnail.png") is read("amplitude.gz") is read("phase.gz") is None
    assert [record.message for record in caplog.records] == ["ptychocam warns: careful"]


@pytest.mark.parametrize("how", ["missing", "cut", "longer", "not gzip", "no size"])
def test_a_picture_that_cannot_be_shown_is_not_kept_and_the_scan_succeeds(
    prefix: Path, in_a_run: Callable[[], dict[str, Any]], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    figures = write_whole_result(prefix)
    path = prefix.with_name(f"{prefix.name}_view_amplitude.gz")
    view = figures["view"]
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif how == "longer":
        write_whole_result(prefix, view=view | {"shape": [48, 63]})
    elif how == "no size":
        write_whole_result(prefix, view=view | {"shape": [48, "64"]})
    else:
        path.write_bytes(b"<script>")
    with caplog.at_level(logging.WARNING, "cosmic"):
        assert in_a_run()["error"] == 0.25
    assert f"{path} cannot be shown" in caplog.text
    assert read("amplitude.gz") is None
    assert (read("phase.gz") is None) == (how in ("longer", "no size"))


@pytest.mark.parametrize("thumbnail", ["PHNjcmlwdD4=", "not base64", 17, ["x"]])
def test_a_thumbnail_that_is_no_png_is_not_kept(
    prefix: Path, in_a_run: Callable[[], dict[str, Any]], thumbnail: Any
) -> None:
    write_whole_result(prefix, thumbnail_png=thumbnail)
    in_a_run()
    assert read("thumbnail.png") is None
    assert read("preview.png") == PNG


def test_a_storage_that_does_not_answer_fails_no_scan(
    prefix: Path, in_a_run: Callable[[], dict[str, Any]], kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "cosmic"):
        assert in_a_run()["scan"] == "NS_230216033"
    assert "are not kept for the pages" in caplog.text
    assert read("preview.png") is None


def test_figures_that_are_no_numbers_are_unknown(
    prefix: Path, in_a_run: Callable[[], dict[str, Any]]
) -> None:
    write_whole_result(prefix, final_error=float("nan"), energy_ev=float("inf"), metadata=["proposal"])
    extra = in_a_run()
    assert extra["error"] is extra["energy_ev"] is extra["proposal"] is None
    json.dumps(extra, allow_nan=False)


def test_the_pieces_of_a_large_picture_are_put_together(
    prefix: Path, in_a_run: Callable[[], dict[str, Any]]
) -> None:
    figures = write_whole_result(prefix)
    path = prefix.with_name(f"{prefix.name}_view_phase.gz")
    content = path.read_bytes()
    view = figures["view"]
    write_whole_result(prefix, view=view | {"phase": view["phase"] | {"pieces": 2}})
    path.write_bytes(content[:40])
    in_a_run()
    assert read("phase.gz") is None  # the second piece is missing
    prefix.with_name(f"{prefix.name}_view_phase_2.gz").write_bytes(content[40:])
    in_a_run()
    assert read("phase.gz") == content
