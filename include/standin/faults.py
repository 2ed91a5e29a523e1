"""Injects faults on request: delays, error statuses, dropped connections and cut bodies.

A rule selects requests (service, method, path, query) and how often (the next `times`, a
`fraction` of them drawn with a `seed`, or all). The first rule that matches and fires decides; a rule of
kind "delay" lets the request go on to the next rules.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, get_args

from aiohttp import web

Kind = Literal["delay", "status", "drop_before", "drop_reply", "reset", "truncate", "hold"]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class BadFaultError(ValueError):
    """A fault that was described wrongly; the message says how."""


@dataclass
class Fault:
    """One rule.

    :param kind: delay (wait `delay` seconds, then go on), status (answer `status` without acting),
        drop_before (close the connection without acting), drop_reply (act, then close), reset (send a
        TCP reset; without acting unless `act`), truncate (act, announce the whole reply and send half), hold
        (close the connection, and act when the rules are cleared: a request that is held up on its way).
    :param path: regular expression, searched in the path; `query` likewise in the raw query string.
    :param delay: seconds to wait first, with any kind.
    """

    kind: Kind
    fault_id: int = 0
    service: str | None = None
    method: str | None = None
    path: str = ""
    query: str = ""
    times: int | None = None
    fraction: float = 1.0
    seed: int | None = None
    delay: float = 0.0
    status: int = 503
    body: Any = None
    retry_after: float | None = None
    act: bool = False
    hits: int = 0
    seen: int = 0
    _random: random.Random = field(default_factory=random.Random, repr=False)
    _cleared: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @classmethod
    def from_json(cls, fault_id: int, spec: dict[str, Any]) -> Fault:
        """Read a rule from a control request.

        :raises BadFaultError: for an unknown key, kind, number or regular expression.
        """
        unknown = set(spec) - set(_FIELDS)
        if unknown:
            raise BadFaultError(f"Unknown keys {sorted(unknown)}; known are {list(_FIELDS)}.")
        for key, value in spec.items():
            types = _FIELDS[key]
            if types and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
                raise BadFaultError(f"{key} is {value!r}, of the wrong type.")
        if spec.get("kind") not in get_args(Kind):
            raise BadFaultError(f"kind is {spec.get('kind')!r}; it must be one of {list(get_args(Kind))}.")
        fault = cls(fault_id=fault_id, **spec)
        fault._check()
        return fault

    def _check(self) -> None:
        for name in ("path", "query"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise BadFaultError(f"{name} is not a regular expression: {error}.") from error
        bounds = {"fraction": (0, 1), "delay": (0, 3600), "status": (200, 599), "times": (1, 10**9)}
        for name, (minimum, maximum) in bounds.items():
            value = getattr(self, name)
            if value is not None and not minimum <= value <= maximum:
                raise BadFaultError(f"{name} is {value}; it must be from {minimum} to {maximum}.")
        self._random.seed(self.seed)

    def matches(self, service: str, request: web.Request) -> bool:
        """Whether the rule is for this request, whether or not it fires."""
        return (
            self.service in (None, service)
            and (self.method is None or self.method.upper() == request.method)
            and re.search(self.path, request.path) is not None
            and re.search(self.query, request.query_string) is not None
        )

    def fires(self) -> bool:
        """Decide for one matching request, and count it."""
        self.seen += 1
        if self.times is not None and self.hits >= self.times:
            return False
        if self.fraction < 1 and self._random.random() >= self.fraction:
            return False
        self.hits += 1
        return True

    def clear(self) -> None:
        """Let go what the rule holds."""
        self._cleared.set()

    async def cleared(self) -> None:
        """Wait until the rule is cleared."""
        await self._cleared.wait()

    def to_json(self) -> dict[str, Any]:
        """The rule and how often it matched (`seen`) and fired (`hits`)."""
        public = {name: getattr(self, name) for name in _FIELDS}
        return {"id": self.fault_id, **public, "seen": self.seen, "hits": self.hits}


_FIELDS: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "service": (str, type(None)),
    "method": (str, type(None)),
    "path": (str,),
    "query": (str,),
    "times": (int, type(None)),
    "fraction": (int, float),
    "seed": (int, type(None)),
    "delay": (int, float),
    "status": (int,),
    "body": (),
    "retry_after": (int, float, type(None)),
    "act": (bool,),
}


class Faults:
    """All rules of a server, in the order in which they were added."""

    def __init__(self) -> None:
        self._rules: list[Fault] = []
        self._last_id = 0

    def add(self, spec: dict[str, Any]) -> Fault:
        """Add a rule.

        :raises BadFaultError: when it is described wrongly.
        """
        fault = Fault.from_json(self._last_id + 1, spec)
        self._last_id += 1
        self._rules.append(fault)
        return fault

    def clear(self) -> None:
        """Remove all rules, and act on the requests that they hold."""
        for rule in self._rules:
            rule.clear()
        self._rules.clear()

    def to_json(self) -> list[dict[str, Any]]:
        """All rules with their counts."""
        return [rule.to_json() for rule in self._rules]

    def pick(self, service: str, request: web.Request) -> list[Fault]:
        """The rules that fire for a request: any delays, then at most one of another kind."""
        fired = []
        for rule in self._rules:
            if rule.matches(service, request) and rule.fires():
                fired.append(rule)
                if rule.kind != "delay":
                    break
        return fired

    async def apply(self, fired: list[Fault], request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request under the rules that fired for it."""
        # a request that has arrived is acted on even when its client goes away during the delay, and
        # unread data would turn an orderly close into a reset
        await request.read()
        await asyncio.sleep(sum(rule.delay for rule in fired))
        decisive = [rule for rule in fired if rule.kind != "delay"]
        if not decisive:
            return await handler(request)
        rule = decisive[0]
        if rule.kind == "status":
            return _error_reply(rule)
        if rule.kind == "hold":
            unsent = _close(request)
            await rule.cleared()
            await _answer(handler, request)
            return unsent
        acts = rule.kind in ("drop_reply", "truncate") or (rule.kind == "reset" and rule.act)
        response = await _answer(handler, request) if acts else None
        if rule.kind == "reset":
            return _reset(request)
        if rule.kind == "truncate" and response is not None:
            _send_half(request, response)
        return _close(request)


