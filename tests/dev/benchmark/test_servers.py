"""Servers for the length of a `with` block."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dev.benchmark.servers import spawned, wait_for_text

READS = "import sys; print(sys.stdin.read(), flush=True); import time; time.sleep(600)"


def test_a_server_gets_its_text_and_ends_with_the_block(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with spawned([sys.executable, "-c", READS], log, cwd=tmp_path, text="port 7") as server:
        wait_for_text(server, log, "port 7")
        assert server.poll() is None
    assert server.poll() is not None


def test_a_server_that_ends_is_reported_with_what_it_said(tmp_path: Path) -> None:
    log = tmp_path / "redis.log"
    command = [sys.executable, "-c", "print('no memory'); raise SystemExit(3)"]
    with (
        spawned(command, log, cwd=tmp_path) as server,
        pytest.raises(RuntimeError, match=r"redis ended with code 3\.\nno memory"),
    ):
        wait_for_text(server, log, "ready")
