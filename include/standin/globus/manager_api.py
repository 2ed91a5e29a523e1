"""Serves what the manager of a collection may do to tasks: pause and resume them.

The facility's one client manages both collections, so that the SDK's own calls can be used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from standin.globus.auth import Auth
from standin.globus.engine import Engine
from standin.globus.errors import TransferError, bad_request
from standin.globus.model import Task
from standin.globus.transport import PREFIX, handler, read_document, result


class ManagerApi:
    """Routes below /endpoint_manager."""

    def __init__(self, auth: Auth, engine: Engine) -> None:
        self._auth = auth
        self._engine = engine

    def add_routes(self, app: web.Application) -> None:
        """Add the routes."""
        manager = f"{PREFIX}/v0.10/endpoint_manager"
        app.router.add_post(f"{manager}/admin_pause", handler(self._auth, self._pause))
        app.router.add_post(f"{manager}/admin_resume", handler(self._auth, self._resume))

    async def _pause(self, request: web.Request, owner: str) -> dict[str, Any]:
        document = await read_document(request)
        message = document.get("message")
        if not isinstance(message, str) or not message:
            raise bad_request("'message' must say why the tasks are paused")

        async def pause(task: Task) -> None:
            await self._engine.pause(task, message)

        await self._each(document, owner, pause)
        return result(request, "PauseAccepted", "The tasks have been paused")

    async def _resume(self, request: web.Request, owner: str) -> dict[str, Any]:
        async def resume(task: Task) -> None:
            self._engine.resume(task)

        await self._each(await read_document(request), owner, resume)
        return result(request, "ResumeAccepted", "The tasks have been resumed")

    async def _each(
        self, document: dict[str, Any], owner: str, action: Callable[[Task], Awaitable[None]]
    ) -> None:
        """Act on all unfinished tasks of a list; the list is checked before anything happens."""
        ids = document.get("task_id_list")
        if not isinstance(ids, list) or not ids:
            raise bad_request("'task_id_list' must be a list of task ids")
        tasks = []
        for task_id in ids:
            task = self._engine.tasks.get(str(task_id))
            if task is None or task.owner_id != owner:
                raise TransferError(404, "ClientError.NotFound", f"Task '{task_id}' not found")
            tasks.append(task)
        for task in tasks:
            if not task.ended:
                await action(task)
