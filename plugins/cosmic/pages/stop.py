"""The button *Stop* of a scan, or of one of its runs."""

from __future__ import annotations

from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.utils.session import create_session
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from cosmic.pages.addresses import page_before, scan_page
from cosmic.pages.airflow_api import call_airflow, change_run
from cosmic.pages.forms import MAX_SHOWN, count, number_of, refusals, text_of
from cosmic.pages.rendering import ScanName, address, render
from cosmic.pages.scan_runs import OneRun, at_work, find_runs, read_runs
from cosmic.pages.security import MayReadScans, OwnForm, require

router = APIRouter(dependencies=[MayReadScans])


@router.get("/scans/{scan}/stop")
def confirm_stop(request: Request, user: GetUserDep, scan: ScanName, run_id: OneRun = "") -> Response:
    """What *Stop* will stop."""
    require(user, "PUT", "stop a scan")
    with create_session(scoped=False) as session:
        runs = find_runs(session, scan)
        active = runs.active_of(run_id)
        work = at_work(session, active)
    return render(
        "confirm_stop.html",
        airflow=address(request),
        request=request,
        name=run_id or scan,
        work=work,
        active=[run.run_id for run in active[:MAX_SHOWN]],
        more=max(len(active) - MAX_SHOWN, 0),
        action=f"{scan_page(address(request), scan)}/stop",
        newest=runs.newest_number,
        run_id=run_id,
        back=page_before(address(request), scan, run_id),
    )


@router.post("/scans/{scan}/stop")
async def stop(request: Request, user: GetUserDep, scan: ScanName, form: OwnForm) -> Response:
    """Mark the scan's active runs as failed, which cancels what they have at Globus and NERSC."""
    require(user, "PUT", "stop a scan")
    run_id, newest = text_of(form, "run_id"), number_of(form, "newest")
    runs = await run_in_threadpool(read_runs, scan)
    active = [run for run in runs.active_of(run_id) if run.number <= newest]
    answers = await call_airflow(
        request, user, [change_run(run.run_id, {"state": "failed"}) for run in active]
    )
    asked = [(run.run_id, answer) for run, answer in zip(active, answers, strict=True)]
    stopped = [one for one, answer in asked if answer.accepted]
    headline, lines = "Nothing was stopped", []
    if stopped:
        headline = f"{count(stopped, 'run')} stopped"
        lines = [
            "Their transfers and jobs are being cancelled, which takes up to a minute. What is done stays."
        ]
    elif not asked:
        headline, lines = "Nothing was going on any more", [f"All runs of {run_id or scan} had ended."]
    return render(
        "action_done.html",
        airflow=address(request),
        headline=headline,
        lines=lines,
        refused=refusals(asked),
        runs=[],
        back=page_before(address(request), scan, run_id),
        back_to=run_id or scan,
    )
