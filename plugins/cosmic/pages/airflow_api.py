"""Calls Airflow's REST API as the user of a page, within the process.

What a button does is what the same person could do over REST, with the same checks (`RunRequests` among
them), the same effects and the same lines in the audit log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from fastapi import Request

from cosmic.dag_constants import TRANSFER_AUTO_RECON

AT_ONCE = 4  # requests
_TOKEN_LASTS = 600  # seconds


class Call(NamedTuple):
    """One request; `path` has the segments below `/api/v2`, unquoted."""

    method: str
    path: tuple[str, ...]
    body: dict[str, Any]


class Answer(NamedTuple):
    """What Airflow answered: a status, and its reason when it refused."""

    status: int
    reason: str

    @property
    def accepted(self) -> bool:
        """Whether it was done."""
        return self.status < 300


def change_run(run_id: str, body: dict[str, Any]) -> Call:
    """The call that changes a run of `transfer_auto_recon`: its state, its note."""
    return Call("PATCH", ("dags", TRANSFER_AUTO_RECON, "dagRuns", run_id), body)


def start_run(dag_id: str, run_id: str, conf: dict[str, Any], note: str) -> Call:
    """The call that starts a run."""
    body = {"dag_run_id": run_id, "logical_date": None, "conf": conf, "note": note}
    return Call("POST", ("dags", dag_id, "dagRuns"), body)


async def call_airflow(request: Request, user: BaseUser, calls: Iterable[Call]) -> list[Answer]:
    """Send the calls as the user who has sent `request`, some at once; the answers in the calls' order."""
    from airflow.api_fastapi.main import app  # noqa: PLC0415 - the app of this process, which imports us

    client = (request.client.host, request.client.port) if request.client else ("127.0.0.1", 0)
    # Not the request's own credentials: some auth managers renew a cookie with every use.
    token = get_auth_manager().generate_jwt(user, expiration_time_in_seconds=_TOKEN_LASTS)
    # With a referer Airflow enters a run as started in the UI.
    headers = {"Authorization": f"Bearer {token}", "Referer": str(request.url)}
    transport = httpx.ASGITransport(app=app, client=client, raise_app_exceptions=False)
    limit = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=headers
    ) as airflow:

        async def send(call: Call) -> Answer:
            address = "/".join(["/api/v2", *(quote(part, safe="") for part in call.path)])
            async with limit:
                reply = await airflow.request(call.method, address, json=call.body)
            return Answer(reply.status_code, _reason(reply))

        return list(await asyncio.gather(*map(send, calls)))


def _reason(reply: httpx.Response) -> str:
    if reply.is_success:
        return ""
    try:
        detail = reply.json().get("detail")
    except (ValueError, AttributeError):
        detail = None
    return detail if isinstance(detail, str) else f"Airflow answered {reply.status_code}"
