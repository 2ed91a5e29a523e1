"""The spool: requests on disk until Airflow has accepted them; and writing files that survive a power cut."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

from beamline_client.errors import LockedError, SpoolError
from beamline_client.parameters import Conf
from beamline_client.waiting import Wait

SENT_KEPT = 1000  # records of accepted requests that stay in the spool folder
_REQUEST_FILE = re.compile(r"\d{20}-[0-9a-f]{8}\.json", re.ASCII)


def write_file(path: Path, text: str) -> None:
    """Replace a file so that a power cut leaves the old one or the new one, whole."""
    new = path.with_name(path.name + ".tmp")
    descriptor = os.open(str(new), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    _sync_folder(path.parent)


def append_to_file(path: Path, text: str) -> None:
    """Add text to a file, on the disk when this returns; a power cut may leave a part of it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync_folder(folder.parent)


@dataclass(frozen=True)
class Request:
    """One request to start a run. `run_id` of a reprocessing is chosen when it is sent."""

    kind: str  # submit or reprocess
    path: str
    conf: Conf  # of a reprocessing: the changes
    created: str
    run_id: str = ""
    message: str = ""  # why it was rejected, or what became of it
    name: str = ""  # of its file


class Spool:
    """Pending requests, one file each, oldest first; and records of the rejected and the sent ones.

    A file appears whole or not at all (written under another name, synced, renamed, folder synced), so a
    crash or a power cut at any point leaves every request that was added, and nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pending_folder = folder / "pending"
        self.rejected_folder = folder / "rejected"
        self.sent_folder = folder / "sent"

    def add(self, requests: Iterable[Request]) -> List[Request]:
        """Write requests to disk and return them as written. A run that is pending is not doubled.

        :raises SpoolError: the disk is full or not writable.
        """
        with self.lock("writing", 30.0), self._os_errors():
            for leftover in self.pending_folder.glob("*.tmp"):
                leftover.unlink()
            known = {request.run_id: request for request in self.pending() if request.run_id}
            number = max([time.time_ns()] + [int(name[:20]) + 1 for name in self.names()])
            written = []
            for request in requests:
                if request.run_id in known:
                    written.append(known[request.run_id])
                    continue
                added = replace(request, name=f"{number:020d}-{os.urandom(4).hex()}.json")
                self._write(self.pending_folder, added)
                known.update({added.run_id: added} if added.run_id else {})
                written.append(added)
                number += 1
            return written

    def names(self) -> List[str]:
        """File names of the pending requests, oldest first."""
        return self._names(self.pending_folder)

    def pending(self) -> List[Request]:
        """Requests that are to be sent, oldest first."""
        return self._read_all(self.pending_folder)

    def rejected(self) -> List[Request]:
        """Requests that Airflow found wrong, or that were withdrawn, oldest first."""
        return self._read_all(self.rejected_folder)

    def find(self, name: str) -> Tuple[str, Optional[Request]]:
        """Where a request is now ("pending", "rejected", "sent" or "gone"), and its content there."""
        for folder in (self.rejected_folder, self.sent_folder, self.pending_folder):
            request = self._read(folder / name)
            if request:
                return folder.name, request
        return "gone", None

    def update(self, request: Request) -> None:
        """Overwrite a pending request."""
        with self.lock("writing", 30.0), self._os_errors():
            self._write(self.pending_folder, request)

    def finish(self, request: Request, folder: Path, message: str) -> None:
        """Remove a pending request and record in `folder` what became of it. Hold the lock "sending"."""
        # Of an accepted request a full disk may cost the record, but not hold up the request.
        optional = contextlib.suppress(OSError) if folder == self.sent_folder else contextlib.nullcontext()
        with self._os_errors():
            with optional:
                self._write(folder, replace(request, message=message))
            with contextlib.suppress(FileNotFoundError):
                (self.pending_folder / request.name).unlink()
            _sync_folder(self.pending_folder)

    def clean_up(self) -> List[Path]:
        """Remove old records, move damaged files to `rejected` and return them. Hold the lock "sending"."""
        with self._os_errors():
            for folder in (self.sent_folder, self.rejected_folder):
                for leftover in folder.glob("*.tmp"):
                    leftover.unlink()
            for name in self._names(self.sent_folder)[:-SENT_KEPT]:
                (self.sent_folder / name).unlink()
            damaged = []
            for name in self.names():
                if not self._read(self.pending_folder / name):
                    damaged.append(self.rejected_folder / (name + ".damaged"))
                    (self.pending_folder / name).replace(damaged[-1])
            return damaged

    @contextlib.contextmanager
    def lock(self, name: str, limit: float, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Hold one of the spool's locks; it ends with its process.

        :raises LockedError: another process has it for `limit` seconds, or `unless()` has become true.
        """
        with self._os_errors():
            for folder in (self.pending_folder, self.rejected_folder, self.sent_folder):
                _make_folder(folder)
            descriptor = os.open(str(self.folder / f"{name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        wait = Wait(limit, first=0.05, longest=0.05)
        try:
            while not _locked(descriptor):
                if unless() or not wait.pause():
                    raise LockedError("Another submit_scan is sending what is kept in the spool.")
            yield
        finally:
            os.close(descriptor)

    @staticmethod
    def _write(folder: Path, request: Request) -> None:
        write_file(folder / request.name, json.dumps(asdict(request), indent=1, sort_keys=True))

    def _names(self, folder: Path) -> List[str]:
        with self._os_errors():
            try:
                return sorted(path.name for path in folder.iterdir() if _REQUEST_FILE.fullmatch(path.name))
            except FileNotFoundError:
                return []

    def _read_all(self, folder: Path) -> List[Request]:
        found = (self._read(folder / name) for name in self._names(folder))
        return [request for request in found if request]

    def _read(self, path: Path) -> Optional[Request]:
        """None when the file is gone or damaged; `clean_up` moves the damaged ones."""
        with self._os_errors(), contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            data: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return Request(**{**data, "name": path.name})
        return None

    @contextlib.contextmanager
    def _os_errors(self) -> Iterator[None]:
        """Raise the operating system's errors as SpoolError, which names the folder."""
        try:
            yield
        except OSError as error:
            raise SpoolError(f"The spool folder {self.folder} cannot be used: {error}.") from error


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
