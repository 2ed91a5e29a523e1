"""Watch mode: submits each scan in a folder once it is finished."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import time
from pathlib import Path
from typing import Callable, Dict, Mapping, NamedTuple, NoReturn, Optional, Tuple

from beamline_client.client import Client
from beamline_client.errors import InputError, LockedError, SpoolError
from beamline_client.naming import normalize_path, unusual_name
from beamline_client.output import printable
from beamline_client.parameters import Conf
from beamline_client.spool import append_to_file, write_file
from beamline_client.waiting import Wait


class FileState(NamedTuple):
    """What is compared of a file: its size in bytes and its modification time in ns."""

    size: int
    mtime_ns: int


class Journal:
    """The scans that a watch has dealt with, a line each in a file that only grows: it survives a power cut.

    `old` are the files that were there before the first watch of the folder, `submitted` the others, and
    `awaited` those that a message has announced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.old: Dict[str, FileState] = {}
        self.submitted: Dict[str, FileState] = {}
        self.awaited: Dict[str, FileState] = {}
        self.is_new = not path.exists()
        if not self.is_new:
            content = path.read_text(encoding="utf-8", errors="replace")
            for line in content.splitlines():
                self._read(line)
            if content and not content.endswith("\n"):  # cut off in the middle of a line
                append_to_file(self.path, "\n")

    def begin(self, old: Mapping[str, FileState]) -> None:
        """Create the file, whole or not at all, with the old files."""
        write_file(self.path, "".join(self._line("old", name, state) for name, state in old.items()))
        self.old = dict(old)

    def add(self, name: str, state: FileState) -> None:
        """Record that a scan was submitted."""
        append_to_file(self.path, self._line("submitted", name, state))
        self.submitted[name] = state

    def await_file(self, name: str) -> None:
        """Record that a scan was announced; its file may not be there yet."""
        state = FileState(0, 0)
        self.awaited[name] = state
        append_to_file(self.path, self._line("awaited", name, state))

    @staticmethod
    def _line(kind: str, name: str, state: FileState) -> str:
        return json.dumps([kind, name, *state]) + "\n"

    def _read(self, line: str) -> None:
        # A torn line is skipped: that scan is submitted again, which Airflow answers with "already accepted".
        with contextlib.suppress(ValueError, TypeError, KeyError):
            kind, name, size, mtime_ns = json.loads(line)
            known = {"old": self.old, "submitted": self.submitted, "awaited": self.awaited}[kind]
            known[name] = FileState(int(size), int(mtime_ns))


