"""Serves /control: faults, the log of requests, and each service's switches and accounting.

Served only when asked for at start; it needs no login, so it belongs on a loopback address.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from standin.faults import BadFaultError, Faults
from standin.requestlog import RequestLog
from standin.service import Control, ControlError, Service


class ControlRoutes:
    """Routes under /control."""

    def __init__(self, services: list[Service], faults: Faults, log: RequestLog) -> None:
        self._controls: dict[str, dict[str, Control]] = {s.name: s.controls() for s in services}
        self._faults = faults
        self._log = log

    def add_routes(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get("/control/faults", self._list_faults)
        app.router.add_post("/control/faults", self._add_fault)
        app.router.add_delete("/control/faults", self._clear_faults)
        app.router.add_get("/control/requests", self._list_requests)
        app.router.add_delete("/control/requests", self._clear_requests)
        app.router.add_post("/control/{service}/{verb}", self._call)

    async def _list_faults(self, _request: web.Request) -> web.Response:
        return web.json_response({"faults": self._faults.to_json()})

    async def _add_fault(self, request: web.Request) -> web.Response:
        try:
            fault = self._faults.add(await _json_object(request))
        except (BadFaultError, ControlError) as error:
            return _refused(400, str(error))
        return web.json_response(fault.to_json(), status=201)

    async def _clear_faults(self, _request: web.Request) -> web.Response:
        faults = self._faults.to_json()
        self._faults.clear()
        return web.json_response({"faults": faults})

    async def _list_requests(self, request: web.Request) -> web.Response:
        return web.json_response(self._log.to_json(request.query.get("service")))

    async def _clear_requests(self, _request: web.Request) -> web.Response:
        self._log.clear()
        return web.json_response({})

    async def _call(self, request: web.Request) -> web.Response:
        verbs = self._controls.get(request.match_info["service"])
        if verbs is None:
            return _refused(404, f"No such service; there are {sorted(self._controls)}.")
        verb = verbs.get(request.match_info["verb"])
        if verb is None:
            return _refused(404, f"No such verb; there are {sorted(verbs)}.")
        try:
            return web.json_response(await verb(await _json_object(request)))
        except ControlError as error:
            return _refused(400, str(error))


async def _json_object(request: web.Request) -> dict[str, Any]:
    text = await request.text()
    try:
        body = json.loads(text) if text else {}
    except ValueError as error:
        raise ControlError(f"The body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise ControlError("The body must be a JSON object.")
    return body


def _refused(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
