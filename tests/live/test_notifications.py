"""From a run that fails in Airflow to the mail and the webhook of a person."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from cosmic.dag_constants import FLIGHT_CHECK, NOTIFY, NOTIFY_CONN_ID
from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from support.live import SLOW, Pipeline
from support.missed import Day, changed_site
from support.receivers import Mailbox, Webhook, mail_server, pictures, webhook

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(900)]

SECRET = "of-the-night-shift"


class People:
    """Who is notified, by a mail server and a webhook."""

    def __init__(self, pipeline: Pipeline, mailbox: Mailbox, hook: Webhook) -> None:
        self.pipeline = pipeline
        self.mailbox = mailbox
        self.hook = hook

    def look(self) -> str:
        """Let `notify` look; returns the state of its run."""
        run = self.pipeline.rest.trigger(NOTIFY)
        self.last_run = run
        return str(self.pipeline.rest.wait_for_run(NOTIFY, run, SLOW)["state"])

    def about(self, text: str) -> list[str]:
        """Subjects of the messages that the webhook has and that name `text`."""
        return [str(post["title"]) for post in self.hook.posts if text in post["title"] + post["message"]]

    def mails_about(self, text: str) -> list[Any]:
        """The mails that name `text`."""
        found = []
        for mail in self.mailbox.mails:
            body = mail.get_body(("plain",))
            assert body is not None
            if text in str(mail["Subject"]) + body.get_content():
                found.append(mail)
        return found


def commands() -> str:
    """The command lines of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            found.append(path.read_text(errors="replace"))
    return "\n".join(found)


@pytest.fixture
def people(pipeline: Pipeline) -> Iterator[People]:
    """Receivers that `notify` knows already, each event at once."""
    with mail_server() as mailbox, webhook() as hook, changed_site(pipeline, notify={"interval_minutes": 0}):
        connection = {
            "connection_id": NOTIFY_CONN_ID,
            "conn_type": "generic",
            "password": f"{mailbox.url}, {hook.url}",
        }
        pipeline.rest.call("POST", "/api/v2/connections", connection)
        try:
            people = People(pipeline, mailbox, hook)
            assert people.look() == "success"
            yield people
        finally:
            pipeline.rest.call("DELETE", f"/api/v2/connections/{NOTIFY_CONN_ID}")


def test_a_failed_scan_is_one_mail_and_one_post_with_cause_advice_picture_and_address(
    people: People,
) -> None:
    pipeline = people.pipeline
    scan = pipeline.new_scan("half 3")
    run_id = pipeline.start(scan, do_cdtools=True)
    ended = pipeline.start(pipeline.new_scan("hold"))
    pipeline.wait_for_task(ended, "ptychocam.wait", "deferred")
    pipeline.rest.call("PATCH", f"/api/v2/dags/{DAG_ID}/dagRuns/{ended}", {"state": "failed"})
    assert pipeline.finish(run_id) == "failed"
    # NERSC gives out no files: the picture is the one that was kept.
    pipeline.facility.fault(service="nersc", path="/utilities", kind="status", status=503, times=10_000)
    try:
        assert people.look() == "success"
        assert people.look() == "success"
    finally:
        pipeline.facility.clear_faults()

    (mail,) = people.mails_about(run_id)
    subject = str(mail["Subject"])
    assert subject.startswith(f"COSMIC: scan {run_id} failed: ")
    assert "the probe has no support" in subject
    text = mail.get_body(("plain",)).get_content()
    assert "What to do: " in text
    assert f"submit_scan.py reprocess {scan}" in text
    address = f"{pipeline.airflow.url}/cosmic/dags/{DAG_ID}/runs/{run_id}"
    assert address in text
    token = {"Authorization": f"Bearer {pipeline.rest.token}"}
    page = requests.get(address, headers=token, timeout=30)
    assert (page.status_code, run_id in page.text) == (200, True)
    preview = pipeline.rest.xcom(DAG_ID, run_id, "ptychocam.collect")["preview"]
    assert pictures(mail) == {f"{run_id}_ptychocam.png": Path(preview).read_bytes()}

    assert people.about(run_id) == [mail["Subject"]]
    assert people.about(ended) == []  # a person has ended it


