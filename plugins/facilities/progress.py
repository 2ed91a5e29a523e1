"""Live progress of waits, for pages: what the polls know anyway, in one small file per triggerer.

Each process that waits writes all its waits together, at most every few seconds, however many there are; who
shows them reads the files of all. Nothing depends on it: where the folder cannot be written or read there is
no progress, and a wait goes on as before. The folder is the setting `[facilities] progress_folder`, a path or
the URL of an object storage; it must be the same for triggerers and API servers.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.configuration import AIRFLOW_HOME, conf

from facilities.ownership import Owner, TaskInstanceId

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

log = logging.getLogger(__name__)

WRITE_EVERY = 2.0  # seconds, or so many times what it took the last time:
_REST = 20.0  # writing may take a twentieth of the time
_REPEAT_AFTER = 30.0  # seconds after which an unchanged file is written again: its writer lives
_STALE = 120.0  # seconds after which a file's writer is taken for dead
_REMOVE = 86_400.0
_NUMBERS, _TEXTS = ("done", "total", "rate", "elapsed", "limit"), ("state", "start_estimate", "trouble")
_MAX_BYTES = 20_000_000  # 10,000 waits are 1.5 MB


@dataclass(frozen=True)
class Progress:
    """How far remote work has come. What is not known is None or empty.

    :param state: as the service writes it.
    :param done: bytes moved, of `total`, at `rate` bytes per second.
    :param elapsed: seconds that it has run, of `limit`.
    :param start_estimate: when it is expected to start, ISO 8601 with an offset.
    :param trouble: what keeps it from going on, for people.
    """

    state: str = ""
    done: float | None = None
    total: float | None = None
    rate: float | None = None
    elapsed: float | None = None
    limit: float | None = None
    start_estimate: str | None = None
    trouble: str = ""


class Wait(NamedTuple):
    """The task instance that waits."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1


def note_progress(ti: TaskInstanceId | None, progress: Progress | None) -> None:
    """Note how far a wait has come, to be written soon. Needs a running event loop; never raises."""
    try:
        if ti is not None and progress is not None:
            _board.note(_wait_of(ti), progress)
    except Exception:
        log.warning("The progress of a wait could not be noted.", exc_info=True)


def forget_progress(ti: TaskInstanceId | None) -> None:
    """Note that a wait is over."""
    if ti is not None:
        _board.forget(_wait_of(ti))


def read_progress() -> dict[Wait, Progress]:
    """The progress of all waits, of all processes that wrote lately; none where nothing can be read."""
    found: dict[Wait, Progress] = {}
    try:
        for path in _folder().iterdir():
            if path.name.endswith(".json"):
                found |= _read_file(path)
    except FileNotFoundError:
        pass
    except Exception as error:  # noqa: BLE001 - whatever it is: there is no progress then
        log.info("The progress of waits cannot be read: %s", error)
    return found


class _Board:
    """The waits of this process, and the one task that writes them."""

    def __init__(self) -> None:
        self._waits: dict[Wait, Progress] = {}
        self._changed = False
        self._writer: asyncio.Task[None] | None = None

    def note(self, wait: Wait, progress: Progress) -> None:
        self._changed = self._changed or self._waits.get(wait) != progress
        self._waits[wait] = progress
        if self._writer is None or self._writer.done():
            # A context of its own: what it logs must not end up in the log of the first task that waits.
            self._writer = asyncio.get_running_loop().create_task(
                self._write_until_empty(), context=contextvars.Context()
            )

    def forget(self, wait: Wait) -> None:
        self._changed = self._waits.pop(wait, None) is not None or self._changed

    async def _write_until_empty(self) -> None:
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
        written = warned = float("-inf")
        rest = WRITE_EVERY
        try:
            while self._waits:
                if self._changed or time.monotonic() - written >= _REPEAT_AFTER:
                    self._changed = False
                    began = time.monotonic()
                    try:
                        await asyncio.to_thread(_write, name, dict(self._waits), first=written < 0)
                    except Exception as error:  # noqa: BLE001 - whatever it is: there is no progress then
                        if time.monotonic() - warned >= 3600:
                            log.warning("The progress of waits cannot be written: %s", error)
                            warned = time.monotonic()
                    written = time.monotonic()
                    rest = min(max((written - began) * _REST, WRITE_EVERY), _REPEAT_AFTER)
                await asyncio.sleep(rest)
        finally:
            self._writer = None  # a wait that is noted from now on needs another
            await asyncio.to_thread(_remove, name)


_board = _Board()


def _wait_of(ti: TaskInstanceId) -> Wait:
    owner = Owner.of(ti)
    return Wait(owner.dag_id, owner.run_id, owner.task_id, owner.map_index)


def _folder() -> Path | ObjectStoragePath:
    location = conf.get("facilities", "progress_folder", fallback="") or f"{AIRFLOW_HOME}/progress"
    if "://" not in location:
        return Path(location)
    from airflow.sdk import ObjectStoragePath  # noqa: PLC0415 - loads much, and most have a folder

    return ObjectStoragePath(location)


def _write(name: str, waits: Mapping[Wait, Progress], *, first: bool) -> None:
    known = [
        [*wait, {key: v for key, v in vars(one).items() if v not in (None, "")}]
        for wait, one in waits.items()
    ]
    text = json.dumps({"written": time.time(), "waits": known}, separators=(",", ":"))
    folder = _folder()
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_old(folder)
    if not isinstance(folder, Path):
        (folder / name).write_text(text)
        return
    new = folder / f"{name}.new"
    new.write_text(text)
    new.replace(folder / name)


def _remove(name: str) -> None:
    try:
        (_folder() / name).unlink(missing_ok=True)
    except Exception as error:  # noqa: BLE001 - a reader leaves it out when it is old
        log.info("A file of progress cannot be removed: %s", error)


def _remove_old(folder: Path | ObjectStoragePath) -> None:
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # its writer, or another process, was first
            if time.time() - path.stat().st_mtime > _REMOVE:
                path.unlink()


def _read_file(path: Path | ObjectStoragePath) -> dict[Wait, Progress]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        content = json.loads(path.read_text())
        if time.time() - content["written"] > _STALE:
            return {}
        return {Wait(*wait): _progress(values) for *wait, values in content["waits"]}
    except (OSError, LookupError, TypeError, ValueError, AttributeError):  # just removed, or not ours
        return {}


def _progress(values: Mapping[str, Any]) -> Progress:
    """From plain values; what another version writes in another way is left out."""
    known: dict[str, Any] = {}
    for names, kind in ((_NUMBERS, (int, float)), (_TEXTS, str)):
        known |= {name: values[name] for name in names if isinstance(values.get(name), kind)}
    return Progress(**known)
