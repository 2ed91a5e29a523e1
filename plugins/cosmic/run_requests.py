"""Refuses requests for runs that cannot work, before Airflow makes the run.

Airflow lets through unknown parameters, NaN, and run ids for which there can be no log folder. An ASGI
middleware in the API server checks what is posted to `dagRuns` and `backfills` of the bundle's DAGs. What
comes another way (`airflow dags trigger`) is checked by the first task, with the same function.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from cosmic.dag_constants import (
    CANCEL_ABANDONED_WORK,
    FIND_MISSED_SCANS,
    FLIGHT_CHECK,
    PROCESS_NEWFILE,
    TRANSFER_AUTO_RECON,
    WATCH_SCANS,
)
from cosmic.parameters import FLIGHT_CHECK as FLIGHT_CHECK_PARAMETERS
from cosmic.parameters import MISSED_SCANS, NEW_SCANS, RECONSTRUCTION, TRANSFER, Parameter, read_parameters
from cosmic.scans import parse_scan_path, quoted
from facilities.errors import UserError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PARAMETERS: Mapping[str, Mapping[str, Parameter]] = {
    TRANSFER_AUTO_RECON: RECONSTRUCTION,
    PROCESS_NEWFILE: TRANSFER,
    FIND_MISSED_SCANS: MISSED_SCANS,
    WATCH_SCANS: NEW_SCANS,
    CANCEL_ABANDONED_WORK: {},
    FLIGHT_CHECK: FLIGHT_CHECK_PARAMETERS,
}
"""The parameters of each DAG of the bundle."""

MAX_BODY = 64 * 1024  # bytes; all parameters of a run are 1 kB
MAX_RUN_ID = 200
RUN_ID = re.compile(rf"[A-Za-z0-9_.~:+-]{{1,{MAX_RUN_ID}}}")  # as in airflow.env
_CLOCKS_DIFFER_BY = timedelta(hours=1)  # the UI sends the time of its reader's computer
_PATH = re.compile(r"/api/v2/(dags/(?P<dag_id>[^/]+)/dagRuns|backfills(/dry_run)?)/?")


class RunRequestChecks:
    """ASGI middleware: answers 400 or 413, with one line, in place of Airflow.

    It also says which of its two unique columns a refused run violates: Airflow's 409 hides that.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request for runs; hand on all others as they are."""
        match = _PATH.search(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if match is None or match.end() != len(scope["path"]):
            await self.app(scope, receive, send)
            return
        content = await read_body(receive)
        if content is None:
            return
        if len(content) > MAX_BODY:
            text = f"The request is longer than {MAX_BODY} bytes; all parameters of a run are about 1,000."
            await JSONResponse({"detail": text}, 413)(scope, receive, send)
            return
        try:
            body = parse(content)
            dag_id = match["dag_id"] or str(body and body.get("dag_id"))
            if body is not None and dag_id in PARAMETERS:
                check(dag_id, body)
        except UserError as error:
            await JSONResponse({"detail": " ".join(str(error).splitlines())}, 400)(scope, receive, send)
            return
        if body and match["dag_id"] in PARAMETERS:
            send = _ConflictReplies(match["dag_id"], body, scope, receive, send)
        await self.app(scope, Replay(content, receive), send)


def parse(content: bytes) -> dict[str, Any] | None:
    """The JSON object in a request; None for what is none, which Airflow refuses itself.

    :raises UserError: it is nested deeper than anything that a run needs.
    """
    try:
        body = json.loads(content)
    except RecursionError:
        raise UserError("The request is nested too deeply", next_step="send plain parameters.") from None
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def check(dag_id: str, body: Mapping[str, Any]) -> None:
    """Check a request for a run (or a backfill) of one of the bundle's DAGs.

    :raises UserError: it cannot work.
    """
    run_id = body.get("dag_run_id")
    if isinstance(run_id, str) and run_id and not RUN_ID.fullmatch(run_id):
        raise UserError(
            f"dag_run_id must be at most {MAX_RUN_ID} letters, digits and . _ ~ : + -, not {quoted(run_id)}",
            next_step="send another id, or none.",
        )
    _check_date(body.get("logical_date"))
    conf = body.get("conf" if "conf" in body else "dag_run_conf")
    if conf is None or isinstance(conf, dict):
        values = read_parameters(PARAMETERS[dag_id], conf or {})
        if dag_id == TRANSFER_AUTO_RECON and isinstance(run_id, str):
            parse_scan_path(values["file_path"]).check_run_id(run_id)
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(
            "A text in the request has half of a surrogate pair", next_step="send it as valid Unicode."
        ) from None


def _check_date(text: object) -> None:
    """:raises UserError: Airflow would start no task of the run before this logical date."""
    try:
        date = datetime.fromisoformat(str(text)).astimezone(UTC)
    except (ValueError, OverflowError):
        return  # there is none, or it is Airflow's to refuse
    if date > datetime.now(UTC) + _CLOCKS_DIFFER_BY:
        raise UserError(
            f"The logical date {date:%Y-%m-%d %H:%M} UTC is in the future: the run would wait until then",
            next_step="leave logical_date empty (null); to begin later, give run_after.",
        )


async def read_body(receive: Receive) -> bytes | None:
    """The body, or as much of it as shows that it is too long; None: the client has gone."""
    content, more = b"", True
    while more and len(content) <= MAX_BODY:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        content += message.get("body", b"")
        more = message.get("more_body", False)
    return content


class Replay:
    """Gives the application the body that was read already, then what comes."""

    def __init__(self, content: bytes, receive: Receive) -> None:
        self.first: Message | None = {"type": "http.request", "body": content, "more_body": False}
        self.receive = receive

    async def __call__(self) -> Message:
        first, self.first = self.first, None
        return first or await self.receive()


class _ConflictReplies:
    """Replaces a 409 by one that says what exists already."""

    def __init__(
        self, dag_id: str, body: Mapping[str, Any], scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.dag_id, self.body = dag_id, body
        self.scope, self.receive, self.send = scope, receive, send
        self.replaced = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 409:
            self.replaced = True
            text = await run_in_threadpool(self._what_exists)
            await JSONResponse({"detail": text}, 409)(self.scope, self.receive, self.send)
        elif not self.replaced:
            await self.send(message)

    def _what_exists(self) -> str:
        run_id, when = self.body.get("dag_run_id"), self.body.get("logical_date")
        with create_session() as session:
            run = session.scalar(
                select(DagRun.run_id).where(DagRun.dag_id == self.dag_id, DagRun.run_id == run_id)
            )
        if run is not None:
            return f"There is a run {run_id} of {self.dag_id} already."
        return (
            f"There is another run of {self.dag_id} with the logical date {when}, of which there can be one: "
            "send null, or another date."
        )
