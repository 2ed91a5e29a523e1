"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write; in the end it is brought to the disk and takes that name.

    :raises OSError: naming `path`; nothing of it is left behind then.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        yield temporary
        os.fsync(handle)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp gives 0600, but the beamline's group reads results
        temporary.replace(path)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of this content.

    :raises OSError: naming `path`; nothing of it is left behind then.
    """
    with replaced(path) as temporary:
        temporary.write_bytes(content)


def hdf5_image(fill: Callable[[h5py.File], None]) -> bytes:
    """The bytes of an HDF5 file, made in memory: on a full disk the HDF5 library crashes the process."""
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        fill(file)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image
