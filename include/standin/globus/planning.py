"""Works out what a transfer has to do: folders to make, files to copy, and what cannot be found."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standin.globus.collections import Collection
from standin.globus.copying import Guard
from standin.globus.errors import TaskFaultError, fault_from_os_error
from standin.globus.listing import is_part


@dataclass(frozen=True)
class Move:
    """One file to be copied; paths are those of the collections."""

    source: str
    target: str
    external_checksum: str | None = None
    algorithm: str = "md5"


@dataclass(frozen=True)
class Problem:
    """A path that cannot be looked at."""

    source: str
    target: str
    fault: TaskFaultError
    is_directory: bool = False


@dataclass
class Plan:
    """Everything that a transfer has to do."""

    looked_up: int = 0  # items that were found
    folders: list[str] = field(default_factory=list)  # in the destination, parents first
    files: list[Move] = field(default_factory=list)
    symlinks: int = 0
    problems: list[Problem] = field(default_factory=list)
    trees: list[tuple[str, str]] = field(default_factory=list)  # recursive items


class Planner:
    """Looks up the items of one transfer document. Runs in a thread."""

    def __init__(self, document: dict[str, Any], source: Collection, guard: Guard) -> None:
        self._document = document
        self._source = source
        self._guard = guard
        self._rules: list[dict[str, Any]] = document.get("filter_rules") or []
        self._plan = Plan()

    def plan(self) -> Plan:
        """Look up all items; what goes wrong with one does not keep the others.

        :raises StoppedError: when the guard stops the task.
        """
        for item in self._document["DATA"]:
            self._guard()
            try:
                self._item(item)
                self._plan.looked_up += 1
            except OSError as error:
                fault = fault_from_os_error(error, item["source_path"], source=True)
                self._problem(item["source_path"], item["destination_path"], fault)
            except TaskFaultError as fault:
                self._problem(item["source_path"], item["destination_path"], fault)
        return self._plan

    def _problem(
        self, source: str, target: str, fault: TaskFaultError, *, is_directory: bool = False
    ) -> None:
        self._plan.problems.append(Problem(source, target, fault, is_directory))

    def _item(self, item: dict[str, Any]) -> None:
        source, target = item["source_path"], item["destination_path"]
        self._source.require(source, "read")
        local = self._source.local(source)
        is_folder = local.is_dir()
        if not is_folder:
            local.stat()  # a missing file is a problem of its own
        recursive = item.get("recursive")
        if not is_folder and (recursive is True or item.get("source_is_folder")):
            raise TaskFaultError("NOT_A_DIRECTORY", f"Path: {source}; asked for as a directory")
        if not is_folder and item.get("target_is_folder"):
            raise TaskFaultError("IS_A_DIRECTORY", f"Path: {target}; the target of a file ends in '/'")
        if recursive is False and is_folder:
            raise TaskFaultError("IS_A_DIRECTORY", f"Path: {source}; a directory, but not recursive")
        if is_folder:
            self._plan.trees.append((source, target))
            for folder, found_at in self._walk(local, source, target):
                self._folder(folder, found_at)
        else:
            algorithm = (item.get("checksum_algorithm") or "md5").lower()
            self._plan.files.append(Move(source, target, item.get("external_checksum"), algorithm))

    def _walk(self, local: Path, source: str, target: str) -> Iterator[tuple[Path, tuple[str, str]]]:
        """The folders of a tree, parents first, with their paths in both collections."""
        waiting = [(local, source, target)]
        while waiting:
            folder, at_source, at_target = waiting.pop()
            yield folder, (at_source, at_target)
            try:
                names = sorted(
                    entry.name
                    for entry in os.scandir(folder)
                    if entry.is_dir(follow_symlinks=False)
                    and _is_text(entry.name)
                    and self._included(entry.name, "dir")
                )
            except OSError:
                continue  # reported by _folder
            waiting.extend(
                (folder / name, _join(at_source, name), _join(at_target, name)) for name in reversed(names)
            )

    def _folder(self, folder: Path, found_at: tuple[str, str]) -> None:
        """Note the files of one folder."""
        at_source, at_target = found_at
        self._guard()
        self._plan.folders.append(at_target)
        try:
            self._source.require(at_source, "read")
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            fault = fault_from_os_error(error, at_source, source=True)
            self._problem(at_source, at_target, fault, is_directory=True)
            return
        for entry in entries:
            if is_part(entry.name):
                continue
            if not _is_text(entry.name):
                shown = _join(at_source, ascii(entry.name)[1:-1])
                fault = TaskFaultError("UNKNOWN", f"Path: {shown}; the name is not valid UTF-8")
                self._problem(shown, at_target, fault)
            elif entry.is_symlink():
                self._plan.symlinks += 1  # only what was asked for by name is followed
            elif entry.is_file(follow_symlinks=False) and self._included(entry.name, "file"):
                self._plan.files.append(Move(_join(at_source, entry.name), _join(at_target, entry.name)))

    def _included(self, name: str, kind: str) -> bool:
        """Whether the filter rules let an entry of a tree pass: the first that matches decides."""
        for rule in self._rules:
            if rule.get("type") in (None, kind) and fnmatch.fnmatchcase(name, rule["name"]):
                return bool(rule["method"] == "include")
        return True


def extra_files(
    collection: Collection, trees: list[tuple[str, str]], wanted: set[str]
) -> Iterator[tuple[str, Path]]:
    """What the destination of recursive items holds that the source does not, deepest first.

    :param wanted: destination paths that belong there (files and folders).
    """
    for _, target in trees:
        top = collection.local(target)
        for folder, folder_names, file_names in os.walk(top, topdown=False):
            below = Path(folder).relative_to(top).as_posix()
            at_target = target if below == "." else _join(target, below)
            for name in [*file_names, *folder_names]:
                if not is_part(name) and (path := _join(at_target, name)) not in wanted:
                    yield path, Path(folder) / name


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _is_text(name: str) -> bool:
    """Whether a file name can be sent to a client."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
