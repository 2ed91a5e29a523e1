"""Noticing new scans ourselves: an asset for the beamline's scan folder, and the trigger that watches it.

Off by default, because the beamline posts its scans; on with `watcher.enabled` in `beamline.yaml`. The
setting is read again every few seconds, so nothing has to be restarted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Mapping
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import structlog
from airflow.sdk import Asset, AssetWatcher
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from cosmic import runs
from cosmic.beamline import Beamline, beamline
from cosmic.folders import list_beamline
from cosmic.noticing import Listing, Noticing
from cosmic.scans import ScanPath
from facilities.errors import FacilityError
from facilities.globus.hook import GlobusHook
from facilities.polling import jittered_sleep

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import AssetStateStoreAccessors

log = structlog.get_logger(__name__)

OFF_SLEEP = 10.0
_LONGEST_BACKOFF = 600.0
_SCANS_PER_EVENT = 200
_LOOK_BACK = timedelta(days=1)  # a scan of the last minutes before midnight lies in yesterday's folder


class NewScansTrigger(BaseEventTrigger):
    """Lists the beamline's folders of today and yesterday and tells of scans that are new and finished.

    Yields {"scans": [path, ...]}. Triggers in one triggerer share the listing. What has a run is remembered
    in the asset's state store, by day, so a restart tells nobody twice; a scan that nobody has started
    after a while is told again. A run id belongs to one scan, so that never makes a second run.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments: none, all is read from `beamline.yaml` while it runs."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {}

    def shared_stream_key(self) -> Hashable:
        """There is one scan folder, so all share one listing."""
        return ("cosmic", "scan folder")

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch alone, as the triggerer does when streams cannot be shared."""
        async for event in self.filter_shared_stream(self.open_shared_stream({})):
            yield event

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncIterator[Listing]:  # noqa: ARG003 - Airflow's
        """List at the set interval for ever; while it is off, only look whether it has been turned on."""
        backoff = 0.0
        while True:
            try:
                site = await asyncio.to_thread(beamline)
                if not site.watcher.enabled:
                    await asyncio.sleep(OFF_SLEEP)
                    continue
                listing = await asyncio.to_thread(list_folders, site)
            except FacilityError as error:
                backoff = min(max(backoff * 2, 15.0), _LONGEST_BACKOFF)
                log.warning(
                    "The scan folder cannot be listed; trying again.", error=str(error), after=backoff
                )
                await jittered_sleep(backoff)
            else:
                backoff = 0.0
                yield listing
                await jittered_sleep(site.watcher.interval_seconds)

    async def filter_shared_stream(
        self, shared_stream: AsyncIterator[Listing]
    ) -> AsyncIterator[TriggerEvent]:
        """Turn listings into events about new scans."""
        noticing: Noticing | None = None
        async for listing in shared_stream:
            if noticing is None:
                noticing = Noticing(await self._remembered(listing.scans))
            due = noticing.due(listing)
            try:
                known = await asyncio.to_thread(_with_run, due)
                await self._remember(noticing, known, listing)
            except Exception as error:  # noqa: BLE001 - whatever it is: the next listing asks again
                log.warning("Airflow does not tell which scans have a run; asking again.", error=str(error))
                continue
            new = [path for path in due if path not in known]
            for first in range(0, len(new), _SCANS_PER_EVENT):
                some = new[first : first + _SCANS_PER_EVENT]
                payload = {"scans": [str(path.relative) for path in some]}
                yield TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow's
                noticing.told(some, listing.time)

    async def _remembered(self, days: Mapping[date, Any]) -> dict[date, set[str]]:
        found = {}
        for day in days:
            values = await self._store.aget(_key(day), [])
            found[day] = {str(value) for value in values} if isinstance(values, list) else set()
        return found

    async def _remember(self, noticing: Noticing, known: set[ScanPath], listing: Listing) -> None:
        for day in noticing.settle(known, listing.scans.keys()):
            if day in noticing.done:
                await self._store.aset(_key(day), [*sorted(noticing.done[day])])
            else:
                await self._store.adelete(_key(day))

    @property
    def _store(self) -> AssetStateStoreAccessors:
        if self.asset_state_store is None:
            raise RuntimeError(f"{type(self).__name__} belongs to an asset's watcher, and nowhere else.")
        return self.asset_state_store


SCAN_FOLDER = Asset(
    "cosmic_scan_folder", watchers=[AssetWatcher(name="new_scans", trigger=NewScansTrigger())]
)
"""The beamline's scan folder; an event of it says that there are new scans."""


def _key(day: date) -> str:
    return f"with-run-{day}"


def list_folders(site: Beamline) -> Listing:
    now = datetime.now(UTC)
    today = now.astimezone(ZoneInfo(site.time_zone)).date()
    with closing(GlobusHook(site.connections.globus)) as hook:
        scans = {
            day: list_beamline(hook, site.collections.source, day).scans
            for day in (today - _LOOK_BACK, today)
        }
    return Listing(now, timedelta(seconds=site.watcher.min_age_seconds), scans)


def _with_run(paths: list[ScanPath]) -> set[ScanPath]:
    return runs.with_a_run(paths) if paths else set()
