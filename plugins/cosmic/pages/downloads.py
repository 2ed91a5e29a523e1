"""Downloads of a run's results: from NERSC's API while they are small enough, else by a link to Globus.

Nothing of an address reaches NERSC: a file's path is worked out from its run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import quote, urlencode

from airflow.api_fastapi.common.db.common import SessionDep
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from fastapi import APIRouter, HTTPException, Path, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from cosmic.beamline import beamline
from cosmic.pages.buttons import Buttons
from cosmic.pages.pictures import nersc
from cosmic.pages.rendering import HEADERS, RunId, ScanName, address, render, template_function
from cosmic.pages.scan_runs import ScanRun, runs_of_scan, tasks_of
from cosmic.pages.security import MayReadScans
from cosmic.parameters import ENGINES
from cosmic.plan import result_prefix
from cosmic.results import RESULT_SUFFIXES
from cosmic.run_summary import XComs
from facilities.errors import FacilityError, NotFoundError, UserError
from facilities.globus.connection import WEB_URL
from facilities.superfacility.files import SIZE_LIMIT

MAX_LISTED = 40  # results on a scan's page
_TYPES = {
    ".cxi": "application/x-hdf5",
    ".h5": "application/x-hdf5",
    ".png": "image/png",
    ".json": "application/json",
}
_HEADERS = HEADERS | {"Content-Security-Policy": "default-src 'none'; sandbox"}

router = APIRouter(dependencies=[MayReadScans])
FileName = Annotated[str, Path(max_length=40)]


@dataclass(frozen=True)
class ResultFiles:
    """The result of one run and engine; `path` is that of the CXI file at NERSC."""

    path: str
    downloads: Sequence[tuple[str, str]]  # ending, address

    @property
    def name(self) -> str:
        """Of the file, without its ending."""
        return PurePosixPath(self.path).stem


@template_function
def scan_files_at_nersc(buttons: Buttons) -> list[ResultFiles]:
    """The results of a scan's files, of each the newest, or those of the one run that the page is about."""
    with create_session(scoped=False) as session:
        runs = runs_of_scan(session, buttons.scan)
        if runs is None:
            return []
        wanted = [run for run in runs.runs if buttons.run_id in ("", run.run_id)]
        done = _with_results(session, wanted)
    newest = {
        (str(run.file.relative), engine): run
        for run in wanted
        for engine in ENGINES
        if (run.run_id, engine) in done
    }
    try:
        found = [
            (run, engine, result_prefix(beamline(), run.file, engine, run))
            for (_, engine), run in newest.items()
        ]
    except UserError:  # the site's settings are wrong, which a failed task says
        return []
    return [
        ResultFiles(f"{prefix}.cxi", [(kind, _url(buttons, run, engine, kind)) for kind in RESULT_SUFFIXES])
        for run, engine, prefix in found[:MAX_LISTED]
    ]


@router.get("/scans/{scan}/download/{run_id}/{name}")
def download(
    request: Request, session: SessionDep, scan: ScanName, run_id: RunId, name: FileName
) -> Response:
    """One file of a result, such as `ptychocam.cxi`; a page with a link to Globus when it is too large."""
    engine, _, kind = name.partition(".")
    runs = runs_of_scan(session, scan)
    run = runs.named(run_id) if runs else None
    if run is None or engine not in ENGINES or f".{kind}" not in RESULT_SUFFIXES:
        raise HTTPException(404, f"The scan {scan} has no such file.")
    try:
        path = f"{result_prefix(beamline(), run.file, engine, run)}.{kind}"
        if not _is_result(session, run, engine, path):
            raise HTTPException(404, f"Run {run_id} has no {engine} reconstruction.")
        with nersc(session) as hook:
            size = hook.stat(beamline().job.machine, path).size
            if size > SIZE_LIMIT:
                return _too_large(request, run, path, size)
            content = hook.download(beamline().job.machine, path)
    except NotFoundError as error:
        raise HTTPException(404, f"{path} is not at NERSC any more.") from error
    except UserError as error:
        raise HTTPException(404, f"{error.what}.") from error
    except FacilityError as error:
        raise HTTPException(
            502,
            f"{path} could not be read from NERSC ({error.what}). Try again in a minute.",
            {"Retry-After": "60"},
        ) from error
    disposition = f'attachment; filename="{_safe(PurePosixPath(path).name)}"'
    headers = _HEADERS | {"Content-Disposition": disposition}
    return Response(content, media_type=_TYPES[f".{kind}"], headers=headers)


def _too_large(request: Request, run: ScanRun, path: str, size: int) -> Response:
    return render(
        "too_large.html",
        airflow=address(request),
        name=PurePosixPath(path).name,
        path=path,
        size=size,
        limit=SIZE_LIMIT,
        globus=globus_folder(run.file.relative.parent),
    )


def globus_folder(folder: PurePosixPath) -> str:
    """Address at Globus of a folder of NERSC's collection.

    :param folder: relative to the beamline's folder, such as `2023/02/230216`.
    """
    collection = beamline().collections.destination
    place = {"origin_id": str(collection.id), "origin_path": f"{PurePosixPath(collection.path) / folder}/"}
    return f"{WEB_URL}file-manager?{urlencode(place)}"


def _with_results(session: Session, runs: Sequence[ScanRun]) -> set[tuple[str, str]]:
    """Ids of those of the runs that have results, each with the engine."""
    tasks = {f"{engine}.collect": engine for engine in ENGINES}
    found = tasks_of(session, runs, ["success"])
    return {(run_id, tasks[task_id]) for run_id, task_id in found if task_id in tasks}


def _is_result(session: Session, run: ScanRun, engine: str, path: str) -> bool:
    row = session.get(DagRun, run.number)
    result = XComs(session, row).mapping(f"{engine}.collect") if row else None
    own = PurePosixPath(path).with_suffix(".cxi")
    return result is not None and result.get("result") == str(own)


def _safe(name: str) -> str:
    """A file's name for a header: paths of scans have no other characters anyway."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def _url(buttons: Buttons, run: ScanRun, engine: str, kind: str) -> str:
    return f"{buttons.base}/download/{quote(run.run_id, safe='')}/{engine}{kind}"
