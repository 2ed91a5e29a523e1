"""The page of all scans: a row a scan, with its picture and what it is doing; it keeps itself up to date.

Page and list are made from the index in memory (`cosmic.scan_index`). The list is made once for all who look
at the same part of it, and is sent only when it differs from what a reader has (`ETag`).
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from statistics import median
from typing import Annotated, Any
from urllib.parse import urlencode

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.utils.session import create_session
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cosmic.beamline import local_zone
from cosmic.dag_constants import FIND_MISSED_SCANS
from cosmic.pages.addresses import run_page, scan_page
from cosmic.pages.rendering import HEADERS, address, fragment, has_already, render
from cosmic.pages.security import MayReadScans, may
from cosmic.parameters import ENGINES
from cosmic.progress import Words, state_of
from cosmic.scan_index import index
from cosmic.scan_records import STATES, File, Scan
from cosmic.scan_snapshot import Filters, Snapshot

log = logging.getLogger(__name__)

STATE_NAMES: Mapping[str, str] = {
    "active": "waiting or running",
    "done": "done",
    "warnings": "with warnings",
    "failed": "failed",
    "stopped": "stopped",
}
_DAYS = 7  # of the strip
_KEPT_LISTS = 200

router = APIRouter()


@dataclass(frozen=True)
class Row:
    """A scan in the list, in words."""

    scan: Scan
    address: str
    thumbnail: str
    state: str
    words: Words
    energies: str
    error: Sequence[str]  # a line an engine
    resolution: Sequence[str]


@dataclass(frozen=True)
class Rights:
    """Whether a reader may see what `find_missed_scans` has found, and start it."""

    may_see_missing: bool
    may_start_missing: bool


@dataclass(frozen=True)
class Asked:
    """What an address asks for.

    :param left_out: what of it makes no sense.
    """

    filters: Filters
    number: int
    left_out: tuple[str, ...] = ()

    def query(self, **changes: Any) -> str:
        """The query of the address with some filters changed, from its first page unless `page` is given."""
        number = changes.pop("page", 1)
        filters = replace(self.filters, **changes)
        values = {
            "day": filters.day.isoformat() if filters.day else "",
            "proposal": filters.proposal,
            "state": filters.state,
            "text": filters.text,
            "page": number if number > 1 else "",
        }
        return "?" + urlencode({name: value for name, value in values.items() if value})


def asked(
    day: Annotated[str, Query(max_length=20)] = "",
    proposal: Annotated[str, Query(max_length=300)] = "",
    state: Annotated[str, Query(max_length=20)] = "",
    text: Annotated[str, Query(max_length=300)] = "",
    page: Annotated[str, Query(max_length=20)] = "",
) -> Asked:
    """Read an address's query; what makes no sense in it is left out."""
    try:
        of_day = date.fromisoformat(day) if day else None
    except ValueError:
        of_day = None
    filters = Filters(of_day, proposal.strip(), state if state in STATES else "", text.strip())
    wrong = {"day": day if of_day is None else "", "state": "" if state in STATES else state}
    left_out = tuple(f"{name} {value}" for name, value in wrong.items() if value)
    return Asked(filters, int(page) if page.isdecimal() else 1, left_out)


AskedDep = Annotated[Asked, Depends(asked)]


@router.get("/scans", response_class=HTMLResponse, dependencies=[MayReadScans])
def scans_page(asked: AskedDep, session: SessionDep, user: GetUserDep, request: Request) -> HTMLResponse:
    """The page."""
    scans, airflow = index.refresh(session), address(request)
    etag, content = lists.make(scans, asked, airflow, rights_of(user))
    return render(
        "scans.html",
        airflow=airflow,
        asked=asked,
        state_names=STATE_NAMES,
        proposals=scans.proposals[:500],
        etag=etag,
        content=content,
    )


@router.get("/scan-list", response_class=HTMLResponse, dependencies=[MayReadScans])
def scan_list(asked: AskedDep, session: SessionDep, user: GetUserDep, request: Request) -> Response:
    """What changes of the page; 304 when the reader has it already."""
    etag, content = lists.make(index.refresh(session), asked, address(request), rights_of(user))
    headers = HEADERS | {"Cache-Control": "private, no-cache", "ETag": etag, "Vary": "Cookie, Authorization"}
    if has_already(request, etag):
        return Response(status_code=304, headers=headers)
    return HTMLResponse(content, headers=headers)


