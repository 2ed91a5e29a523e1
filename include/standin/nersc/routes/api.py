"""Shared by all SFAPI routes: login, outages, and the shapes of errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from aiohttp import web

from standin.nersc.oidc import Clients
from standin.nersc.options import LiveOptions
from standin.nersc.schedulers.interface import Scheduler
from standin.nersc.site import MACHINES, SiteStatus
from standin.nersc.tasks import Tasks

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_TRUE, _FALSE = ("true", "1", "yes", "on", "t", "y"), ("false", "0", "no", "off", "f", "n")


@dataclass(frozen=True)
class Api:
    """The parts that routes work with."""

    clients: Clients
    options: LiveOptions
    site: SiteStatus
    tasks: Tasks
    scheduler: Scheduler
    file_system: Path
    home: Path

    def public(self, handler: Handler) -> Handler:
        """A route that needs no login."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            self._check_up()
            return await handler(request)

        return guarded

    def private(self, handler: Handler, *, needs_machine: bool = False) -> Handler:
        """A route that needs a valid token, and possibly the machine that it is about (or Perlmutter)."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            self._check_up()
            self._check_token(request)
            machine = request.match_info.get("machine")
            if machine is not None:
                check_machine(machine)
            if needs_machine:
                self._check_machine_up(machine or "perlmutter")
            return await handler(request)

        return guarded

    def _check_up(self) -> None:
        status = self.site.down_status()
        if status is not None:
            fail(status, "Service Unavailable" if status == 503 else "Internal Server Error")

    def _check_token(self, request: web.Request) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            fail(403, "Not authenticated")
        if not self.clients.accepts(token.strip()):
            fail(403, "Could not validate credentials")

    def _check_machine_up(self, machine: str) -> None:
        outage = self.site.active_outage(machine)
        if outage is not None:
            fail(503, f"{machine} is unavailable: {outage['description']}")


def fail(status: int, detail: Any) -> NoReturn:
    """Answer with an error in FastAPI's shape."""
    raise _HttpError(status, detail)


class _HttpError(web.HTTPException):
    """Any error status with a JSON body."""

    def __init__(self, status: int, detail: Any) -> None:
        self.status_code = status
        super().__init__(text=web.json_response({"detail": detail}).text, content_type="application/json")


def invalid(where: str, name: str, message: str, kind: str) -> NoReturn:
    """Answer that a part of the request is not valid."""
    fail(422, [{"loc": [where, name], "msg": message, "type": kind}])


def check_machine(machine: str) -> None:
    """Refuse machines that are not SFAPI's."""
    if machine not in MACHINES:
        permitted = ", ".join(f"'{name}'" for name in sorted(MACHINES))
        invalid(
            "path",
            "machine",
            f"value is not a valid enumeration member; permitted: {permitted}",
            "type_error.enum",
        )


def query_bool(request: web.Request, name: str, default: bool) -> bool:
    """A boolean of the query string."""
    return parse_bool("query", name, request.query.get(name), default)


def parse_bool(where: str, name: str, text: str | None, default: bool | None) -> bool:
    """A boolean; missing ones without a default, and other words, are refused."""
    if text is None:
        if default is None:
            invalid(where, name, "field required", "value_error.missing")
        return default
    if text.lower() in _TRUE:
        return True
    if text.lower() not in _FALSE:
        invalid(where, name, "value could not be parsed to a boolean", "type_error.bool")
    return False


def query_int(request: web.Request, name: str, default: int) -> int:
    """A whole number, not negative, of the query string."""
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        invalid("query", name, "value is not a valid integer", "type_error.integer")
    return int(text)


async def form_fields(request: web.Request) -> dict[str, list[str]]:
    """The text fields of a form, each with all its values."""
    form = await request.post()
    fields: dict[str, list[str]] = {}
    for name, value in form.items():
        if isinstance(value, str):
            fields.setdefault(name, []).append(value)
    return fields


def required(fields: dict[str, list[str]], name: str) -> str:
    """A form field that must be there."""
    if name not in fields:
        invalid("body", name, "field required", "value_error.missing")
    return fields[name][-1]
