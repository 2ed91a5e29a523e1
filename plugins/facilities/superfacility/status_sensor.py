"""The sensor that waits for a machine to be up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import requests
from airflow.providers.http.hooks.http import HttpHook
from airflow.providers.http.sensors.http import HttpSensor
from airflow.sdk import XComArg
from airflow.sdk.exceptions import AirflowSensorTimeout

from facilities.errors import FacilityError, TimeLimitError, UserError
from facilities.superfacility.connection import TIME_ZONE
from facilities.superfacility.hook import OUTAGE_PAGES, MachineStatus, Outage, read_outages
from facilities.superfacility.outages import describe
from facilities.superfacility.status_trigger import REQUEST_TIMEOUT, SystemStatusTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

# The trigger keeps the limit itself; Airflow's own comes later, in case that no triggerer runs.
_DEFER_GRACE = timedelta(minutes=5)


class SystemStatusSensor(HttpSensor):
    """Waits until NERSC's public status page has a system as active (or degraded). Needs no login.

    The provider's sensor, with an eye for what the page says: HTTP 200 alone does not mean that the
    system is up, and a page that does not answer means that one has to wait.

    :param system: name on the status page.
    :param http_conn_id: HTTP connection to the API, such as https://api.nersc.gov/api/v1.2.
    :param timeout: longest wait, in seconds.
    :param poke_interval: seconds between two looks; grows to five minutes in the triggerer.
    :raises TimeLimitError: the system was not up within `timeout`.
    """

    template_fields: Sequence[str] = (*HttpSensor.template_fields, "system")
    ui_color = "#eef2d9"

    def __init__(
        self,
        *,
        system: str | XComArg = "perlmutter",
        http_conn_id: str | XComArg = "superfacility_status",
        deferrable: bool = True,
        poke_interval: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            endpoint="status",
            http_conn_id=http_conn_id,  # type: ignore[arg-type]  # templated: may come from another task
            deferrable=deferrable,
            poke_interval=poke_interval,
            **kwargs,
        )
        self.system = system
        self._said = ""

    def execute(self, context: Context) -> Any:
        """Look once, and wait if need be."""
        if not str(self.system).replace("_", "").isalnum():
            raise UserError(f"Not a system's name: {self.system!r}", next_step="use perlmutter.")
        if not self.deferrable:
            return self._wait_here(context)
        if not self.poke(context):
            self.defer(
                timeout=timedelta(seconds=self.timeout) + _DEFER_GRACE,
                trigger=SystemStatusTrigger(
                    system=str(self.system),
                    deadline=time.time() + self.timeout,
                    endpoint=self._endpoint,
                    http_conn_id=self.http_conn_id,
                    headers=self.headers,
                    poke_interval=self.poke_interval,
                ),
                method_name="execute_complete",
            )
        return None

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """End the wait."""
        told = event if isinstance(event, Mapping) else {}
        if told.get("outcome") != "up":
            raise self._not_up(str(told.get("status") or event))
        self.log.info("%s", told.get("status"))

    def poke(self, context: Context) -> bool:  # noqa: ARG002 - Airflow's signature
        """Look once: whether the system is up. No answer means no."""
        try:
            status = MachineStatus.read(self._read(self._endpoint), str(self.system))
        except (requests.RequestException, FacilityError) as error:
            self._said = f"The status page does not answer ({type(error).__name__}: {error})."
        else:
            self._said = describe(status, None) if status.up else self._explain(status)
            if status.up:
                self.log.info("%s", self._said)
                return True
        self.log.warning("Waiting for %s. %s", self.system, self._said)
        return False

    @property
    def _endpoint(self) -> str:
        return f"status/{self.system}"

    def _wait_here(self, context: Context) -> None:
        try:
            super().execute(context)
        except AirflowSensorTimeout as error:
            raise self._not_up(self._said) from error

    def _explain(self, status: MachineStatus) -> str:
        outages: list[Outage] = []
        for page in OUTAGE_PAGES:
            try:
                outages += read_outages(self._read(f"{page}/{self.system}"), ZoneInfo(TIME_ZONE))
            except requests.RequestException as error:
                self.log.info("The page of outages does not answer: %s", error)
        return describe(status, outages[0] if outages else None)

    def _read(self, endpoint: str) -> Any:
        hook = HttpHook(method="GET", http_conn_id=self.http_conn_id)
        response = hook.run(
            endpoint,
            headers=self.headers,
            extra_options={"timeout": REQUEST_TIMEOUT, "check_response": False},
        )
        response.raise_for_status()
        return response.json()

    def _not_up(self, said: str) -> TimeLimitError:
        return TimeLimitError(
            f"{self.system} was not up within {timedelta(seconds=self.timeout)}",
            state=said,
            next_step="look at https://www.nersc.gov/live-status/motd and clear the task when it is up.",
        )
