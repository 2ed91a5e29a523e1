"""Keeps the plan of a run of `find_missed_scans` that reprocesses everything, until all of it is started.

"One more generation of each scan" is another one each time it is worked out. When such a run is interrupted
and started again, it must keep to its first plan, or scans would be processed twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cosmic.scans import ScanPath

_KEY = "reprocessing"
_SCANS_PER_VALUE = 2000  # 30 kB; a value may have 64


def keep_to_plan(
    store: Any,
    request: Mapping[str, Any],
    wanted: Mapping[ScanPath, int],
    runs: Mapping[ScanPath, Mapping[int, str]],
) -> dict[ScanPath, int]:
    """Which of the wanted scans to start, and as which generation.

    :param store: Airflow's task state store, which survives retries, clears and a backfill's reprocessing.
    :param request: what makes two requests the same.
    :param wanted: the scans to reprocess, each with its next generation.
    :param runs: states of the runs that exist, by generation.
    """
    fingerprint = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    planned: dict[str, int] = {}
    head = store.get(_KEY) or {}
    if head.get("fingerprint") == fingerprint:
        for number in range(head["parts"]):
            planned |= store.get(f"{_KEY}-{number}") or {}
    left = {
        scan: generation
        for scan in wanted
        if (generation := planned.get(_name(scan), 0)) and generation not in runs.get(scan, {})
    }
    if not left:  # all of it was started, or there was no plan
        planned = {}
    new = {scan: generation for scan, generation in wanted.items() if _name(scan) not in planned}
    entries = [*planned.items(), *((_name(scan), generation) for scan, generation in new.items())]
    parts = [dict(entries[n : n + _SCANS_PER_VALUE]) for n in range(0, len(entries), _SCANS_PER_VALUE)]
    for number, part in enumerate(parts):
        store.set(f"{_KEY}-{number}", part)
    # Last: without it the parts mean nothing.
    store.set(_KEY, {"fingerprint": fingerprint, "parts": len(parts)})
    return left | new


def _name(scan: ScanPath) -> str:
    return hashlib.sha256(str(scan.relative).encode()).hexdigest()[:8]
