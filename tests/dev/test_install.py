"""A virtual environment comes of uv, or of pip where there is no uv or it fails; from the same places.

The registry is a folder with a package of our own, and with the uv that is in the checkout's environment.
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dev.install import UV, pip_settings, uv_settings
from support.needs import UV_PROGRAM

REPOSITORY = Path(__file__).parents[2]
PROGRAM = REPOSITORY / "include" / "dev" / "install.py"
NO_UV = "pip installs instead"
pytestmark = pytest.mark.timeout(900)

Install = Callable[..., subprocess.CompletedProcess[str]]


def wheel(folder: Path, name: str, files: dict[str, str], scripts: dict[str, str] | None = None) -> None:
    """Put a package into a folder, as pip takes it."""
    project, version = name.split("==")
    content = dict(files)
    content |= {f"{project}-{version}.data/scripts/{k}": v for k, v in (scripts or {}).items()}
    info = f"{project}-{version}.dist-info"
    content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
    content[f"{info}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},"
        for path, text in content.items()
    ]
    content[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,\n"])
    with zipfile.ZipFile(folder / f"{project}-{version}-py3-none-any.whl", "w") as file:
        for path, text in content.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o100755 << 16  # scripts can be started
            file.writestr(entry, text)


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """Two versions of a package."""
    folder = tmp_path / "registry"
    folder.mkdir()
    for version in ("1.0", "1.1"):
        wheel(folder, f"grain=={version}", {"grain.py": f"version = '{version}'\n"})
    return folder


@pytest.fixture
def install(tmp_path: Path, registry: Path) -> Install:
    """Install `grain`, of which a constraint takes the older, into `.venv`."""
    (tmp_path / "requirements.txt").write_text("grain\n")
    (tmp_path / "constraints.txt").write_text("grain==1.0\n")

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}
        settings = {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(registry),
            "UV_CACHE_DIR": str(tmp_path / "uv"),
        }
        return subprocess.run(
            [sys.executable, PROGRAM, ".venv", "-r", "requirements.txt", "-c", "constraints.txt"],
            cwd=tmp_path,
            env=kept | settings | {"PIP_CONFIG_FILE": os.devnull} | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def installed(folder: Path) -> tuple[str, str]:
    """The version of `grain`, and what installed it."""
    code = (
        "import importlib.metadata, grain; "
        "print(grain.version, importlib.metadata.distribution('grain').read_text('INSTALLER').strip())"
    )
    done = subprocess.run(
        [folder / ".venv/bin/python", "-c", code], capture_output=True, text=True, check=True
    )
    version, by = done.stdout.split()
    return version, by


@pytest.mark.needs("uv")
def test_uv_installs_from_where_pip_would(install: Install, registry: Path, tmp_path: Path) -> None:
    wheel(registry, UV, {}, {"uv": f'#!/bin/sh\nexec "{UV_PROGRAM}" "$@"\n'})
    done = install()
    assert done.returncode == 0, done.stderr
    assert NO_UV not in done.stdout
    assert installed(tmp_path) == ("1.0", "uv")


def test_pip_installs_where_uv_does_not(install: Install, registry: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    done = install()  # and an environment whose making was broken off is made anew
    assert done.returncode == 0, done.stderr
    assert f"{UV} could not be installed: {NO_UV}" in done.stdout
    assert installed(tmp_path) == ("1.0", "pip")

    done = install(PIP_ONLY_BINARY="grain")
    assert done.returncode == 0, done.stderr
    assert f"(only-binary): {NO_UV}" in done.stdout

    wheel(registry, UV, {}, {"uv": "#!/bin/sh\necho half >$(dirname $0)/half\necho why >&2\nexit 2\n"})
    done = install()
    assert done.returncode == 0, done.stderr
    assert "why" in done.stderr
    assert f"{UV} failed: {NO_UV}" in done.stdout
    assert installed(tmp_path) == ("1.0", "pip")
    assert not (tmp_path / ".venv" / "bin" / "half").exists(), "pip begins anew"


def test_uv_gets_pips_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://pypi.example.org/simple\ntimeout = 5\n"
        "find-links =\n  /one\n  /two\n[install]\ntimeout = 60\n[freeze]\ntimeout = 70\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_CERT", "/etc/ssl/ours.pem")
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example.org/simple")
    found = uv_settings(pip_settings(REPOSITORY / ".venv" / "bin"))
    assert (
        found
        | {
            "UV_DEFAULT_INDEX": "https://other.example.org/simple",
            "UV_FIND_LINKS": "/one,/two",
            "UV_HTTP_TIMEOUT": "60",
            "SSL_CERT_FILE": "/etc/ssl/ours.pem",
        }
        == found
    )
