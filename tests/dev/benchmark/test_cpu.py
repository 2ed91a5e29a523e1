"""The CPU seconds of processes, with what they start and what has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from dev.benchmark.cpu import Cpu, cores, cpu_of, parse_stat

BURN = "import sys, time\nwhile time.process_time() < 0.3: pass\n"
# Burns; starts a child that burns, and ends, and another that goes on in a session of its own.
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN!r}])
other = subprocess.Popen([sys.executable, "-c", {BURN!r} + "print(1, flush=True); sys.stdin.readline()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
other.stdout.readline()
{BURN}
print("ready", flush=True)
sys.stdin.readline()
other.communicate(b"end\\n")
"""
# Ends, while its child goes on: what is left of the session has no ancestor in it.
ORPHAN = f"""
import subprocess, sys
text = {BURN!r} + "print('ready', flush=True); sys.stdin.readline()"
child = subprocess.Popen([sys.executable, "-c", text])
sys.stdin.readline()
"""


@pytest.fixture
def start() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a program in a session of its own, and waits until it is ready."""
    started: list[subprocess.Popen[str]] = []

    def start(text: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.communicate("end\nend\n")


def test_of_what_a_process_starts_ended_and_other_sessions_count(
    start: Callable[[str], subprocess.Popen[str]],
) -> None:
    cpu = cpu_of(start(PARENT).pid)
    assert cpu.own > 0.25
    assert cpu.others > 0.55  # two children that burn as much each, whatever Python's start takes
    assert cpu.all == pytest.approx(cpu.own + cpu.others)


def test_orphans_of_the_session_count(start: Callable[[str], subprocess.Popen[str]]) -> None:
    process = start(ORPHAN)
    process.kill()
    assert os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT) is not None
    assert cpu_of(process.pid).others > 0.25


def test_a_process_that_is_not_there_has_used_nothing() -> None:
    assert cpu_of(2**22 + 1) == Cpu(0.0, 0.0)


def test_the_programs_name_may_hold_parentheses_and_spaces() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    numbers = [2 * ticks, ticks, 4 * ticks, 5 * ticks]
    stat = parse_stat(f"7 (a) R 9 (b) S 5 6 4 0 -1 0 0 0 0 0 {' '.join(map(str, numbers))} 20 0 1 0 9")
    assert stat == (5, 4, 3.0, 9.0)


def test_cores_are_seconds_over_the_window_by_part() -> None:
    readings = iter([{"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.05}])
    used = cores(lambda: next(readings), 0.05)
    assert used["a"] == 0
    assert 0 < used["b"] <= 1
