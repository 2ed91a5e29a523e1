"""Lets one changing request at a time through the API server of an Airflow on SQLite; an Airflow plugin.

A request that has written holds SQLite's only write lock until the event loop gets to commit it. Airflow
writes its audit log of the next request on that same event loop (`action_logging` in 3.3.2's
airflow/api_fastapi/logging/decorators.py), which then waits for a lock that only the event loop can release:
everything stands still until the lock's timeout, and the request fails with 500.
So with SQLite a changing request waits here, without blocking the loop, until the one before has ended. No
throughput is lost: there is one writer at a time in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.plugins_manager import AirflowPlugin

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_PAGES = (
    "/cosmic/"  # they write nothing themselves: their buttons call the REST API, which comes through here
)


class OneWriter:
    """ASGI middleware: passes reading requests, and one changing request at a time."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request when it is its turn."""
        is_http = scope["type"] == "http"
        if not is_http or scope["method"] in _READING or scope["path"].startswith(_PAGES):
            await self.app(scope, receive, send)
            return
        async with self._turn:
            await self.app(scope, receive, send)


class OneWriterPlugin(AirflowPlugin):
    """The middleware."""

    name = "local_airflow_one_writer"
    fastapi_root_middlewares = [{"middleware": OneWriter, "name": "one writer"}]
