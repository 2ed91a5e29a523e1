"""The button *Run again*: a form with the last parameters of a scan or a run, and what it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.utils.session import create_session
from fastapi import APIRouter, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from starlette.datastructures import FormData

from cosmic.dag_constants import TRANSFER_AUTO_RECON
from cosmic.pages.addresses import page_before, run_page, scan_page
from cosmic.pages.airflow_api import call_airflow, start_run
from cosmic.pages.forms import MAX_SHOWN, count, number_of, refusals, text_of
from cosmic.pages.notes import RUN_AGAIN_NOTE
from cosmic.pages.rendering import ScanName, address, render
from cosmic.pages.scan_runs import OneRun, ScanRun, ScanRuns, find_runs, read_runs
from cosmic.pages.security import MayReadScans, OwnForm, require
from cosmic.parameters import RECONSTRUCTION, Parameter, read_parameters
from facilities.errors import UserError

router = APIRouter(dependencies=[MayReadScans])

MAY_CHANGE: Mapping[str, Parameter] = {
    name: parameter for name, parameter in RECONSTRUCTION.items() if name != "file_path"
}
"""All parameters but the file."""


@dataclass(frozen=True)
class FormField:
    """One field: a box (`checked`), a list (`options`: value and text of each), or a text."""

    name: str
    parameter: Parameter
    text: str
    checked: bool
    options: list[tuple[str, str]]

    @property
    def help(self) -> str:
        """What it is, with its bounds."""
        if not self.parameter.is_number:
            return self.parameter.description
        low, high = self.parameter.rules["minimum"], self.parameter.rules["maximum"]
        return f"{self.parameter.description} From {low:g} to {high:g}."

    @property
    def is_default(self) -> bool:
        """Whether it has the value that a run has when none is given."""
        return _shown(self.parameter, self.parameter.default) == (
            self.checked if self.parameter.type == "boolean" else self.text
        )


Fields = dict[str, list[FormField]]  # by section


def fields_of(conf: Mapping[str, Any]) -> Fields:
    """The fields, with the values of a run's parameters."""
    sections: Fields = {}
    for name, parameter in MAY_CHANGE.items():
        shown = _shown(parameter, conf.get(name, parameter.default))
        display = parameter.rules.get("values_display", {})
        options = [
            (option or "", str(display.get(option or "null", option)))
            for option in parameter.rules.get("enum", ())
        ]
        text, checked = (str(shown), False) if isinstance(shown, str) else ("", shown)
        sections.setdefault(parameter.section, []).append(FormField(name, parameter, text, checked, options))
    return sections


def changes(conf: Mapping[str, Any], form: FormData) -> dict[str, Any]:
    """What of the form differs from what it showed of a run's parameters; not checked yet."""
    found: dict[str, Any] = {}
    for name, parameter in MAY_CHANGE.items():
        sent: str | bool
        if parameter.type == "boolean":
            sent = name in form
        elif isinstance(value := form.get(name), str):
            sent = value.strip()
        else:
            continue
        if sent != _shown(parameter, conf.get(name, parameter.default)):
            found[name] = _value(parameter, sent)
    return found


def _shown(parameter: Parameter, value: Any) -> str | bool:
    """What the form has for a value."""
    if parameter.type == "boolean":
        return value is True
    return "" if value is None else str(value)


def _value(parameter: Parameter, sent: str | bool) -> Any:
    """What a run gets; as it was typed when it does not fit, which its check will say."""
    if sent == "" and parameter.default is None:
        return None
    try:
        return parameter.read(sent)
    except ValueError:
        return sent


@router.get("/scans/{scan}/run-again")
def ask_run_again(request: Request, user: GetUserDep, scan: ScanName, run_id: OneRun = "") -> Response:
    """The form of *Run again*, with the parameters of the scan's newest run, or of the run that is named."""
    require(user, "POST", "run a scan again")
    with create_session(scoped=False) as session:
        runs = find_runs(session, scan)
    like = _like(runs, run_id)
    files = str(like.file.relative) if run_id or len(runs.by_file) == 1 else ""
    return _ask_run_again(request, runs, like, run_id, files=files)


@router.post("/scans/{scan}/run-again")
async def run_again(request: Request, user: GetUserDep, scan: ScanName, form: OwnForm) -> Response:
    """Start a run of each chosen file: its last parameters with those that were changed in the form."""
    require(user, "POST", "run a scan again")
    runs = await run_in_threadpool(read_runs, scan)
    run_id, files, newest = text_of(form, "run_id"), text_of(form, "files"), number_of(form, "newest")
    like = _like(runs, text_of(form, "like"))
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
        start_run(TRANSFER_AUTO_RECON, new, conf, RUN_AGAIN_NOTE)
        for new, conf in zip(ids, confs, strict=True)
    ]
    answers = await call_airflow(request, user, calls)
    started = [new for new, answer in zip(ids, answers, strict=True) if answer.accepted]
    existing = [new for new, answer in zip(ids, answers, strict=True) if answer.status == 409]
    others = [(new, answer) for new, answer in zip(ids, answers, strict=True) if new not in existing]
    lines = ["Their results will lie beside the earlier ones."] if started else []
    lines += [f"{count(existing, 'run')} had been started before, and not twice."] if existing else []
    lines += [f"{count(left, 'file')} not run again: still running."] if left else []
    return render(
        "action_done.html",
        airflow=address(request),
        headline=f"{count(started, 'run')} started" if started else "Nothing was started",
        lines=lines,
        refused=refusals(others),
        runs=[(new, run_page(address(request), new)) for new in (started + existing)[:MAX_SHOWN]],
        back=scan_page(address(request), scan),
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
        action=f"{scan_page(address(request), runs.name)}/run-again",
        newest=runs.newest_number,
        run_id=run_id,
        back=page_before(address(request), runs.name, run_id),
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
