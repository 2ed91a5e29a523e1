"""What a power cut leaves of a folder: only what was synced, at worst.

A file's content is what it was when the file was last synced; a name is there when its folder was synced
since the name came, and still there when it was not synced since the name went.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any


class Disk:
    """Stands between a process and a folder: notes what is synced, in a file that outlives the process.

    :param folder: what the power cut is to hit; its parent is taken to be on the disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes = folder.parent / "disk.json"
        self._files: dict[str, int] = {}  # number of each file that a name stands for now
        self._contents: dict[int, str] = {}  # by the file's number, as synced; hexadecimal
        self._names: dict[str, dict[str, int | None]] = {}  # by folder, as synced; None is a folder
        self._new_number = itertools.count()
        self._really = (os.replace, os.unlink)

    def watch(self) -> None:
        """From now on note what this process does."""
        os.fsync = self._sync  # type: ignore[assignment]
        os.replace = self._replace  # type: ignore[assignment]
        os.unlink = self._unlink  # type: ignore[assignment]

    def cut(self) -> None:
        """Make the folder what a power cut leaves of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if not self.notes.exists():
            return
        noted = json.loads(self.notes.read_text())
        if self.folder.name in noted["names"].get(str(self.folder.parent), {}):
            self._restore(self.folder, noted)

    def _restore(self, folder: Path, noted: dict[str, Any]) -> None:
        folder.mkdir()
        for name, number in noted["names"].get(str(folder), {}).items():
            if number is None:
                self._restore(folder / name, noted)
            else:
                (folder / name).write_bytes(bytes.fromhex(noted["contents"].get(str(number), "")))

    def _sync(self, descriptor: Any) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if Path(path).is_dir():
            self._names[path] = {
                entry.name: None if entry.is_dir() else self._number(entry.path) for entry in os.scandir(path)
            }
        else:
            self._contents[self._number(path)] = Path(path).read_bytes().hex()
        new = self.notes.with_suffix(".new")
        new.write_text(json.dumps({"names": self._names, "contents": self._contents}))
        self._really[0](new, self.notes)

    def _replace(self, source: Any, target: Any) -> None:
        self._really[0](source, target)
        self._files[str(target)] = self._number(str(source))
        del self._files[str(source)]

    def _unlink(self, path: Any) -> None:
        self._really[1](path)
        self._files.pop(str(path), None)

    def _number(self, path: str) -> int:
        if path not in self._files:
            self._files[path] = next(self._new_number)
        return self._files[path]
