"""Calls of the Superfacility API about files and commands; a part of the hook."""

from __future__ import annotations

import base64
import binascii
import json
import re
import shlex
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import tenacity

from facilities.errors import LostReplyError, NotFoundError, TransientError, UserError
from facilities.superfacility.errors import expect_ok, failure_of_text
from facilities.superfacility.session import SfapiSession

SIZE_LIMIT = 5_242_880
"""Bytes that the API uploads or downloads at most."""

_TASK_POLLS = tenacity.wait_chain(*(tenacity.wait_fixed(pause) for pause in (0.2, 0.5, 1.0, 2.0)))
_MACHINE = re.compile(r"[a-z0-9_-]{1,40}")


@dataclass(frozen=True)
class FileEntry:
    """A file or folder at the facility; `size` in bytes."""

    name: str
    size: int
    folder: bool


@dataclass(frozen=True)
class CommandResult:
    """What a command wrote, and its exit code."""

    output: str
    error: str
    exit_code: int


class FileCalls:
    """Files and commands on a machine of the facility. Paths are absolute."""

    @property
    @abstractmethod
    def session(self) -> SfapiSession:
        """The HTTP session that the calls go through."""

    def stat(self, machine: str, path: str) -> FileEntry:
        """Look at one file or folder.

        :raises NotFoundError: there is nothing at that path.
        """
        what = f"Listing {path}"
        reply = expect_ok(self.session.get(_file_url("ls", machine, path), what), what, remote_id=path)
        rows = [row for row in reply.get("entries") or () if isinstance(row, Mapping)]
        name = PurePosixPath(path).name
        if any(row.get("name") == "." for row in rows):
            return FileEntry(name, 0, folder=True)
        if len(rows) != 1:
            raise NotFoundError("There is no such file", remote_id=path, next_step="check the path.")
        try:
            size = int(float(rows[0].get("size") or 0))
        except ValueError:
            size = 0
        return FileEntry(name, size, folder=str(rows[0].get("perms") or "").startswith("d"))

    def download(self, machine: str, path: str) -> bytes:
        """Read a file of at most 5,242,880 bytes.

        :raises NotFoundError: there is no such file.
        :raises UserError: it is too large for the API, or a folder.
        """
        what = f"Reading {path}"
        reply = self.session.get(_file_url("download", machine, path), what, params={"binary": "true"})
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
        reply = self.session.send_once("PUT", _file_url("upload", machine, path), what, files=files)
        expect_ok(reply, what, remote_id=path, sent=True)

    def tail(self, machine: str, path: str, *, lines: int = 30, size: int = 20_000) -> str:
        """Last lines of a text file, at most `size` characters of them.

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

    def command(self, machine: str, arguments: Sequence[str], *, within: float = 60.0) -> CommandResult:
        """Run a command, without a shell; needs a client of level red.

        :param within: seconds to wait for its end.
        :raises LostReplyError: no result within that time.
        """
        what = f"Running {arguments[0]} on {machine}"
        path = f"utilities/command/{check_machine(machine)}"
        reply = self.session.send_once("POST", path, what, data={"executable": shlex.join(arguments)})
        task_id = str(expect_ok(reply, what, sent=True).get("task_id") or "")
        result = self.task_result(task_id, what, within)
        if result is None:
            raise LostReplyError(f"{what}: no result within {within:.0f} s", remote_id=task_id)
        code = result.get("exit_code")
        if code is None:
            code = 1 if str(result.get("status") or "").lower() == "error" else 0
        return CommandResult(str(result.get("output") or ""), str(result.get("error") or ""), int(code))

    def task_result(self, task_id: str, what: str, within: float) -> Mapping[str, Any] | None:
        """Result of an asynchronous task of the API; None when there is none `within` that many seconds."""
        polling = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda result: result is None),
            stop=tenacity.stop_after_delay(within),
            wait=_TASK_POLLS,
            retry_error_callback=lambda _: None,
        )
        result: Mapping[str, Any] | None = polling(self._read_task, task_id, what)
        return result

    def _read_task(self, task_id: str, what: str) -> Mapping[str, Any] | None:
        reply = self.session.get(f"tasks/{quote(task_id, safe='')}", what)
        status = str(reply.get("status") or "").lower() if isinstance(reply, Mapping) else ""
        if status in ("failed", "cancelled", "canceled"):
            raise LostReplyError(
                f"{what}: the API's task {status}", remote_id=task_id, details=str(reply.get("result"))[:500]
            )
        if status != "completed":
            return None
        result = reply.get("result")
        try:
            parsed = json.loads(result) if isinstance(result, str) else result
        except ValueError:
            parsed = None
        if not isinstance(parsed, Mapping):
            raise LostReplyError(
                f"{what}: the result cannot be read", remote_id=task_id, details=str(result)[:500]
            )
        return parsed


def check_machine(name: str) -> str:
    if not _MACHINE.fullmatch(name):
        raise UserError(f"Not a machine's name: {name!r}", next_step="use perlmutter.")
    return name


def _file_url(call: str, machine: str, path: str) -> str:
    """The address of a file call; the path keeps its own slash: `ls/perlmutter//global/...`."""
    if not path.startswith("/") or ".." in PurePosixPath(path).parts or any(ord(char) < 32 for char in path):
        raise UserError(
            "Not an absolute path in normal form", remote_id=repr(path), next_step="give /folder/.../file."
        )
    return f"utilities/{call}/{check_machine(machine)}/{quote(path, safe='/')}"
