"""The note of a scan, and the button that writes it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models.dagrun import DagRun
from airflow.models.log import Log
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType
from fastapi import APIRouter, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from cosmic.pages.addresses import page_before, scan_page
from cosmic.pages.airflow_api import call_airflow, change_run
from cosmic.pages.forms import refused, text_of
from cosmic.pages.rendering import ScanName, address, render
from cosmic.pages.scan_runs import ScanRuns, find_runs
from cosmic.pages.security import MayReadScans, OwnForm, require

MAX_NOTE = 1000  # characters, Airflow's own limit
RUN_AGAIN_NOTE = "Run again from the scan's page"  # of the runs that the button starts
_CHANGES = 20  # of the audit log that are looked at
_POSTING = timedelta(minutes=1)  # in which what is posted with a run is written

router = APIRouter(dependencies=[MayReadScans])


@dataclass(frozen=True)
class Note:
    """What people have written about a scan; `who` and `when` of the last change, if there was one."""

    text: str
    who: str = ""
    when: datetime | None = None


def note_of(session: Session, runs: ScanRuns) -> Note:
    """A scan's note, which is that of its first run: it outlives clearing and running again.

    What a program has posted with the run, such as the client's `submit_scan on ...`, is nobody's note.
    """
    run = session.get(DagRun, runs.runs[0].number)
    held = run.dag_run_note if run else None
    if run is None or held is None or not held.content:
        return Note("")
    changes = session.scalars(
        select(Log)
        .where(Log.dag_id == run.dag_id, Log.run_id == run.run_id, Log.event == "patch_dag_run")
        .order_by(Log.dttm.desc())
        .limit(_CHANGES)
    )
    if last := next((entry for entry in changes if '"note"' in (entry.extra or "")), None):
        return Note(held.content, last.owner_display_name or last.owner or "", last.dttm)
    posted = run.created_at or run.run_after
    if held.updated_at - posted > _POSTING:  # by a person of whom the audit log has nothing any more
        return Note(held.content, when=held.updated_at)
    if run.triggered_by == DagRunTriggeredByType.UI and held.content != RUN_AGAIN_NOTE:
        return Note(held.content, run.triggering_user_name or "", posted)
    return Note("")


@router.post("/scans/{scan}/notes")
async def write_note(request: Request, user: GetUserDep, scan: ScanName, form: OwnForm) -> Response:
    """Write the scan's note, which is the note of its first run."""
    require(user, "PUT", "write notes")
    text = "\n".join(text_of(form, "note").splitlines()).strip()
    if len(text) > MAX_NOTE:
        raise HTTPException(
            400,
            f"A note has at most {MAX_NOTE} characters; this one has {len(text)}. Go back and shorten it.",
        )
    runs, note = await run_in_threadpool(_read_note, scan)
    back = page_before(address(request), scan, text_of(form, "run_id"))
    if text_of(form, "was") != fingerprint(note.text) and text != note.text:
        return render(
            "note_changed.html",
            status=409,
            airflow=address(request),
            request=request,
            scan=scan,
            note=note,
            text=text,
            was=fingerprint(note.text),
            action=f"{scan_page(address(request), scan)}/notes",
            run_id=text_of(form, "run_id"),
            max_note=MAX_NOTE,
            back=back,
        )
    (answer,) = await call_airflow(request, user, [change_run(runs.runs[0].run_id, {"note": text})])
    if not answer.accepted:
        return refused(address(request), "The note was not written", answer, back)
    return RedirectResponse(f"{back}#note", 303)


def _read_note(scan: str) -> tuple[ScanRuns, Note]:
    with create_session(scoped=False) as session:
        runs = find_runs(session, scan)
        return runs, note_of(session, runs)


def fingerprint(text: str) -> str:
    """What a form carries of the note that its reader knew."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
