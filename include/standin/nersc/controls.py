"""Serves the control verbs of the NERSC half: switches of the site and the API.

Those that act on jobs are the scheduler's own.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from standin.nersc.oidc import Clients
from standin.nersc.options import LiveOptions
from standin.nersc.schedulers.interface import Scheduler
from standin.nersc.site import RESOURCES, SiteStatus, iso
from standin.service import Control, ControlError

Body = dict[str, Any]


class SiteControls:
    """Each verb takes and gives a JSON object."""

    def __init__(
        self, clients: Clients, options: LiveOptions, site: SiteStatus, scheduler: Scheduler
    ) -> None:
        self._clients = clients
        self._options = options
        self._site = site
        self._scheduler = scheduler

    def controls(self) -> dict[str, Control]:
        """All verbs."""
        return {
            "set": self.set_options, "jobs": self.jobs, "maintenance": self.maintenance,
            "extend_maintenance": self.extend_maintenance, "end_maintenance": self.end_maintenance,
            "degrade": self.degrade, "api_down": self.api_down, "api_up": self.api_up,
            "revoke_tokens": self.revoke_tokens, "expire_client": self.expire_client,
            "client_expiry": self.client_expiry,
        }  # fmt: skip

    async def set_options(self, body: Body) -> Body:
        """Change options (see `standin.nersc.options`); answers with all of them."""
        return self._options.change(**body)

    async def jobs(self, _body: Body) -> Body:
        """The accounting: every job ever."""
        return {"jobs": await self._scheduler.all_jobs()}

    async def maintenance(self, body: Body) -> Body:
        """An outage of `resource` (perlmutter) that begins `start_in` seconds from now and takes `seconds`.

        It is listed beforehand, and keeps jobs from starting that could not finish, unless `announced` is
        false.
        """
        name, begin = self._resource(body), time.time() + _number(body, "start_in", 0.0)
        end = begin + _number(body, "seconds", 3600.0)
        description = body.get("description", "Scheduled Maintenance")
        if not isinstance(description, str):
            raise ControlError(f"description is {description!r}; it must be a string.")
        announced = bool(body.get("announced", True))
        outage_id = self._site.plan_outage(name, begin, end, description=description, announced=announced)
        return {"id": outage_id, "start_at": iso(begin), "end_at": iso(end)}

    async def extend_maintenance(self, body: Body) -> Body:
        """Let the outage of `resource` that goes on end `seconds` from now."""
        end = time.time() + _number(body, "seconds", 3600.0)
        if not self._site.extend_outage(self._resource(body), end):
            raise ControlError("There is no outage to extend.")
        return {"end_at": iso(end)}

    async def end_maintenance(self, body: Body) -> Body:
        """End the outage of `resource` that goes on, and cancel those to come."""
        return {"ended": self._site.end_outages(self._resource(body))}

    async def degrade(self, body: Body) -> Body:
        """Call `resource` degraded with a `note`, or (null) active again."""
        name = self._resource(body)
        self._site.degrade(name, body.get("note"))
        return self._site.status(name)

    async def api_down(self, body: Body) -> Body:
        """Let all of the API answer with `status` (503), for `seconds` or until api_up."""
        status = body.get("status", 503)
        if not isinstance(status, int) or not 500 <= status < 600:
            raise ControlError(f"status is {status!r}; it must be from 500 to 599.")
        until = time.time() + _number(body, "seconds", 0.0) if "seconds" in body else None
        self._site.take_down(status, until)
        return {"status": status, "until": until}

    async def api_up(self, _body: Body) -> Body:
        """Let the API answer again."""
        self._site.bring_up()
        return {}

    async def revoke_tokens(self, _body: Body) -> Body:
        """Make all access tokens invalid; new ones can be had."""
        return {"revoked": self._clients.revoke_tokens()}

    async def expire_client(self, _body: Body) -> Body:
        """Let the client be expired: no token is given or accepted any more."""
        self._clients.set_expiry(time.time() - 1)
        return {"expires_at": iso(self._clients.expires)}

    async def client_expiry(self, body: Body) -> Body:
        """Let the client expire `days` from now, or at `expires_at` (ISO 8601 with a zone)."""
        if "expires_at" in body:
            try:
                when = datetime.fromisoformat(str(body["expires_at"]))
            except ValueError as error:
                raise ControlError(f"expires_at is {body['expires_at']!r}: {error}.") from error
            if when.tzinfo is None:
                raise ControlError("expires_at needs a zone, such as +00:00.")
            self._clients.set_expiry(when.timestamp())
        else:
            self._clients.set_expiry(time.time() + _number(body, "days", 30.0) * 86400)
        return {"expires_at": iso(self._clients.expires)}

    def _resource(self, body: Body) -> str:
        name = body.get("resource", "perlmutter")
        if name not in RESOURCES:
            raise ControlError(f"resource is {name!r}; it must be one of {', '.join(RESOURCES)}.")
        return str(name)


def _number(body: Body, name: str, default: float) -> float:
    value = body.get(name, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ControlError(f"{name} is {value!r}; it must be a number.")
    return float(value)
