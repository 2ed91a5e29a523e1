"""What is kept of results for Airflow's pages: where it lies, and for how long."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cosmic import kept_results

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is kept."""
    monkeypatch.setenv("AIRFLOW__COSMIC__KEPT_RESULTS", f"file://{tmp_path}/kept")
    return tmp_path / "kept"


def a_run(run_id: str = "NS_230216033_0_0", after: datetime = NOW) -> Any:
    return SimpleNamespace(run_id=run_id, run_after=after)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_each_run_and_engine_has_a_folder_of_its_own(kept: Path) -> None:
    hostile = ["..", "../../x", "a/b", "a_b", "a b", "x" * 250, "y" * 249 + "z", "r\n", "ü"]
    for number, run_id in enumerate(hostile):
        for engine in ("ptychocam", "cdtools"):
            assert kept_results.keep(a_run(run_id), engine, {"preview.png": f"{number} {engine}".encode()})
    for number, run_id in enumerate(hostile):
        for engine in ("ptychocam", "cdtools"):
            assert kept_results.read(a_run(run_id), engine, "preview.png") == f"{number} {engine}".encode()
    assert len(files(kept)) == 2 * len(hostile)
    assert files(kept.parent) == {f"kept/{name}" for name in files(kept)}
    again = a_run(after=NOW - timedelta(days=1))
    assert kept_results.read(again, "ptychocam", "preview.png") is None


def test_only_known_engines_and_files_are_read(kept: Path) -> None:
    assert not kept_results.keep(a_run(), "..", {"preview.png": b""})
    with pytest.raises(ValueError, match="nothing is kept as"):
        kept_results.read(a_run(), "ptychocam", "../../airflow.cfg")
    assert kept_results.read(a_run(), "../ptychocam", "preview.png") is None


def test_a_second_result_takes_the_place_of_the_first(kept: Path) -> None:
    for content in (b"first", b"second"):
        kept_results.keep(a_run(), "ptychocam", {"figures.json": content, "preview.png": content})
    assert kept_results.read(a_run(), "ptychocam", "figures.json") == b"second"
    assert len(files(kept)) == 2


def test_other_places_than_folders_are_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__COSMIC__KEPT_RESULTS", "memory://bucket/cosmic")
    old = a_run(after=NOW - timedelta(days=200))
    assert kept_results.keep(old, "cdtools", {"preview.png": b"picture"})
    assert kept_results.read(old, "cdtools", "preview.png") == b"picture"


def test_without_a_setting_it_is_a_folder_of_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW__COSMIC__KEPT_RESULTS", raising=False)
    assert str(kept_results.root()) == f"{os.environ['AIRFLOW_HOME']}/kept_results"


def test_what_is_older_than_the_limit_is_removed_and_nothing_else(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept_results.remove_old() == []
    monkeypatch.setenv("AIRFLOW__COSMIC__KEPT_RESULTS_DAYS", "30")
    for days in (10, 29, 31, 400):
        kept_results.keep(a_run(after=NOW - timedelta(days=days)), "ptychocam", {"preview.png": b""})
    repeated = NOW - timedelta(days=500)
    kept_results.keep(a_run(after=repeated), "cdtools", {"preview.png": b"new"})
    foreign = kept / "somebodys" / "file"
    foreign.parent.mkdir()
    foreign.write_text("")
    for path in kept.rglob("*.png"):
        written = NOW - timedelta(days=5 if path.read_bytes() else 400)
        os.utime(path, (written.timestamp(), written.timestamp()))
    assert kept_results.remove_old(NOW) == ["2025-10-21", "2026-10-25"]
    left = {path.name for path in kept.iterdir()}
    assert left == {"2025-07-13", "2026-10-27", "2026-11-15", "somebodys"}
    assert kept_results.remove_old(NOW) == []


def test_a_storage_that_does_not_answer_is_a_warning(kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept.write_text("a file where the folder should be")
    assert kept_results.remove_old(NOW) == []
    assert "could not be removed" in caplog.text
