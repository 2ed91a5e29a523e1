"""Writes files that only their owner can read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_private(folder: Path, name: str, content: bytes) -> Path:
    """Write a file that only its owner can read, whole or not at all; its folder is made if need be.

    :raises OSError: it cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        target = folder / name
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target
