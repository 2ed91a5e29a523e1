"""Starts triggerers beside a local Airflow, kills them, and measures what they take."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dev.benchmark.cpu import cpu_of
from dev.chaos.processes import descendants, resident_memory
from dev.local_airflow.stack import LocalAirflow, tail

_BLOCKED = re.compile(r"async thread was blocked for ([\d.]+) seconds")


@dataclass(frozen=True)
class Usage:
    """What a triggerer takes: memory in MiB, CPU seconds so far of its processes, open files of the parent.

    The parent speaks with the database and writes the logs; the runner below it waits and polls.
    """

    memory: float
    parent_cpu: float
    runner_cpu: float
    files: int


class Triggerer:
    """One triggerer; several may run beside one Airflow."""

    def __init__(self, airflow: LocalAirflow, name: str) -> None:
        self.log = airflow.home / f"{name}.log"
        self._read = 0
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "airflow", "triggerer", "--skip-serve-logs"],
                env=airflow.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check_alive(self) -> None:
        """Make sure that it runs.

        :raises RuntimeError: it has ended; with the tail of its log.
        """
        if self.process.poll() is not None:
            raise RuntimeError(f"A triggerer ended with {self.process.returncode}.\n{tail(self.log)}")

    def kill(self) -> set[int]:
        """Send SIGKILL to all of it; returns the ids of its processes."""
        pids = {self.process.pid, *descendants(self.process.pid)}
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return pids

    def usage(self) -> Usage:
        """What it takes now."""
        pid = self.process.pid
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        cpu = cpu_of(pid)
        return Usage(resident_memory(pid), cpu.own, cpu.others, files)

    def longest_block(self) -> float:
        """Seconds for which its event loop has stood still at most, since the last call, by its own log."""
        with self.log.open(errors="replace") as file:
            file.seek(self._read)
            blocks = [float(seconds) for seconds in _BLOCKED.findall(file.read())]
            self._read = file.tell()
        return max(blocks, default=0.0)
