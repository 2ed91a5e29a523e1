"""The trigger of `SystemStatusSensor`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from zoneinfo import ZoneInfo

import aiohttp
from airflow.providers.http.triggers.http import HttpSensorTrigger
from airflow.triggers.base import TriggerEvent

from facilities.errors import FacilityError
from facilities.polling import jittered_sleep
from facilities.superfacility.connection import TIME_ZONE
from facilities.superfacility.hook import OUTAGE_PAGES, MachineStatus, Outage, read_outages
from facilities.superfacility.outages import describe
from facilities.superfacility.triggers import fire

REQUEST_TIMEOUT = 20.0
_SAY_EVERY = 900.0
_LONGEST_WAIT = 300.0


class SystemStatusTrigger(HttpSensorTrigger):
    """Waits until the status page has the system as active or degraded.

    The provider's trigger is content with any answer, and on errors other than 404 asks again without a
    pause. Yields {"outcome": "up" | "given up", "status": what was last said}.

    :param system: name of the system on the status page.
    :param deadline: end of the wait, in seconds since 1970.
    """

    def __init__(self, *, system: str, deadline: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.system = system
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments."""
        _, kwargs = super().serialize()
        own = {"system": self.system, "deadline": self.deadline}
        return f"{type(self).__module__}.{type(self).__qualname__}", {**kwargs, **own}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        wait, said_at, said = float(self.poke_interval), float("-inf"), ""
        text = ""
        while (left := self.deadline - time.time()) > 0:
            await jittered_sleep(min(wait, left))
            up, text = await self._look()
            if up:
                self.log.info("%s", text)
                yield fire({"outcome": "up", "status": text})
                return
            if text != said or time.monotonic() - said_at >= _SAY_EVERY:
                said, said_at = text, time.monotonic()
                self.log.warning("Waiting for %s. %s", self.system, text)
            wait = min(wait * 1.5, max(_LONGEST_WAIT, self.poke_interval))
        yield fire({"outcome": "given up", "status": text})

    async def _look(self) -> tuple[bool, str]:
        try:
            status = MachineStatus.read(await self._read(self.endpoint or ""), self.system)
        except (aiohttp.ClientError, TimeoutError, ValueError, FacilityError) as error:
            return False, f"The status page does not answer ({type(error).__name__}: {error})."
        if status.up:
            return True, describe(status, None)
        return False, await self._explain(status)

    async def _explain(self, status: MachineStatus) -> str:
        outages: list[Outage] = []
        for page in OUTAGE_PAGES:
            try:
                outages += read_outages(await self._read(f"{page}/{self.system}"), ZoneInfo(TIME_ZONE))
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                self.log.info("The page of outages does not answer: %r", error)
        return describe(status, outages[0] if outages else None)

    async def _read(self, endpoint: str) -> Any:
        async with asyncio.timeout(REQUEST_TIMEOUT), aiohttp.ClientSession() as session:
            hook = self._get_async_hook()
            hook.retry_limit = 1
            options = {**self.extra_options, "check_response": False}
            response = await hook.run(
                session=session, endpoint=endpoint, headers=self.headers, extra_options=options
            )
            response.raise_for_status()
            return await response.json()