class UnsentReply(web.Response):
    """Stands for a reply that never goes out: the connection is closed or reset."""


async def _answer(handler: Handler, request: web.Request) -> web.StreamResponse:
    """What the service answers, refusals included."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return error


def _error_reply(rule: Fault) -> web.Response:
    headers = {}
    if rule.retry_after is not None:
        headers["Retry-After"] = f"{rule.retry_after:g}"
    if isinstance(rule.body, str):
        return web.Response(status=rule.status, text=rule.body, headers=headers)
    if rule.body is not None:
        return web.json_response(rule.body, status=rule.status, headers=headers)
    # what a proxy in front of a service that is down answers
    title = f"{rule.status} {_phrase(rule.status)}"
    page = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n"
    return web.Response(status=rule.status, text=page, content_type="text/html", headers=headers)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _close(request: web.Request) -> UnsentReply:
    if request.transport is not None:
        request.transport.close()
    return UnsentReply()


def _reset(request: web.Request) -> UnsentReply:
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return UnsentReply()


def _send_half(request: web.Request, response: web.StreamResponse) -> None:
    body = response.body if isinstance(response, web.Response) else None
    content = body if isinstance(body, bytes) and len(body) > 1 else b'{"DATA_TYPE": "result", "code": "Ac'
    announced = len(content)
    head = (
        f"HTTP/1.1 {response.status} {_phrase(response.status)}\r\n"
        f"Content-Type: {response.headers.get('Content-Type', 'application/json')}\r\n"
        f"Content-Length: {announced}\r\n\r\n"
    )
    if request.transport is not None:
        request.transport.write(head.encode() + content[: announced // 2])
