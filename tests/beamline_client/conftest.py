"""The client as built, an Airflow API with faults on request, and a client of its own for each test.

`beamline_client` is imported from the built file, in these tests and in the processes that they start.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dev.build_client import build
from support.airflow_api import AirflowApi, running_api

PROGRAM = build()
assert "beamline_client" not in sys.modules, "it was imported from its source already"
sys.path.insert(0, str(PROGRAM))

from beamline_client.client import Client  # noqa: E402
from beamline_client.config import Settings  # noqa: E402
from beamline_client.rest import Airflow  # noqa: E402


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr(Airflow, "first_pause", 0.01)


@pytest.fixture
def api() -> Iterator[AirflowApi]:
    """A running API without runs."""
    with running_api() as served:
        yield served


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    """The password of the user `beamline`, readable by its owner only."""
    path = tmp_path / "password"
    path.touch(mode=0o600)
    path.write_text("secret\n")
    return path


@pytest.fixture
def settings(api: AirflowApi, password_file: Path, tmp_path: Path) -> Settings:
    """Settings of a beamline computer."""
    return Settings(
        url=api.url, user="beamline", password_file=password_file, spool=tmp_path / "spool", timeout=5.0
    )


@pytest.fixture
def messages() -> list[str]:
    """What the client logged."""
    return []


@pytest.fixture
def client(settings: Settings, messages: list[str]) -> Client:
    """A client of the API."""
    return Client(settings, log=messages.append)


@pytest.fixture
def config(settings: Settings, tmp_path: Path) -> Path:
    """The same settings as a file, for the command."""
    path = tmp_path / "client.ini"
    lines: dict[str, Any] = {
        "[airflow]": "",
        "url": settings.url,
        "user": settings.user,
        "password_file": settings.password_file,
        "[client]": "",
        "spool": settings.spool,
        "timeout": settings.timeout,
    }
    path.write_text("\n".join(f"{k} = {v}" if v else k for k, v in lines.items()) + "\n")
    return path


@pytest.fixture
def program(config: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command in the background."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(PROGRAM), *arguments, "--config", str(config)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
