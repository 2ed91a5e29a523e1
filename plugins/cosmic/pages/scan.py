"""The page of a scan: its pictures at all energies, its figures, how its runs went, and why one failed.

Everything about a scan is at one address, which stays through clearing and reprocessing: the newest run is
shown, others can be chosen (`?run=`). What the page shows comes from Airflow's database and from what is kept
(`cosmic.kept_results`), so that it stands when NERSC does not answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models.dagrun import DagRun
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import select

from cosmic import kept_results
from cosmic.dag_constants import TRANSFER_AUTO_RECON
from cosmic.pages import addresses
from cosmic.pages.pictures import TRY_AGAIN, find_run, parse_figures
from cosmic.pages.rendering import HEADERS, ScanName, address, fragment, has_already, render
from cosmic.pages.security import MayReadScans
from cosmic.parameters import ENGINES
from cosmic.progress import Words, doing, state_of
from cosmic.run_summary import summarize
from cosmic.scan_details import chain, duration, figures_of, parameters
from cosmic.scan_index import index
from cosmic.scan_records import File, Run, Scan

router = APIRouter()
AskedRun = Annotated[str, Query(alias="run", max_length=250)]
_KEPT_NEWS = 200  # scans


@router.get("/scans/{scan}", response_class=HTMLResponse, dependencies=[MayReadScans])
def scan_page(
    scan: ScanName, session: SessionDep, user: GetUserDep, request: Request, run: AskedRun = ""
) -> HTMLResponse:
    """The page."""
    found, chosen = _find(session, scan, run)
    airflow = address(request)
    state, words = state_of(found)
    parts = _details(session, user, airflow, chosen)
    return render(
        "scan.html",
        airflow=airflow,
        request=request,
        user=user,
        scan=found,
        state=state,
        words=words,
        run=chosen,
        gone=run if run and chosen.run_id != run else "",
        news=parts["news"],
        details=parts["details"],
        data=_data(found, airflow) | {"chosen": chosen.run_id},
    )


@router.get("/scans/{scan}/run", response_class=HTMLResponse, dependencies=[MayReadScans])
def run_details(
    scan: ScanName, session: SessionDep, user: GetUserDep, request: Request, run: AskedRun = ""
) -> HTMLResponse:
    """The two parts of the page that are about one run."""
    _, chosen = _find(session, scan, run)
    parts = _details(session, user, address(request), chosen)
    html = f'<div id="news">{parts["news"]}</div><div id="run">{parts["details"]}</div>'
    return HTMLResponse(html, headers=HEADERS)


@router.get("/scans/{scan}/data", dependencies=[MayReadScans])
def scan_data(scan: ScanName, session: SessionDep, request: Request) -> Response:
    """State, files, runs and results; 304 when the reader has them already.

    Made once for all who look, when the scan has changed.
    """
    etag, content = news.make(_scan(session, scan), address(request))
    headers = HEADERS | {"Cache-Control": "private, no-cache", "ETag": etag, "Vary": "Cookie, Authorization"}
    if has_already(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json", headers=headers)


class News:
    """The data of scans as they were last made."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], tuple[Scan, str, bytes]] = {}

    def make(self, scan: Scan, airflow: str) -> tuple[str, bytes]:
        """ETag and JSON of a scan's data; a scan that has changed is another object."""
        known, etag, content = self._made.get((scan.name, airflow), (None, "", b""))
        if known is not scan:
            content = json.dumps(_data(scan, airflow), allow_nan=False).encode()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            if len(self._made) >= _KEPT_NEWS:
                self._made = {}
            self._made[scan.name, airflow] = scan, etag, content
        return etag, content


news = News()


def _scan(session: SessionDep, name: str, *, at_once: bool = False) -> Scan:
    snapshot = index.refresh(session, at_once=at_once)
    found = snapshot.scan(name) or index.refresh(session, at_once=True).scan(name)
    if found is None:
        raise HTTPException(
            404, f"No scan {name} has a run here: it was not posted yet, or its runs are deleted."
        )
    return found


