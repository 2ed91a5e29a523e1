"""What all pages share: templates, headers, types of an address's parts, and how a moment is written.

A page's script and style run by the page's nonce alone, whatever finds its way into a path or a warning.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import Path, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from cosmic.beamline import local_zone

URL_PREFIX = "/cosmic"

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}
_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)

_templates = Environment(
    loader=PackageLoader("cosmic.pages", "templates"),
    autoescape=select_autoescape(default=True),
    trim_blocks=True,
)


def template_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let all templates call a function by its name."""
    _templates.globals[function.__name__] = function
    return function


_NAME = Path(max_length=250, pattern=r"^[^\x00]*$")  # PostgreSQL takes no text with a zero byte
DagId = Annotated[str, _NAME]
RunId = Annotated[str, _NAME]
ScanName = Annotated[str, _NAME]


def address(request: Request) -> str:
    """The path under which Airflow is reached, for links; empty at a server's root."""
    path: str = request.scope.get("root_path", "")
    return path.removesuffix(URL_PREFIX)


def has_already(request: Request, etag: str) -> bool:
    """Whether a reader has this content. A proxy that compresses makes a weak tag of it, `W/"..."`."""
    return request.headers.get("if-none-match", "").removeprefix("W/") == etag


def render(template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page, with `nonce` and `time` for its template; one that extends base.html needs `airflow`, too."""
    nonce = secrets.token_urlsafe(16)
    html = _templates.get_template(template).render(**values, nonce=nonce, time=_time_element)
    policy = {"Content-Security-Policy": _POLICY.format(nonce=nonce)}
    return HTMLResponse(html, status, headers=HEADERS | policy)


def fragment(template: str, **values: Any) -> Markup:
    """A part of a page, with `time` for its template; no script or style of its own."""
    return Markup(_templates.get_template(template).render(**values, time=_time_element))  # noqa: S704


def _time_element(moment: datetime, form: str = "full") -> Markup:
    """A `<time>`, in the beamline's time zone until the page's script writes it in the viewer's.

    :param form: full, minute (date, hours and minutes) or clock (hours and minutes).
    """
    local = moment.astimezone(local_zone())
    offset = f"{local:%z}"
    text = f"{local:%Y-%m-%d %H:%M:%S} {local:%Z} (UTC{offset[:3]}:{offset[3:]})"
    return Markup('<time datetime="{}"{}>{}</time>').format(
        local.isoformat(), Markup(' data-format="{}"').format(form) if form != "full" else "", text
    )
