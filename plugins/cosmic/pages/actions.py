"""The buttons of a scan: stop, run again, run the missing ones, notes; each confirmed on a page of its own.

A confirmation is a plain page with a form, so that it works without script, in Airflow's frame (where no
dialogs of the browser are allowed) and on a telephone. Nothing is done twice: a form carries the number of
the newest run that its reader could know, and later runs are left alone.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.utils.session import create_session
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from starlette.datastructures import FormData

from cosmic.dag_constants import FIND_MISSED_SCANS, TRANSFER_AUTO_RECON
from cosmic.pages.airflow_api import Answer, Call, call_airflow
from cosmic.pages.rendering import URL_PREFIX, ScanName, address, render, template_function
from cosmic.pages.run_again import Fields, changes, fields_of
from cosmic.pages.scan_runs import Note, ScanRun, ScanRuns, at_work, note_of, runs_of_scan
from cosmic.pages.security import MayReadScans, OwnForm, may, require
from cosmic.parameters import MISSED_SCANS, RECONSTRUCTION, read_parameters
from facilities.errors import UserError

MAX_NOTE = 1000  # characters, Airflow's own limit
_MAX_SHOWN = 20  # runs on a page about many

router = APIRouter(dependencies=[MayReadScans])

OneRun = Annotated[str, Query(max_length=250)]


@dataclass(frozen=True)
class Buttons:
    """What a page about a scan, or about one run of it, offers its reader.

    :param base: address of the scan's page; the buttons' addresses begin with it.
    :param query: what limits them to one run.
    :param active: runs that may be stopped.
    :param was: of the note, to notice that somebody else has changed it meanwhile.
    """

    scan: str
    base: str
    query: str
    run_id: str
    may_start: bool
    may_change: bool
    active: int
    note: Note
    was: str
    max_note: int = MAX_NOTE


@template_function
def scan_buttons(request: Request, user: BaseUser, scan: str, run_id: str = "") -> Buttons | None:
    """The buttons for `scan_actions.html`; None when the scan has no run (any more).

    :param scan: its name.
    :param run_id: for a page about one run, its id.
    """
    with create_session(scoped=False) as session:
        runs = runs_of_scan(session, scan)
        if runs is None:
            return None
        note = note_of(session, runs)
    return Buttons(
        scan=scan,
        base=_page_of(request, scan),
        query=f"?run_id={quote(run_id, safe='')}" if run_id else "",
        run_id=run_id,
        may_start=may(user, "POST"),
        may_change=may(user, "PUT"),
        active=len(_chosen(runs, run_id)),
        note=note,
        was=_fingerprint(note.text),
    )


# Run the missing ones. Before the routes with a scan's name in them.


@router.get("/scans/missing")
def confirm_missing(
    request: Request, user: GetUserDep, day: Annotated[str, Query(max_length=10)] = ""
) -> Response:
    """What *Run the missing ones* will do."""
    require(user, "POST", "start the missing scans", FIND_MISSED_SCANS)
    return _ask_about_missing(request, day)


@router.post("/scans/missing")
async def start_missing(request: Request, user: GetUserDep, form: OwnForm) -> Response:
    """Start `find_missed_scans` for a day; asks first when the form is not that of the question."""
    require(user, "POST", "start the missing scans", FIND_MISSED_SCANS)
    day, once = _text(form, "day"), _text(form, "once")
    if not once:
        return _ask_about_missing(request, day)
    _check_day(day)
    if not once.isalnum():
        raise HTTPException(400, "The form is not complete.")
    run_id = f"missing_{day}_{once[:16]}"
    conf = {"which": "missing", "first_day": day, "last_day": day}
    body = {"dag_run_id": run_id, "logical_date": None, "conf": conf, "note": "Started from the scans page"}
    (answer,) = await call_airflow(
        request, user, [Call("POST", ("dags", FIND_MISSED_SCANS, "dagRuns"), body)]
    )
    if not answer.accepted and answer.status != 409:  # 409: the same form again
        return _refused(request, "The missing scans were not started", answer, f"{_scans(request)}")
    return render(
        "action_done.html",
        airflow=address(request),
        headline=f"The scans of {day} that have no run are being started",
        lines=[
            "They appear in the list within a minute or so, a few at a time. "
            "How many there were, by day, is on the page of this run when it is done."
        ],
        runs=[(run_id, _run_page(request, run_id, FIND_MISSED_SCANS))],
        back=_scans(request),
        back_to="All scans",
    )


def _ask_about_missing(request: Request, day: str) -> Response:
    _check_day(day)
    return render(
        "confirm_missing.html",
        airflow=address(request),
        request=request,
        day=day,
        action=f"{_scans(request)}/missing",
        back=_scans(request),
        once=secrets.token_hex(8),
    )


def _check_day(day: str) -> None:
    try:
        if not day:
            raise UserError("There is no day")
        read_parameters(MISSED_SCANS, {"first_day": day})
    except UserError as error:
        raise HTTPException(400, f"{error.what}.") from error


# Stop


@router.get("/scans/{scan}/stop")
def confirm_stop(request: Request, user: GetUserDep, scan: ScanName, run_id: OneRun = "") -> Response:
    """What *Stop* will stop."""
    require(user, "PUT", "stop a scan")
    with create_session(scoped=False) as session:
        runs = _runs(session, scan)
        active = _chosen(runs, run_id)
        work = at_work(session, active)
    return render(
        "confirm_stop.html",
        airflow=address(request),
        request=request,
        name=run_id or scan,
        work=work,
        active=[run.run_id for run in active[:_MAX_SHOWN]],
        more=max(len(active) - _MAX_SHOWN, 0),
        action=f"{_page_of(request, scan)}/stop",
        newest=runs.newest_number,
        run_id=run_id,
        back=_back(request, scan, run_id),
    )


@router.post("/scans/{scan}/stop")
async def stop(request: Request, user: GetUserDep, scan: ScanName, form: OwnForm) -> Response:
    """Mark the scan's active runs as failed, which cancels what they have at Globus and NERSC."""
    require(user, "PUT", "stop a scan")
    run_id, newest = _text(form, "run_id"), _number(form, "newest")
    runs = await run_in_threadpool(_read_runs, scan)
    active = [run for run in _chosen(runs, run_id) if run.number <= newest]
    answers = await call_airflow(request, user, [_change(run.run_id, {"state": "failed"}) for run in active])
    stopped = [run.run_id for run, answer in zip(active, answers, strict=True) if answer.accepted]
    return render(
        "action_done.html",
        airflow=address(request),
        headline=f"{_count(stopped, 'run')} stopped" if stopped else "Nothing was going on any more",
        lines=[
            "Their transfers and jobs are being cancelled, which takes up to a minute. What is done stays."
            if stopped
            else f"All runs of {run_id or scan} had ended."
        ],
        refused=_refusals(active, answers),
        runs=[],
        back=_back(request, scan, run_id),
        back_to=run_id or scan,
    )


