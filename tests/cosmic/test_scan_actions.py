"""The buttons of a scan: what each does and for whom, and that no other page's request does it."""

from __future__ import annotations

import html
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from airflow.models.dagrun import DagRun, DagRunNote
from airflow.models.log import Log
from airflow.utils.session import create_session
from sqlalchemy import delete, select, update
from sqlalchemy.orm import joinedload

from cosmic.beamline import DEFAULT_FILE, beamline
from cosmic.dag_constants import (
    FIND_MISSED_SCANS,
    PROCESS_NEWFILE,
    SUPERFACILITY_CONN_ID,
    TRANSFER_AUTO_RECON,
)
from cosmic.results import RESULT_SUFFIXES
from facilities.superfacility.files import SIZE_LIMIT
from standin.testing import Facility
from support.pages import Pages, a_reconstruction, dags_in_database, form_of, set_states, set_xcom
from support.superfacility import connection_to, use_connection

DAGS = ("transfer_auto_recon.py", "find_missed_scans.py", "process_newfile_7012_ptycho4.py")


@pytest.fixture(scope="module")
def pages(airflow_database: None) -> Iterator[Pages]:
    """The API server's app, with the DAGs."""
    with pytest.MonkeyPatch.context() as patch, dags_in_database(*DAGS):
        patch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(DEFAULT_FILE))
        with closing(Pages()) as pages:
            yield pages


class Scan:
    """A scan of the test's own."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.name = f"NS_230216{uuid.uuid4().int % 10**9:09}"
        self.page = f"/cosmic/scans/{self.name}"

    def path(self, energy: int = 0) -> str:
        return f"2023/02/230216/{self.name}_ccdframes_{energy}_0.cxi"

    def start(self, energy: int = 0, **conf: Any) -> str:
        """A run of one of its files, started over REST; returns its id."""
        body = {"logical_date": None, "conf": {"file_path": self.path(energy), "do_ptychocam": True, **conf}}
        reply = self.pages.send(
            "POST", "beamline", f"/api/v2/dags/{TRANSFER_AUTO_RECON}/dagRuns", {}, json=body
        )
        assert reply.status_code == 200, reply.text
        return str(reply.json()["dag_run_id"])

    def runs(self) -> dict[str, DagRun]:
        """All its runs."""
        with create_session(scoped=False) as session:
            query = select(DagRun).where(DagRun.run_id.startswith(self.name))
            found = session.scalars(query.options(joinedload(DagRun.dag_run_note))).all()
            return {run.run_id: run for run in found}

    def states(self) -> dict[str, str]:
        return {run_id: str(run.state) for run_id, run in self.runs().items()}


@pytest.fixture
def scan(pages: Pages) -> Scan:
    return Scan(pages)


def audit(run_id: str, event: str) -> list[Log]:
    """The entries of Airflow's audit log about a run."""
    with create_session(scoped=False) as session:
        return list(session.scalars(select(Log).where(Log.run_id == run_id, Log.event == event)))


# Stop


def test_stop_says_what_it_stops_stops_that_and_the_log_says_who(pages: Pages, scan: Scan) -> None:
    copying, computing, done = scan.start(0), scan.start(1), scan.start(2)
    set_states(copying, "running", copy_to_nersc="deferred")
    set_states(
        computing, "running", copy_to_nersc="success", ptychocam__submit="success", ptychocam__wait="deferred"
    )
    set_states(done, "success")
    question = pages.get("ada", f"{scan.page}/stop")
    assert f"Stops 1 transfer and 1 Slurm job of {scan.name}. What is done stays" in question.text
    answer = pages.post("ada", f"{scan.page}/stop", form_of(question))
    assert "2 runs stopped" in answer.text
    assert scan.states() == {copying: "failed", computing: "failed", done: "success"}
    (entry,) = audit(copying, "patch_dag_run")
    assert entry.owner == "ada"
    assert json.loads(entry.extra or "")["state"] == "failed"
    assert (
        "Cancelled</strong> by ada"
        in pages.get("reader", f"/cosmic/dags/{TRANSFER_AUTO_RECON}/runs/{copying}").text
    )
    assert "Nothing was going on any more" in pages.post("ada", f"{scan.page}/stop", form_of(question)).text


