"""The server's side of a job's run: makes the run folder, starts the runner, reads what it left there."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from standin.nersc.schedulers.runner import process_start, write_whole

RUNNER = Path(__file__).with_name("runner.py")
MARK = "STANDIN_RUN"  # an environment variable by which a run's processes are found
_children: set[int] = set()  # runners that this process started and that have not been waited for


def collect_exited() -> None:
    """Wait for runners that have ended."""
    for pid in list(_children):
        try:
            ended = os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:  # another stand-in of this process, in its own thread, was first
            ended = True
        if ended:
            _children.discard(pid)


@dataclass(frozen=True)
class Exit:
    """How a run ended; `cause` is exit, launch, timeout, oom, orphaned, or what the server asked for."""

    code: int
    signal: int
    cause: str
    ended: float
    gone: float
    cpu: float


class Run:
    """One run folder."""

    def __init__(self, job_folder: Path, number: int) -> None:
        self.folder = job_folder / f"run-{number}"
        self._pid: int | None = None

    def prepare(self, spec: dict[str, Any]) -> None:
        """Write what to run; a folder that was prepared before stays as it is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "spec.json").exists():
            spec["env"] = {**spec["env"], MARK: str(self.folder)}
            write_whole(self.folder / "spec.json", spec)

    def launch(self) -> None:
        """Start a runner. A second one on the same folder finds it claimed and ends."""
        log = str(self.folder / "runner.log")
        self._pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", str(RUNNER), str(self.folder)],
            {"PATH": "/usr/bin:/bin"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        _children.add(self._pid)

    def poll(self) -> Exit | None:
        """How the run ended, or None."""
        content = self._read("exit.json")
        if content is None:
            return None
        return Exit(**{name: content[name] for name in Exit.__dataclass_fields__})

    def ending(self) -> dict[str, Any] | None:
        """What the runner decided by itself (`cause`, `at`), or None."""
        return self._read("ending.json")

    @property
    def started(self) -> bool:
        """Whether a runner has claimed the folder."""
        return (self.folder / "started.json").exists()

    @property
    def launching(self) -> bool:
        """Whether a runner that this server started has not claimed the folder yet."""
        return self._pid is not None and process_start(self._pid) is not None and not self.started

    @property
    def alive(self) -> bool:
        """Whether the runner that claimed the folder lives."""
        identity = self._read("started.json")
        return identity is not None and process_start(identity["pid"]) == identity["start"]

    def request(self, **request: Any) -> None:
        """Ask the runner for something; it is on disk before the runner is woken."""
        number = 1 + sum(1 for _ in self.folder.glob("request-*.json"))
        write_whole(self.folder / f"request-{number}.json", request)
        identity = self._read("started.json")
        if identity is not None and process_start(identity["pid"]) == identity["start"]:
            with suppress(ProcessLookupError):
                os.kill(identity["pid"], signal.SIGUSR1)

    def kill_leftovers(self) -> None:
        """Kill what a runner that died left behind."""
        mark = f"{MARK}={self.folder}".encode()
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            with suppress(OSError):
                if mark in Path(f"/proc/{entry.name}/environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return content


def runs_started(job_folder: Path) -> int:
    """How often a job's script was really started."""
    return sum(1 for _ in job_folder.glob("run-*/started.json"))
