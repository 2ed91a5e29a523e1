"""Names runs of `transfer_auto_recon` that are started without an id after their scan.

*Trigger* in the UI and posts without `dag_run_id` would get Airflow's `manual__<time>`, which shows neither
the scan nor that it is the scan's first run. An ASGI middleware in the API server fills the id in.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from cosmic.dag_constants import TRANSFER_AUTO_RECON
from cosmic.run_requests import Replay, read_body
from cosmic.scans import ScanPath, parse_scan_path
from facilities.errors import UserError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PATH = f"/api/v2/dags/{TRANSFER_AUTO_RECON}/dagRuns"
_TRIES = 20  # each is lost only to another run of the same scan that is started at the same moment


class RunNames:
    """ASGI middleware: a run that is started without an id gets the next free one of its scan."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Fill in the id; hand on all other requests as they are."""
        is_start = scope["type"] == "http" and scope["method"] == "POST"
        if not is_start or not scope["path"].rstrip("/").endswith(_PATH):
            await self.app(scope, receive, send)
            return
        content = await read_body(receive)
        if content is None:
            return
        body = _object(content)
        scan = None if body is None or body.get("dag_run_id") else _scan(body)
        if body is None or scan is None:
            await self.app(scope, Replay(content, receive), send)
            return
        for _ in range(_TRIES):
            body["dag_run_id"] = await run_in_threadpool(free_run_id, scan)
            content = json.dumps(body).encode()
            answer = _Answer(send)
            await self.app(_with_length(scope, len(content)), Replay(content, receive), answer)
            if not answer.held or await run_in_threadpool(free_run_id, scan) == body["dag_run_id"]:
                break  # it was started, or its id was not what Airflow refused
        await answer.release()


def free_run_id(scan: ScanPath) -> str:
    """The id of the scan's next run: its first, or the next reprocessing."""
    of_dag = DagRun.dag_id == TRANSFER_AUTO_RECON
    with create_session() as session:
        found = session.scalars(
            select(DagRun.run_id).where(of_dag, DagRun.run_id.startswith(scan.name, autoescape=True))
        ).all()
    return scan.run_id(1 + max((scan.generation(run_id) for run_id in found), default=0))


def _object(content: bytes) -> dict[str, Any] | None:
    """The JSON object in a request; None for what is none, which Airflow refuses."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _scan(body: dict[str, Any]) -> ScanPath | None:
    """The scan in a request; None when there is no proper one, which Airflow refuses."""
    conf = body.get("conf")
    try:
        return parse_scan_path(conf["file_path"]) if isinstance(conf, dict) and "file_path" in conf else None
    except UserError:
        return None


def _with_length(scope: Scope, length: int) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


class _Answer:
    """Holds a 409 back, and hands on any other answer."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.held: list[Message] = []

    async def __call__(self, message: Message) -> None:
        if self.held or (message["type"] == "http.response.start" and message["status"] == 409):
            self.held.append(message)
        else:
            await self.send(message)

    async def release(self) -> None:
        """Send what was held back."""
        for message in self.held:
            await self.send(message)
