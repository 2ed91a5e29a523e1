"""Serves tasks: the results of what other requests began."""

from __future__ import annotations

from aiohttp import web

from standin.nersc.routes.api import Api, fail


class TaskRoutes:
    """Tasks are out of reach while Perlmutter is."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def add(self, app: web.Application, base: str) -> None:
        """Add the routes."""
        app.router.add_get(f"{base}/tasks", self._api.private(self._list, needs_machine=True))
        app.router.add_get(f"{base}/tasks/", self._api.private(self._list, needs_machine=True))
        app.router.add_get(f"{base}/tasks/{{task_id}}", self._api.private(self._get, needs_machine=True))
        app.router.add_delete(
            f"{base}/tasks/{{task_id}}", self._api.private(self._delete, needs_machine=True)
        )

    async def _list(self, _request: web.Request) -> web.Response:
        return web.json_response({"tasks": self._api.tasks.all()})

    async def _get(self, request: web.Request) -> web.Response:
        task = self._api.tasks.get(request.match_info["task_id"])
        if task is None:
            fail(404, f"Task {request.match_info['task_id']} not found")
        return web.json_response(task)

    async def _delete(self, request: web.Request) -> web.Response:
        task_id = request.match_info["task_id"]
        if self._api.tasks.get(task_id) is None:
            fail(404, f"Task {task_id} not found")
        await self._api.tasks.cancel(task_id)
        return web.json_response({"task_id": task_id, "status": "OK", "error": None})
