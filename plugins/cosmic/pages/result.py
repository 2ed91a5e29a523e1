"""The "Result" tab of a run: what became of it, why it failed and what to do, its figures and previews.

The page shows what the run's tasks left in Airflow's database; the previews are those of
`cosmic.pages.pictures`.
"""

from __future__ import annotations

from urllib.parse import quote

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from cosmic.dag_constants import TRANSFER_AUTO_RECON
from cosmic.pages.pictures import TRY_AGAIN, MayRead, find_run
from cosmic.pages.rendering import URL_PREFIX, DagId, RunId, address, render
from cosmic.pages.scan_runs import scan_of_run
from cosmic.run_summary import summarize

router = APIRouter()


@router.get("/dags/{dag_id}/runs/{run_id}", response_class=HTMLResponse, dependencies=[MayRead])
def result_page(
    dag_id: DagId, run_id: RunId, session: SessionDep, user: GetUserDep, request: Request
) -> HTMLResponse:
    """What became of a run."""
    airflow = address(request)
    summary = summarize(session, find_run(session, dag_id, run_id), airflow)
    may_clear = get_auth_manager().is_authorized_dag(
        method="PUT", access_entity=DagAccessEntity.TASK_INSTANCE, details=DagDetails(id=dag_id), user=user
    )
    scan = scan_of_run(run_id, summary.run.conf) if dag_id == TRANSFER_AUTO_RECON else ""
    pages = f"{airflow}{URL_PREFIX}"
    return render(
        "result.html",
        request=request,
        user=user,
        scan=scan,
        only_run=run_id,
        summary=summary,
        run=summary.run,
        may_clear=may_clear,
        previews=f"{pages}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}",
        try_again=TRY_AGAIN,
        scan_page=f"{pages}/scans/{quote(scan, safe='')}?run={quote(run_id, safe='')}",
    )
