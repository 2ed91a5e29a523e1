"""What the chaos hits with: rules that outlive the stand-in's restarts, and the processes that it finds."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import requests

from dev.chaos.processes import connected_to, descendants, resident_memory
from dev.chaos.rules import Rules
from dev.chaos.system import make_scans
from standin.testing import SpawnedFacility, spawn, until


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpawnedFacility]:
    with spawn(tmp_path_factory.mktemp("chaos") / "standin") as facility:
        yield facility


def _status(facility: SpawnedFacility) -> int:
    return requests.get(f"{facility.base_url}/nersc/api/v1.2/status/perlmutter", timeout=10).status_code


def test_rules_are_counted_and_laid_again_when_the_standin_was_killed(standin: SpawnedFacility) -> None:
    rules = Rules(standin)
    rules.add(service="nersc", path="/status/", kind="status", status=503, times=3)
    rules.add(service="globus", path="/never", kind="drop_before", times=1)
    assert len(rules.waiting) == 2
    assert _status(standin) == 503
    rules.look()
    standin.kill()
    standin.restart()
    rules.lay_again()
    assert [_status(standin) for _ in range(3)] == [503, 503, 200]
    rules.look()
    assert [rule.hits for rule in rules.all] == [3, 0]
    assert [rule.spec["path"] for rule in rules.waiting] == ["/never"]
    rules.clear()
    assert standin.faults() == []


def test_rules_do_not_pile_up(standin: SpawnedFacility) -> None:
    rules = Rules(standin, at_most=2)
    laid = [rules.add(service="globus", path="/never", kind="reset", times=1) for _ in range(3)]
    assert laid[:2] == ["reset for 1 of globus/never"] * 2
    assert laid[2] is None
    rules.clear()


def test_a_hundred_rules_are_counted_though_the_used_ones_are_cleared_away(standin: SpawnedFacility) -> None:
    rules = Rules(standin)
    for _ in range(100):
        rules.add(service="nersc", path="/status/", kind="status", status=503, times=1)
        assert _status(standin) == 503
        rules.look()
    assert all(rule.hits == 1 for rule in rules.all)
    assert len(standin.faults()) < 60
    rules.clear()


def test_the_process_that_talks_to_a_port_is_found_among_others() -> None:
    hold = (
        "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); sys.stdin.read()"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        talker = subprocess.Popen([sys.executable, "-c", hold, str(port)], stdin=subprocess.PIPE)
        idler = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
        )
        try:
            connection, _ = server.accept()
            below = descendants(os.getpid())
            assert {talker.pid, idler.pid} <= below
            assert connected_to(port, below) == {talker.pid}
            assert connected_to(port, {idler.pid}) == set()
            assert resident_memory(talker.pid) > 1
            connection.close()
        finally:
            for process in (talker, idler):
                process.kill()
                process.communicate()
    until(lambda: resident_memory(talker.pid) == 0.0)


def test_a_seed_makes_the_same_scans_and_all_kinds_of_them() -> None:
    scans = make_scans(200, random.Random("scans 1"))
    assert scans == make_scans(200, random.Random("scans 1"))
    assert scans != make_scans(200, random.Random("scans 2"))
    assert {scan.meant for scan in scans} == {"success", "program fails", "no such file"}
    assert len({scan.stem for scan in scans}) == 200
