"""Plugs the NERSC half together: token endpoint, Superfacility API and scheduler."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from standin.nersc.controls import SiteControls
from standin.nersc.credentials import ClientFiles, registered_client
from standin.nersc.database import Database
from standin.nersc.oidc import Clients, TokenEndpoint
from standin.nersc.options import LiveOptions
from standin.nersc.routes.account import AccountRoutes
from standin.nersc.routes.api import Api
from standin.nersc.routes.compute import ComputeRoutes
from standin.nersc.routes.status import StatusRoutes
from standin.nersc.routes.storage import StorageRoutes
from standin.nersc.routes.tasks import TaskRoutes
from standin.nersc.routes.utilities import UtilityRoutes
from standin.nersc.schedulers.builtin import BuiltinScheduler
from standin.nersc.schedulers.interface import Scheduler
from standin.nersc.schedulers.lifecycle import Places
from standin.nersc.schedulers.slurm import SlurmScheduler, slurm_answers
from standin.nersc.site import SiteStatus
from standin.nersc.tasks import Tasks
from standin.service import Control
from standin.settings import Settings

TOKEN_PATH = "/nersc/oidc/c2id/token"  # noqa: S105 - a path, no secret
API_PATH = "/nersc/api/v1.2"
MACHINE = "perlmutter"


class NerscService:
    """NERSC. It is put together when it is made; it works from `start` on."""

    name = "nersc"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        settings.make_folders()
        self._database = Database(settings.state / "nersc.sqlite")
        self._options = LiveOptions(self._database, settings.slots)
        self._site = SiteStatus(self._database)
        self._client = registered_client(settings.credentials)
        self._clients = Clients(self._database, self._client, self._options)
        self._tasks = Tasks(self._database, self._options)
        self._home = settings.nersc / "homes" / self._options.now.user_name
        self._scheduler = self._make_scheduler()
        self._token_endpoint = TokenEndpoint(self._clients, TOKEN_PATH)
        self._api = Api(
            clients=self._clients, options=self._options, site=self._site, tasks=self._tasks,
            scheduler=self._scheduler, file_system=settings.nersc, home=self._home,
        )  # fmt: skip
        self._storage = StorageRoutes(self._api, self._database)

    def _make_scheduler(self) -> Scheduler:
        wanted = self._settings.scheduler
        if wanted == "slurm" or (wanted == "auto" and slurm_answers()):
            return SlurmScheduler(self._database, self._options, self._home)
        places = Places(
            jobs=self._settings.state / "jobs",
            alive=self._settings.state / "nersc-alive",
            home=self._home,
            file_system=self._settings.nersc,
        )
        return BuiltinScheduler(
            self._database, self._options, places, lambda: self._site.next_outage(MACHINE)
        )

    def add_routes(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_post(TOKEN_PATH, self._token_endpoint.post)
        StatusRoutes(self._api).add(app, API_PATH)
        ComputeRoutes(self._api).add(app, API_PATH)
        TaskRoutes(self._api).add(app, API_PATH)
        UtilityRoutes(self._api).add(app, API_PATH)
        AccountRoutes(self._api).add(app, API_PATH)
        self._storage.add(app, API_PATH)

    async def start(self) -> None:
        """Take up jobs first, then what earlier requests were promised."""
        self._home.mkdir(parents=True, exist_ok=True)
        await self._scheduler.start()
        await self._tasks.resume()
        self._storage.start()

    async def stop(self) -> None:
        """Stop working. Running jobs go on."""
        await self._storage.stop()
        await self._tasks.stop()
        await self._scheduler.stop()
        self._database.close()

    def describe(self, base_url: str) -> dict[str, Any]:
        """The part of standin.json that clients of NERSC need."""
        self._token_endpoint.base_url = base_url
        files = ClientFiles(self._settings.credentials)
        return {
            "nersc": {
                "token_url": base_url + TOKEN_PATH,
                "api_url": base_url + API_PATH,
                "client_id": self._client.client_id,
                "client_id_path": str(files.client_id),
                "key_path": str(files.pem),
                "jwk_path": str(files.jwk),
                "user": self._options.now.user_name,
                "home": str(self._home),
                "timezone": self._options.now.timezone,
                "scheduler": self._scheduler.name,
            },
            "nersc_root": str(self._settings.nersc),
        }

    def controls(self) -> dict[str, Control]:
        """All control verbs."""
        site = SiteControls(self._clients, self._options, self._site, self._scheduler)
        return site.controls() | self._scheduler.controls()
