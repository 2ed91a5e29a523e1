"""Shared by all Transfer routes: authentication, reading JSON, and errors in Transfer's dialect."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from standin.globus.auth import Auth
from standin.globus.errors import TransferError, bad_request, request_id

PREFIX = "/globus/transfer"
Call = Callable[[web.Request, str], Awaitable[dict[str, Any] | tuple[int, dict[str, Any]]]]
Handler = Callable[[web.Request], Awaitable[web.Response]]


def resource(request: web.Request) -> str:
    """The path of a request as Transfer writes it into its replies."""
    return request.path.removeprefix(PREFIX)


def handler(auth: Auth, call: Call) -> Handler:
    """Make a route's handler: checks the token, calls with the owner's id, and writes the reply."""

    async def handle(request: web.Request) -> web.Response:
        try:
            answer = await call(request, auth.require_transfer(request))
        except TransferError as error:
            return web.json_response(error.to_json(resource(request)), status=error.status)
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        return web.json_response(body, status=status)

    return handle


async def read_document(request: web.Request) -> dict[str, Any]:
    """The JSON object that was sent.

    :raises TransferError: 400 when it is something else.
    """
    try:
        document = json.loads(await request.text())
    except ValueError as error:
        raise bad_request(f"The body is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise bad_request("The body must be a JSON object")
    return document


def result(request: web.Request, code: str, message: str, data_type: str = "result") -> dict[str, Any]:
    """A result document."""
    return {
        "DATA_TYPE": data_type,
        "code": code,
        "message": message,
        "request_id": request_id(),
        "resource": resource(request),
    }
