"""Makes directory listings and file documents."""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat as stat_module
from functools import cache
from pathlib import Path
from typing import Any

from standin.globus import times

_PART = re.compile(r"\.part-[0-9a-f-]{36}-\d+")
_TYPES = {
    stat_module.S_IFREG: "file",
    stat_module.S_IFDIR: "dir",
    stat_module.S_IFCHR: "chr",
    stat_module.S_IFBLK: "blk",
    stat_module.S_IFIFO: "pipe",
}


def part_name(task_id: str, number: int) -> str:
    """Name of the file that a copy is written to before it takes its place."""
    return f".part-{task_id}-{number}"


def is_part(name: str) -> bool:
    """Whether a file is an unfinished copy; Globus's clients never see those."""
    return _PART.fullmatch(name) is not None


@cache
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@cache
def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def file_document(path: Path, name: str) -> dict[str, Any]:
    """The file document of a local path.

    :raises OSError: when it does not exist or cannot be looked at.
    """
    own = path.lstat()
    document: dict[str, Any] = {"DATA_TYPE": "file", "name": name, **_fields(own), **_no_link()}
    if stat_module.S_ISLNK(own.st_mode):
        document |= _link_fields(path, own)
    return document


def _fields(status: os.stat_result) -> dict[str, Any]:
    return {
        "type": _TYPES.get(stat_module.S_IFMT(status.st_mode), "other"),
        "size": status.st_size,
        "last_modified": times.listing_time(status.st_mtime),
        "permissions": f"{stat_module.S_IMODE(status.st_mode):04o}",
        "user": _user(status.st_uid),
        "group": _group(status.st_gid),
    }


def _no_link() -> dict[str, Any]:
    keys = ("link_target", "link_size", "link_last_modified", "link_user", "link_group")
    return dict.fromkeys(keys)


def _link_fields(path: Path, own: os.stat_result) -> dict[str, Any]:
    link = {
        "link_target": str(path.readlink()),
        "link_size": own.st_size,
        "link_last_modified": times.listing_time(own.st_mtime),
        "link_user": _user(own.st_uid),
        "link_group": _group(own.st_gid),
    }
    try:
        return link | _fields(path.stat())
    except OSError:
        return link | {"type": "invalid_symlink"}


def list_folder(folder: Path, *, show_hidden: bool) -> list[dict[str, Any]]:
    """The file documents of a folder's entries, sorted by name.

    :raises OSError: when it is not a folder, or cannot be read.
    """
    documents = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_part(entry.name) or (entry.name.startswith(".") and not show_hidden):
                continue
            try:
                documents.append(file_document(Path(entry.path), _shown(entry.name)))
            except FileNotFoundError:
                continue  # removed while we were listing
    return sorted(documents, key=lambda document: str(document["name"]))


def _shown(name: str) -> str:
    """A file name that can be written as JSON, whatever bytes it is made of."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
