"""The app of all pages."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from cosmic.pages import (
    downloads,
    job_log,
    missing,
    notes,
    pictures,
    result,
    run_again,
    scan,
    scans,
    stop,
    vendor,
)
from cosmic.pages.rendering import address, render
from cosmic.pages.security import remember_user

_HEADLINES = {401: "You are not logged in any more", 403: "You may not do this", 404: "There is no such page"}
_DETAILS = {
    403: "You are logged in, but have no role that may see this. Ask whoever runs this Airflow for one.",
    404: "Nothing is at this address.",
    405: "This address is of a button on a page; go back to the page and press it there.",
}
"""In place of what only repeats the status."""

app = FastAPI(
    title="COSMIC",
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
    dependencies=[Depends(remember_user)],  # no page without a login
)
app.include_router(missing.router)  # before those with a scan's name in them
app.include_router(stop.router)
app.include_router(run_again.router)
app.include_router(notes.router)
app.include_router(downloads.router)
app.include_router(scans.router)
app.include_router(result.router)
app.include_router(pictures.router)
app.include_router(scan.router)
app.include_router(job_log.router)
app.include_router(vendor.router)


@app.exception_handler(HTTPException)
async def refuse(request: Request, error: HTTPException) -> Response:
    """Who opens a page is led to the login and back, or reads why there is none; scripts get JSON."""
    if "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    airflow = address(request)
    if error.status_code == 401 and request.method == "GET":
        back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"{airflow}/api/v2/auth/login?{urlencode({'next': back})}", 303)
    headline = _HEADLINES.get(error.status_code, "This did not work")
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:
        detail = _DETAILS.get(error.status_code, detail)
    return render("problem.html", status=error.status_code, airflow=airflow, headline=headline, detail=detail)


@app.exception_handler(RequestValidationError)
async def refuse_address(request: Request, error: RequestValidationError) -> Response:
    """An address with a part that nothing here has, such as a name that is too long."""
    where = {problem["loc"][0] for problem in error.errors()}
    names = " and ".join(str(problem["loc"][-1]) for problem in error.errors())
    refused = HTTPException(400, f"The address asks for what cannot be: its {names} is too long, or is none.")
    return await refuse(request, HTTPException(404) if "path" in where else refused)


@app.exception_handler(Exception)
async def apologize(request: Request, _: Exception) -> Response:
    """A defect, or Airflow's database does not answer; the server logs which."""
    detail = "Airflow could not answer. Try again in a minute; the reason is in the log of its API server."
    return await refuse(request, HTTPException(500, detail))
