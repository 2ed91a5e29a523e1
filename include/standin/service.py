"""The interface of a service that is plugged into the stand-in's server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import web

ABOUT = web.RequestKey("about", str)
"""Where a route puts what a request submits, for the log of requests."""

Control = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class ControlError(Exception):
    """A control request that cannot be carried out; its message goes back with status 400."""


class Service(Protocol):
    """One service, such as Globus or NERSC. It is made with the `Settings` alone.

    Order of calls: `add_routes`, `start`, then the port is bound, `describe`, requests, `stop`.
    """

    name: str
    """"globus" or "nersc"; all its routes begin with it."""

    def add_routes(self, app: web.Application) -> None:
        """Add the routes; called once, before `start`."""

    async def start(self) -> None:
        """Open the state and take up what an earlier server left unfinished."""

    async def stop(self) -> None:
        """End background work in an orderly way; a server that is killed never gets here."""

    def describe(self, base_url: str) -> dict[str, Any]:
        """The service's own keys of standin.json; called when the port is known, before any request."""

    def controls(self) -> dict[str, Control]:
        """Verbs of POST /control/{name}/{verb}; JSON object in, JSON object out.

        The accounting is the verbs "transfers" (globus; answers {"transfers": [...]}) and "jobs" (nersc;
        answers {"jobs": [...]}).
        """
