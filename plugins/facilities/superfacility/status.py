"""Reads NERSC's public status pages: whether a machine is up, and until when it is not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from typing import Any

from facilities.errors import FacilityError, TransientError
from facilities.superfacility.session import SfapiSession

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MachineStatus:
    """State of a machine, from NERSC's public page: `status` is active, degraded, unavailable or other.

    :param outage: of a machine that is not up, its present outage, else the next one, in words.
    :param until: when its present outage is to end, if NERSC names it.
    """

    name: str
    status: str
    reason: str
    outage: str = ""
    until: datetime | None = None

    @property
    def up(self) -> bool:
        """Whether jobs can be submitted."""
        return self.status in ("active", "degraded")

    def require_up(self) -> None:
        """Make sure that jobs can be submitted.

        :raises TransientError: they cannot.
        """
        if not self.up:
            raise TransientError(
                f"{self.name} is not up",
                state=self.status,
                next_step="look at https://www.nersc.gov/live-status/motd if it stays so.",
                details=str(self),
            )

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        return f"The status page has {self.name} as {self.status}{reason}. {self.outage}".strip()


def read_status(session: SfapiSession, machine: str) -> MachineStatus:
    """State of a machine.

    :raises TransientError: no answer, or one that says nothing about the machine.
    """
    try:
        reply = session.get(f"status/{machine}", f"Looking up the status of {machine}", public=True)
    except FacilityError as error:  # a refusal, too, says nothing about the machine
        raise TransientError(
            "The status page does not answer", state=error.state, details=error.what
        ) from error
    if not isinstance(reply, Mapping) or not reply.get("status"):
        raise TransientError(f"The status page says nothing about {machine}", details=str(reply)[:300])
    reasons = [str(part) for part in (reply.get("description") or "", *(reply.get("notes") or ()))]
    found = MachineStatus(
        name=str(reply.get("name") or machine),
        status=str(reply["status"]).lower(),
        reason="; ".join(reasons).strip("; "),
    )
    outage = None if found.up else _outage(session, machine)
    return found if outage is None else replace(found, outage=str(outage), until=outage.expected_end)


@dataclass(frozen=True, order=True)
class Outage:
    """An entry of NERSC's list of outages."""

    start: datetime
    end: datetime
    why: str

    @property
    def expected_end(self) -> datetime | None:
        """Its end, when it has begun."""
        return self.end if self.start <= datetime.now(UTC) else None

    def __str__(self) -> str:
        why = f" ({self.why})" if self.why else ""
        return f"Outage{why}: from {self.start.isoformat()} until {self.end.isoformat()}."


def _outage(session: SfapiSession, machine: str) -> Outage | None:
    """The present outage, or else the next one; None when none is known."""
    for page in ("status/outages", "status/outages/planned"):
        try:
            reply = session.get(f"{page}/{machine}", f"Looking up outages of {machine}", public=True)
        except FacilityError as error:
            log.info("%s", error)
            continue
        if outages := _read_outages(reply, session.config.zone):
            return outages[0]
    return None


def _read_outages(reply: Any, zone: tzinfo) -> list[Outage]:
    """Outages in a reply, soonest first, without those that have ended or were called off."""
    now = datetime.now(UTC)
    outages = []
    for entry in reply if isinstance(reply, list) else ():
        try:
            start, end = (moment_of(str(entry[key]), zone) for key in ("start_at", "end_at"))
        except (KeyError, TypeError, ValueError):
            log.warning("Skipping an outage that cannot be read: %.200r", entry)
            continue
        if end > now and str(entry.get("status") or "").lower() not in ("cancelled", "completed"):
            outages.append(Outage(start, end, str(entry.get("description") or "")))
    return sorted(outages)


def moment_of(text: str, zone: tzinfo) -> datetime:
    """A time of the API; one without a zone is in `zone`."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=zone)
