"""Starting runs for scans that the watcher has noticed: the task body of `watch_scans`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

from airflow.sdk import get_current_context

from cosmic import runs
from cosmic.beamline import beamline
from cosmic.processing import parameters_of
from cosmic.scans import ScanPath, parse_scan_path
from facilities.errors import UserError

log = logging.getLogger(__name__)

NOTE = "Noticed by watch_scans"


class Noticed(TypedDict):
    """What a run of `watch_scans` did: paths of scans."""

    started: list[str]
    known: list[str]  # had a run already


def start_noticed() -> Noticed:
    """Start a run for each scan of the events that triggered this run; one that exists is left as it is."""
    site = beamline()
    result = Noticed(started=[], known=[])
    for scan in sorted(set(_scans(get_current_context())), key=str):
        if scan.day is None:
            raise UserError(
                f"{scan.relative} is not named as a scan",
                next_step="tell the keeper of this DAG: it is a bug.",
            )
        conf = {**parameters_of(site, scan.day), "file_path": str(scan.relative)}
        is_new = runs.start(scan.run_id(), conf, NOTE)
        result["started" if is_new else "known"].append(str(scan.relative))
    log.info("%d runs started; %d scans had one.", len(result["started"]), len(result["known"]))
    return result


def _scans(context: Mapping[str, Any]) -> Iterator[ScanPath]:
    # One run gets all events that have come since the last, so there may be several.
    events = context.get("triggering_asset_events") or {}
    for asset in events:
        for event in events[asset]:
            for path in event.extra.get("payload", {}).get("scans", []):
                yield parse_scan_path(path)
