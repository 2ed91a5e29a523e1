"""Looks whether NERSC and Globus can be used, as the tasks do that wait for them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from zoneinfo import ZoneInfo

from cosmic.beamline import beamline
from cosmic.dag_constants import GLOBUS_CONN_ID, SUPERFACILITY_CONN_ID
from cosmic.notifications.book import Look
from facilities.errors import FacilityError, TransientError
from facilities.globus.hook import GlobusHook
from facilities.globus.task_operator import GlobusTaskOperator
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.operators import SlurmOperator

log = logging.getLogger(__name__)

STATUS_PAGES = {"NERSC": SlurmOperator.status_page, "Globus": GlobusTaskOperator.status_page}

_TIMEOUT = 15.0  # seconds for each reply; the next look comes soon


def look() -> dict[str, Look]:
    """One look at each service. A refusal is no outage: the flight check finds it."""
    return {"NERSC": _look(_nersc), "Globus": _look(_globus)}


def _look(ask: Callable[[], Look]) -> Look:
    try:
        return ask()
    except TransientError as error:
        log.info("%s", error)
        return Look(out=f"{error.what}.", certain=False)
    except FacilityError as error:
        log.info("%s", error)
        return Look(out="", certain=False)


def _nersc() -> Look:
    with closing(SuperfacilityHook(SUPERFACILITY_CONN_ID, attempts=1, timeout=_TIMEOUT)) as hook:
        status = hook.status(beamline().job.machine)
        if not status.up:
            until = f", until {_local(status.until)}" if status.until else ""
            return Look(out=f"{status.name} is {status.status}{until}. {status.reason}".strip(), certain=True)
        hook.session.get("account/", "Asking NERSC who the client is")
    return Look(out="", certain=True)


def _local(moment: datetime) -> str:
    return f"{moment.astimezone(ZoneInfo(beamline().time_zone)):%a %d %b %H:%M %Z}"


def _globus() -> Look:
    with closing(GlobusHook(GLOBUS_CONN_ID, attempts=1, http_timeout=_TIMEOUT)) as hook:
        hook.ping()
    return Look(out="", certain=True)
