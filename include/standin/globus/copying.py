"""Copies one file: sync levels, checksums, bandwidth."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from standin.globus.errors import TaskFaultError

ALGORITHMS = ("md5", "sha1", "sha256", "sha512")
EXISTS, SIZE, MTIME, CHECKSUM = range(4)
_CHUNK = 1024 * 1024

Guard = Callable[[], None]


class StoppedError(Exception):
    """The task was cancelled, paused or has expired, or the server stops: leave the file."""


class Throttle:
    """Bandwidth shared by all copies; `rate` in bytes per second, None for no limit."""

    def __init__(self, rate: float | None) -> None:
        self._lock = threading.Lock()
        self._rate = rate
        self._next = 0.0
        self._changes = 0

    @property
    def rate(self) -> float | None:
        """The limit."""
        return self._rate

    def set_rate(self, rate: float | None) -> None:
        """Change the limit; copies that wait for the old one go on."""
        with self._lock:
            self._rate = rate
            self._next = 0.0
            self._changes += 1

    def chunk(self) -> int:
        """Bytes to move at once: small enough that a slow copy can be watched and stopped."""
        rate = self._rate
        return _CHUNK if rate is None else int(min(_CHUNK, max(1, rate / 10)))

    def take(self, size: int, guard: Guard) -> None:
        """Wait until `size` bytes may be moved; `guard` is called while waiting and may raise."""
        with self._lock:
            if self._rate is None:
                return
            now = time.monotonic()
            self._next = max(self._next, now) + size / self._rate
            due, changes = self._next, self._changes
        while changes == self._changes and (left := due - time.monotonic()) > 0:
            guard()
            time.sleep(min(left, 0.05))


@dataclass(frozen=True)
class Order:
    """One file to be copied. Paths are local; `shown` is the path in the collection, for messages."""

    source: Path
    target: Path
    part: Path
    shown_source: str
    shown_target: str
    sync_level: int | None
    verify: bool
    preserve_timestamp: bool
    algorithm: str
    external_checksum: str | None


@dataclass(frozen=True)
class Result:
    """What became of a file."""

    outcome: Literal["moved", "skipped"]
    size: int = 0
    checksum: str | None = None
    checksummed: int = 0


@dataclass(frozen=True)
class Means:
    """What a copy works with: bandwidth, `guard` (called often; raises to stop), and a progress callback."""

    throttle: Throttle
    guard: Guard
    on_bytes: Callable[[int], None]
    charge: Callable[[int], None]
    refund: Callable[[int], None]
    spoil: Callable[[Path], None]  # tests may damage a copy before it is verified


def copy(order: Order, means: Means) -> Result:
    """Copy one file to its part file, unless the target is good already by the sync level.

    The part file is complete and checked; the caller puts it into place.

    :raises TaskFaultError: VERIFY_CHECKSUM, EXTERNAL_CHECKSUM_MISMATCH, FILE_SIZE_CHANGED, IS_A_DIRECTORY
        and others of the kind.
    :raises OSError: as the file system raises it.
    :raises StoppedError: when the guard stops the task.
    """
    before = order.source.stat()
    if not stat.S_ISREG(before.st_mode):
        code = "IS_A_DIRECTORY" if stat.S_ISDIR(before.st_mode) else "ENDPOINT_ERROR"
        raise TaskFaultError(code, f"Path: {order.shown_source}; not a regular file")
    if order.target.is_dir():
        raise TaskFaultError("IS_A_DIRECTORY", f"Path: {order.shown_target}; the target is a directory")
    needed, hashed = _needed(order, before, means)
    if not needed:
        return Result("skipped", before.st_size, checksummed=hashed)
    means.charge(before.st_size)
    try:
        checksum = _copy_contents(order, before, means)
    except BaseException:
        means.refund(before.st_size)
        order.part.unlink(missing_ok=True)
        raise
    return Result("moved", before.st_size, checksum, hashed + (before.st_size if checksum else 0))


def _needed(order: Order, source: os.stat_result, means: Means) -> tuple[bool, int]:
    """Whether the sync level asks for a copy, and how many bytes were read to find out."""
    try:
        target = order.target.stat()
    except FileNotFoundError:
        return True, 0
    if order.sync_level == CHECKSUM and source.st_size == target.st_size:
        same = _hash(order.source, order.algorithm, means) == _hash(order.target, order.algorithm, means)
        return not same, source.st_size
    needed = {
        None: True,
        EXISTS: False,
        SIZE: source.st_size != target.st_size,
        MTIME: int(source.st_mtime) > int(target.st_mtime),
        CHECKSUM: True,
    }
    return needed[order.sync_level], 0


def _copy_contents(order: Order, before: os.stat_result, means: Means) -> str | None:
    """Write and check the part file; returns the checksum if there is one."""
    copied = 0
    with order.source.open("rb") as source, order.part.open("wb") as part:
        while chunk := source.read(means.throttle.chunk()):
            means.throttle.take(len(chunk), means.guard)
            means.guard()
            part.write(chunk)
            copied += len(chunk)
            means.on_bytes(len(chunk))
    means.spoil(order.part)
    if copied != before.st_size:
        raise TaskFaultError(
            "FILE_SIZE_CHANGED", f"Path: {order.shown_source}; {before.st_size} bytes became {copied}"
        )
    if order.preserve_timestamp:
        os.utime(order.part, ns=(before.st_atime_ns, before.st_mtime_ns))
    if not order.verify and order.external_checksum is None:
        return None
    return _verify(order, means)


def _verify(order: Order, means: Means) -> str:
    """Read both again: the source may have been written to while it was copied."""
    of_source = _hash(order.source, order.algorithm, means)
    if order.external_checksum is not None and order.external_checksum.lower() != of_source:
        raise TaskFaultError(
            "EXTERNAL_CHECKSUM_MISMATCH",
            f"Path: {order.shown_source}; {order.algorithm} is {of_source}, not {order.external_checksum}",
            fatal=True,
        )
    of_target = _hash(order.part, order.algorithm, means)
    if of_target != of_source:
        raise TaskFaultError(
            "VERIFY_CHECKSUM",
            f"Path: {order.shown_target}; {order.algorithm} is {of_target}, source has {of_source}",
        )
    return of_source


def _hash(path: Path, algorithm: str, means: Means) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            means.guard()
            digest.update(chunk)
    return digest.hexdigest()
