"""The button *Run the missing ones* of a day: starts `find_missed_scans`."""

from __future__ import annotations

import secrets
from typing import Annotated

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response

from cosmic.dag_constants import FIND_MISSED_SCANS
from cosmic.pages.addresses import run_page, scans_page
from cosmic.pages.airflow_api import call_airflow, start_run
from cosmic.pages.forms import refused, text_of
from cosmic.pages.rendering import address, render
from cosmic.pages.security import MayReadScans, OwnForm, require
from cosmic.parameters import MISSED_SCANS, read_parameters
from facilities.errors import UserError

router = APIRouter(dependencies=[MayReadScans])


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
    day, once = text_of(form, "day"), text_of(form, "once")
    if not once:
        return _ask_about_missing(request, day)
    _check_day(day)
    if not once.isalnum():
        raise HTTPException(400, "The form is not complete.")
    run_id = f"missing_{day}_{once[:16]}"
    conf = {"which": "missing", "first_day": day, "last_day": day}
    call = start_run(FIND_MISSED_SCANS, run_id, conf, "Started from the scans page")
    (answer,) = await call_airflow(request, user, [call])
    if not answer.accepted and answer.status != 409:  # 409: the same form again
        return refused(
            address(request), "The missing scans were not started", answer, scans_page(address(request))
        )
    return render(
        "action_done.html",
        airflow=address(request),
        headline=f"The scans of {day} that have no run are being started",
        lines=[
            "They appear in the list within a minute or so, a few at a time. "
            "How many there were, by day, is on the page of this run when it is done."
        ],
        runs=[(run_id, run_page(address(request), run_id, FIND_MISSED_SCANS))],
        back=scans_page(address(request)),
        back_to="All scans",
    )


def _ask_about_missing(request: Request, day: str) -> Response:
    _check_day(day)
    return render(
        "confirm_missing.html",
        airflow=address(request),
        request=request,
        day=day,
        action=f"{scans_page(address(request))}/missing",
        back=scans_page(address(request)),
        once=secrets.token_hex(8),
    )


def _check_day(day: str) -> None:
    try:
        if not day:
            raise UserError("There is no day")
        read_parameters(MISSED_SCANS, {"first_day": day})
    except UserError as error:
        raise HTTPException(400, f"There is no day {day!r}; a day is such as 2023-02-16.") from error
