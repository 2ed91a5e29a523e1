"""Measures the page of scans in a database of its own: `python -m support.measure_scans FOLDER COUNT`.

The database is the one of AIRFLOW__DATABASE__SQL_ALCHEMY_CONN, or SQLite in FOLDER. Prints JSON: seconds, and
seconds of CPU.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.local_airflow.settings import local_environment

_DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"


def measure(count: int) -> dict[str, tuple[float, float]]:
    """Seconds that each thing takes with so many runs, and those of them on this process's CPU."""
    from airflow.utils.session import create_session

    from cosmic import scan_index
    from cosmic.pages import scans
    from deployment.database import prepare_database
    from support.many_scans import write_runs

    prepare_database({})
    with create_session() as session:
        write_runs(session, count)
    scan_index._REFRESH_AFTER = 0.0
    index = scan_index.index
    seconds: dict[str, tuple[float, float]] = {}

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        began, cpu = time.perf_counter(), time.process_time()
        yield
        seconds[what] = (round(time.perf_counter() - began, 4), round(time.process_time() - cpu, 4))

    with create_session() as session:
        with timed("first read, in the background"):
            index.refresh(session)
        for what, query in {
            "first page": {},
            "page 500": {"page": "500"},
            "a day": {"day": "2026-06-01"},
            "failed ones": {"state": "failed"},
            "a text": {"text": "probe no support"},
        }.items():
            with timed(f"{what}, after a change"):
                scans.lists.make(index.refresh(session), scans.asked(**query), "", scans.Rights(True, True))
        with timed("first page, nothing new"):
            scans.lists.make(index.snapshot, scans.asked(), "", scans.Rights(True, True))
        index._edits_read = float("-inf")
        with timed("once a minute: look for what was changed by hand"):
            index.refresh(session)
    return seconds


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    database = os.environ.get(_DATABASE)
    os.environ |= local_environment(folder, 9, {_DATABASE: database} if database else None)
    print(json.dumps(measure(number)))
