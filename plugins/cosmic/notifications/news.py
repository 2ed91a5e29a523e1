"""The events of runs: read from Airflow's database, in the API server, for the task of `notify`.

Tasks have no access to the database and no user for Airflow's REST API. It asks here, with a token made with
Airflow's own signing key, `[api_auth] jwt_secret`, which every component has; no person's token is accepted.
Nothing is changed, and nothing of the request reaches a query but a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import jwt
from airflow.api_fastapi.auth.tokens import JWTValidator, get_sig_validation_args
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.configuration import conf
from airflow.models.dagrun import DagRun
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from cosmic.beamline import beamline, notify_limits
from cosmic.dag_constants import (
    FIND_MISSED_SCANS,
    FLIGHT_CHECK,
    NOTIFY,
    PROCESS_NEWFILE,
    STACK_SCAN,
    TRANSFER_AUTO_RECON,
)
from cosmic.notifications.book import Event, Kind, Picture, duration
from cosmic.notifications.tasks import AUDIENCE
from cosmic.pages.addresses import run_page
from cosmic.pages.scan_runs import scan_of_run
from cosmic.plan import result_prefix
from cosmic.run_requests import PARAMETERS
from cosmic.run_summary import RunSummary, Step, XComs, summarize, summarize_end
from cosmic.scan_index import index
from cosmic.scan_snapshot import Snapshot
from cosmic.scans import parse_scan_path
from facilities.errors import UserError

MAX_DESCRIBED = 1000  # runs that are read as a whole in one answer; of others only that they failed
MAX_LATE_DESCRIBED = 20  # late runs: of more, not what each waits for

_KINDS: Mapping[str, Kind] = {
    TRANSFER_AUTO_RECON: "scan",
    PROCESS_NEWFILE: "scan",
    STACK_SCAN: "scan",
    FLIGHT_CHECK: "check",
}
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._+~-]")
_DAYS_LEFT = (1, 2, 3, 7)
"""When to notify again that the client expires, besides `notify.client_days`."""

app = FastAPI(title="COSMIC notifications", docs_url=None, redoc_url=None, openapi_url=None)


async def _check_token(request: Request) -> None:
    """:raises HTTPException: the request is not from a task of this Airflow."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    validator = JWTValidator(audience=AUDIENCE, **get_sig_validation_args(make_secret_key_if_needed=False))
    try:
        if scheme != "Bearer":
            raise jwt.InvalidTokenError
        await validator.avalidated_claims(token)
    except jwt.InvalidTokenError as error:
        raise HTTPException(401, "This address is for the tasks of this Airflow.") from error


@app.get("/news", dependencies=[Depends(_check_token)])
def news(since: Annotated[float, Query(ge=0, le=1e11)], session: SessionDep) -> dict[str, Any]:
    """All that people are to be notified of.

    :param since: seconds since 1970, from when on the ends of runs are wanted.
    """
    now = datetime.now(UTC)
    return {"events": read_news(session, datetime.fromtimestamp(since, UTC), now)}


def read_news(session: Session, since: datetime, now: datetime) -> list[Event]:
    """What has failed or was found since then, and what goes on.

    A run that a person has ended is no event; one that was cleared meanwhile is no failure any more.
    """
    return [
        *_failures(session, since),
        *_late(session, now),
        *_missed(session, since, now),
        *_client(session, now),
    ]


def page_url(dag_id: str, run_id: str) -> str:
    """Address of the page about a run, for people."""
    address = conf.get("api", "base_url", fallback="") or "http://localhost:8080"
    return run_page(address.rstrip("/"), run_id, dag_id)


def _failures(session: Session, since: datetime) -> Iterator[Event]:
    failed = (
        select(DagRun)
        .where(
            DagRun.dag_id.in_(PARAMETERS.keys() - {NOTIFY}),
            DagRun.state == "failed",
            DagRun.end_date >= since,
        )
        .order_by(DagRun.end_date.desc())
    )
    scans = index.refresh(session, at_once=True)
    for place, run in enumerate(session.scalars(failed)):
        described = place < MAX_DESCRIBED
        summary = summarize_end(session, run, "") if described else None
        if summary is None or summary.outcome != "cancelled":
            yield _failure(run, summary, _pictures(session, run, scans) if described else [])


def _failure(run: DagRun, summary: RunSummary | None, pictures: list[Picture]) -> Event:
    what = advice = command = ""
    if summary is not None:
        step = next((step for step in summary.failed if step.error), None)
        what, advice = _cause(summary, step)
        command = str(((step and step.error) or {}).get("run_again") or summary.run_again)
    return Event(
        id=f"failed {run.id} {run.end_date}",
        kind=_KINDS.get(run.dag_id, "program"),
        at=_seconds(run.end_date),
        subject=_subject(run),
        what=what,
        advice=advice,
        command=command,
        url=page_url(run.dag_id, run.run_id),
        pictures=pictures,
    )


def _cause(summary: RunSummary, step: Step | None) -> tuple[str, str]:
    """What failed, and what to do."""
    if step is None or step.error is None:
        names = ", ".join(step.name for step in summary.failed)
        return (
            f"It ended without a message ({names or 'no task failed by itself'})",
            "look at the log of its last task; a worker was lost, or the run had reached its time limit.",
        )
    return str(step.error.get("what") or step.name), str(step.error.get("next_step") or "")


