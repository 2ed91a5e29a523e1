"""The app of all pages."""

from __future__ import annotations

from urllib.parse import urlencode

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from cosmic.pages import job_log, pictures, result, scan, scans, vendor
from cosmic.pages.rendering import address, render

_HEADLINES = {403: "You may not see this", 404: "There is no such page"}

app = FastAPI(title="COSMIC", docs_url=None, redoc_url=None, openapi_url=None)
app.include_router(scans.router)
app.include_router(result.router)
app.include_router(pictures.router)
app.include_router(scan.router)
app.include_router(job_log.router)
app.include_router(vendor.router)


@app.exception_handler(HTTPException)
async def refuse(request: Request, error: HTTPException) -> Response:
    """Who opens a page is led to the login and back, or reads why there is none; scripts get JSON."""
    is_page = request.method == "GET" and "text/html" in request.headers.get("accept", "")
    if not is_page:
        return await http_exception_handler(request, error)
    airflow = address(request)
    if error.status_code == 401:
        back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"{airflow}/api/v2/auth/login?{urlencode({'next': back})}", 303)
    headline = _HEADLINES.get(error.status_code, "This did not work")
    return render(
        "problem.html", status=error.status_code, airflow=airflow, headline=headline, detail=error.detail
    )