def _find(session: SessionDep, name: str, run_id: str) -> tuple[Scan, Run]:
    """The scan and its run that is asked for, as they are now: deleted, stopped or done a moment ago."""
    found = _scan(session, name)
    chosen = _chosen(found, run_id)
    state = session.scalar(select(DagRun._state).where(DagRun.id == chosen.id))
    if state == chosen.state:
        return found, chosen
    if state is None:
        index.remove_deleted(session)
    found = _scan(session, name, at_once=state is not None)
    return found, _chosen(found, run_id)


def _chosen(scan: Scan, run_id: str) -> Run:
    """The run that is asked for, when it is one of the scan's; else the newest."""
    runs = [run for file in scan.files for run in file.runs]
    return next((run for run in runs if run.run_id == run_id), max(runs, key=lambda run: run.id))


def _details(session: SessionDep, user: GetUserDep, airflow: str, chosen: Run) -> dict[str, str]:
    """`news`: what became of a run, warnings, errors and advice; `details`: the rest."""
    run = find_run(session, TRANSFER_AUTO_RECON, chosen.run_id)
    summary = summarize(session, run, airflow)
    conf = run.conf or {}
    engines = [engine for engine in ENGINES if conf.get(f"do_{engine}")]
    may_clear = get_auth_manager().is_authorized_dag(
        method="PUT",
        access_entity=DagAccessEntity.TASK_INSTANCE,
        details=DagDetails(id=TRANSFER_AUTO_RECON),
        user=user,
    )
    figures = [figures_of(result, _held(run, str(result["engine"]))) for result in summary.reconstructions]
    active = doing(chosen) if chosen.outcome == "active" else ()
    news = fragment(
        "scan_news.html",
        run=run,
        summary=summary,
        doing=active,
        may_clear=may_clear,
        figures=figures,
        tab=f"{airflow}/dags/{TRANSFER_AUTO_RECON}/runs/{quote(chosen.run_id, safe='')}",
    )
    details = fragment(
        "scan_run.html",
        active=bool(active),
        chain=chain(session, run, chosen.progress),
        duration=duration,
        sections=parameters(conf, engines),
        figures=figures,
        jobs=[engine for engine in ENGINES if engine in summary.jobs or _has(summary, engine)],
        addresses=addresses.run_page(airflow, chosen.run_id),
    )
    return {"news": news, "details": details}


def _has(summary: Any, engine: str) -> bool:
    return any(result["engine"] == engine for result in summary.reconstructions)


def _held(run: DagRun, engine: str) -> Mapping[str, Any] | None:
    content = kept_results.read(run, engine, kept_results.FIGURES)
    try:
        return None if content is None else parse_figures(content)
    except ValueError:
        return None


def _data(scan: Scan, airflow: str) -> dict[str, Any]:
    """What the page's script works with."""
    state, words = state_of(scan)
    return {
        "scan": scan.name,
        "base": addresses.scan_page(airflow, scan.name),
        "try_again": TRY_AGAIN,
        "state": {"name": state, "words": _plain(words)},
        "files": [_file(file, airflow) for file in scan.files],
    }


def _file(file: File, airflow: str) -> dict[str, Any]:
    energies = [result.energy_ev for result in file.results.values() if result.energy_ev is not None]
    return {
        "path": file.path,
        "energy": file.energy,
        "region": file.region,
        "ev": energies[0] if energies else None,
        "runs": [_run(run, airflow) for run in file.runs],
    }


def _run(run: Run, airflow: str) -> dict[str, Any]:
    return {
        "id": run.run_id,
        "address": addresses.run_page(airflow, run.run_id),
        "posted": run.posted.isoformat(),
        "outcome": run.outcome,
        "words": _plain(doing(run)) if run.outcome == "active" else [],
        "tasks": dict(run.tasks),
        "results": {engine: result.when.isoformat() for engine, result in run.results.items()},
    }


def _plain(words: Words) -> list[Any]:
    """Words of a sentence as JSON: a moment is an object."""
    return [{"time": word.isoformat()} if isinstance(word, datetime) else word for word in words]