def test_of_a_scan_with_too_many_runs_the_newest_can_be_stopped(
    pages: Pages, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic.pages import scan_runs

    scan.start()
    newest = scan.start()
    monkeypatch.setattr(scan_runs, "MAX_RUNS", 1)
    assert f"1 run: {newest}." in pages.get("ada", f"{scan.page}/stop").text


def test_stop_of_one_run_leaves_the_others(pages: Pages, scan: Scan) -> None:
    one, other = scan.start(0), scan.start(1)
    pages.press("beamline", f"{scan.page}/stop?run_id={one}")
    assert scan.states() == {one: "failed", other: "queued"}


def test_a_run_that_began_after_the_question_is_not_stopped(pages: Pages, scan: Scan) -> None:
    known = scan.start(0)
    question = form_of(pages.get("beamline", f"{scan.page}/stop"))
    later = scan.start(1)
    pages.post("beamline", f"{scan.page}/stop", question)
    assert scan.states() == {known: "failed", later: "queued"}


def test_a_run_that_airflow_does_not_stop_is_not_said_to_have_ended(
    pages: Pages, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmic.pages import stop
    from cosmic.pages.airflow_api import Answer

    running = scan.start()
    set_states(running, "running", copy_to_nersc="deferred")

    async def unavailable(_request: Any, _user: Any, calls: list[Any]) -> list[Any]:
        return [Answer(500, "Airflow answered 500") for _ in calls]

    monkeypatch.setattr(stop, "call_airflow", unavailable)
    answer = pages.post("ada", f"{scan.page}/stop", form_of(pages.get("ada", f"{scan.page}/stop"))).text
    assert "Nothing was stopped" in answer
    assert f"{running}: Airflow answered 500" in answer
    assert "had ended" not in answer


def test_there_is_nothing_to_stop_of_a_scan_that_is_over(pages: Pages, scan: Scan) -> None:
    set_states(scan.start(), "success")
    question = pages.get("beamline", f"{scan.page}/stop")
    assert f"{scan.name} is not running" in question.text
    assert "<form" not in question.text


# Run again


def test_only_what_was_changed_is_changed_and_each_file_keeps_its_other_parameters(
    pages: Pages, scan: Scan
) -> None:
    first, second, third = scan.start(0, n_iter=100), scan.start(1, n_iter=200), scan.start(2)
    set_states(first, "failed")
    set_states(second, "failed")
    set_states(third, "success")
    answer = pages.press("ada", f"{scan.page}/run-again", {"n_gpu": "4", "use_illu_mask": "on"})
    assert "2 runs started" in answer.text
    runs = scan.runs()
    assert sorted(runs) == sorted([first, second, third, f"{first}__r2", f"{second}__r2"])
    for run_id, iterations in ((first, 100), (second, 200)):
        before, conf = runs[run_id].conf or {}, runs[f"{run_id}__r2"].conf or {}
        changed = {"n_gpu": 4, "use_illu_mask": True}
        assert {name: conf[name] for name in before | changed} == before | changed
        assert conf["n_iter"] == iterations
        assert runs[f"{run_id}__r2"].triggering_user_name == "ada"
        assert audit(f"{run_id}__r2", "trigger_dag_run")[0].owner == "ada"


def test_the_same_form_twice_starts_nothing_twice(pages: Pages, scan: Scan) -> None:
    set_states(scan.start(), "failed")
    form = form_of(pages.get("ada", f"{scan.page}/run-again"))
    assert "1 run started" in pages.post("ada", f"{scan.page}/run-again", form).text
    again = pages.post("ada", f"{scan.page}/run-again", form)
    assert "Nothing was started" in again.text
    assert "1 run had been started before, and not twice." in again.text
    assert len(scan.runs()) == 2


def test_a_wrong_value_is_refused_in_the_form_with_what_was_typed(pages: Pages, scan: Scan) -> None:
    set_states(scan.start(), "failed")
    answer = pages.press("ada", f"{scan.page}/run-again", {"n_gpu": "5", "n_iter": '"><script>'})
    assert answer.status_code == 400
    assert "n_gpu must be a whole number from 1 to 4" in answer.text
    assert 'name="n_gpu" value="5"' in answer.text
    assert "<script>" not in answer.text.partition("<main")[2].partition("</main>")[0]
    assert len(scan.runs()) == 1


def test_the_file_cannot_be_changed_and_what_an_older_version_had_is_left_out(
    pages: Pages, scan: Scan
) -> None:
    run_id = scan.start()
    set_states(run_id, "failed")
    with create_session(scoped=False) as session:
        run = session.scalar(select(DagRun).where(DagRun.run_id == run_id))
        assert run
        run.conf = {**run.conf, "gone_since_2.0": 1}
    pages.press("ada", f"{scan.page}/run-again", {"file_path": "2023/02/230216/other.cxi"})
    conf = scan.runs()[f"{run_id}__r2"].conf or {}
    assert conf["file_path"] == scan.path()
    assert "gone_since_2.0" not in conf


def test_what_runs_is_not_run_again(pages: Pages, scan: Scan) -> None:
    scan.start(0)
    set_states(scan.start(1), "success")
    answer = pages.press("ada", f"{scan.page}/run-again", {"files": "all"})
    assert "1 run started" in answer.text
    assert "1 file not run again: still running." in answer.text
    answer = pages.press("ada", f"{scan.page}/run-again", {"files": scan.path(0)})
    assert answer.status_code == 400
    assert len(scan.runs()) == 3


def test_a_paused_file_of_another_scan_cannot_be_chosen(pages: Pages, scan: Scan) -> None:
    set_states(scan.start(), "failed")
    answer = pages.press("ada", f"{scan.page}/run-again", {"files": Scan(pages).path()})
    assert answer.status_code == 400
    assert len(scan.runs()) == 1


# The missing ones


def test_the_missing_ones_of_a_day_are_started_once(pages: Pages) -> None:
    question = pages.get("ada", "/cosmic/scans/missing?day=2023-02-16")
    assert "Run the missing scans of 2023-02-16?" in question.text
    for _ in range(2):
        assert "are being started" in pages.post("ada", "/cosmic/scans/missing", form_of(question)).text
    with create_session(scoped=False) as session:
        (run,) = session.scalars(select(DagRun).where(DagRun.dag_id == FIND_MISSED_SCANS)).all()
    assert {name: (run.conf or {})[name] for name in ("which", "first_day", "last_day")} == {
        "which": "missing",
        "first_day": "2023-02-16",
        "last_day": "2023-02-16",
    }
    assert run.triggering_user_name == "ada"


def test_a_form_of_another_page_with_the_day_alone_is_asked_first(pages: Pages) -> None:
    token = form_of(pages.get("ada", "/cosmic/scans/missing?day=2023-02-16"))["csrf_token"]
    asked = pages.post("ada", "/cosmic/scans/missing", {"csrf_token": token, "day": "2023-02-17"})
    assert "Run the missing scans of 2023-02-17?" in asked.text


@pytest.mark.parametrize("day", ["", "yesterday", "2023-02-30", "2023-2-16", "<script>"])
def test_a_day_that_is_none_is_refused(pages: Pages, day: str) -> None:
    assert pages.send("GET", "ada", "/cosmic/scans/missing", {}, params={"day": day}).status_code == 400


# Notes


def test_a_note_is_the_scans_and_stays_when_it_runs_again(pages: Pages, scan: Scan) -> None:
    first = scan.start()
    set_states(first, "success")
    run_page = f"/cosmic/dags/{TRANSFER_AUTO_RECON}/runs/{first}"
    written = form_of(pages.get("ada", run_page)) | {"note": "Beam was lost.\r\nUse <b>r2</b>."}
    answer = pages.post("ada", f"{scan.page}/notes", written)
    assert answer.status_code == 303
    assert answer.headers["location"] == f"{run_page}#note"
    pages.press("ada", f"{scan.page}/run-again")
    page = pages.get("reader", f"{run_page}__r2").text
    assert "Beam was lost.\nUse &lt;b&gt;r2&lt;/b&gt;." in page
    assert "Note by ada" in page
    assert scan.runs()[first].note == "Beam was lost.\nUse <b>r2</b>."


def test_two_people_do_not_overwrite_each_others_notes(pages: Pages, scan: Scan) -> None:
    page = f"/cosmic/dags/{TRANSFER_AUTO_RECON}/runs/{scan.start()}"
    of_ada, of_beamline = form_of(pages.get("ada", page)), form_of(pages.get("beamline", page))
    assert pages.post("ada", f"{scan.page}/notes", of_ada | {"note": "hers"}).status_code == 303
    both = pages.post("beamline", f"{scan.page}/notes", of_beamline | {"note": "theirs"})
    assert both.status_code == 409
    assert "Somebody has changed the note meanwhile" in both.text
    assert "hers" in both.text
    assert form_of(both)["note"] == "theirs"
    assert pages.post("beamline", f"{scan.page}/notes", form_of(both)).status_code == 303
    assert next(iter(scan.runs().values())).note == "theirs"


def post(scan: Scan, note: str, **headers: str) -> str:
    """Start a run with a note; its page's address."""
    body = {"logical_date": None, "conf": {"file_path": scan.path(0), "do_ptychocam": True}, "note": note}
    address = f"/api/v2/dags/{TRANSFER_AUTO_RECON}/dagRuns"
    run_id = scan.pages.send("POST", "beamline", address, headers, json=body).json()["dag_run_id"]
    return f"/cosmic/dags/{TRANSFER_AUTO_RECON}/runs/{run_id}"


def test_what_a_program_has_posted_with_a_run_is_nobodys_note(pages: Pages, scan: Scan) -> None:
    page = post(scan, "submit_scan on vm, asked for at 2023-02-16T03:10:00")
    assert 'class="note"' not in pages.get("reader", page).text
    form = form_of(pages.get("ada", page))
    assert form["note"] == ""
    assert pages.post("ada", f"{scan.page}/notes", form | {"note": "hers"}).status_code == 303
    assert '<p class="note">hers</p>' in pages.get("reader", page).text


def test_what_a_person_has_written_into_airflows_form_is_their_note(pages: Pages, scan: Scan) -> None:
    page = post(scan, "for the paper", Referer="http://airflow.example/dags/transfer_auto_recon")
    html = pages.get("reader", page).text
    assert '<p class="note">for the paper</p>' in html
    assert "Note by beamline" in html


# Airflow's own, when it deletes a run of a DAG that other tests have stored in another version.
@pytest.mark.filterwarnings("ignore:Multiple rows returned with uselist=False")
def test_of_a_scan_whose_first_run_was_deleted_the_next_ones_own_words_are_no_note(
    pages: Pages, scan: Scan
) -> None:
    first = scan.start()
    set_states(first, "success")
    pages.press("ada", f"{scan.page}/run-again")
    assert scan.runs()[f"{first}__r2"].note == "Run again from the scan's page"
    pages.send("DELETE", "admin", f"/api/v2/dags/{TRANSFER_AUTO_RECON}/dagRuns/{first}", {})
    page = pages.get("reader", f"/cosmic/dags/{TRANSFER_AUTO_RECON}/runs/{first}__r2")
    assert page.status_code == 200
    assert 'class="note"' not in page.text


def test_a_note_stays_when_the_audit_log_is_cleaned(pages: Pages, scan: Scan) -> None:
    page = post(scan, "submit_scan on vm")
    form = form_of(pages.get("ada", page)) | {"note": "hers"}
    assert pages.post("ada", f"{scan.page}/notes", form).status_code == 303
    (run,) = scan.runs().values()
    with create_session(scoped=False) as session:
        session.execute(delete(Log).where(Log.run_id == run.run_id))
        later = run.created_at + timedelta(minutes=9)
        session.execute(update(DagRunNote).where(DagRunNote.dag_run_id == run.id).values(updated_at=later))
    assert '<p class="note">hers</p>' in pages.get("reader", page).text


def test_a_note_that_is_too_long_is_refused(pages: Pages, scan: Scan) -> None:
    form = form_of(pages.get("ada", f"/cosmic/dags/{TRANSFER_AUTO_RECON}/runs/{scan.start()}"))
    answer = pages.post("ada", f"{scan.page}/notes", form | {"note": "x" * 1001})
    assert answer.status_code == 400
    assert "at most 1000 characters; this one has 1001" in answer.text


# Who may what


ACTIONS = ("stop", "run-again", "notes")


def test_a_reader_sees_the_note_and_no_buttons(pages: Pages, scan: Scan) -> None:
    run_id = scan.start()
    page = f"/cosmic/dags/{TRANSFER_AUTO_RECON}/runs/{run_id}"
    of_reader, of_ada = pages.get("reader", page).text, pages.get("ada", page).text
    assert "<form" not in of_reader
    assert "You may look at this scan, but not stop it or run it again." in of_reader
    for action in ("stop", "run-again"):
        assert f"{scan.page}/{action}?run_id={run_id}" in of_ada
        assert f"{scan.page}/{action}" not in of_reader


@pytest.mark.parametrize("action", ACTIONS)
def test_a_reader_who_posts_anyway_is_refused_in_a_sentence(pages: Pages, scan: Scan, action: str) -> None:
    run_id = scan.start()
    form = form_of(pages.get("ada", f"{scan.page}/stop"))
    form |= {"csrf_token": token_of("reader"), "note": "x", "was": "", "like": run_id, "files": "all"}
    answer = pages.post("reader", f"{scan.page}/{action}", form)
    assert answer.status_code == 403
    assert "who may only look" in answer.text
    assert scan.states() == {run_id: "queued"}
    if action != "notes":
        assert pages.get("reader", f"{scan.page}/{action}").status_code == 403


def token_of(user: str) -> str:
    """A token as a page of this user would have, if it had a form."""
    from cosmic.pages.security import csrf_token

    state = SimpleNamespace(page_user=SimpleNamespace(get_id=lambda: user))
    return str(csrf_token(SimpleNamespace(state=state)))


def test_a_reader_may_not_start_the_missing_ones(pages: Pages) -> None:
    assert pages.get("reader", "/cosmic/scans/missing?day=2023-02-16").status_code == 403


@pytest.mark.parametrize("action", ACTIONS)
def test_who_is_not_logged_in_changes_nothing(pages: Pages, scan: Scan, action: str) -> None:
    run_id = scan.start()
    form = form_of(pages.get("ada", f"{scan.page}/stop"))
    answer = pages.post("", f"{scan.page}/{action}", form)
    assert answer.status_code == 401
    assert "You are not logged in any more" in answer.text
    assert scan.states() == {run_id: "queued"}


# Forged requests


FORGERIES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "without a token": ({"csrf_token": ""}, {}),
    "with a made-up token": ({"csrf_token": "ImFkYSI.aWZfeW91.YXNr"}, {}),
    "from another site": ({}, {"Sec-Fetch-Site": "cross-site"}),
    "from a neighbor": ({}, {"Sec-Fetch-Site": "same-site"}),
    "from an address typed by hand": ({}, {"Sec-Fetch-Site": "none"}),
    "from another site, by an old browser": ({}, {"Sec-Fetch-Site": "", "Origin": "https://evil.example"}),
    "from a page without an origin": ({}, {"Sec-Fetch-Site": "", "Origin": "null"}),
    "from nowhere": ({}, {"Sec-Fetch-Site": "", "Origin": ""}),
    "from a name that begins like ours": (
        {},
        {"Sec-Fetch-Site": "", "Origin": "http://airflow.example.evil.example"},
    ),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("how", FORGERIES)
def test_a_forged_form_changes_nothing(pages: Pages, scan: Scan, how: str, action: str) -> None:
    run_id = scan.start()
    fields, headers = FORGERIES[how]
    form = form_of(pages.get("ada", f"{scan.page}/stop")) | {"like": run_id, "files": "all", "note": "x"}
    answer = pages.post("ada", f"{scan.page}/{action}", form | fields, headers)
    assert answer.status_code == 403
    assert "press the button again" in answer.text
    assert scan.states() == {run_id: "queued"}
    assert scan.runs()[run_id].note is None


def test_another_users_token_is_none(pages: Pages, scan: Scan) -> None:
    run_id = scan.start()
    form = form_of(pages.get("ada", f"{scan.page}/stop"))
    assert pages.post("beamline", f"{scan.page}/stop", form).status_code == 403
    assert scan.states() == {run_id: "queued"}


def test_a_token_grows_old(pages: Pages, scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmic.pages import security

    scan.start()
    form = form_of(pages.get("ada", f"{scan.page}/stop"))
    monkeypatch.setattr(security, "TOKEN_LASTS", -1)
    answer = pages.post("ada", f"{scan.page}/stop", form)
    assert answer.status_code == 403
    assert "too old" in answer.text


def test_an_old_browser_is_known_by_the_origin_alone(pages: Pages, scan: Scan) -> None:
    run_id = scan.start()
    form = form_of(pages.get("ada", f"{scan.page}/stop"))
    pages.post("ada", f"{scan.page}/stop", form, {"Sec-Fetch-Site": ""})
    assert scan.states() == {run_id: "failed"}


@pytest.mark.parametrize(
    "body", [{"json": {"newest": 1}}, {"files": {"newest": b"1"}}, {"content": b"newest=1"}]
)
def test_only_forms_are_taken(pages: Pages, scan: Scan, body: Any) -> None:
    scan.start()
    assert pages.send("POST", "ada", f"{scan.page}/stop", {}, **body).status_code == 415


def test_a_form_that_is_too_long_is_not_read(pages: Pages, scan: Scan) -> None:
    scan.start()
    assert pages.post("ada", f"{scan.page}/stop", {"note": "x" * 70_000}).status_code == 413


@pytest.mark.parametrize("newest", ["", "-1", "1e9", "\u0662", "9" * 5000, "0x10"])
def test_a_form_that_was_tampered_with_stops_nothing_by_accident(
    pages: Pages, scan: Scan, newest: str
) -> None:
    scan.start()
    form = form_of(pages.get("ada", f"{scan.page}/stop")) | {"newest": newest}
    assert pages.post("ada", f"{scan.page}/stop", form).status_code in (200, 400)


# Other DAGs' runs, and addresses that are none of a scan


def test_runs_of_other_dags_are_out_of_reach(pages: Pages, scan: Scan) -> None:
    mine, foreign = scan.start(), f"{scan.name}_9_0"
    body = {"logical_date": None, "dag_run_id": foreign, "conf": {"file_path": scan.path(9)}}
    address = f"/api/v2/dags/{PROCESS_NEWFILE}/dagRuns"
    assert pages.send("POST", "admin", address, {}, json=body).status_code == 200
    assert foreign not in pages.get("ada", f"{scan.page}/stop").text
    form = form_of(pages.get("ada", f"{scan.page}/stop"))
    pages.post("ada", f"{scan.page}/stop", form | {"run_id": foreign, "newest": "999999999"})
    assert scan.states() == {mine: "queued", foreign: "queued"}
    assert pages.get("ada", f"{scan.page}/run-again?run_id={foreign}").status_code == 404
    assert pages.get("ada", f"{scan.page}/download/{foreign}/ptychocam.cxi").status_code == 404


@pytest.mark.parametrize(
    "name", ["nothing", "..", "%2e%2e", "a%2Fb", "%", "_", "NS_%25", "NS_230216%", "x" * 251, "%00", "\u00e9"]
)
def test_a_name_that_is_no_scans_has_no_page(pages: Pages, name: str) -> None:
    for action in ("stop", "run-again", "download/x/ptychocam.cxi"):
        assert pages.get("ada", f"/cosmic/scans/{name}/{action}").status_code in (404, 422)


def test_the_beginning_of_a_scans_name_is_not_the_scan(pages: Pages, scan: Scan) -> None:
    scan.start()
    assert pages.get("ada", f"/cosmic/scans/{scan.name[:-1]}/stop").status_code == 404


# Downloads


class Result:
    """A run with a result of ptychocam at the stand-in's NERSC."""

    def __init__(self, scan: Scan, root: Path) -> None:
        self.scan, self.run_id = scan, scan.start()
        self.file = root / f"{scan.path().removesuffix('.cxi')}_ptychocam"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for kind in RESULT_SUFFIXES:
            self.write(kind, f"content of {kind}".encode())
        set_states(self.run_id, "success", ptychocam__collect="success")
        self.leave(f"{self.file}.cxi")

    def write(self, kind: str, content: bytes) -> None:
        self.file.with_name(self.file.name + kind).write_bytes(content)

    def leave(self, path: str) -> None:
        """Leave this path as the result."""
        set_xcom(TRANSFER_AUTO_RECON, self.run_id, "ptychocam.collect", a_reconstruction(path))

    def address(self, name: str) -> str:
        return f"{self.scan.page}/download/{self.run_id}/{name}"


@pytest.fixture
def result(scan: Scan, standin: Facility, monkeypatch: pytest.MonkeyPatch) -> Result:
    """A result, with the stand-in in use."""
    use_connection(monkeypatch, SUPERFACILITY_CONN_ID, connection_to(standin))
    return Result(scan, standin.collection("nersc7012"))


@pytest.mark.parametrize("kind", RESULT_SUFFIXES)
def test_a_reader_downloads_each_file_under_its_own_name(pages: Pages, result: Result, kind: str) -> None:
    page = pages.get("reader", f"/cosmic/dags/{TRANSFER_AUTO_RECON}/runs/{result.run_id}").text
    assert f'href="{result.address("ptychocam" + kind)}"' in page
    assert f'<code id="path-1">{result.file}.cxi</code>' in page
    answer = pages.get("reader", result.address(f"ptychocam{kind}"))
    assert answer.content == f"content of {kind}".encode()
    assert answer.headers["content-disposition"] == f'attachment; filename="{result.file.name}{kind}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"


def test_a_file_that_is_too_large_for_the_api_comes_by_globus(pages: Pages, result: Result) -> None:
    result.write(".cxi", bytes(SIZE_LIMIT))
    assert len(pages.get("reader", result.address("ptychocam.cxi")).content) == SIZE_LIMIT
    result.write(".cxi", bytes(SIZE_LIMIT + 1))
    page = pages.get("reader", result.address("ptychocam.cxi"))
    assert f"{result.file.name}.cxi comes by Globus" in page.text
    link = html.unescape(re.findall(r'href="(https://app.globus.org/[^"]*)"', page.text)[0])
    query = parse_qs(urlsplit(link).query)
    destination = beamline().collections.destination
    assert query["origin_id"] == [str(destination.id)]
    assert query["origin_path"] == [f"{destination.path.rstrip('/')}/2023/02/230216/"]


def test_only_the_runs_own_result_is_read(pages: Pages, result: Result, standin: Facility) -> None:
    standin.clear_requests()
    result.leave("/etc/passwd")
    assert pages.get("ada", result.address("ptychocam.cxi")).status_code == 404
    result.leave(f"{result.file}_r2.cxi")
    assert pages.get("ada", result.address("ptychocam.cxi")).status_code == 404
    for name in (
        "cdtools.cxi",
        "ptychocam.sh",
        "ptychocam",
        ".cxi",
        "ptychocam.cxi.png",
        "..",
        "%2e%2e%2fx.cxi",
    ):
        assert pages.get("ada", result.address(name)).status_code == 404, name
    assert not standin.requests("nersc")


def test_what_nersc_does_not_give_is_said(pages: Pages, result: Result, standin: Facility) -> None:
    result.file.with_name(result.file.name + ".h5").unlink()
    gone = pages.get("reader", result.address("ptychocam.h5"))
    assert gone.status_code == 404
    assert f"{result.file}.h5 is not at NERSC any more." in gone.text
    standin.fault(service="nersc", path="/utilities/download", kind="status", status=403, times=100)
    away = pages.get("reader", result.address("ptychocam.png"))
    assert away.status_code == 502
    assert "could not be read from NERSC" in away.text
