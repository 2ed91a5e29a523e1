"""Serves account: the user, its clients, projects, roles and groups."""

from __future__ import annotations

import grp
import os
from typing import Any

from aiohttp import web

from standin.nersc.routes.api import Api, fail
from standin.nersc.site import iso

HOURS_GIVEN = 10_000.0


class AccountRoutes:
    """Membership can be looked at, not changed: that takes a principal investigator."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def add(self, app: web.Application, base: str) -> None:
        """Add the routes."""
        private, router = self._api.private, app.router
        for path, handler in (
            ("account", self._user),
            ("account/", self._user),
            ("account/clients", self._clients),
            ("account/projects", self._projects),
            ("account/roles", self._roles),
            ("account/groups", self._groups),
            ("account/groups/{group}", self._group),
        ):
            router.add_get(f"{base}/{path}", private(handler))
        router.add_post(f"{base}/account/groups", private(self._refuse))
        router.add_put(f"{base}/account/groups/{{group}}", private(self._refuse))

    async def _user(self, request: web.Request) -> web.Response:
        name = self._api.options.now.user_name
        asked = request.query.get("username", name)
        if asked != name:
            fail(404, f"User {asked} not found")
        return web.json_response({
            "uid": os.getuid(), "name": name, "firstname": name.capitalize(), "lastname": "User",
            "middlename": "", "workphone": "", "otherPhones": "", "email": f"{name}@localhost",
        })  # fmt: skip

    async def _clients(self, _request: web.Request) -> web.Response:
        clients = self._api.clients
        document = {
            "name": "stand-in", "clientId": clients.client.client_id, "expiresAt": iso(clients.expires),
            "comments": "made by the stand-in facility",
        }  # fmt: skip
        return web.json_response([document])

    async def _projects(self, _request: web.Request) -> web.Response:
        used = await self._node_hours()
        projects = []
        for number, account in enumerate(self._api.options.now.accounts, start=1):
            hours = round(used.get(account, 0.0), 4)
            kind = "gpu" if account.endswith("_g") else "cpu"
            projects.append({
                **_membership(number, account), "hours_given": HOURS_GIVEN, "hours_used": hours,
                "project_hours_given": HOURS_GIVEN, "project_hours_used": hours,
                f"{kind}_hours_given": HOURS_GIVEN, f"{kind}_hours_used": hours,
            })  # fmt: skip
        return web.json_response(projects)

    async def _node_hours(self) -> dict[str, float]:
        """Node-hours of ended jobs, by account."""
        used: dict[str, float] = {}
        for job in await self._api.scheduler.all_jobs():
            if job["started"] is not None and job["ended"] is not None:
                hours = self._api.options.now.scaled(job["ended"] - job["started"]) * job["nodes"] / 3600
                used[job["account"]] = used.get(job["account"], 0.0) + hours
        return used

    async def _roles(self, _request: web.Request) -> web.Response:
        accounts = enumerate(self._api.options.now.accounts, start=1)
        return web.json_response([_membership(number, account) for number, account in accounts])

    async def _groups(self, _request: web.Request) -> web.Response:
        return web.json_response({"groups": [self._group_document()]})

    async def _group(self, request: web.Request) -> web.Response:
        group = self._group_document()
        if request.match_info["group"] != group["name"]:
            fail(404, f"Group {request.match_info['group']} not found")
        return web.json_response(group)

    async def _refuse(self, _request: web.Request) -> web.Response:
        fail(403, "Only a principal investigator or proxy may change groups")

    def _group_document(self) -> dict[str, Any]:
        gid = os.getgid()
        try:
            name = grp.getgrgid(gid).gr_name
        except KeyError:
            name = str(gid)
        return {"gid": gid, "name": name,
                "users": [{"uid": os.getuid(), "name": self._api.options.now.user_name}]}  # fmt: skip


def _membership(number: int, account: str) -> dict[str, Any]:
    return {"id": number, "description": f"Project {account}", "repo_name": account, "iris_role": "user"}