# Run again


@router.get("/scans/{scan}/run-again")
def ask_run_again(request: Request, user: GetUserDep, scan: ScanName, run_id: OneRun = "") -> Response:
    """The form of *Run again*, with the parameters of the scan's newest run, or of the run that is named."""
    require(user, "POST", "run a scan again")
    with create_session(scoped=False) as session:
        runs = _runs(session, scan)
    like = _like(runs, run_id)
    files = str(like.file.relative) if run_id or len(runs.by_file) == 1 else ""
    return _ask_run_again(request, runs, like, run_id, files=files)


@router.post("/scans/{scan}/run-again")
async def run_again(request: Request, user: GetUserDep, scan: ScanName, form: OwnForm) -> Response:
    """Start a run of each chosen file: its last parameters with those that were changed in the form."""
    require(user, "POST", "run a scan again")
    runs = await run_in_threadpool(_read_runs, scan)
    run_id, files, newest = _text(form, "run_id"), _text(form, "files"), _number(form, "newest")
    like = _like(runs, _text(form, "like"))
    given = changes(like.conf, form)
    chosen, left = _files_to_run(runs, files, newest)
    confs = [_conf(its, given) for its in chosen]
    try:
        if not chosen:
            raise UserError("None of these files can run now: they are running, or none is chosen")
        for conf in confs:
            read_parameters(RECONSTRUCTION, conf)
    except UserError as error:
        fields = fields_of({**like.conf, **given})
        problem = f"{error.what}."
        return await run_in_threadpool(
            _ask_run_again, request, runs, like, run_id, files=files, fields=fields, problem=problem
        )
    ids = [_next_run_id(its, newest) for its in chosen]
    calls = [
        Call(
            "POST",
            ("dags", TRANSFER_AUTO_RECON, "dagRuns"),
            {"dag_run_id": new, "logical_date": None, "conf": conf, "note": "Run again from the scan's page"},
        )
        for new, conf in zip(ids, confs, strict=True)
    ]
    answers = await call_airflow(request, user, calls)
    started = [new for new, answer in zip(ids, answers, strict=True) if answer.accepted]
    existing = [new for new, answer in zip(ids, answers, strict=True) if answer.status == 409]
    lines = ["Their results will lie beside the earlier ones."] if started else []
    lines += [f"{_count(existing, 'run')} had been started before, and not twice."] if existing else []
    lines += [f"{_count(left, 'file')} not run again: still running."] if left else []
    return render(
        "action_done.html",
        airflow=address(request),
        headline=f"{_count(started, 'run')} started" if started else "Nothing was started",
        lines=lines,
        refused=[
            (new, answer.reason)
            for new, answer in zip(ids, answers, strict=True)
            if not answer.accepted and answer.status != 409
        ][:_MAX_SHOWN],
        runs=[(new, _run_page(request, new)) for new in (started + existing)[:_MAX_SHOWN]],
        back=_page_of(request, scan),
        back_to=scan,
    )


