"""Puts a synthetic scan into the stand-in's beamline collection: `python -m standin.example_scan [COUNT]`.

Runs in the stand-in's container. Prints each scan's `file_path`, as the beamline's client takes it.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from standin.synthetic_scan import make_scan, scan_path

COLLECTION = Path("/standin/collections/data7012")


def add_scan(collection: Path = COLLECTION, n_frames: int = 49) -> str:
    """Make a scan under today's next free number; returns its `file_path`."""
    today = datetime.now(UTC).date()
    number = next(n for n in range(1, 1000) if not (collection / scan_path(today, n)).exists())
    path = collection / scan_path(today, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    make_scan(path, n_frames=n_frames, seed=number)
    return scan_path(today, number)


if __name__ == "__main__":
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
        print(add_scan(), flush=True)
