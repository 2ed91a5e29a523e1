"""Resolves paths of NERSC's file system. Nothing outside the stand-in's folder exists."""

from __future__ import annotations

import os
from pathlib import Path


class NoSuchPathError(OSError):
    """The path is not there, or not ours to see."""

    def __init__(self) -> None:
        super().__init__("No such file or directory")


def locate(file_system: Path, asked: str, *, follow: bool) -> Path:
    """The local path of an absolute path as a client wrote it.

    :param follow: whether a symbolic link at the end is to be followed; links on the way always are.
    :raises NoSuchPathError: when it is relative, or leads out of the file system.
    """
    if not asked.startswith("/") or "\0" in asked:
        raise NoSuchPathError
    path = Path("/" + os.path.normpath(asked).lstrip("/"))
    real = path.resolve() if follow or path == file_system else path.parent.resolve() / path.name
    if not real.is_relative_to(file_system):
        raise NoSuchPathError
    return real