class WatchedFolder:
    """A folder with scans, and which of them are finished.

    A scan is finished when its size and time have not changed for `settle` seconds, or when the file
    `<scan><done_suffix>` is there, and it is an HDF5 file that is all there. Symbolic links, hidden files and
    names that no scan can have are left alone.

    :param prefix: the folder's path below the collection's root, "" or ending in "/".
    :param log: takes a line on each file that is left alone, once.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        *,
        prefix: str,
        settle: float,
        done_suffix: str,
        any_name: bool,
        log: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.journal = journal
        self.prefix = prefix
        self.settle = settle
        self.done_suffix = done_suffix
        self.any_name = any_name
        self.log = log
        self._unchanged_since: Dict[str, Tuple[FileState, float]] = {}
        self._logged: Dict[str, str] = {}

    def finished(self) -> Dict[str, FileState]:
        """Scans that are finished and not submitted yet, oldest first, by path below the root."""
        now = time.monotonic()
        found = {}
        files = self.files()
        for name, state in sorted(files.items(), key=lambda item: (item[1].mtime_ns, item[0])):
            if self._is_settled(name, state, now) and not self.is_known(name, state) and self._is_scan(name):
                found[name] = state
        for name in set(self._unchanged_since).difference(files):
            del self._unchanged_since[name]
        return found

    def files(self) -> Dict[str, FileState]:
        """Every file that might be a scan, or, with a done suffix, every such file that has its marker."""
        found = {}
        for folder, subfolders, names in os.walk(str(self.folder), onerror=self._log_unreadable):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            relative = os.path.relpath(folder, str(self.folder))
            start = self.prefix if relative == "." else f"{self.prefix}{relative}/"
            present = set(names)
            for name in names:
                may_be_scan = name.endswith(".cxi") and not name.startswith(".")
                if may_be_scan and (not self.done_suffix or name + self.done_suffix in present):
                    state = state_of_file(Path(folder, name))
                    if state:
                        found[start + name] = state
        return found

    def _is_settled(self, name: str, state: FileState, now: float) -> bool:
        if self.done_suffix:
            return True
        before, since = self._unchanged_since.get(name, (None, now))
        if before != state:
            self._unchanged_since[name] = (state, now)
            return False
        return now - since >= self.settle

    def is_known(self, name: str, state: FileState) -> bool:
        """Whether a file was submitted, or is an old one."""
        submitted = self.journal.submitted.get(name)
        if submitted and submitted != state:
            self.log_once(name, "it changed after it was submitted (to run it again: reprocess)")
        return submitted is not None or self.journal.old.get(name) == state

    def _is_scan(self, name: str) -> bool:
        try:
            reason = unusual_name(normalize_path(name))
        except InputError as error:
            self.log_once(name, str(error))
            return False
        if reason and not self.any_name:
            self.log_once(name, f"{reason}; to submit such files too: --any-name")
            return False
        defect = _defect_of_hdf5(self.folder / name[len(self.prefix) :])
        if defect:
            self.log_once(name, defect)
        return not defect

    def _log_unreadable(self, error: OSError) -> None:
        self.log_once(str(error.filename), f"cannot be looked into: {error.strerror}")

    def log_once(self, name: str, reason: str) -> None:
        """Log why a file is left alone, when the reason is a new one."""
        if self._logged.get(name) != reason:
            self._logged[name] = reason
            self.log(f"Left alone: {printable(name)}: {reason}")


def state_of_file(path: Path) -> Optional[FileState]:
    """None when it is not a regular file, or gone since the folder was listed."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return FileState(status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _defect_of_hdf5(path: Path) -> str:
    """Why a file is not a whole HDF5 file, by its superblock; empty when it is.

    Source: HDF5 File Format Specification 3.0, section II.A.
    """
    try:
        descriptor = os.open(str(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            offset = 0
            block = file.read(128)
            while block[:8] != b"\x89HDF\r\n\x1a\n":
                offset = max(512, offset * 2)  # a user block may come first
                if offset >= size:
                    return "not an HDF5 file, or only a part of one"
                file.seek(offset)
                block = file.read(128)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if len(block) < 48:
        return "only a part of an HDF5 file"
    version = block[8]
    if version > 3:
        return ""  # a later format than this knows
    width = block[13] if version < 2 else block[9]
    start = {0: 24, 1: 28}.get(version, 12) + 2 * width
    end = int.from_bytes(block[start : start + width], "little")
    return f"only {size} of {end} bytes are there" if size < end else ""


class Watcher:
    """Submits the finished scans of a folder, and sends what the spool holds, until it is stopped."""

    def __init__(self, client: Client, folder: WatchedFolder, parameters: Conf) -> None:
        self.client = client
        self.folder = folder
        self.parameters = parameters
        self._problem = ""
        self._retries = Wait(math.inf, first=2.0, longest=60.0)
        self._next_try = 0.0

    def run(self, interval: float) -> NoReturn:
        """Check the folder every `interval` seconds."""
        wait = Wait(math.inf, first=interval, longest=interval)
        while True:
            self.check()
            wait.pause()

    def check(self) -> None:
        """Once: write a request for each finished scan, record it, then send what is pending."""
        found = self.folder.finished()
        try:
            if found:
                requests = self.client.requests("submit", found, self.parameters, any_name=True)
                self.client.spool.add(requests)
            for name, state in found.items():
                self.folder.journal.add(name, state)
            if self.client.spool.names() and time.monotonic() >= self._next_try:
                done = self.client.sender.flush(limit=1.0)
                kept = [outcome for outcome in done.values() if outcome.outcome == "kept"]
                self._report(kept[0].message if kept else "", len(kept))
        except (SpoolError, LockedError, OSError) as error:  # what was not recorded is found again
            self._report(str(error), len(found))

    def _report(self, problem: str, count: int) -> None:
        """Log a problem when it begins, changes its nature or is over, not at each check."""
        nature = re.sub(r"\(.*", "", problem, flags=re.DOTALL)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        if nature and nature != self._problem:
            self.client.log(f"{now}  {count} waiting: {problem}")
        if self._problem and not nature:
            self.client.log(f"{now}  All that waited was sent.")
        self._problem = nature
        if nature:
            self._next_try = time.monotonic() + self._retries.next_pause()
        else:
            self._next_try = 0.0
            self._retries.reset()
