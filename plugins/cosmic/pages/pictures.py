"""Pictures and figures of a reconstruction: the kept copy, or else NERSC's.

Nothing of an address reaches a path: what is read at NERSC is worked out from the run, and is served only if
it is what it should be. Airflow's own users and roles: who may read a run's XComs may see its pictures.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.models.dagrun import DagRun
from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import Response
from sqlalchemy import select

from cosmic import kept_results
from cosmic.beamline import beamline
from cosmic.dag_constants import SUPERFACILITY_CONN_ID, TRANSFER_AUTO_RECON
from cosmic.kept_results import FIGURES, PICTURES, PREVIEW, THUMBNAIL
from cosmic.pages.rendering import HEADERS, DagId, RunId
from cosmic.parameters import ENGINES
from cosmic.plan import result_prefix
from cosmic.results import check_png
from cosmic.run_summary import XComs
from cosmic.scans import parse_scan_path
from facilities.errors import FacilityError, NotFoundError, UserError
from facilities.superfacility.hook import SuperfacilityHook

TRY_AGAIN = 60  # seconds until a picture is asked for again when NERSC did not give it
_HEADERS = HEADERS | {
    "Cache-Control": "private, max-age=3600",
    "Vary": "Cookie, Authorization",  # the next user of a browser asks anew
    "Content-Security-Policy": "default-src 'none'; sandbox",
}

_AT_ONCE = 16  # of the 40 threads of an API server
_readers = threading.BoundedSemaphore(_AT_ONCE)

router = APIRouter()
MayRead = Depends(requires_access_dag("GET", DagAccessEntity.XCOM))
Check = Callable[[bytes], object]


def find_run(session: SessionDep, dag_id: str, run_id: str) -> DagRun:
    """The run.

    :raises HTTPException: 404, there is none.
    """
    run: DagRun | None = session.scalar(
        select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)
    )
    if run is None:
        raise HTTPException(404, f"There is no run {run_id} of {dag_id}.")
    return run


@router.get("/dags/{dag_id}/runs/{run_id}/{engine}/preview.png", dependencies=[MayRead])
def preview(dag_id: DagId, run_id: RunId, engine: str, session: SessionDep) -> Response:
    """Amplitude and phase side by side, small."""
    return _png(session, dag_id, run_id, engine, PREVIEW)


@router.get("/dags/{dag_id}/runs/{run_id}/{engine}/thumbnail.png", dependencies=[MayRead])
def thumbnail(dag_id: DagId, run_id: RunId, engine: str, session: SessionDep) -> Response:
    """The amplitude, 160 pixels or less; only the kept one."""
    run = find_run(session, dag_id, run_id)
    _own_result(session, run, engine)
    content = kept_results.read(run, engine, THUMBNAIL)
    if content is None:
        raise HTTPException(404, "No thumbnail of this result is kept.")
    return _image(content, THUMBNAIL)


@router.get("/dags/{dag_id}/runs/{run_id}/{engine}/figures.json", dependencies=[MayRead])
def figures(dag_id: DagId, run_id: RunId, engine: str, session: SessionDep) -> Response:
    """All figures: errors of the iterations, parameters, metadata, warnings."""
    run = find_run(session, dag_id, run_id)
    held = read_figures(session, run, engine)
    content = json.dumps(held, allow_nan=False).encode()
    return Response(content, media_type="application/json", headers=_HEADERS)


@router.get("/dags/{dag_id}/runs/{run_id}/{engine}/picture/{picture}", dependencies=[MayRead])
def full_picture(dag_id: DagId, run_id: RunId, engine: str, picture: str, session: SessionDep) -> Response:
    """`amplitude` or `phase` in full; the reply's gzip is its transfer's, so that it unpacks by itself."""
    if picture not in PICTURES:
        raise HTTPException(404, "There are the pictures amplitude and phase.")
    run = find_run(session, dag_id, run_id)
    prefix = _own_result(session, run, engine)
    content = kept_results.read(run, engine, PICTURES[picture])
    if content is None:
        view = read_figures(session, run, engine).get("view")
        if view is None:
            raise HTTPException(
                404,
                "The programs at NERSC that made this result are of an older release: it has a preview only.",
            )
        paths = [prefix + suffix for suffix in kept_results.view_suffixes(picture, view)]
        content = _from_nersc(session, paths, lambda found: kept_results.check_picture(found, view))
    headers = _HEADERS | {"Content-Encoding": "gzip"}
    return Response(content, media_type="application/octet-stream", headers=headers)


def read_figures(session: SessionDep, run: DagRun, engine: str) -> Mapping[str, Any]:
    """The figures of a reconstruction, without numbers that JSON cannot hold.

    :raises HTTPException: there is no such reconstruction, or neither a kept copy nor NERSC's answer.
    """
    prefix = _own_result(session, run, engine)
    content = kept_results.read(run, engine, FIGURES)
    if content is None:
        content = _from_nersc(session, [prefix + ".json"], parse_figures)
    return parse_figures(content)


def parse_figures(content: bytes) -> Mapping[str, Any]:
    """The figures of a JSON text; NaN and Infinity, which are none in JSON, are null.

    :raises ValueError: it is not a JSON object.
    """
    try:
        held = json.loads(content, parse_constant=lambda _: None, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(held, dict):
        raise ValueError("it is not a JSON object")
    return held


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _png(session: SessionDep, dag_id: str, run_id: str, engine: str, name: str) -> Response:
    run = find_run(session, dag_id, run_id)
    prefix = _own_result(session, run, engine)
    content = kept_results.read(run, engine, name)
    if content is None:
        path = prefix + ".png"
        content = _from_nersc(session, [path], lambda found: check_png(found, path))
    return _image(content, name)


def _image(content: bytes, name: str) -> Response:
    headers = _HEADERS | {"Content-Disposition": f'inline; filename="{name}"'}
    return Response(content, media_type="image/png", headers=headers)


def _own_result(session: SessionDep, run: DagRun, engine: str) -> str:
    """What the names of a reconstruction's files begin with at NERSC.

    :raises HTTPException: 404, the run has no such reconstruction, or names one that is not its own.
    """
    known = engine in ENGINES and run.dag_id == TRANSFER_AUTO_RECON
    result = XComs(session, run).mapping(f"{engine}.collect") if known else None
    if result is None:
        raise HTTPException(404, f"Run {run.run_id} has no {engine} reconstruction.")
    try:
        prefix = result_prefix(beamline(), parse_scan_path((run.conf or {}).get("file_path")), engine, run)
    except UserError as error:
        raise HTTPException(404, f"{error.what}.") from error
    if result.get("preview") != prefix + ".png":
        raise HTTPException(404, f"The preview that the run names is not its own, {prefix}.png.")
    return prefix


@contextmanager
def nersc(session: SessionDep) -> Iterator[SuperfacilityHook]:
    """NERSC, for a page. When it hangs, pages must not use up the API server's threads and connections.

    :raises HTTPException: 503, too many pages wait for it.
    """
    session.close()  # connections to the database are few
    if not _readers.acquire(blocking=False):
        again = {"Retry-After": str(TRY_AGAIN)}
        raise HTTPException(503, "NERSC is slow, and many pages wait for it. Try again in a minute.", again)
    try:
        with closing(SuperfacilityHook(SUPERFACILITY_CONN_ID, attempts=1)) as hook:  # pages ask again
            yield hook
    finally:
        _readers.release()


def _from_nersc(session: SessionDep, paths: Sequence[str], check: Check) -> bytes:
    """A file at NERSC, or the pieces of one together."""
    path = paths[0]
    try:
        with nersc(session) as hook:
            machine = beamline().job.machine
            content = b"".join(hook.download(machine, path) for path in paths)
        check(content)
    except NotFoundError as error:
        raise HTTPException(404, f"{path} is not at NERSC any more, and no copy is kept.") from error
    except UserError as error:
        raise HTTPException(404, f"{error.what}.") from error
    except ValueError as error:
        raise HTTPException(404, f"{path} cannot be shown: {error}.") from error
    except FacilityError as error:
        again = {"Retry-After": str(TRY_AGAIN)}
        raise HTTPException(
            502, f"The picture could not be read from NERSC ({error.what}).", again
        ) from error
    return content
