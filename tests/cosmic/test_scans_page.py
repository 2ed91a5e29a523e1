"""The page of scans within Airflow's real API server: who sees what, and what it costs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from airflow.models.asset import AssetEvent
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import delete, event, insert
from sqlalchemy.orm import Session

from cosmic.beamline import DEFAULT_FILE
from cosmic.dag_constants import FIND_MISSED_SCANS, TRANSFER_AUTO_RECON
from facilities.failures import ERROR_KEY
from support.many_scans import asset, event_row, facts, run_row, task_row, write_runs, xcom_row
from support.pages import Pages

POSTED = datetime(2026, 7, 1, 19, 0, tzinfo=UTC)
TOOK = timedelta(minutes=12)
NAME = "NS_260701033"
FILE = f"2026/07/260701/{NAME}_ccdframes_0_0.cxi"
PAGE, LIST = "/cosmic/scans", "/cosmic/scan-list"


@pytest.fixture(scope="module")
def pages(airflow_database: None) -> Iterator[Pages]:
    """The API server's app."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(DEFAULT_FILE))
        with closing(Pages()) as pages:
            yield pages


@pytest.fixture
def session(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """The database without runs, an index that has read nothing, and no progress."""
    from cosmic import scan_index
    from cosmic.pages import scans

    index = scan_index.ScanIndex()
    monkeypatch.setattr(scan_index, "_REFRESH_AFTER", 0.0)
    monkeypatch.setattr(scan_index, "read_progress", dict)
    monkeypatch.setattr(scans, "index", index)
    monkeypatch.setattr(scans, "lists", scans.Lists())
    with create_session(scoped=False) as session:
        empty(session)
        yield session
        session.rollback()
        empty(session)


def empty(session: Session) -> None:
    """Remove all runs."""
    for table in (XComModel, TaskInstance, AssetEvent, DagRun):
        session.execute(delete(table))
    session.commit()


def write_scan(session: Session, state: str, file: str = FILE, run_id: str = "run", **more: Any) -> int:
    """A run, and its result where there are facts."""
    took = None if state in ("queued", "running") else TOOK
    done: Any = session.execute(insert(DagRun.__table__), [run_row(run_id, file, state, POSTED, took=took)])
    if more:
        row = event_row(asset(session), run_id, "ptychocam", POSTED, facts(NAME, file, **more))
        session.execute(insert(AssetEvent.__table__), [row])
    session.commit()
    return int(done.lastrowid)


def write_table(session: Session, **row: int) -> None:
    """The table of a run of `find_missed_scans`."""
    run = {**run_row("compared", "", "success", POSTED, took=TOOK), "dag_id": FIND_MISSED_SCANS}
    done: Any = session.execute(insert(DagRun.__table__), [run])
    of_dag = {"dag_id": FIND_MISSED_SCANS}
    task = task_row("compared", "report", "success", POSTED) | of_dag
    value = [{"day": "2026-07-01", **row}]
    xcom = xcom_row(done.lastrowid, "compared", "report", POSTED, key="return_value", value=value) | of_dag
    session.execute(insert(TaskInstance.__table__), [task])
    session.execute(insert(XComModel.__table__), [xcom])
    session.commit()


def text_of(html: str) -> str:
    """What a page's reader reads."""
    html = re.sub(r"(?s)<(script|style)\b.*?</\1>", "", html)
    return " ".join(re.sub("<[^>]*>", " ", html).split())


def test_who_is_not_logged_in_is_led_to_the_login_and_back(pages: Pages) -> None:
    reply = pages.get("", f"{PAGE}?day=2026-07-01&text=a%26b")
    assert reply.status_code == 303
    back = "%2Fcosmic%2Fscans%3Fday%3D2026-07-01%26text%3Da%2526b"
    assert reply.headers["location"] == f"/api/v2/auth/login?next={back}"
    assert pages.get("", LIST, Accept="application/json").status_code == 401


def test_a_row_answers_did_my_scan_make_it(pages: Pages, session: Session) -> None:
    write_scan(session, "success", error=0.0521, resolution_m=1.23e-8, sample="rock", warnings=1)
    page = pages.get("reader", PAGE)
    assert page.status_code == 200
    assert f"{NAME} ALS-01234 rock 706.2 eV done, with 1 warning 0.0521 12.3 nm" in text_of(page.text)
    picture = f"/cosmic/dags/{TRANSFER_AUTO_RECON}/runs/run/ptychocam/thumbnail.png"
    picture += "?of=2026-07-01T19%3A00%3A00%2B00%3A00"
    assert f'<img src="{picture}" alt=""' in page.text
    assert f'href="/cosmic/scans/{NAME}"' in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_an_empty_list_says_how_to_fill_it(pages: Pages, session: Session) -> None:
    assert "There are no scans yet." in text_of(pages.get("reader", PAGE).text)
    assert "No scan is like that." in text_of(pages.get("reader", f"{PAGE}?state=failed").text)


def test_what_an_address_asks_for_and_is_none_is_said(pages: Pages, session: Session) -> None:
    write_scan(session, "running")
    page = text_of(pages.get("reader", f"{PAGE}?day=yesterday&state=broken&page=-3").text)
    assert "There is no day yesterday and no state broken: that is left out. 1 to 1 of 1 scans" in page
    assert "left out" not in pages.get("reader", f"{PAGE}?day=2023-02-16&state=failed").text


def test_a_list_is_sent_again_only_when_it_differs(pages: Pages, session: Session) -> None:
    from cosmic.pages import scans
    from cosmic.scan_index import ScanIndex

    write_scan(session, "running")
    first = pages.get("reader", LIST)
    tag = first.headers["etag"]
    assert "waiting to begin" in first.text
    assert first.headers["cache-control"] == "private, no-cache"
    again = pages.get("reader", LIST, **{"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert pages.get("reader", LIST, **{"If-None-Match": f"W/{tag}"}).status_code == 304, "after a proxy"
    assert tag in pages.get("reader", PAGE).text.replace("&#34;", '"')

    other = scans.Lists().make(ScanIndex().refresh(session), scans.asked(), "", scans.Rights(True, False))
    assert other[0] == tag, "another server's is the same"

    session.execute(DagRun.__table__.update().values(state="success", end_date=POSTED + TOOK))
    session.commit()
    changed = pages.get("reader", LIST, **{"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag
    assert "done" in changed.text


def test_filters_are_in_the_address_and_nonsense_is_left_out(pages: Pages, session: Session) -> None:
    for number, state in enumerate(["success", "failed", "running"]):
        name = f"NS_26070100{number}"
        write_scan(session, state, f"2026/07/260701/{name}_ccdframes_0_0.cxi", f"run {number}")
    for query, names in (
        ("", "012"),
        ("?state=failed", "1"),
        ("?state=active&day=2026-07-01", "2"),
        ("?day=2026-07-02", ""),
        ("?text=260701000", "0"),
        ("?state=odd&day=yesterday&page=-1&other=1", "012"),
        ("?page=99999999999999999999", "012"),
        ("?text=" + "x" * 301, None),
    ):
        reply = pages.get("reader", LIST + query)
        if names is None:
            assert reply.status_code == 400
            continue
        assert sorted(re.findall(r'id="scan-NS_26070100(\d)"', reply.text)) == list(names), query
    page = pages.get("reader", f"{PAGE}?state=failed&text=%22%3E").text
    assert '<option value="failed" selected>' in page
    assert 'value="&#34;&gt;"' in page


@pytest.mark.parametrize("day", ["0001-01-01", "9999-12-31", "9999-12-30"])
def test_any_day_of_the_calendar_can_be_asked_for(pages: Pages, session: Session, day: str) -> None:
    page = pages.get("reader", f"{PAGE}?day={day}")
    assert page.status_code == 200
    assert "No scan is like that." in text_of(page.text)


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        (f"{PAGE}?text={'x' * 400}", 400, "The address asks for what cannot be: its text is too long"),
        (f"{PAGE}/{'x' * 300}", 404, "Nothing is at this address."),
        (f"{PAGE}/a%00b/stop", 404, "Nothing is at this address."),
        (f"/cosmic/dags/{TRANSFER_AUTO_RECON}/runs/a%00b", 404, "Nothing is at this address."),
        ("/cosmic/nowhere", 404, "Nothing is at this address."),
        (f"{PAGE}/{NAME}/notes", 405, "This address is of a button on a page"),
        (f"{PAGE}/{NAME}", 404, f"No scan {NAME} has a run here"),
    ],
)
def test_an_address_that_is_wrong_is_answered_with_words(
    pages: Pages, session: Session, address: str, status: int, words: str
) -> None:
    page = pages.get("admin", address)
    assert page.status_code == status
    assert page.headers["content-type"].startswith("text/html")
    assert words in text_of(page.text)
    assert pages.get("admin", address, Accept="application/json").json()["detail"]


def test_who_has_no_role_reads_what_to_do(
    pages: Pages, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.api_fastapi.app import get_auth_manager

    monkeypatch.setattr(get_auth_manager(), "is_authorized_dag", lambda **_: False)
    page = pages.get("reader", PAGE)
    assert page.status_code == 403
    assert "You are logged in, but have no role that may see this." in text_of(page.text)


def test_a_defect_is_answered_with_words_and_is_in_the_servers_log(
    pages: Pages, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic.pages import scans

    def fail(*_: Any) -> Any:
        raise RuntimeError("secret of the database")

    monkeypatch.setattr(scans.lists, "make", fail)
    with pytest.raises(RuntimeError):  # as it reaches the server, which logs it
        pages.get("reader", PAGE)
    page = pages.send("GET", "reader", PAGE, {}, raises=False)
    assert page.status_code == 500
    assert "Airflow could not answer. Try again in a minute" in text_of(page.text)
    assert "secret" not in page.text


def test_the_days_have_a_button_for_what_is_missing_for_who_may_start_it(
    pages: Pages, session: Session
) -> None:
    write_scan(session, "success")
    write_table(session, on_disk=9, missing=7, started=3)
    address = f"{LIST}?day=2026-07-01"
    for user in ("beamline", "admin"):
        shown = pages.get(user, address)
        assert "9 on disk 1 done 4 missing disk read" in text_of(shown.text)
        assert "/cosmic/scans/missing?day=2026-07-01" in shown.text
        assert "Run the 4 missing" in shown.text
    question = pages.get("beamline", "/cosmic/scans/missing?day=2026-07-01")
    assert "Run the missing scans of 2026-07-01?" in text_of(question.text)
    reader = pages.get("reader", address)
    assert "4 missing" in reader.text
    assert "Run the 4 missing" not in reader.text
    assert len(re.findall(r'id="day-', reader.text)) == 7


class Elements(HTMLParser):
    """All elements and attributes of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}


HOSTILE = (
    "<script>alert({n})</script>",
    '"><img src=x onerror=alert({n})>',
    "' onmouseover='alert({n})",
    "</table></section><svg onload=alert({n})>",
    "{{{{ {n} * 7 }}}}",
    "javascript:alert({n})",
    "\u202e {n} &lt;b&gt;",
)


def test_no_value_of_a_file_or_a_task_becomes_a_part_of_the_page(pages: Pages, session: Session) -> None:
    asset_id = asset(session)
    count = 2000
    texts = [HOSTILE[number % len(HOSTILE)].format(n=number) for number in range(count)]
    runs, tasks, errors, events = [], [], [], []
    for number, text in enumerate(texts):
        run_id, state = f"run {number} {text}"[:200], ("failed", "success")[number % 2]
        posted = POSTED + timedelta(seconds=number)
        runs.append(run_row(run_id, text, state, posted, took=TOOK) | {"id": number + 1})
        if state == "failed":
            tasks.append(task_row(run_id, "check_scan", "failed", posted))
            why = {"what": text}
            errors.append(xcom_row(number + 1, run_id, "check_scan", posted, key=ERROR_KEY, value=why))
        else:
            extra = facts(text, text, proposal=text, sample=text)
            events.append(event_row(asset_id, run_id, "ptychocam", POSTED, extra))
    for table, rows in ((DagRun, runs), (TaskInstance, tasks), (XComModel, errors), (AssetEvent, events)):
        session.execute(insert(table.__table__), rows)
    session.commit()
    harmless = Elements(pages.get("reader", f"{PAGE}?text=nothing-is-like-this").text)
    shown = 0
    for number in range(1, count // 50 + 1):
        html = pages.get("reader", f"{PAGE}?page={number}").text
        elements = Elements(html)
        shown += html.count('<tr id="scan-')
        assert elements.found <= harmless.found | {"img", "time", "tr", "td", "th", "a", "span", "nav"}
        assert not [name for name in elements.attributes if name.startswith("on")]
        assert "{n}" not in html
    assert shown == count


def test_what_a_look_costs_does_not_grow_with_runs_or_viewers(
    pages: Pages, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic import scan_index

    def statements(path: str, user: str = "reader") -> int:
        sent: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            sent.append(statement)

        engine = session.get_bind()
        event.listen(engine, "before_cursor_execute", note)
        try:
            assert pages.get(user, path).status_code == 200
        finally:
            event.remove(engine, "before_cursor_execute", note)
        return len(sent)

    numbers = []
    for count in (100, 2000):
        empty(session)
        write_runs(session, count, last_day=date(2026, 6, 30))
        statements(PAGE)
        numbers.append([statements(path) for path in (PAGE, LIST, f"{LIST}?state=failed&text=probe")])
    assert numbers[0] == numbers[1]
    monkeypatch.setattr(scan_index, "_REFRESH_AFTER", 3600.0)
    assert max(statements(LIST, user) for user in ("reader", "ada", "admin")) <= 2, "the login's own"