class Lists:
    """Lists as they were last made, by what was asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[tuple[Any, ...], tuple[str, str]] = {}

    def make(self, scans: Snapshot, asked: Asked, airflow: str, rights: Rights) -> tuple[str, str]:
        """ETag and HTML of a list, made anew when anything has changed."""
        zone = local_zone()
        today = datetime.now(zone).date()
        key = (scans.version, today, asked, airflow, rights)
        if made := self._made.get(key):
            return made
        with self._lock:
            if made := self._made.get(key):
                return made
            kept = {other: made for other, made in self._made.items() if other[0] == key[0]}
            page = scans.page(asked.filters, asked.number)
            counts = scans.day_counts(_days_around(asked.filters.day or today, today))
            content = fragment(
                "scan_list.html",
                asked=asked,
                airflow=airflow,
                page=page,
                rows=[_row(scan, airflow) for scan in page.scans],
                days=[
                    replace(count, compared=count.compared and count.compared.astimezone(zone))
                    for count in counts
                ],
                today=today,
                rights=rights,
            )
            # Not of the version: another API server's list is the same when its content is.
            etag = f'"{hashlib.sha256(content.encode()).hexdigest()[:32]}"'
            self._made = {**(kept if len(kept) < _KEPT_LISTS else {}), key: (etag, content)}
            return etag, content


lists = Lists()


class LoadAtStart:
    """ASGI middleware: reads the index when the API server starts, so that nobody waits for it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Begin at the server's start."""
        if scope["type"] == "lifespan":
            threading.Thread(target=_load, name="scan-index", daemon=True).start()
        await self.app(scope, receive, send)


def _load() -> None:
    try:
        with create_session() as session:
            index.refresh(session)
    except Exception as error:  # noqa: BLE001 - the first who looks tries again
        log.warning("The list of scans could not be read yet: %s", error)


def rights_of(user: BaseUser) -> Rights:
    """What a user may do with `find_missed_scans`."""
    may_read = get_auth_manager().is_authorized_dag(
        method="GET",
        access_entity=DagAccessEntity.XCOM,
        details=DagDetails(id=FIND_MISSED_SCANS),
        user=user,
    )
    return Rights(may_read, may(user, "POST", FIND_MISSED_SCANS))


def _days_around(day: date, today: date) -> list[date]:
    """The days of the strip; none of the calendar's very first or last, which an address may ask for."""
    day = min(max(day, date.min + timedelta(days=_DAYS)), date.max - timedelta(days=_DAYS))
    last = min(day + timedelta(days=_DAYS // 2), max(today, day))
    return [last - timedelta(days=n) for n in range(_DAYS)]


def _row(scan: Scan, airflow: str) -> Row:
    state, words = state_of(scan)
    thumbnail = ""
    if scan.picture:
        run_id, engine, when = scan.picture
        # A result that was made again has another address: browsers keep pictures for a while.
        version = urlencode({"of": when.isoformat()})
        thumbnail = f"{run_page(airflow, run_id)}/{engine}/thumbnail.png?{version}"
    return Row(
        scan,
        scan_page(airflow, scan.name),
        thumbnail,
        state,
        words,
        _energies(scan.files),
        _figure(scan.files, "error", lambda value: f"{value:.3g}"),
        _figure(scan.files, "resolution_m", lambda value: f"{value * 1e9:.3g} nm"),
    )


def _energies(files: Sequence[File]) -> str:
    """`706.2 eV`, or `80 files, 700 to 730 eV`."""
    found = sorted(r.energy_ev for file in files for r in file.results.values() if r.energy_ev is not None)
    energies = f"{found[0]:.5g} eV" if found else ""
    if found and found[-1] - found[0] >= 0.05:
        energies = f"{found[0]:.5g} to {found[-1]:.5g} eV"
    return ", ".join(filter(None, [f"{len(files)} files" if len(files) > 1 else "", energies]))


def _figure(files: Sequence[File], name: str, write: Callable[[float], str]) -> list[str]:
    """A figure of each engine; the median where there are several files."""
    values = {
        engine: [
            value
            for file in files
            if engine in file.results and (value := getattr(file.results[engine], name)) is not None
        ]
        for engine in ENGINES
    }
    known = {engine: median(some) for engine, some in values.items() if some}
    if len(known) == 1:
        return [write(value) for value in known.values()]
    return [f"{engine} {write(value)}" for engine, value in known.items()]
