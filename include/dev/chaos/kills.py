"""SIGKILL for Airflow's processes, as a power cut or the kernel's memory killer would send it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from dev.chaos.processes import connected_to, descendants
from dev.chaos.rules import Rule, Rules
from dev.local_airflow.stack import LocalAirflow
from standin.testing import SpawnedFacility

REST = 15.0  # seconds between two kills of components, counted from when the last one was ready again
IN_A_SUBMIT = 5.0  # seconds for which a submit is held up, so that its sender can be killed


@dataclass
class Kills:
    """Kills and restarts; a component is killed only when all are ready, so that there is progress."""

    airflow: LocalAirflow
    facility: SpawnedFacility
    draw: random.Random
    died_by_themselves: list[str] = field(default_factory=list)
    killed_in_submit: int = 0
    spare_triggerer: bool = False
    _rest_until: float = 0.0
    _ambushes: list[Rule] = field(default_factory=list)

    def component(self, name: str) -> str | None:
        """Kill a component and all below it (LocalExecutor's workers are the scheduler's), and start it."""
        if self.spare_triggerer and name == "triggerer":
            return None
        if time.monotonic() < self._rest_until or not self.airflow.is_ready():
            return None
        self.airflow.kill(name)
        self.airflow.start(name)
        self._rest_until = time.monotonic() + REST
        return f"killed {name}"

    def task_process(self) -> str | None:
        """Kill one process below the scheduler: a worker, a supervisor or a task."""
        below = descendants(self.airflow.processes["scheduler"].pid)
        if not below:
            return None
        pid = self.draw.choice(sorted(below))
        _kill(pid)
        return f"killed process {pid} below the scheduler"

    def lie_in_wait(self, rules: Rules, submits: tuple[tuple[str, str], ...]) -> str | None:
        """Kill the process that sends the next submit, between the sending and the answer."""
        service, path = self.draw.choice(submits)
        said = rules.add(service=service, method="POST", path=path, kind="delay", delay=IN_A_SUBMIT, times=1)
        if said is None:
            return None
        self._ambushes.append(rules.all[-1])
        return f"the next process that submits to {service}"

    def tend(self) -> None:
        """Kill who walked into an ambush, and start again what has died by itself."""
        for rule in [rule for rule in self._ambushes if rule.hits]:
            self._ambushes.remove(rule)
            port = urlsplit(self.facility.base_url).port or 0
            tasks = descendants(self.airflow.processes["scheduler"].pid)
            for pid in connected_to(port, tasks):
                _kill(pid)
                self.killed_in_submit += 1
        for name, process in list(self.airflow.processes.items()):
            if process.poll() is not None:
                self.died_by_themselves.append(f"{name} (code {process.returncode})")
                self.airflow.kill(name)  # and what is left of its children
                self.airflow.start(name)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
