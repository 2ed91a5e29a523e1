"""Calls of the Superfacility API about files and commands; a part of the hook."""

from __future__ import annotations

import base64
import binascii
import json
import shlex
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from facilities.errors import LostReplyError, NotFoundError, TransientError, UserError
from facilities.superfacility.replies import expect_ok, failure_of_text
from facilities.superfacility.session import SfapiSession

SIZE_LIMIT = 5_242_880
"""Bytes that the API uploads or downloads at most."""

_TASK_LOOKS = (0.2, 0.5, 1.0, 2.0)  # seconds between looks at an asynchronous task; the last repeats


@dataclass(frozen=True)
class FileEntry:
    """A line of a folder's listing; `size` in bytes."""

    name: str
    size: int
    folder: bool


@dataclass(frozen=True)
class CommandResult:
    """What a command wrote, and its exit code."""

    output: str
    error: str
    exit_code: int


@dataclass(frozen=True)
class TaskReply:
    """How an asynchronous task of the API stands; `result` is there when it is done."""

    done: bool
    result: Mapping[str, Any]


class FileCalls:
    """Files and commands on a machine of the facility. Paths are absolute."""

    @property
    @abstractmethod
    def session(self) -> SfapiSession:
        """The HTTP session that the calls go through."""

    def task(self, task_id: str, what: str) -> TaskReply:
        """State of an asynchronous task of the API.

        :param what: what the task does, for errors.
        :raises NotFoundError: results are kept for ten minutes.
        :raises LostReplyError: it ended without a result that can be read.
        """
        reply = self.session.get(f"tasks/{quote(task_id, safe='')}", what)
        status = str(reply.get("status") or "").lower() if isinstance(reply, Mapping) else ""
        if status in ("failed", "cancelled", "canceled"):
            raise LostReplyError(
                f"{what}: the API's task {status}", remote_id=task_id, details=str(reply.get("result"))[:500]
            )
        if status != "completed":
            return TaskReply(done=False, result={})
        result = reply.get("result")
        try:
            parsed = json.loads(result) if isinstance(result, str) else result
        except ValueError:
            parsed = None
        if not isinstance(parsed, Mapping):
            raise LostReplyError(
                f"{what}: the result cannot be read", remote_id=task_id, details=str(result)[:500]
            )
        return TaskReply(done=True, result=parsed)

    def ls(self, machine: str, path: str) -> list[FileEntry]:
        """List a folder; of a file, the file itself.

        :raises NotFoundError: there is nothing at that path.
        """
        return [entry for entry in self._entries(machine, path) if entry.name not in (".", "..")]

    def stat(self, machine: str, path: str) -> FileEntry:
        """Look at one file or folder.

        :raises NotFoundError: there is nothing at that path.
        """
        entries = self._entries(machine, path)
        name = PurePosixPath(path).name
        itself = next((entry for entry in entries if entry.name == "."), None)
        if itself is not None:
            return FileEntry(name, itself.size, folder=True)
        if len(entries) != 1:
            raise NotFoundError("There is no such file", remote_id=path, next_step="check the path.")
        return FileEntry(name, entries[0].size, entries[0].folder)

    def _entries(self, machine: str, path: str) -> list[FileEntry]:
        what = f"Listing {path}"
        reply = expect_ok(self.session.get(_url("ls", machine, path), what), what, remote_id=path)
        return [_entry(row) for row in reply.get("entries") or ()]

    def download(self, machine: str, path: str) -> bytes:
        """Read a file of at most 5,242,880 bytes.

        :raises NotFoundError: there is no such file.
        :raises UserError: it is too large for the API, or a folder.
        """
        what = f"Reading {path}"
        url = _url("download", machine, path)
        reply = self.session.get(url, what, params={"binary": "true"})
        file = expect_ok(reply, what, remote_id=path).get("file")
        if not isinstance(file, str):
            raise TransientError(f"{what}: the reply holds no file", details=str(reply)[:300])
        if str(reply.get("is_binary")).lower() != "true":
            return file.encode()
        try:
            return base64.b64decode(file, validate=True)
        except binascii.Error as error:
            raise TransientError(f"{what}: the reply is not base64") from error

    def upload(self, machine: str, path: str, content: bytes) -> None:
        """Write a file of at most 5,242,880 bytes, in place of one that may be there.

        :raises UserError: too large, or not permitted.
        """
        what = f"Writing {path}"
        if len(content) > SIZE_LIMIT:
            raise UserError(
                f"{what}: {len(content)} bytes are more than the API takes",
                remote_id=path,
                next_step="use Globus for files of more than 5 MB.",
            )
        files = {"file": (PurePosixPath(path).name, content)}
        reply = self.session.send_once("PUT", _url("upload", machine, path), what, files=files)
        expect_ok(reply, what, remote_id=path, sent=True)

    def command(self, machine: str, arguments: Sequence[str], *, within: float = 60.0) -> CommandResult:
        """Run a command, without a shell; needs a client of level red.

        :param within: seconds to wait for its end.
        :raises LostReplyError: no result within that time.
        """
        what = f"Running {arguments[0]} on {machine}"
        executable = shlex.join(arguments)
        reply = self.session.send_once(
            "POST", f"utilities/command/{quote(machine, safe='')}", what, data={"executable": executable}
        )
        task_id = str(expect_ok(reply, what, sent=True).get("task_id") or "")
        deadline = time.monotonic() + within
        for pause in looks():
            answer = self.task(task_id, what)
            if answer.done:
                return _command_result(answer.result)
            if time.monotonic() + pause > deadline:
                raise LostReplyError(f"{what}: no result within {within:.0f} s", remote_id=task_id)
            time.sleep(pause)
        raise AssertionError("unreachable: looks() does not end")

    def tail(self, machine: str, path: str, *, lines: int = 30, size: int = 20_000) -> str:
        """Give the last lines of a text file, at most `size` characters of them.

        :raises NotFoundError: there is no such file.
        """
        if self.stat(machine, path).size <= SIZE_LIMIT:
            text = self.download(machine, path).decode(errors="replace")
        else:
            result = self.command(machine, ["tail", "-n", str(lines), "--", path])
            if result.exit_code:
                raise failure_of_text(result.error, f"Reading {path}", remote_id=path)
            text = result.output
        return "\n".join(text.splitlines()[-lines:])[-size:]


def looks() -> Iterator[float]:
    """Seconds between looks at an asynchronous task of the API, without end."""
    yield from _TASK_LOOKS
    while True:
        yield _TASK_LOOKS[-1]


def _url(call: str, machine: str, path: str) -> str:
    """The address of a file call; the path keeps its own slash: `ls/perlmutter//global/...`."""
    parts = PurePosixPath(path).parts
    if not path.startswith("/") or ".." in parts or any(ord(char) < 32 for char in path):
        raise UserError(
            "Not an absolute path in normal form", remote_id=repr(path), next_step="give /folder/.../file."
        )
    return f"utilities/{call}/{quote(machine, safe='')}/{quote(path, safe='/')}"


def _entry(row: Any) -> FileEntry:
    values = row if isinstance(row, Mapping) else {}
    name = PurePosixPath(str(values.get("name") or "")).name or str(values.get("name") or "")
    try:
        size = int(float(values.get("size") or 0))
    except ValueError:
        size = 0
    return FileEntry(name, size, str(values.get("perms") or "").startswith("d"))


def _command_result(result: Mapping[str, Any]) -> CommandResult:
    code = result.get("exit_code")
    if code is None:
        code = 1 if str(result.get("status") or "").lower() == "error" else 0
    return CommandResult(str(result.get("output") or ""), str(result.get("error") or ""), int(code))
