"""The installer: repeatable, atomic, and clear about interpreters that will not do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Install = Callable[..., subprocess.CompletedProcess[str]]


def _tree(prefix: Path) -> dict[str, tuple[str, bytes]]:
    return {
        str(p.relative_to(prefix)): ("link", str(p.readlink()).encode())
        if p.is_symlink()
        else ("file", p.read_bytes())
        for p in prefix.rglob("*")
        if p.is_symlink() or p.is_file()
    }


def test_installing_again_changes_nothing(install: Install, tmp_path: Path) -> None:
    prefix = tmp_path / "software"
    assert install(prefix, sys.executable).returncode == 0
    before = _tree(prefix)
    assert "ptychocam_reconstruction.sh" in before
    assert "cdtools_reconstruction.sh" in before
    assert install(prefix, sys.executable).returncode == 0
    assert _tree(prefix) == before
    assert len(list((prefix / "releases").iterdir())) == 1


def test_another_interpreter_is_another_release_and_the_old_one_stays(
    install: Install, tmp_path: Path
) -> None:
    prefix, other = tmp_path / "software", tmp_path / "python"
    other.symlink_to(sys.executable)
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/bash\nexec {sys.executable!r} "$@"\n')
    wrapper.chmod(0o755)
    install(prefix, sys.executable)
    first = (prefix / "current").readlink()
    assert install(prefix, wrapper).returncode == 0
    assert (prefix / "current").readlink() != first
    assert (prefix / first / "lib" / "reconstruction" / "ptychocam.py").exists()  # a running job may need it
    held = (prefix / "current" / "interpreters.sh").read_text()
    assert f"COSMIC_PYTHON={wrapper}" in held
    assert "COSMIC_CDTOOLS_PYTHON=''" in held


def test_without_cdtools_its_script_says_so(install: Install, tmp_path: Path) -> None:
    install(tmp_path / "software", sys.executable)
    done = subprocess.run(
        [tmp_path / "software" / "cdtools_reconstruction.sh", "x.cxi"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (
        done.stderr == "cdtools: error: CDTools is not installed here; run install with --cdtools-python.\n"
    )


def test_a_script_that_was_not_installed_says_so() -> None:
    source = (
        Path(__file__).resolve().parents[2] / "include" / "reconstruction" / "ptychocam_reconstruction.sh"
    )
    done = subprocess.run([source, "x.cxi"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not an installation; run install." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "usage: install PREFIX PYTHON"),
        (["one", "--cdtools-python"], 2, "usage: install PREFIX PYTHON"),
        (["/no/such/python"], 1, "/no/such/python is not a program"),
        (["/bin/false"], 1, "/bin/false cannot be used"),
    ],
)
def test_wrong_arguments_change_nothing(
    install: Install, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    done = install(tmp_path / "software", *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_missing_modules_are_named(install: Install, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/bash\nexec {sys.executable!r} -I -S "$@"\n')  # no site-packages
    bare.chmod(0o755)
    done = install(tmp_path / "software", bare)
    assert done.returncode == 1
    assert "missing modules: numpy, array_api_compat, h5py, PIL" in done.stderr
    assert not (tmp_path / "software").exists()


def test_many_at_once_leave_one_whole_installation(tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "include" / "reconstruction" / "install"
    prefix = tmp_path / "software"
    running: list[Any] = [
        subprocess.Popen([source, prefix, sys.executable], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    releases = list((prefix / "releases").iterdir())
    assert len(releases) == 1
    assert (releases[0] / "lib" / "reconstruction" / "solver.py").exists()
    assert sorted(p.name for p in prefix.iterdir()) == [
        "cdtools_reconstruction.sh",
        "current",
        "ptychocam_reconstruction.sh",
        "releases",
        "stack.sh",
    ]
