"""Starts, stops, kills and restart the components of a local Airflow."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dev.local_airflow.settings import REPOSITORY, local_environment, passwords

_PORTS = range(20_000, 32_000)
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
# Seconds. Airflow 3.3.2's triggerer ends 10 s after its last trigger; what waits is in the database.
_MAX_STOP_SECONDS = {"triggerer": 2.0}


class LocalAirflowError(RuntimeError):
    """A component did not start, or ended by itself; the message has the tail of its log."""


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on at the moment.

    It is below the range from which Linux gives ports to whoever asks for any (32768 and above): seconds pass
    until an Airflow listens, and by then somebody else could have it.
    """
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise LocalAirflowError(f"No port from {_PORTS[0]} to {_PORTS[-1]} is free.")


class LocalAirflow:
    """One Airflow in `home`: SQLite (or the database named in `extra`), LocalExecutor.

    :param home: its AIRFLOW_HOME; a second instance on the same folder goes on where the first ended.
    :param port: port of the UI and REST API on the loopback interface; a free one by default.
    :param extra: environment that overrides the bundle's settings.
    :param python: an interpreter that has Airflow; this one by default.
    """

    def __init__(
        self,
        home: Path,
        *,
        port: int | None = None,
        extra: dict[str, str] | None = None,
        python: Path = Path(sys.executable),
    ) -> None:
        self.python = python
        self.home = home.resolve()
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = local_environment(self.home, self.port, extra)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started: dict[str, datetime] = {}

    @property
    def passwords(self) -> dict[str, str]:
        """Password of each user."""
        return passwords(self.home)

    def prepare(self, seed: dict[str, Any]) -> None:
        """Create or migrate the database, then fill in the seed's connections and pools."""
        seed_file = self.home / "seed.json"
        descriptor = os.open(seed_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(seed, file)
        log = self.home / "prepare.log"
        with log.open("wb") as output:
            done = subprocess.run(  # noqa: S603 - our own interpreter and module
                [self.python, "-m", "deployment.database", str(seed_file)],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            raise LocalAirflowError(f"The database could not be prepared.\n{tail(log)}")

    def start(self, *components: str) -> None:
        """Start the named components (all by default) without waiting for them."""
        raise_file_limit()
        for name in components or COMPONENTS:
            log = (self.home / f"{name}.log").open("ab")
            self._started[name] = datetime.now(UTC)
            with log:
                self.processes[name] = subprocess.Popen(  # noqa: S603 - our own interpreter and Airflow
                    [self.python, "-m", "airflow", name],
                    env=self.environment,
                    cwd=REPOSITORY,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that its own children end with it
                )

    def wait_ready(self, timeout: float = 300.0) -> None:
        """Wait until every started component has a healthy heartbeat of after its start.

        Airflow calls a component healthy for half a minute after its last heartbeat, killed or not.

        :raises LocalAirflowError: a component ended, or is not healthy after `timeout` seconds.
        """

        def ready() -> bool:
            self.check_alive()
            return self.is_ready()

        if not wait_until(ready, timeout):
            raise LocalAirflowError(
                f"Airflow was not ready after {timeout:.0f} s: {self._health()}. Logs are in {self.home}."
            )

    def is_ready(self) -> bool:
        """Whether every started component has a healthy heartbeat of after its start."""
        report = self._health()
        return _is_healthy(report, "metadatabase") and all(
            _is_healthy(report, name.replace("-", "_"), since=self._started[name])
            for name in self.processes
            if name != "api-server"
        )

    def check_alive(self) -> None:
        """Raise LocalAirflowError, with the tail of its log, when a component has ended by itself."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                log = tail(self.home / f"{name}.log")
                raise LocalAirflowError(f"airflow {name} ended with code {process.returncode}.\n{log}")

    def restart(self, *components: str, timeout: float = 300.0) -> None:
        """Kill components as a power cut would, start them again, and wait until they are ready."""
        for component in components:
            self.kill(component)
        self.start(*components)
        self.wait_ready(timeout)

    def kill(self, component: str) -> None:
        """Send SIGKILL to a component and everything that it started, as a power cut would."""
        process = self.processes.pop(component)
        _signal_group(process, signal.SIGKILL)
        process.wait()

    def stop(self, *components: str, timeout: float = 20.0) -> None:
        """End the named components (all by default) gracefully, or by force after `timeout` seconds.

        Tasks that run end first. They need the API server for that: it is the last to go.
        """
        names = components or tuple(self.processes)
        for together in ([name for name in names if name != "api-server"], ["api-server"]):
            stopping = {name: self.processes.pop(name) for name in together if name in names}
            for process in stopping.values():
                process.terminate()
            deadline = time.monotonic() + timeout
            for name, process in stopping.items():
                left = deadline - time.monotonic()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(min(left, _MAX_STOP_SECONDS.get(name, left)), 0.1))
                _signal_group(process, signal.SIGKILL)
                process.wait()

    def _health(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{self.url}/api/v2/monitor/health", timeout=5) as reply:  # noqa: S310
                report: dict[str, Any] = json.load(reply)
                return report
        except (urllib.error.URLError, TimeoutError, ConnectionError, json.JSONDecodeError):
            return {}


@contextlib.contextmanager
def running(airflow: LocalAirflow, seed: dict[str, Any]) -> Iterator[LocalAirflow]:
    """Prepare `airflow`, start all components, wait until they are healthy, and stop them at the end."""
    airflow.prepare(seed)
    try:
        airflow.start()
        airflow.wait_ready()
        yield airflow
    finally:
        airflow.stop()


def wait_until(condition: Callable[[], object], timeout: float, every: float = 0.2) -> bool:
    """Look until `condition()` is true; False when it still is not after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def raise_file_limit() -> None:
    """Let this process and those that it starts open as many files as they may.

    A triggerer has the log file of each waiting task open, and a shell's soft limit is often 1024.
    """
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))


def tail(path: Path, lines: int = 30) -> str:
    """The last lines of a text file, or a note that there is none."""
    if not path.exists():
        return f"(no {path.name})"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def _is_healthy(report: dict[str, Any], name: str, *, since: datetime | None = None) -> bool:
    part = report.get(name) or {}
    if part.get("status") != "healthy":
        return False
    return since is None or datetime.fromisoformat(part[f"latest_{name}_heartbeat"]) >= since


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
