"""The plan of a run of `find_missed_scans` that reprocesses everything, kept until all of it is started.

"One more generation of each scan" means something else each time it is worked out. Broken off and started
again, the same run must go on with what it had in mind, or scans would be processed twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from cosmic.scans import ScanPath

_KEY = "reprocessing"
_SCANS_PER_VALUE = 2000  # 30 kB; a value may have 64


class Store(Protocol):
    """Airflow's task state store: survives retries, clears and a backfill's reprocessing of the run."""

    def get(self, key: str, default: Any = None) -> Any:
        """Read a value."""

    def set(self, key: str, value: Any) -> None:
        """Write a value."""


def settle(
    store: Store,
    asked: Mapping[str, Any],
    wanted: Mapping[ScanPath, int],
    runs: Mapping[ScanPath, Mapping[int, str]],
) -> dict[ScanPath, int]:
    """Which of the wanted scans to start, and as which generation.

    :param asked: what makes a request the same request.
    :param wanted: the scans to reprocess, each with its next generation.
    :param runs: the runs that exist, by generation.
    """
    fingerprint = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    planned = _load(store, fingerprint)
    left = {
        scan: generation
        for scan in wanted
        if (generation := planned.get(_name(scan), 0)) and generation not in runs.get(scan, {})
    }
    if not left:
        _save(store, fingerprint, {_name(scan): generation for scan, generation in wanted.items()})
        return dict(wanted)
    # Not all of it was started: go on, with scans that have come since.
    new = {scan: generation for scan, generation in wanted.items() if _name(scan) not in planned}
    if new:
        _save(store, fingerprint, planned | {_name(scan): generation for scan, generation in new.items()})
    return left | new


def _name(scan: ScanPath) -> str:
    return hashlib.sha256(str(scan.relative).encode()).hexdigest()[:8]


def _load(store: Store, fingerprint: str) -> dict[str, int]:
    head = store.get(_KEY) or {}
    if head.get("fingerprint") != fingerprint:
        return {}
    planned: dict[str, int] = {}
    for part in range(head["parts"]):
        planned |= store.get(f"{_KEY}-{part}") or {}
    return planned


def _save(store: Store, fingerprint: str, planned: Mapping[str, int]) -> None:
    entries = list(planned.items())
    parts = [dict(entries[n : n + _SCANS_PER_VALUE]) for n in range(0, len(entries), _SCANS_PER_VALUE)]
    for number, part in enumerate(parts):
        store.set(f"{_KEY}-{number}", part)
    # Last: without it the parts mean nothing.
    store.set(_KEY, {"fingerprint": fingerprint, "parts": len(parts)})
