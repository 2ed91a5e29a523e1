"""The stand-in's HTTP server: Globus, NERSC, health and control on one port."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import time
from typing import Any

from aiohttp import web

from standin.control import ControlRoutes
from standin.faults import Faults, Handler, UnsentReply
from standin.globus.service import GlobusService
from standin.nersc.service import NerscService
from standin.requestlog import Entry, RequestLog
from standin.service import ABOUT, Service
from standin.settings import Settings
from standin.store import write_atomically

log = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAX_BODY = 64 * 1024 * 1024  # a transfer document may list a great many files


class StartError(Exception):
    """The server cannot start; the message says why and what to do."""


def make_services(settings: Settings) -> list[Service]:
    """The services of a facility."""
    return [GlobusService(settings), NerscService(settings)]


class Server:
    """One running facility. `start` returns when it answers; `stop` ends it in an orderly way."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.faults = Faults()
        self.requests = RequestLog(file=settings.request_log if settings.control else None)
        self.base_url = ""
        self.description: dict[str, Any] = {}
        self._services: list[Service] = []
        self._started: list[Service] = []
        self._runner: web.AppRunner | None = None
        self._lock: int | None = None

    async def start(self) -> None:
        """Make the folders, start the services, bind the port and write standin.json.

        :raises StartError: when the root is in use by another server, or the port by another program.
        """
        try:
            self.settings.make_folders()
            self._take_lock()
        except OSError as error:
            raise StartError(
                f"Cannot use {self.settings.root} ({error.strerror}). Give a --root that can be written to."
            ) from error
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        self._services = make_services(self.settings)
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._middleware])
        app.router.add_get("/healthz", self._health)
        for service in self._services:
            service.add_routes(app)
        if self.settings.control:
            if self.settings.host not in _LOOPBACK:
                log.warning("/control needs no login and is served on %s", self.settings.host)
            ControlRoutes(self._services, self.faults, self.requests).add_routes(app)
        for service in self._services:
            self._started.append(service)
            await service.start()
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        await self._bind(self._runner)
        self.description = {
            "base_url": self.base_url,
            "control": self.settings.control,
            "nersc_root": str(self.settings.nersc),
        }
        for service in self._services:
            self.description.update(service.describe(self.base_url))
        write_atomically(self.settings.description, json.dumps(self.description, indent=2) + "\n")

    async def stop(self) -> None:
        """End requests and background work, and release the port and the root."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        while self._started:
            await self._started.pop().stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        lock = os.open(self.settings.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise StartError(
                f"Another stand-in facility is running on {self.settings.root}. "
                "Stop it first, or give another --root."
            ) from error
        self._lock = lock

    async def _bind(self, runner: web.AppRunner) -> None:
        host, port = self.settings.host, self.settings.port
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                advice = "Another program uses it: stop that, or give another --port (0: any free one)."
            else:
                advice = "Check --host and --port."
            raise StartError(f"Cannot listen on {host}:{port} ({error.strerror}). {advice}") from error
        bound_port = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        self.base_url = (self.settings.public_url or f"http://{shown}:{bound_port}").rstrip("/")

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "services": [s.name for s in self._services]})

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Log each request of a service and let faults happen to it."""
        service = request.path.split("/", 2)[1]
        if service not in {s.name for s in self._services}:
            return await handler(request)
        entry = Entry(time.time(), service, request.method, request.path, request.query_string)
        self.requests.add(entry)
        fired = self.faults.pick(service, request)
        if fired:
            entry.fault = "+".join(fault.kind for fault in fired)
        try:
            response = await (self.faults.apply(fired, request, handler) if fired else handler(request))
            entry.status = None if isinstance(response, UnsentReply) else response.status
        except web.HTTPException as error:
            entry.status = error.status
            raise
        except ConnectionError:
            return UnsentReply()  # the client went away before it had sent all of its request
        except Exception:
            entry.status = 500
            log.exception("%s %s failed inside the stand-in", request.method, request.path)
            raise
        finally:
            entry.about, entry.ended = request.get(ABOUT), time.time()
            self.requests.end(entry)
        return response
