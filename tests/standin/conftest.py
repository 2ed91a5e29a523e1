"""What the tests of the stand-in share: real Globus clients, pointed at it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from standin.testing import Facility
from support.globus_client import Globus


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Facility], Globus]]:
    """Point globus-sdk at a facility by its own environment variables."""
    made: list[Globus] = []

    def point(facility: Facility) -> Globus:
        described = facility.description["globus"]
        monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_AUTH", described["auth_url"])
        monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_TRANSFER", described["transfer_url"])
        monkeypatch.delenv("GLOBUS_SDK_ENVIRONMENT", raising=False)
        made.append(Globus(facility))
        return made[-1]

    yield point
    for globus in made:
        globus.close()


@pytest.fixture
def globus(facility: Facility, connect: Callable[[Facility], Globus]) -> Globus:
    """Globus of a facility of the test's own."""
    return connect(facility)


@pytest.fixture(scope="session")
def globus_cli() -> str:
    """Path of globus-cli, in the virtual environment of its own beside the checkout's."""
    program = Path(__file__).parents[2] / ".venv-cli" / "bin" / "globus"
    if not os.access(program, os.X_OK):
        pytest.fail(f"{program} is missing; `make test` installs it from requirements-cli.txt.")
    return str(program)
