"""Who may press which button, and that it was pressed on a page of ours.

A request that changes something is a POST with a token that was made for its user, from a page of this same
Airflow. What it does it does through Airflow's own REST API, as the user: Airflow checks the role again and
writes the person's name into its audit log.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.configuration import conf
from fastapi import Depends, HTTPException, Request
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.datastructures import FormData

from cosmic.dag_constants import TRANSFER_AUTO_RECON
from cosmic.pages.rendering import template_function

MAX_FORM = 64 * 1024  # bytes; all parameters of a run are 1 kB
TOKEN_LASTS = 12 * 3600  # seconds

_FORM = "application/x-www-form-urlencoded"
_PRESS_AGAIN = "Open the scan's page and press the button again."

MayReadScans = Depends(requires_access_dag("GET", DagAccessEntity.XCOM, param_dag_id=TRANSFER_AUTO_RECON))
"""Of every page about scans: what the runs of `transfer_auto_recon` have left may be read."""


async def remember_user(request: Request, user: GetUserDep) -> None:
    """Dependency of all pages: somebody must be logged in, for whom templates can make tokens."""
    request.state.page_user = user


@template_function
def csrf_token(request: Request) -> str:
    """The value of a form's hidden field `csrf_token`, without which a POST of the page's user is refused."""
    user: BaseUser = request.state.page_user
    return _tokens().dumps(str(user.get_id()))


async def own_form(request: Request, user: GetUserDep) -> FormData:
    """The fields of a form that its user has sent from a page of ours.

    :raises HTTPException: the request may be forged, or is no form.
    """
    if not _is_from_here(request):
        raise HTTPException(403, f"This was not sent from a page of this Airflow. {_PRESS_AGAIN}")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise HTTPException(415, "Only forms are taken here; programs use Airflow's REST API.")
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > MAX_FORM:
        raise HTTPException(413, f"The form is longer than {MAX_FORM} bytes.")
    form = await request.form()
    try:
        made_for = _tokens().loads(str(form.get("csrf_token", "")), max_age=TOKEN_LASTS)
    except BadSignature:
        made_for = None
    if made_for != str(user.get_id()):
        raise HTTPException(
            403, f"The page from which this was sent is too old, or was another user's. {_PRESS_AGAIN}"
        )
    return form


OwnForm = Annotated[FormData, Depends(own_form)]


def may(user: BaseUser, method: Literal["POST", "PUT"], dag_id: str = TRANSFER_AUTO_RECON) -> bool:
    """Whether a user may start runs of a DAG (POST), or stop them and write their notes (PUT)."""
    return get_auth_manager().is_authorized_dag(
        method=method, access_entity=DagAccessEntity.RUN, details=DagDetails(id=dag_id), user=user
    )


def require(
    user: BaseUser, method: Literal["POST", "PUT"], what: str, dag_id: str = TRANSFER_AUTO_RECON
) -> None:
    """:raises HTTPException: the user may not; `what` goes on after "You may not"."""
    if not may(user, method, dag_id):
        raise HTTPException(
            403,
            f"You may not {what}: you are logged in as {user.get_name()}, who may only look. "
            "Ask whoever runs this Airflow for the role `beamline`.",
        )


def _is_from_here(request: Request) -> bool:
    """By what browsers say of where a request was made; no page of another site can change that."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    # Not every browser says so, and none without https.
    origin = urlsplit(request.headers.get("origin", "")).netloc
    here = {request.headers.get("host", ""), urlsplit(conf.get("api", "base_url", fallback="")).netloc}
    return origin in here - {""}


def _tokens() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(conf.get_mandatory_value("api", "secret_key"), salt="cosmic.pages")
