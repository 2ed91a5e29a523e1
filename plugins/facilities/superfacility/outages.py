"""What NERSC's public pages say about an outage; needs no credentials."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from facilities.errors import FacilityError
from facilities.superfacility.hook import MachineStatus, Outage, SuperfacilityHook

T = TypeVar("T")

log = logging.getLogger(__name__)


def explain_outage(hook: SuperfacilityHook, machine: str) -> str:
    """One line for a log: the machine's status, why, and until when."""
    status = _ask(lambda: hook.status(machine))
    if status is None:
        return "Its status page does not answer either."
    outages = _ask(lambda: hook.outages(machine)) or []
    return describe(status, outages[0] if outages else None)


def describe(status: MachineStatus, outage: Outage | None) -> str:
    """Put a machine's status and its outage into words."""
    reason = "; ".join((status.description, *status.notes)).strip("; ")
    text = f"The status page has {status.name} as {status.status}{f' ({reason})' if reason else ''}."
    if outage is not None:
        why = f" ({outage.description})" if outage.description else ""
        text += f" Outage{why}: from {outage.start_at} until {outage.end_at}."
    return text


def _ask(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except FacilityError as error:
        log.debug("%s", error)
        return None