def _subject(run: DagRun) -> str:
    values = run.conf or {}
    if run.dag_id == TRANSFER_AUTO_RECON:
        return f"scan {run.run_id}"
    if run.dag_id == PROCESS_NEWFILE:
        return f"copy of {values.get('file_path') or run.run_id}"
    if run.dag_id == STACK_SCAN:
        return f"stack of {values.get('scan') or run.run_id}"
    return "flight check" if run.dag_id == FLIGHT_CHECK else str(run.dag_id)


def _pictures(session: Session, run: DagRun, scans: Snapshot) -> list[Picture]:
    """What there is to see of its file: of each engine the run's own result, or else an earlier run's."""
    scan = scans.scan(scan_of_run(run.run_id, run.conf)) if run.dag_id == TRANSFER_AUTO_RECON else None
    files = [file for file in scan.files if any(its.id == run.id for its in file.runs)] if scan else []
    earlier = [its for file in files for its in file.runs if its.id <= run.id]  # the newest first
    newest = {engine: its for its in reversed(earlier) for engine in its.results}
    found = []
    for engine, its in sorted(newest.items(), key=lambda item: -item[1].id):
        of = session.get(DagRun, its.id)
        if of is None or of.run_id != its.run_id:  # it was deleted a moment ago
            continue
        try:
            path = result_prefix(beamline(), parse_scan_path((of.conf or {}).get("file_path")), engine, of)
        except UserError:
            continue
        name = _NOT_IN_A_NAME.sub("_", f"{'' if of is run else 'earlier_run_'}{of.run_id}_{engine}.png")
        found.append(
            Picture(
                name=name,
                run_id=of.run_id,
                run_after=of.run_after.isoformat(),
                engine=engine,
                path=f"{path}.png",
            )
        )
    return found


def _late(session: Session, now: datetime) -> Iterator[Event]:
    limit = timedelta(hours=notify_limits().late_after_hours)
    began = func.coalesce(DagRun.queued_at, DagRun.start_date)
    late = select(DagRun).where(
        DagRun.dag_id.in_((TRANSFER_AUTO_RECON, PROCESS_NEWFILE)),
        DagRun.state.in_(("queued", "running")),
        began < now - limit,
        DagRun.run_after < now - limit,
    )
    runs = session.scalars(late.order_by(began)).all()
    for run in runs:
        active = summarize(session, run, "").active if len(runs) <= MAX_LATE_DESCRIBED else ()
        doing = ", ".join(f"{step.name}: {step.state}" for step in active)
        yield Event(
            id=f"late {run.id} {run.queued_at}",
            kind="late",
            at=now.timestamp(),
            subject=_subject(run),
            what=f"not done after {duration(limit.total_seconds())}{f' ({doing})' if doing else ''}",
            advice="look at its page for what it waits for; it goes on by itself, or can be ended.",
            command="",
            url=page_url(run.dag_id, run.run_id),
            pictures=[],
        )


def _missed(session: Session, since: datetime, now: datetime) -> Iterator[Event]:
    """The scans that runs of `find_missed_scans` have found; they may take days to start all of them."""
    searches = select(DagRun).where(
        DagRun.dag_id == FIND_MISSED_SCANS,
        or_(DagRun.state == "running", and_(DagRun.state == "success", DagRun.end_date >= since)),
    )
    for run in session.scalars(searches.order_by(DagRun.start_date)):
        found = XComs(session, run).get("compare", "rows")
        rows = [row for row in (found if isinstance(found, list) else []) if row["missing"]]
        if not rows:
            continue
        days = rows[0]["day"] + (f" to {rows[-1]['day']}" if len(rows) > 1 else "")
        dry = bool((run.conf or {}).get("dry_run"))
        yield Event(
            id=f"missed {run.id} {run.start_date}",
            kind="missed",
            at=_seconds(run.end_date or now),
            subject=days,
            what=f"{_total(rows, 'missing')} of {_total(rows, 'on_disk')} scans were missed",
            advice=(
                "start them: find_missed_scans without dry_run."
                if dry
                else "nothing: they are being started. If it happens again, see why they were not posted."
            ),
            command="",
            url=page_url(run.dag_id, run.run_id),
            pictures=[],
        )


def _client(session: Session, now: datetime) -> Iterator[Event]:
    """That NERSC's client expires, by the newest flight check that could see it."""
    first = notify_limits().client_days
    limits = [*(days for days in _DAYS_LEFT if days < first), first]
    checks = select(DagRun).where(
        DagRun.dag_id == FLIGHT_CHECK, DagRun.state.in_(("success", "failed")), DagRun.end_date.is_not(None)
    )
    run = session.scalar(checks.order_by(DagRun.end_date.desc()).limit(1))
    left = None if run is None else XComs(session, run).get("check_nersc")
    if run is None or not isinstance(left, (int, float)):
        return
    days = left - (now - run.end_date).total_seconds() / 86400
    reached = next((limit for limit in limits if days < limit), None)
    if reached is not None:
        whole = max(int(days), 0)
        yield Event(
            id=f"client {reached:g}",
            kind="client",
            at=now.timestamp(),
            subject="NERSC's client",
            what=f"expires in {whole} day{'' if whole == 1 else 's'}",
            advice=(
                "make a new one in Iris (Profile, Superfacility API Clients, level Red), put its id and key "
                "in place of the old ones, and run the flight check. Without it nothing is reconstructed."
            ),
            command="",
            url=page_url(run.dag_id, run.run_id),
            pictures=[],
        )


def _total(rows: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(int(row[name]) for row in rows)


def _seconds(moment: datetime | None) -> float:
    return moment.timestamp() if moment else 0.0