def _ask_run_again(
    request: Request,
    runs: ScanRuns,
    like: ScanRun,
    run_id: str,
    *,
    files: str,
    fields: Fields | None = None,
    problem: str = "",
) -> Response:
    by_file = runs.by_file
    return render(
        "run_again.html",
        status=400 if problem else 200,
        airflow=address(request),
        request=request,
        scan=runs.name,
        like=like,
        sections=fields or fields_of(like.conf),
        paths=list(by_file),
        failed=[path for path, its in by_file.items() if its[-1].state == "failed"],
        running=[path for path, its in by_file.items() if its[-1].is_active],
        files=files,
        problem=problem,
        action=f"{_page_of(request, runs.name)}/run-again",
        newest=runs.newest_number,
        run_id=run_id,
        back=_back(request, runs.name, run_id),
    )


def _files_to_run(runs: ScanRuns, files: str, newest: int) -> tuple[list[list[ScanRun]], list[list[ScanRun]]]:
    """Of the chosen files the runs that its reader knew; and those of the files that are still running.

    :param files: `failed`, `all`, or the path of one.
    """
    known = {
        path: some for path, its in runs.by_file.items() if (some := [r for r in its if r.number <= newest])
    }
    chosen = [
        its
        for path, its in known.items()
        if files in (path, "all") or (files == "failed" and its[-1].state == "failed")
    ]
    return [its for its in chosen if not its[-1].is_active], [its for its in chosen if its[-1].is_active]


def _conf(its: Sequence[ScanRun], given: Mapping[str, Any]) -> dict[str, Any]:
    """The last parameters of a file with what was changed; without what an older version had."""
    last = {name: value for name, value in its[-1].conf.items() if name in RECONSTRUCTION}
    return {**last, **given, "file_path": str(its[-1].file.relative)}


def _next_run_id(its: Sequence[ScanRun], newest: int) -> str:
    """The id after those that the form's reader knew: the same form, sent twice, starts no second run."""
    known = [run.file.generation(run.run_id) for run in its if run.number <= newest]
    return its[-1].file.run_id(1 + max(known, default=0))


