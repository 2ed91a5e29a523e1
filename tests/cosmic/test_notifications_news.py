"""What Airflow's database says of runs: failures, late and missed scans, a client that expires."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from airflow.models.asset import AssetEvent
from airflow.models.dagrun import DagRun
from airflow.models.log import Log
from airflow.utils.session import create_session
from sqlalchemy import delete, insert
from sqlalchemy.orm import Session

from cosmic.beamline import DEFAULT_FILE
from cosmic.notifications.book import Event, due, read_book
from cosmic.notifications.message import compose
from cosmic.notifications.receivers import Receiver, send
from support.many_scans import asset, event_row, facts
from support.receivers import mail_server

NOW = datetime(2026, 7, 1, 19, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"


@pytest.fixture
def news() -> Any:
    """The module: what it imports warns, so that it is imported with the plugins."""
    from cosmic.notifications import news

    return news


@pytest.fixture
def session(airflow_database: None, news: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """The session's database without runs, and an index that has read nothing."""
    from cosmic.scan_index import ScanIndex

    monkeypatch.setattr(news, "index", ScanIndex())
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(DEFAULT_FILE))
    with create_session() as session:
        for table in (AssetEvent, DagRun):
            session.execute(delete(table))
        yield session
        session.rollback()


@pytest.fixture
def add(session: Session) -> Callable[..., DagRun]:
    """Add a run; one that failed an hour ago unless the keywords say otherwise."""

    def make(run_id: str = "NS_230216033_0_0", dag_id: str = "transfer_auto_recon", **fields: Any) -> DagRun:
        ended = fields.pop("end_date", NOW - HOUR)
        run = DagRun(
            dag_id=dag_id,
            run_id=run_id,
            run_type="manual",
            **{
                "state": "failed",
                "conf": {"file_path": SCAN},
                "run_after": NOW - 2 * HOUR,
                "queued_at": NOW - 2 * HOUR,
                "start_date": NOW - 2 * HOUR,
                **fields,
            },
        )
        run.end_date = ended
        session.add(run)
        session.flush()
        return run

    return make


@pytest.fixture
def events(news: Any, session: Session) -> Callable[..., list[Event]]:
    """All events, of two hours unless another time is given."""

    def read(since: datetime = NOW - 2 * HOUR) -> list[Event]:
        session.flush()
        found: list[Event] = news.read_news(session, since, NOW)
        return found

    return read


