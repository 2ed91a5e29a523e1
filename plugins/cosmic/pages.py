"""The "Result" tab of a run: its transfer, its reconstructions with previews, its table of missed scans.

The page shows what the run's tasks left in their XComs; the preview is fetched from NERSC when it is shown.
Paths come from the XComs only, never from the address.
"""

from __future__ import annotations

from contextlib import closing
from typing import Annotated, Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from fastapi import Depends, FastAPI, HTTPException, Path
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader, select_autoescape
from sqlalchemy import select

from cosmic.beamline import beamline
from cosmic.dag_constants import COPY_TASK, REPORT_TASK, SUPERFACILITY_CONN_ID
from cosmic.parameters import ENGINES
from facilities.errors import FacilityError
from facilities.superfacility.hook import SuperfacilityHook

URL_PREFIX = "/cosmic"

# The page has no script, so none may run on it, whatever finds its way into a path or a warning.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, no-store",
}

app = FastAPI(title="COSMIC", docs_url=None, redoc_url=None, openapi_url=None)
_templates = Environment(
    loader=PackageLoader("cosmic", "templates"), autoescape=select_autoescape(default=True), trim_blocks=True
)

DagId = Annotated[str, Path(max_length=250)]
RunId = Annotated[str, Path(max_length=250)]
MayRead = Depends(requires_access_dag("GET", DagAccessEntity.XCOM))


@app.get("/dags/{dag_id}/runs/{run_id}", response_class=HTMLResponse, dependencies=[MayRead])
def result_page(dag_id: DagId, run_id: RunId, session: SessionDep) -> HTMLResponse:
    """A run's state, its transfer and reconstructions or its table of missed scans, and its tasks."""
    run = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
    if run is None:
        raise HTTPException(404, f"There is no run {run_id} of {dag_id}.")
    tasks = session.scalars(
        select(TaskInstance)
        .where(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id)
        .order_by(TaskInstance.start_date.is_(None), TaskInstance.start_date, TaskInstance.task_id)
    ).all()
    html = _templates.get_template("result.html").render(
        run=run,
        scan=(run.conf or {}).get("file_path"),
        transfer=_xcom(session, dag_id, run_id, COPY_TASK),
        reconstructions=[
            result for e in ENGINES if (result := _xcom(session, dag_id, run_id, f"{e}.collect"))
        ],
        days=_days(session, dag_id, run_id),
        tasks=tasks,
        prefix=f"{URL_PREFIX}/dags/{dag_id}/runs/{run_id}",
    )
    return HTMLResponse(html, headers=_HEADERS)


@app.get("/dags/{dag_id}/runs/{run_id}/{engine}/preview.png", dependencies=[MayRead])
def preview(dag_id: DagId, run_id: RunId, engine: str, session: SessionDep) -> Response:
    """The preview of one reconstruction, fetched from NERSC."""
    result = _xcom(session, dag_id, run_id, f"{engine}.collect") if engine in ENGINES else None
    if result is None:
        raise HTTPException(404, f"Run {run_id} has no {engine} reconstruction.")
    try:
        with closing(SuperfacilityHook(SUPERFACILITY_CONN_ID)) as hook:
            content = hook.download(beamline().job.machine, result["preview"])
    except FacilityError as error:
        raise HTTPException(502, f"The preview could not be read from NERSC ({error.what}).") from error
    return Response(
        content, media_type="image/png", headers=_HEADERS | {"Cache-Control": "private, max-age=3600"}
    )


def _days(session: SessionDep, dag_id: str, run_id: str) -> list[dict[str, Any]]:
    """The table of a run of `find_missed_scans`: the final one, or the one from before the starts."""
    for task_id, key in ((REPORT_TASK, "return_value"), ("compare", "rows")):
        rows = _xcom_value(session, dag_id, run_id, task_id, key)
        if isinstance(rows, list):
            return [row for row in rows if isinstance(row, dict)]
    return []


def _xcom(session: SessionDep, dag_id: str, run_id: str, task_id: str) -> dict[str, Any] | None:
    value = _xcom_value(session, dag_id, run_id, task_id, "return_value")
    return value if isinstance(value, dict) else None


def _xcom_value(session: SessionDep, dag_id: str, run_id: str, task_id: str, key: str) -> Any:
    query = XComModel.get_many(run_id=run_id, key=key, task_ids=task_id, dag_ids=dag_id, limit=1)
    row = session.scalars(query).first()
    return None if row is None else XComModel.deserialize_value(row)
