"""The check of what a finished job left at NERSC, on a stand-in of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cosmic.dag_constants import SUPERFACILITY_CONN_ID
from cosmic.results import RESULT_SUFFIXES, Reconstruction, collect
from facilities.errors import UserError
from standin.testing import Facility
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