@pytest.fixture
def xcoms(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give every run these XComs, by task and key."""
    from cosmic.run_summary import XComs

    def give(values: dict[tuple[str, str], Any]) -> None:
        monkeypatch.setattr(XComs, "get", lambda _, task_id, key="return_value": values.get((task_id, key)))

    return give


def test_a_failed_scan(
    add: Callable[..., DagRun], events: Callable[..., list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://cosmic.example.org/airflow/")
    run = add()
    (event,) = events()
    assert (event["kind"], event["subject"]) == ("scan", "scan NS_230216033_0_0")
    assert event["what"] == "It ended without a message (no task failed by itself)"
    assert event["command"] == f"submit_scan.py reprocess {SCAN}"
    address = "https://cosmic.example.org/airflow/cosmic/dags/transfer_auto_recon/runs/NS_230216033_0_0"
    assert event["url"] == address
    run.end_date = NOW  # it was cleared, and has failed again
    assert events()[0]["id"] != event["id"]
    run.state = "running"
    assert events() == []


def test_only_what_has_ended_since_and_what_is_ours(
    add: Callable[..., DagRun], events: Callable[..., list[Event]]
) -> None:
    add("old", end_date=NOW - 3 * HOUR)
    add("done", state="success")
    add("x", dag_id="somebody_elses")
    add("y", dag_id="notify")
    assert events() == []
    assert [event["subject"] for event in events(NOW - 4 * HOUR)] == ["scan old"]


def test_each_dag_is_named_for_people(add: Callable[..., DagRun], events: Callable[..., list[Event]]) -> None:
    add("a", dag_id="process_newfile_7012_ptycho4", conf={"file_path": "2023/x"})
    add("b", dag_id="stack_scan", conf={"scan": "NS_230216033"})
    add("c", dag_id="test_cosmicDTN_transfers", conf={})
    add("d", dag_id="watch_scans", conf={})
    found = {(event["kind"], event["subject"]) for event in events()}
    assert found == {
        ("scan", "copy of 2023/x"),
        ("scan", "stack of NS_230216033"),
        ("check", "flight check"),
        ("program", "watch_scans"),
    }


def test_a_run_that_a_person_ended_is_no_event(
    add: Callable[..., DagRun], events: Callable[..., list[Event]], session: Session
) -> None:
    run = add()
    log = Log(event="patch_dag_run", owner="anna", extra='{"new_state": "failed"}')
    log.dag_id, log.run_id, log.dttm = run.dag_id, run.run_id, NOW - HOUR
    session.add(log)
    session.flush()
    assert events() == []


def test_more_failures_than_are_read_are_events_too(
    add: Callable[..., DagRun],
    events: Callable[..., list[Event]],
    news: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(news, "MAX_DESCRIBED", 2)
    for number in range(5):
        add(f"run{number}", end_date=NOW - number * timedelta(minutes=1))
    found = events()
    assert [event["subject"] for event in found] == [f"scan run{number}" for number in range(5)]
    assert [bool(event["what"]) for event in found] == [True, True, False, False, False]


def test_two_hundred_failures_are_one_mail(
    add: Callable[..., DagRun], events: Callable[..., list[Event]]
) -> None:
    for number in range(200):
        add(f"run{number}", end_date=NOW - number * timedelta(seconds=1))
    receiver = read_book(None, ["mail"], (NOW - HOUR).timestamp())["receivers"]["mail"]
    message = compose(due(receiver, events(), NOW.timestamp(), 1800))
    with mail_server() as mailbox:
        send(Receiver("r", "k", mailbox.url), message.subject, message.text, good=message.good)
    (mail,) = mailbox.mails
    assert str(mail["Subject"]).startswith("COSMIC: 200 scans failed: It ended without a message")
    body = mail.get_body(("plain",))
    assert body is not None
    assert "- and 190 more" in body.get_content()


def test_a_broken_beamline_yaml_keeps_nothing_back(
    add: Callable[..., DagRun],
    events: Callable[..., list[Event]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "beamline.yaml").write_text("notify: {late_after_hours: soon}")
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(tmp_path / "beamline.yaml"))
    old = NOW - 25 * HOUR
    add("failed")
    add("late", state="running", end_date=None, queued_at=old, run_after=old)
    assert [event["kind"] for event in events()] == ["scan", "late"]


def test_a_late_scan(add: Callable[..., DagRun], events: Callable[..., list[Event]]) -> None:
    old = NOW - 25 * HOUR
    add("new", state="running", end_date=None)
    add("late", state="running", end_date=None, queued_at=old, run_after=old)
    add("planned", state="queued", end_date=None, queued_at=old, run_after=NOW + HOUR)
    add("search", state="running", end_date=None, queued_at=old, run_after=old, dag_id="find_missed_scans")
    (event,) = events()
    assert (event["kind"], event["subject"], event["what"]) == ("late", "scan late", "not done after 24 h")
    assert events()[0]["id"] == event["id"]


def test_missed_scans_are_an_event_once_they_are_found(
    add: Callable[..., DagRun], events: Callable[..., list[Event]], xcoms: Callable[..., None]
) -> None:
    rows = [
        {"day": "2023-02-14", "missing": 0, "on_disk": 7},
        {"day": "2023-02-16", "missing": 2, "on_disk": 40},
        {"day": "2023-02-17", "missing": 10, "on_disk": 20},
    ]
    xcoms({("compare", "rows"): rows})
    run = add("search", dag_id="find_missed_scans", state="running", end_date=None, conf={})
    (event,) = events()
    assert (event["kind"], event["subject"]) == ("missed", "2023-02-16 to 2023-02-17")
    assert event["what"] == "12 of 60 scans were missed"
    run.state, run.end_date = "success", NOW
    assert events()[0]["id"] == event["id"]
    rows[:] = rows[:1]
    assert events() == []


@pytest.mark.parametrize(
    ("left", "what"),
    [
        (20.0, None),
        (13.9, "expires in 13 days"),
        (6.5, "expires in 6 days"),
        (1.5, "expires in 1 day"),
        (0.5, "expires in 0 days"),
        (None, None),
        ("hostile", None),
    ],
)
def test_a_client_that_expires(
    add: Callable[..., DagRun],
    events: Callable[..., list[Event]],
    xcoms: Callable[..., None],
    left: float | None,
    what: str | None,
) -> None:
    xcoms({("check_nersc", "return_value"): left})
    add("check", dag_id="test_cosmicDTN_transfers", state="success", conf={})
    assert [event["what"] for event in events() if event["kind"] == "client"] == ([what] if what else [])


def test_that_a_client_expires_is_an_event_of_few_days(
    add: Callable[..., DagRun], events: Callable[..., list[Event]], xcoms: Callable[..., None]
) -> None:
    add("check", dag_id="test_cosmicDTN_transfers", state="success", conf={})
    ids = []
    for left in range(20, -1, -1):
        xcoms({("check_nersc", "return_value"): left + 0.5})
        ids += [event["id"] for event in events() if event["id"] not in ids]
    assert ids == ["client 14", "client 7", "client 3", "client 2", "client 1"]


def test_pictures_are_of_the_runs_own_results_or_else_of_an_earlier_runs(
    add: Callable[..., DagRun], events: Callable[..., list[Event]], session: Session
) -> None:
    def result(run: DagRun, engine: str) -> None:
        row = event_row(
            asset(session), run.run_id, engine, run.created_at + HOUR, facts("NS_230216033", SCAN)
        )
        session.execute(insert(AssetEvent.__table__), [row])

    first = add(state="success", run_after=NOW - 9 * HOUR)
    second = add("NS_230216033_0_0__r2")
    other = {"file_path": SCAN.replace("033", "034")}
    add("NS_230216034_0_0", conf=other, state="success")
    add("NS_230216034_0_0__r2", conf=other)
    third = add("NS_230216033_0_0__r3", state="success")
    result(first, "ptychocam")
    result(first, "cdtools")
    result(second, "cdtools")
    result(third, "ptychocam")  # of a later run: not what failed

    found = {event["subject"]: event["pictures"] for event in events()}
    assert found["scan NS_230216034_0_0__r2"] == []
    own, earlier = found["scan NS_230216033_0_0__r2"]
    folder = "/global/cfs/cdirs/als/gsharing/data_mover/7012/2023/02/230216"
    assert earlier == {
        "name": "earlier_run_NS_230216033_0_0_ptychocam.png",
        "run_id": "NS_230216033_0_0",
        "run_after": (NOW - 9 * HOUR).isoformat(),
        "engine": "ptychocam",
        "path": f"{folder}/NS_230216033_ccdframes_0_0_ptychocam.png",
    }
    assert own["name"] == "NS_230216033_0_0__r2_cdtools.png"
    assert own["path"].startswith(f"{folder}/NS_230216033_ccdframes_0_0_cdtools")

    session.execute(delete(DagRun).where(DagRun.run_id == first.run_id))
    session.expire_all()
    assert [len(event["pictures"]) for event in events() if "033" in event["subject"]] == [1]


# Who may ask


def ask(news: Any, headers: dict[str, str]) -> int:
    """The status of an answer."""

    async def get() -> int:
        transport = httpx.ASGITransport(app=news.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://airflow") as client:
            return (await client.get("/news", params={"since": 0}, headers=headers)).status_code

    return asyncio.run(get())


def test_tasks_are_answered_and_nobody_else(news: Any, session: Session) -> None:
    from airflow.api_fastapi.auth.tokens import JWTGenerator, get_signing_args

    session.commit()

    def status(audience: str, valid_for: float = 60, **signing: Any) -> int:
        generator = JWTGenerator(audience=audience, valid_for=valid_for, **(signing or get_signing_args()))
        return ask(news, {"Authorization": f"Bearer {generator.generate()}"})

    assert status("cosmic-notifications") == 200
    assert status("apache-airflow") == 401  # a person's token
    assert status("cosmic-notifications", valid_for=-100) == 401
    assert status("cosmic-notifications", secret_key="x" * 64) == 401
    assert ask(news, {}) == 401
    assert ask(news, {"Authorization": "Bearer x"}) == 401
    assert ask(news, {"Authorization": "Basic eDp5"}) == 401
