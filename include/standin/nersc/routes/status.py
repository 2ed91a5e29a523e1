"""Serves status, status/outages, status/notes and meta: no login needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from standin.nersc.routes.api import Api, fail
from standin.nersc.site import RESOURCES

CHANGELOG = [{"date": "2022-06-29", "change": "v1.2: asynchronous tasks for jobs and commands."}]


class StatusRoutes:
    """What is up."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def add(self, app: web.Application, base: str) -> None:
        """Add the routes."""
        public = self._api.public
        router = app.router
        for path, one, all_ in (
            ("status/outages/planned", self._planned, self._all_planned),
            ("status/outages", self._outages, self._all_outages),
            ("status/notes", self._notes, self._all_notes),
            ("status", self._status, self._all_status),
        ):
            router.add_get(f"{base}/{path}", public(all_))
            router.add_get(f"{base}/{path}/", public(all_))
            router.add_get(f"{base}/{path}/{{name}}", public(one))
        router.add_get(f"{base}/meta/changelog", public(self._changelog))
        router.add_get(f"{base}/meta/config", public(self._config))

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._api.site.status(_resource(request)))

    async def _all_status(self, _request: web.Request) -> web.Response:
        return web.json_response([self._api.site.status(name) for name in RESOURCES])

    async def _outages(self, request: web.Request) -> web.Response:
        return web.json_response(self._api.site.outages(_resource(request), planned=False))

    async def _all_outages(self, _request: web.Request) -> web.Response:
        return _by_resource(lambda name: self._api.site.outages(name, planned=False))

    async def _planned(self, request: web.Request) -> web.Response:
        return web.json_response(self._api.site.outages(_resource(request), planned=True))

    async def _all_planned(self, _request: web.Request) -> web.Response:
        return _by_resource(lambda name: self._api.site.outages(name, planned=True))

    async def _notes(self, request: web.Request) -> web.Response:
        return web.json_response(self._api.site.notes(_resource(request)))

    async def _all_notes(self, _request: web.Request) -> web.Response:
        return _by_resource(self._api.site.notes)

    async def _changelog(self, _request: web.Request) -> web.Response:
        return web.json_response(CHANGELOG)

    async def _config(self, _request: web.Request) -> web.Response:
        config = {"compute.targets": "perlmutter", "utilities.max_file_size": "5242880"}
        return web.json_response([{"key": key, "value": value} for key, value in config.items()])


def _by_resource(documents: Callable[[str], list[dict[str, Any]]]) -> web.Response:
    """A list for each resource that has any."""
    return web.json_response([found for name in RESOURCES if (found := documents(name))])


def _resource(request: web.Request) -> str:
    name = request.match_info["name"]
    if name not in RESOURCES:
        fail(404, f"Resource {name} not found")
    return name
