"""Runs the stand-in for tests and the demonstration: in a thread, or as a process to be killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import requests

from standin.server import Server
from standin.settings import Settings

T = TypeVar("T")


def until(condition: Callable[[], T | Literal[False] | None], within: float = 60.0, what: str = "") -> T:
    """Look at a condition until it holds; returns what it gave.

    :raises TimeoutError: when it does not hold within that many seconds; says what it gave last.
    """
    deadline, pause = time.monotonic() + within, 0.01
    while not (answer := condition()):  # an empty answer is not yet one either
        if time.monotonic() > deadline:
            raise TimeoutError(f"Not so within {within} s: {what or condition}; last answer: {answer!r}.")
        time.sleep(pause)
        pause = min(1.3 * pause, 0.1)  # what takes long would otherwise take longer by being looked at
    return answer


class Facility:
    """A running facility as a test sees it."""

    def __init__(self, settings: Settings, description: dict[str, Any]) -> None:
        self.settings = settings
        self.root = settings.root
        self.description = description

    @property
    def base_url(self) -> str:
        """Base URL, without a slash at the end."""
        return str(self.description["base_url"])

    @property
    def nersc(self) -> Path:
        """NERSC's file system."""
        return self.settings.nersc

    def collection(self, name: str) -> Path:
        """Root folder of the collection of that name."""
        return Path(self.description["collections"][name]["root"])

    def control(self, service: str, verb: str, **body: Any) -> dict[str, Any]:
        """Call a control verb of a service.

        :raises RuntimeError: with the facility's message when it refuses.
        """
        return self._call("POST", f"/control/{service}/{verb}", body)

    def fault(self, **spec: Any) -> dict[str, Any]:
        """Add a fault; the keys are those of `standin.faults.Fault`."""
        return self._call("POST", "/control/faults", spec)

    def faults(self) -> list[dict[str, Any]]:
        """The faults with how often each was met."""
        return cast("list[dict[str, Any]]", self._call("GET", "/control/faults")["faults"])

    def clear_faults(self) -> list[dict[str, Any]]:
        """Remove all faults; returns them with their counts."""
        return cast("list[dict[str, Any]]", self._call("DELETE", "/control/faults")["faults"])

    def requests(self, service: str | None = None) -> list[dict[str, Any]]:
        """Requests that the services received, oldest first."""
        query = f"?service={service}" if service else ""
        return cast("list[dict[str, Any]]", self._call("GET", f"/control/requests{query}")["requests"])

    def clear_requests(self) -> None:
        """Forget the requests so far."""
        self._call("DELETE", "/control/requests")

    def transfers(self) -> list[dict[str, Any]]:
        """Every Globus task ever, with what it moved."""
        return cast("list[dict[str, Any]]", self.control("globus", "transfers")["transfers"])

    def jobs(self) -> list[dict[str, Any]]:
        """Every job ever, with how often it ran."""
        return cast("list[dict[str, Any]]", self.control("nersc", "jobs")["jobs"])

    def end_jobs(self) -> None:
        """End all jobs, which outlive the server otherwise. Nothing when it is gone, or without control."""
        if self.settings.control:
            with contextlib.suppress(requests.RequestException, RuntimeError):
                self.control("nersc", "end_all")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        reply = requests.request(method, self.base_url + path, json=body, timeout=60)
        if not reply.ok:
            raise RuntimeError(f"{method} {path} was answered with {reply.status_code}: {reply.text}")
        return cast("dict[str, Any]", reply.json())


def _settings(root: Path, changes: dict[str, Any]) -> Settings:
    return Settings(root=root, **{"control": True, "scheduler": "builtin", **changes})


@contextmanager
def running(root: Path, **settings: Any) -> Iterator[Facility]:
    """Run a facility in a thread with its own event loop until the block ends. Control is on."""
    chosen = _settings(root, settings)
    server = Server(chosen)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="standin", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(timeout=60)
        try:
            facility = Facility(chosen, server.description)
            yield facility
        finally:
            facility.end_jobs()
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(timeout=60)
            asyncio.run_coroutine_threadsafe(_end_tasks(), loop).result(timeout=60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=60)
        loop.close()


async def _end_tasks() -> None:
    """End requests that a fault still delays."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class SpawnedFacility(Facility):
    """A facility in a process of its own."""

    def __init__(
        self, settings: Settings, description: dict[str, Any], process: subprocess.Popen[str]
    ) -> None:
        super().__init__(settings, description)
        self._process = process

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def kill(self) -> None:
        """Kill the server with SIGKILL: it can save nothing any more."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask the server to stop, and wait until it has."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Start a server again on the same root and port after it was killed or ended."""
        self._process, self.description = _spawn(self.settings, int(self.base_url.rsplit(":", 1)[1]))

    def _end(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
        self._process.wait(timeout=60)
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextmanager
def spawn(root: Path, port: int = 0, **settings: Any) -> Iterator[SpawnedFacility]:
    """Run a facility as a process until the block ends. Its log goes to `root`/state/server.log."""
    chosen = _settings(root, settings)
    process, description = _spawn(chosen, port)
    facility = SpawnedFacility(chosen, description, process)
    try:
        yield facility
    finally:
        facility.end_jobs()
        facility.terminate()


def _spawn(settings: Settings, port: int) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    settings.make_folders()
    command = [sys.executable, "-m", "standin", f"--root={settings.root}", f"--port={port}"]
    for name in (
        "host",
        "public_url",
        "scheduler",
        "slots",
        "bandwidth",
        "active_transfers",
        "pending_limit",
    ):
        value = getattr(settings, name)
        if value is not None:
            command.append(f"--{name.replace('_', '-')}={value}")
    if settings.control:
        command.append("--control")
    include = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [include, os.environ.get("PYTHONPATH")]))
    with (settings.state / "server.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "PYTHONPATH": path}
        )
    assert process.stdout is not None  # noqa: S101 - PIPE was asked for
    if not process.stdout.readline():
        process.stdout.close()
        code = process.wait()
        raise RuntimeError(f"The facility ended with {code}; see {settings.state / 'server.log'}.")
    return process, json.loads(settings.description.read_text(encoding="utf-8"))
