"""Checks requests for runs before Airflow makes the run, and names runs after their scan.

Airflow lets through unknown parameters, NaN, and run ids for which there can be no log folder. A run that is
posted without an id (as by *Trigger* in the UI) would get `manual__<time>`, which shows neither the scan nor
that it is the scan's first run. An ASGI middleware in the API server checks what is posted to `dagRuns` and
`backfills` of the bundle's DAGs, and fills the id in. What comes another way (`airflow dags trigger`) is
checked by the first task, with the same function.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cosmic.dag_constants import (
    CANCEL_ABANDONED_WORK,
    FIND_MISSED_SCANS,
    FLIGHT_CHECK,
    NOTIFY,
    PROCESS_NEWFILE,
    STACK_SCAN,
    TRANSFER_AUTO_RECON,
    WATCH_SCANS,
)
from cosmic.parameters import FLIGHT_CHECK as FLIGHT_CHECK_PARAMETERS
from cosmic.parameters import (
    MISSED_SCANS,
    NEW_SCANS,
    RECONSTRUCTION,
    STACK,
    TRANSFER,
    Parameter,
    read_parameters,
)
from cosmic.scans import ScanPath, parse_scan_path, quoted
from facilities.errors import UserError

PARAMETERS: Mapping[str, Mapping[str, Parameter]] = {
    TRANSFER_AUTO_RECON: RECONSTRUCTION,
    PROCESS_NEWFILE: TRANSFER,
    STACK_SCAN: STACK,
    FIND_MISSED_SCANS: MISSED_SCANS,
    WATCH_SCANS: NEW_SCANS,
    CANCEL_ABANDONED_WORK: {},
    NOTIFY: {},
    FLIGHT_CHECK: FLIGHT_CHECK_PARAMETERS,
}
"""The parameters of each DAG of the bundle."""

MAX_BODY = 64 * 1024  # bytes; all parameters of a run are 1 kB
MAX_RUN_ID = 200
RUN_ID = re.compile(rf"[A-Za-z0-9_.~:+-]{{1,{MAX_RUN_ID}}}")  # as in airflow.env
_TRIES = 20  # each is lost only to another run of the same scan that is started at the same moment
_CLOCKS_DIFFER_BY = timedelta(hours=1)  # the UI sends the time of its reader's computer
_PATH = re.compile(r"/api/v2/(dags/(?P<dag_id>[^/]+)/dagRuns|backfills(/dry_run)?)/?")


class RunRequests:
    """ASGI middleware: answers 400 or 413, with one line, in place of Airflow.

    A run of `transfer_auto_recon` without an id gets the next free one of its scan. A run that exists is
    refused with which of its two unique columns it violates: Airflow's 409 hides that.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request for runs; hand on all others as they are."""
        match = _PATH.search(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if match is None or match.end() != len(scope["path"]):
            await self.app(scope, receive, send)
            return
        content = await _read_body(receive)
        if content is None:
            return
        if len(content) > MAX_BODY:
            text = f"The request is longer than {MAX_BODY} bytes; all parameters of a run are about 1,000."
            await JSONResponse({"detail": text}, 413)(scope, receive, send)
            return
        try:
            body = _parse(content)
            dag_id = match["dag_id"] or str(body and body.get("dag_id"))
            scan = _check(dag_id, body)
        except UserError as error:
            await JSONResponse({"detail": " ".join(str(error).splitlines())}, 400)(scope, receive, send)
            return
        if not body or match["dag_id"] not in PARAMETERS:
            await self.app(scope, _Replay(content, receive), send)
            return
        for _ in range(_TRIES):
            if scan is not None:
                body["dag_run_id"] = await run_in_threadpool(free_run_id, scan)
                content = json.dumps(body).encode()
            answer = _Answer(send)
            await self.app(_with_length(scope, len(content)), _Replay(content, receive), answer)
            if not answer.is_conflict:
                return
            if scan is None or await run_in_threadpool(free_run_id, scan) == body["dag_run_id"]:
                break  # its id was not what Airflow refused
        text = await run_in_threadpool(_what_exists, dag_id, body)
        await JSONResponse({"detail": text}, 409)(scope, receive, send)


def free_run_id(scan: ScanPath) -> str:
    """The id of the scan's next run: its first, or the next reprocessing."""
    of_dag = DagRun.dag_id == TRANSFER_AUTO_RECON
    with create_session() as session:
        found = session.scalars(
            select(DagRun.run_id).where(of_dag, DagRun.run_id.startswith(scan.name, autoescape=True))
        ).all()
    return scan.run_id(1 + max((scan.generation(run_id) for run_id in found), default=0))


def _parse(content: bytes) -> dict[str, Any] | None:
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


def _check(dag_id: str, body: Mapping[str, Any] | None) -> ScanPath | None:
    """Check a request for a run (or a backfill), if it is for one of the bundle's DAGs.

    :return: the scan after which the run is to be named.
    :raises UserError: it cannot work.
    """
    if body is None or dag_id not in PARAMETERS:
        return None
    run_id = body.get("dag_run_id")
    if isinstance(run_id, str) and run_id and not RUN_ID.fullmatch(run_id):
        raise UserError(
            f"dag_run_id must be at most {MAX_RUN_ID} letters, digits and . _ ~ : + -, not {quoted(run_id)}",
            next_step="send another id, or none.",
        )
    _check_date(body.get("logical_date"))
    conf = body.get("conf" if "conf" in body else "dag_run_conf")
    scan = None
    if conf is None or isinstance(conf, dict):
        values = read_parameters(PARAMETERS[dag_id], conf or {})
        if dag_id == TRANSFER_AUTO_RECON:
            scan = parse_scan_path(values["file_path"])
            scan.check_run_id(str(run_id))
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(
            "A text in the request has half of a surrogate pair", next_step="send it as valid Unicode."
        ) from None
    return None if run_id else scan


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


async def _read_body(receive: Receive) -> bytes | None:
    """The body, or as much of it as shows that it is too long; None: the client has gone."""
    content, more = b"", True
    while more and len(content) <= MAX_BODY:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        content += message.get("body", b"")
        more = message.get("more_body", False)
    return content


class _Replay:
    """Gives the application the body that was read already, then what comes."""

    def __init__(self, content: bytes, receive: Receive) -> None:
        self.first: Message | None = {"type": "http.request", "body": content, "more_body": False}
        self.receive = receive

    async def __call__(self) -> Message:
        first, self.first = self.first, None
        return first or await self.receive()


class _Answer:
    """Hands on any answer but a 409."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.is_conflict = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_conflict = message["status"] == 409
        if not self.is_conflict:
            await self.send(message)


def _with_length(scope: Scope, length: int) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def _what_exists(dag_id: str, body: Mapping[str, Any]) -> str:
    """The reason of a 409."""
    run_id = body.get("dag_run_id")
    with create_session() as session:
        if session.scalar(select(DagRun.id).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)):
            return f"There is a run {run_id} of {dag_id} already."
    return (
        f"There is another run of {dag_id} with the logical date {body.get('logical_date')}, of which there "
        "can be one: send null, or another date."
    )
