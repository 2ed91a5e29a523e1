"""The "Result" tab of a run: what became of it, why it failed and what to do, its figures and previews.

The page shows what the run's tasks left in Airflow's database; the preview is fetched from NERSC when it is
shown. Nothing of an address reaches NERSC: a preview's path is worked out from the run.
"""

from __future__ import annotations

from contextlib import closing
from urllib.parse import quote

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.models.dagrun import DagRun
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import select

from cosmic.beamline import beamline
from cosmic.dag_constants import SUPERFACILITY_CONN_ID, TRANSFER_AUTO_RECON
from cosmic.pages.rendering import HEADERS, URL_PREFIX, DagId, RunId, address, render
from cosmic.pages.scan_runs import scan_of_run
from cosmic.parameters import ENGINES
from cosmic.plan import result_prefix
from cosmic.results import check_png
from cosmic.run_summary import XComs, summarize
from cosmic.scans import parse_scan_path
from facilities.errors import FacilityError, UserError
from facilities.superfacility.hook import SuperfacilityHook

_IMAGE_HEADERS = HEADERS | {
    "Cache-Control": "private, max-age=3600",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Content-Disposition": 'inline; filename="preview.png"',
}
_TRY_AGAIN = 60  # seconds until a preview is asked for again when NERSC did not give it

router = APIRouter()
MayRead = Depends(requires_access_dag("GET", DagAccessEntity.XCOM))


@router.get("/dags/{dag_id}/runs/{run_id}", response_class=HTMLResponse, dependencies=[MayRead])
def result_page(
    dag_id: DagId, run_id: RunId, session: SessionDep, user: GetUserDep, request: Request
) -> HTMLResponse:
    """What became of a run."""
    airflow = address(request)
    summary = summarize(session, _run(session, dag_id, run_id), airflow)
    may_clear = get_auth_manager().is_authorized_dag(
        method="PUT", access_entity=DagAccessEntity.TASK_INSTANCE, details=DagDetails(id=dag_id), user=user
    )
    return render(
        "result.html",
        request=request,
        user=user,
        scan=scan_of_run(run_id, summary.run.conf) if dag_id == TRANSFER_AUTO_RECON else "",
        only_run=run_id,
        summary=summary,
        run=summary.run,
        may_clear=may_clear,
        previews=f"{airflow}{URL_PREFIX}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}",
        try_again=_TRY_AGAIN,
    )


@router.get("/dags/{dag_id}/runs/{run_id}/{engine}/preview.png", dependencies=[MayRead])
def preview(dag_id: DagId, run_id: RunId, engine: str, session: SessionDep) -> Response:
    """The preview of one reconstruction, fetched from NERSC: only the run's own, and only a PNG image."""
    run = _run(session, dag_id, run_id)
    result = XComs(session, run).mapping(f"{engine}.collect") if engine in ENGINES else None
    if result is None:
        raise HTTPException(404, f"Run {run_id} has no {engine} reconstruction.")
    try:
        scan = parse_scan_path((run.conf or {}).get("file_path"))
        path = result_prefix(beamline(), scan, engine, run) + ".png"
        if result.get("preview") != path:
            raise HTTPException(404, f"The preview that the run names is not its own, {path}.")
        with closing(SuperfacilityHook(SUPERFACILITY_CONN_ID)) as hook:
            content = hook.download(beamline().job.machine, path)
        check_png(content, path)
    except UserError as error:
        raise HTTPException(404, f"{error.what}.") from error
    except FacilityError as error:
        again = {"Retry-After": str(_TRY_AGAIN)}
        raise HTTPException(
            502, f"The preview could not be read from NERSC ({error.what}).", again
        ) from error
    return Response(content, media_type="image/png", headers=_IMAGE_HEADERS)


def _run(session: SessionDep, dag_id: str, run_id: str) -> DagRun:
    run: DagRun | None = session.scalar(
        select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)
    )
    if run is None:
        raise HTTPException(404, f"There is no run {run_id} of {dag_id}.")
    return run
