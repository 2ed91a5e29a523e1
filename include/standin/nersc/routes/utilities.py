"""Serves utilities: ls, download, upload and command."""

from __future__ import annotations

import asyncio
import base64
import grp
import os
import pwd
import shlex
import stat
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from aiohttp import web

from standin.nersc.paths import locate
from standin.nersc.routes.api import Api, form_fields, invalid, query_bool, required
from standin.nersc.routes.slurm_commands import SLURM_COMMANDS, CommandError, sacct
from standin.nersc.schedulers.environment import clean_environment

MAX_BYTES = 5_242_880
COMMAND_SECONDS = 300.0
MAX_OUTPUT = 1024 * 1024


class UtilityRoutes:
    """Files and commands. A path is what follows the machine and one slash: an absolute one makes two."""

    def __init__(self, api: Api) -> None:
        self._api = api
        api.tasks.register("command", self._run, repeatable=False)

    def add(self, app: web.Application, base: str) -> None:
        """Add the routes."""

        def private(handler: Any) -> Any:
            return self._api.private(handler, needs_machine=True)

        app.router.add_get(f"{base}/utilities/ls/{{machine}}/{{path:.*}}", private(self._ls))
        app.router.add_get(f"{base}/utilities/download/{{machine}}/{{path:.*}}", private(self._download))
        app.router.add_put(f"{base}/utilities/upload/{{machine}}/{{path:.*}}", private(self._upload))
        app.router.add_post(f"{base}/utilities/command/{{machine}}", private(self._command))

    async def _ls(self, request: web.Request) -> web.Response:
        asked = request.match_info["path"]
        try:
            path = locate(self._api.file_system, asked, follow=asked.endswith("/"))
            entries = await asyncio.to_thread(list_path, path, asked, self._api.options.now.zone)
        except OSError as error:
            message = f"ls: cannot access '{asked}': {error.strerror or error}"
            return web.json_response({"status": "ERROR", "entries": [], "error": message})
        return web.json_response({"status": "OK", "entries": entries, "error": None})

    async def _download(self, request: web.Request) -> web.Response:
        asked, binary = request.match_info["path"], query_bool(request, "binary", False)
        try:
            path = locate(self._api.file_system, asked, follow=True)
            content = await asyncio.to_thread(_read, path)
            text = base64.b64encode(content).decode() if binary else content.decode()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return _download_reply("ERROR", None, binary, f"{asked}: {reason}")
        return _download_reply("OK", text, binary, None)

    async def _upload(self, request: web.Request) -> web.Response:
        asked = request.match_info["path"]
        form = await request.post()
        field = form.get("file")
        if field is None:
            invalid("body", "file", "field required", "value_error.missing")
        content = await _content(field)
        try:
            path = locate(self._api.file_system, asked, follow=True)
            await asyncio.to_thread(self._write, path, content)
        except OSError as error:
            message = f"{asked}: {error.strerror or error}"
            return web.json_response({"status": "ERROR", "output": None, "error": message})
        return web.json_response({"status": "OK", "output": asked, "error": None})

    def _write(self, path: Path, content: bytes) -> None:
        if len(content) > MAX_BYTES:
            raise OSError(f"File is too large: {len(content)} bytes; the limit is {MAX_BYTES}")
        if path.is_dir():
            raise IsADirectoryError(None, "Is a directory")
        quota = self._api.options.now.quota_bytes
        if quota is not None and _size(self._api.file_system) + len(content) > quota:
            raise OSError(None, "Disk quota exceeded")
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    async def _command(self, request: web.Request) -> web.Response:
        executable = required(await form_fields(request), "executable")
        task_id = self._api.tasks.create("command", {"executable": executable})
        return web.json_response({"task_id": task_id, "status": "OK", "error": None})

    async def _run(self, _task_id: str, work: dict[str, Any]) -> dict[str, Any]:
        """Run a command without a shell."""
        try:
            words = shlex.split(work["executable"])
        except ValueError as error:
            return _command_result(2, "", f"{error}: {work['executable']}")
        if not words:
            return _command_result(2, "", "no command")
        if self._api.scheduler.name == "builtin" and words[0] in SLURM_COMMANDS:
            return await self._run_slurm_command(words)
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, cwd=self._api.home, start_new_session=True,
                env=clean_environment(self._api.options.now, self._api.home),
            )  # fmt: skip
        except (OSError, ValueError) as error:
            reason = "command not found" if isinstance(error, FileNotFoundError) else str(error)
            return _command_result(127, "", f"{words[0]}: {reason}")
        return await _outcome(process)

    async def _run_slurm_command(self, words: list[str]) -> dict[str, Any]:
        if words[0] != "sacct":
            return _command_result(127, "", f"{words[0]}: command not found")
        try:
            return _command_result(0, await sacct(self._api.scheduler, words[1:]), "")
        except CommandError as error:
            return _command_result(1, "", str(error))


async def _content(field: str | bytes | bytearray | web.FileField) -> bytes:
    """What was uploaded, as a file or as a plain form field."""
    if isinstance(field, web.FileField):
        return await asyncio.to_thread(field.file.read)
    return field.encode() if isinstance(field, str) else bytes(field)


async def _outcome(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """Wait for a command, and leave nothing of it."""
    try:
        output, errors = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
    except TimeoutError:
        return _command_result(124, "", f"Command timed out after {COMMAND_SECONDS:.0f} s")
    finally:
        if process.returncode is None:
            os.killpg(process.pid, 9)
            await process.wait()
    return _command_result(process.returncode or 0, _decoded(output), _decoded(errors))


def _decoded(content: bytes) -> str:
    return content[:MAX_OUTPUT].decode(errors="replace")


def _command_result(code: int, output: str, error: str) -> dict[str, Any]:
    status = "ok" if code == 0 else "error"
    return {"status": status, "output": output, "error": error, "exit_code": code}


def _download_reply(status: str, file: str | None, binary: bool, error: str | None) -> web.Response:
    return web.json_response({"status": status, "file": file, "is_binary": binary, "error": error})


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise OSError(f"File is too large: {size} bytes; the limit is {MAX_BYTES}")
        return file.read(MAX_BYTES)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def list_path(path: Path, asked: str, zone: ZoneInfo) -> list[dict[str, Any]]:
    """Entries as `ls -la` gives them: of a folder with . and .., of anything else with its path as name.

    :raises OSError: when it cannot be listed.
    """
    if path.is_dir() and not path.is_symlink():
        names = [".", "..", *sorted(child.name for child in path.iterdir())]
        return [entry for name in names if (entry := _entry(path / name, name, zone)) is not None]
    entry = _entry(path, asked, zone)
    if entry is None:
        raise FileNotFoundError(None, "No such file or directory")
    return [entry]


def _entry(path: Path, name: str, zone: ZoneInfo) -> dict[str, Any] | None:
    """One entry, or None when it went away meanwhile."""
    try:
        info = path.lstat()
        shown = f"{name} -> {path.readlink()}" if stat.S_ISLNK(info.st_mode) else name
    except FileNotFoundError:
        return None
    changed = datetime.fromtimestamp(info.st_mtime, zone)
    return {
        "perms": stat.filemode(info.st_mode), "hardlinks": info.st_nlink, "user": _user(info.st_uid),
        "group": _group(info.st_gid), "size": float(info.st_size),
        "date": changed.strftime("%Y-%m-%d %H:%M:%S"), "name": shown,
    }  # fmt: skip


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
