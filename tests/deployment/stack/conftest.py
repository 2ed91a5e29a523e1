"""Whole installations with docker-compose.yaml, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.compose import Stack


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The installation that the module's SETTINGS and SCALE describe; its images stay for the next time."""
    name = request.module.__name__.rpartition("_")[2]
    stack = Stack(tmp_path_factory.mktemp(name), scale=request.module.SCALE, **request.module.SETTINGS)
    try:
        stack.up()
        yield stack
    finally:
        folder = Path(request.config.rootpath) / ".run" / "compose-test"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.log").write_text(stack.compose("logs", "--no-color", "--timestamps", check=False))
        stack.down(volumes=True)