def test_a_receiver_that_is_down_gets_its_message_later_and_no_scan_notices(people: People) -> None:
    pipeline = people.pipeline
    people.hook.status = 503
    run_id = pipeline.start(pipeline.new_scan("fail 3"))
    assert pipeline.finish(run_id) == "failed"
    assert people.look() == "failed"
    log = pipeline.rest.log(NOTIFY, people.last_run, "send_notifications", 2)
    assert "A message could not be sent to receiver 2 of NOTIFY (json)" in log
    assert "503" in log
    good = pipeline.start(pipeline.new_scan("ok"))
    assert pipeline.finish(good) == "success"
    people.hook.status = 200
    assert people.look() == "success"
    assert len(people.about(run_id)) == 1
    assert len(people.mails_about(run_id)) == 1
    assert people.about(good) == []

    # Nothing of a receiver's URL is anywhere but in the connection.
    rest = pipeline.rest
    task = rest.call("GET", f"/api/v2/dags/{NOTIFY}/dagRuns/{people.last_run}/taskInstances")
    found = [log, json.dumps(task), json.dumps(rest.call("GET", "/api/v2/variables?limit=100"))]
    found += [rest.log(NOTIFY, people.last_run, "send_notifications")]
    found += [json.dumps(rest.call("GET", f"/api/v2/connections/{NOTIFY_CONN_ID}"))]
    found += [json.dumps(rest.xcom(NOTIFY, people.last_run, "send_notifications"))]
    found += [commands()]
    assert [text[:300] for text in found if SECRET in text] == []


def test_an_outage_of_nersc_is_one_message_with_its_end_and_its_end_another(people: People) -> None:
    nersc = people.pipeline.facility
    nersc.control("nersc", "maintenance", seconds=7200, description="Slurm upgrade")
    try:
        assert people.look() == "success"
        assert people.look() == "success"
    finally:
        nersc.control("nersc", "end_maintenance")
    (subject,) = people.about("NERSC is out")
    assert subject.startswith("COSMIC: NERSC is out: perlmutter is unavailable, until ")
    assert people.look() == "success"
    assert people.look() == "success"
    assert people.about("NERSC is back") == ["COSMIC: NERSC is back"]


def test_two_silences_of_globus_in_a_row_are_an_outage(people: People) -> None:
    facility = people.pipeline.facility
    facility.fault(kind="status", status=503, service="globus")
    try:
        assert people.look() == "success"
        assert people.look() == "success"
        assert len(people.about("Globus is out")) == 1
    finally:
        facility.clear_faults()
    assert people.look() == "success"
    assert people.about("Globus is back") == ["COSMIC: Globus is back"]


def test_a_client_that_expires_and_a_red_flight_check(people: People) -> None:
    pipeline = people.pipeline
    facility, rest = pipeline.facility, pipeline.rest
    try:
        facility.control("nersc", "client_expiry", days=6.5)
        run = rest.trigger(FLIGHT_CHECK)
        assert rest.wait_for_run(FLIGHT_CHECK, run, SLOW)["state"] == "success"
        assert people.look() == "success"
        assert people.about("client") == ["COSMIC: NERSC's client expires in 6 days"]
        facility.control("nersc", "client_expiry", days=0.5)
        run = rest.trigger(FLIGHT_CHECK)
        assert rest.wait_for_run(FLIGHT_CHECK, run, SLOW)["state"] == "failed"
        assert people.look() == "success"
        assert people.about(quote(run, safe="")) == [
            "COSMIC: flight check failed: The Superfacility client expires in 0.5 days"
        ]
    finally:
        facility.control("nersc", "client_expiry", days=30)


def test_missed_scans_and_a_late_one(people: People) -> None:
    pipeline = people.pipeline
    day = Day(pipeline, date(2024, 5, 1))
    missed = day.scan(1)
    assert day.find()["started"] == 1
    assert people.look() == "success"
    assert people.about(quote(day.last_run, safe="")) == ["COSMIC: 2024-05-01: 1 of 1 scans were missed"]
    assert day.finish(missed) == ["success"]

    scan = pipeline.new_scan("hold")
    late = pipeline.start(scan)
    pipeline.wait_for_task(late, "ptychocam.wait", "deferred")
    with changed_site(pipeline, notify={"interval_minutes": 0, "late_after_hours": 1e-4}):
        assert people.look() == "success"
        assert people.look() == "success"
    (subject,) = people.about(late)
    assert subject.startswith(f"COSMIC: scan {late} is late: not done after 1 min")
    pipeline.let_go(scan)
    assert pipeline.finish(late) == "success"


def test_many_failures_are_one_message(people: People) -> None:
    pipeline = people.pipeline
    with changed_site(pipeline, notify={"interval_minutes": 30}):
        first = pipeline.start(pipeline.new_scan("fail 3"))
        assert pipeline.finish(first) == "failed"
        people.look()
        runs = [pipeline.start(pipeline.new_scan("fail 3")) for _ in range(10)]
        assert {pipeline.finish(run) for run in runs} == {"failed"}
        people.look()
        assert [len(people.about(run)) for run in (first, *runs)] == [1] + [0] * 10
    people.look()
    (subject,) = {subject for run in runs for subject in people.about(run)}
    assert subject.startswith("COSMIC: 10 scans failed: ")
    assert len(people.hook.posts) == len(people.mailbox.mails) == 2