def _like(runs: ScanRuns, run_id: str) -> ScanRun:
    run = runs.named(run_id) if run_id else runs.runs[-1]
    if run is None:
        raise HTTPException(404, f"{run_id} is no run of the scan {runs.name}.")
    return run


# Notes


@router.post("/scans/{scan}/notes")
async def write_note(request: Request, user: GetUserDep, scan: ScanName, form: OwnForm) -> Response:
    """Write the scan's note, which is the note of its first run."""
    require(user, "PUT", "write notes")
    text = "\n".join(_text(form, "note").splitlines()).strip()
    if len(text) > MAX_NOTE:
        raise HTTPException(
            400,
            f"A note has at most {MAX_NOTE} characters; this one has {len(text)}. Go back and shorten it.",
        )
    runs, note = await run_in_threadpool(_read_note, scan)
    back = _back(request, scan, _text(form, "run_id"))
    if _text(form, "was") != _fingerprint(note.text) and text != note.text:
        return render(
            "note_changed.html",
            status=409,
            airflow=address(request),
            request=request,
            scan=scan,
            note=note,
            text=text,
            was=_fingerprint(note.text),
            action=f"{_page_of(request, scan)}/notes",
            run_id=_text(form, "run_id"),
            max_note=MAX_NOTE,
            back=back,
        )
    (answer,) = await call_airflow(request, user, [_change(runs.runs[0].run_id, {"note": text})])
    if not answer.accepted:
        return _refused(request, "The note was not written", answer, back)
    return RedirectResponse(f"{back}#note", 303)


def _read_note(scan: str) -> tuple[ScanRuns, Note]:
    with create_session(scoped=False) as session:
        runs = _runs(session, scan)
        return runs, note_of(session, runs)


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# What they share


def _runs(session: Any, scan: str) -> ScanRuns:
    runs = runs_of_scan(session, scan)
    if runs is None:
        raise HTTPException(404, f"There is no scan {scan} with a run.")
    return runs


def _read_runs(scan: str) -> ScanRuns:
    with create_session(scoped=False) as session:
        return _runs(session, scan)


def _chosen(runs: ScanRuns, run_id: str) -> list[ScanRun]:
    """The active ones, or the one that is named if it is active."""
    return [run for run in runs.active if run_id in ("", run.run_id)]


def _change(run_id: str, body: dict[str, Any]) -> Call:
    return Call("PATCH", ("dags", TRANSFER_AUTO_RECON, "dagRuns", run_id), body)


def _text(form: FormData, name: str) -> str:
    value = form.get(name, "")
    return value if isinstance(value, str) else ""


def _number(form: FormData, name: str) -> int:
    text = _text(form, name)
    if not text.isascii() or not text.isdigit():
        raise HTTPException(400, "The form is not complete.")
    return int(text[:18])


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'s' if len(things) != 1 else ''}"


def _refusals(runs: Sequence[ScanRun], answers: Sequence[Answer]) -> list[tuple[str, str]]:
    refused = [
        (run.run_id, answer.reason) for run, answer in zip(runs, answers, strict=True) if not answer.accepted
    ]
    return refused[:_MAX_SHOWN]


def _refused(request: Request, headline: str, answer: Answer, back: str) -> Response:
    return render(
        "action_done.html",
        status=answer.status if answer.status < 500 else 502,
        airflow=address(request),
        headline=headline,
        lines=[answer.reason],
        runs=[],
        back=back,
        back_to="Back",
    )


def _scans(request: Request) -> str:
    return f"{address(request)}{URL_PREFIX}/scans"


def _page_of(request: Request, scan: str) -> str:
    return f"{_scans(request)}/{quote(scan, safe='')}"


def _run_page(request: Request, run_id: str, dag_id: str = TRANSFER_AUTO_RECON) -> str:
    return f"{address(request)}{URL_PREFIX}/dags/{dag_id}/runs/{quote(run_id, safe='')}"


def _back(request: Request, scan: str, run_id: str) -> str:
    return _run_page(request, run_id) if run_id else _page_of(request, scan)
