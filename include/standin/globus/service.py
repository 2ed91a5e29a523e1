"""Plugs Globus into the stand-in's server."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from standin.globus.auth import Auth, Client
from standin.globus.collections import Collections
from standin.globus.engine import Engine
from standin.globus.errors import TransferError
from standin.globus.files_api import FilesApi
from standin.globus.manager_api import ManagerApi
from standin.globus.store import GlobusStore
from standin.globus.switches import Switches
from standin.globus.tasks_api import TasksApi
from standin.globus.transport import PREFIX, resource
from standin.service import Control
from standin.settings import Settings

AUTH_PREFIX = "/globus/auth"


class GlobusService:
    """Globus Auth and Globus Transfer v0.10."""

    name = "globus"

    def __init__(self, settings: Settings) -> None:
        self._client = Client.load(settings.credentials / "globus.json")
        self._store = GlobusStore(settings.state / "globus.sqlite")
        self._collections = Collections(settings, self._client.client_id)
        self._auth = Auth(self._client, self._store, self._collections)
        self._engine = Engine(settings, self._store, self._collections)
        self._files = FilesApi(self._auth, self._collections)
        self._tasks = TasksApi(self._auth, self._collections, self._engine, self._store)
        self._manager = ManagerApi(self._auth, self._engine)
        self._switches = Switches(self._auth, self._collections, self._engine, self._store)

    def add_routes(self, app: web.Application) -> None:
        """Add the routes of both; what is not offered is refused in Transfer's dialect."""
        self._auth.add_routes(app, AUTH_PREFIX)
        self._files.add_routes(app)
        self._tasks.add_routes(app)
        self._manager.add_routes(app)
        app.router.add_route("*", "/globus/{rest:.*}", _not_offered)

    async def start(self) -> None:
        """Take up unfinished transfers, under the switches as they were."""
        self._switches.restore()
        await self._engine.start()

    async def stop(self) -> None:
        """Interrupt transfers and close the database."""
        await self._engine.stop()
        self._store.close()

    def describe(self, base_url: str) -> dict[str, Any]:
        """Where Globus is, how to log in, and the collections."""
        return {
            "globus": {
                "auth_url": f"{base_url}{AUTH_PREFIX}/",
                "transfer_url": f"{base_url}{PREFIX}/",
                "client_id": self._client.client_id,
                "client_secret": self._client.client_secret,
            },
            "collections": {
                collection.name: {"id": collection.collection_id, "root": str(collection.root)}
                for collection in self._collections.all
            },
        }

    def controls(self) -> dict[str, Control]:
        """Switches and the accounting."""
        return self._switches.controls()


async def _not_offered(request: web.Request) -> web.Response:
    error = TransferError(
        404, "ClientError.NotFound", f"{request.method} is not offered by this stand-in here"
    )
    return web.json_response(error.to_json(resource(request)), status=404)
