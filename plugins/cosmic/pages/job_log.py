"""The last lines of a run's own Slurm job: asked for at NERSC when somebody looks, once for all who do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from airflow.api_fastapi.common.db.common import SessionDep
from airflow.models.dagrun import DagRun
from airflow.models.task_state_store import TaskStateStoreModel
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy import select

from cosmic.beamline import beamline
from cosmic.dag_constants import SUPERFACILITY_CONN_ID, TRANSFER_AUTO_RECON
from cosmic.pages.pictures import MayRead, find_run
from cosmic.pages.rendering import HEADERS, DagId, RunId
from cosmic.parameters import ENGINES
from cosmic.plan import result_prefix
from cosmic.run_summary import XComs
from cosmic.scans import parse_scan_path
from facilities.errors import FacilityError, NotFoundError
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.submission import JOB_KEY

LINES = 40
KEPT_FOR = 15.0  # seconds in which all who look get the same answer
_OLD = 120.0  # seconds after which an answer is not shown any more
_MAX_ENTRIES = 500

router = APIRouter()


@dataclass
class _Entry:
    """What one path was found to hold; whoever comes while it is first asked for waits for that answer."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    asked: float = float("-inf")
    found: dict[str, Any] = field(default_factory=dict)


class Answers:
    """Answers by path, each asked for at most once in `KEPT_FOR` seconds."""

    def __init__(
        self, ask: Callable[[str], dict[str, Any]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask, self._clock = ask, clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    def get(self, path: str) -> dict[str, Any]:
        """The answer about a path, at most `KEPT_FOR` seconds old; the one before while it is asked for."""
        with self._lock:
            if len(self._entries) >= _MAX_ENTRIES:
                recent = self._clock() - KEPT_FOR
                self._entries = {key: entry for key, entry in self._entries.items() if entry.asked > recent}
            entry = self._entries.setdefault(path, _Entry())
        # Who can be shown the answer before does not wait: while NERSC hangs, that would keep all threads.
        if not entry.lock.acquire(blocking=self._clock() - entry.asked > _OLD):
            return entry.found
        try:
            if self._clock() - entry.asked >= KEPT_FOR:
                entry.found = self._ask(path)
                entry.asked = self._clock()
            return entry.found
        finally:
            entry.lock.release()


def _ask_nersc(path: str) -> dict[str, Any]:
    try:
        with closing(SuperfacilityHook(SUPERFACILITY_CONN_ID, attempts=1)) as hook:
            text = hook.tail(beamline().job.machine, path, lines=LINES)
    except NotFoundError:
        return {"why_not": "The job has not written anything yet."}
    except FacilityError as error:
        return {"why_not": f"It could not be read from NERSC ({error.what})."}
    return {"text": text}


answers = Answers(_ask_nersc)


@router.get("/dags/{dag_id}/runs/{run_id}/{engine}/log", dependencies=[MayRead])
def job_log(dag_id: DagId, run_id: RunId, engine: str, session: SessionDep) -> JSONResponse:
    """`text`, the last lines of the job's output, or `why_not`; and `job_id`."""
    run = find_run(session, dag_id, run_id)
    known = engine in ENGINES and run.dag_id == TRANSFER_AUTO_RECON
    job_id = newest_job(session, run, engine) if known else None
    if job_id is None:
        return JSONResponse({"why_not": "There is no job yet."}, headers=HEADERS)
    scan = parse_scan_path((run.conf or {}).get("file_path"))
    path = f"{result_prefix(beamline(), scan, engine, run)}_{job_id}.out"
    session.close()  # NERSC may take its time, and connections to the database are few
    return JSONResponse({"job_id": job_id, **answers.get(path)}, headers=HEADERS)


def newest_job(session: SessionDep, run: DagRun, engine: str) -> str | None:
    """Id of the run's Slurm job: the one submitted last, when it had to be submitted again."""
    submitted = XComs(session, run).mapping(f"{engine}.submit", "job")
    again = session.scalar(
        select(TaskStateStoreModel.value).where(
            TaskStateStoreModel.dag_run_id == run.id,
            TaskStateStoreModel.task_id == f"{engine}.wait",
            TaskStateStoreModel.key == JOB_KEY,
        )
    )
    try:
        held = json.loads(again) if again else None
    except ValueError:
        held = None
    for job in (held, submitted):
        job_id = str(job.get("job_id") or "") if isinstance(job, dict) else ""
        if job_id.isdecimal() and job_id.isascii():
            return job_id
    return None
