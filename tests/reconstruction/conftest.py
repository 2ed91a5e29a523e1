"""A small synthetic scan, an installation of the programs, and a way to run them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h5py
import pytest

from reconstruction.conventions import sample_moves
from reconstruction.scan import Scan, read_scan
from standin.synthetic_scan import Layout, Optics, SyntheticScan, make_scan
from support.needs import CDTOOLS_PYTHON

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = REPOSITORY / "include" / "reconstruction"

SMALL = Optics(frame=64, photons=2e6)


@dataclass(frozen=True)
class Programs:
    """An installation; `run` starts one of its scripts."""

    # The fewest iterations that end well; looking for what is wrong with a bad end takes four times as long.
    QUICK: ClassVar[tuple[str, ...]] = ("-i", "4", "-r", "1", "-M")
    prefix: Path

    def run(
        self, script: str, *arguments: str | Path, output: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("COSMIC_")}
        if output is not None:
            environment["COSMIC_OUTPUT"] = str(output)
        return subprocess.run(
            [self.prefix / f"{script}_reconstruction.sh", *arguments],
            env={**inherited, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )


def _install(prefix: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAMS / "install", prefix, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="session")
def install() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the installer."""
    return _install


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Both engines where CDTools is there, otherwise ptychocam alone."""
    prefix = tmp_path_factory.mktemp("nersc") / "soft ware"
    extra = ["--cdtools-python", str(CDTOOLS_PYTHON)] if CDTOOLS_PYTHON.exists() else []
    done = _install(prefix, sys.executable, *extra)
    assert done.returncode == 0, done.stderr
    return Programs(prefix)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> SyntheticScan:
    """64 frames of 64 by 64 pixels."""
    path = tmp_path_factory.mktemp("scan") / "NS_230216033_ccdframes_0_0.cxi"
    layout = Layout(corner_position=True)
    return make_scan(path, n_frames=64, step=130e-9, seed=3, optics=SMALL, layout=layout)


@pytest.fixture(scope="session")
def scan(synthetic: SyntheticScan) -> Scan:
    """The small scan as the programs read it: its file holds the probe's positions."""
    return sample_moves(read_scan(synthetic.cxi), "probe")


@pytest.fixture
def changed(synthetic: SyntheticScan, tmp_path: Path) -> Callable[[Callable[[h5py.File], Any]], Path]:
    """A copy of the small scan with something changed in it."""

    def change(edit: Callable[[h5py.File], Any]) -> Path:
        path = tmp_path / "changed.cxi"
        shutil.copyfile(synthetic.cxi, path)
        with h5py.File(path, "a") as file:
            edit(file)
        return path

    return change


@pytest.fixture(scope="session")
def figures() -> Callable[[Path], dict[str, Any]]:
    """Read the JSON of a result."""

    def read(prefix: Path) -> dict[str, Any]:
        held: dict[str, Any] = json.loads(prefix.with_name(prefix.name + ".json").read_text())
        return held

    return read
