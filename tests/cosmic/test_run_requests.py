"""What is posted to start runs: refused in one line, or handed on to Airflow, with an id after the scan."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cosmic import run_requests
from cosmic.run_requests import MAX_BODY, MAX_RUN_ID, PARAMETERS, RUN_ID, RunRequests
from cosmic.scans import ScanPath

RUNS = "/api/v2/dags/transfer_auto_recon/dagRuns"
SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
OURS = "NS_230216033_0_0"
GOOD: dict[str, Any] = {"logical_date": None, "dag_run_id": "mine", "conf": {"file_path": SCAN, "n_gpu": 2}}


class Application:
    """Airflow behind the middleware, as far as it keeps run ids and logical dates apart."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.runs: list[str] = []
        self.dates: set[str] = set()
        self.started_meanwhile: list[str] = []  # one by one, before a request is acted on

    def free(self, scan: ScanPath) -> str:
        return scan.run_id(1 + max((scan.generation(run_id) for run_id in self.runs), default=0))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        content, more = b"", True
        while more:
            message = await receive()
            content += message.get("body", b"")
            more = message.get("more_body", False)
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        assert lengths == [str(len(content)).encode()]
        self.received.append(content)
        if self.started_meanwhile:
            self.runs.append(self.started_meanwhile.pop(0))
        try:
            body = json.loads(content)
            run_id, date = body.get("dag_run_id"), body.get("logical_date")
        except (ValueError, AttributeError, RecursionError):
            run_id = date = None
        status = 409 if run_id in self.runs or (date and date in self.dates) else 200
        if status == 200:
            self.runs.append(run_id)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b'{"half": ', "more_body": True})
        await send({"type": "http.response.body", "body": b'"whole"}'})


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Application:
    application = Application()
    monkeypatch.setattr(run_requests, "free_run_id", application.free)
    monkeypatch.setattr(run_requests, "_what_exists", lambda dag_id, body: f"{dag_id}: {body['dag_run_id']}")
    return application


def post(
    path: str, content: bytes, method: str = "POST", size: int = 1000, application: Application | None = None
) -> tuple[int, Any, list[bytes]]:
    """Status and JSON of the answer to a request that comes in pieces, and what came through."""
    pieces = [content[n : n + size] for n in range(0, len(content), size)] or [b""]
    messages = [
        {"type": "http.request", "body": piece, "more_body": n < len(pieces)}
        for n, piece in enumerate(pieces, start=1)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    application = application or Application()
    headers = [(b"content-length", str(len(content)).encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(RunRequests(application)(scope, receive, send))
    assert [message["type"] for message in sent].count("http.response.start") == 1
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body), application.received


THROUGH = {"half": "whole"}


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (RUNS, json.dumps(GOOD).encode()),
        (RUNS + "/", json.dumps(GOOD | {"dag_run_id": "x" * MAX_RUN_ID}).encode()),
        (RUNS, json.dumps(GOOD | {"note": "x" * 50_000}).encode()),
        (RUNS, json.dumps(GOOD | {"dag_run_id": "scan.a+b:1"}).encode()),
        (RUNS, b"not JSON: Airflow's to refuse"),
        (RUNS, b"\xff\xfe"),
        (RUNS, b"[]"),
        (RUNS, b""),
        (RUNS, b'{"conf": 5}'),
        ("/api/v2/dags/another_dag/dagRuns", b'{"conf": {"whatever": 1}}'),
        ("/api/v2/backfills", b'{"dag_id": "another_dag", "dag_run_conf": {"whatever": 1}}'),
        ("/api/v2/backfills/dry_run", b'{"dag_id": "find_missed_scans", "dag_run_conf": {"at_once": "3"}}'),
        ("/api/v2/dags/find_missed_scans/dagRuns", b'{"conf": {}}'),
        (RUNS + "/x/clear", b"x" * 2 * MAX_BODY),
        ("/api/v2/variables", b'{"value": NaN}'),
    ],
)
def test_what_is_none_of_its_business_or_right_comes_through_as_it_is(path: str, content: bytes) -> None:
    assert post(path, content) == (200, THROUGH, [content])


def test_only_posts_are_read(airflow: Application) -> None:
    assert post(RUNS, b"", "GET", application=airflow) == (200, THROUGH, [b""])
    assert post(RUNS, b'{"conf": {"whatever": 1}}', "PATCH") == (200, THROUGH, [b'{"conf": {"whatever": 1}}'])


def conf(text: str) -> bytes:
    return b'{"logical_date": null, "conf": {"file_path": "%s", %s}}' % (SCAN.encode(), text.encode())


@pytest.mark.parametrize(
    ("content", "status", "text"),
    [
        (conf('"n_gpus": 2'), 400, "There is no parameter 'n_gpus' (did you mean n_gpu?)."),
        (conf('"account": "als"'), 400, "There is no parameter 'account' (there are: file_path, "),
        (conf('"propagation_distance": NaN'), 400, "propagation_distance must be a distance in meters"),
        (conf('"probe_support_radius": NaN'), 400, "probe_support_radius must be a number from 1 to"),
        (conf('"propagation_distance": -Infinity'), 400, "propagation_distance must be a distance in"),
        (conf('"qos": NaN'), 400, "qos must be one of regular, "),
        (conf('"propagation_distance": 1e400'), 400, "propagation_distance must be a distance in meters"),
        (conf('"probe_initialization": "\\ud800"'), 400, "probe_initialization must be the path of a file"),
        (
            json.dumps(GOOD | {"note": "\ud800"}).encode(),
            400,
            "A text in the request has half of a surrogate",
        ),
        (conf('"n_gpu": ' + "[" * 30_000), 400, "The request is nested too deeply."),
        (b'{"conf": {"file_path": "../x.cxi"}}', 400, "file_path must be the path of a scan such as 2023/"),
        (b'{"conf": {"file_path": 5}}', 400, "file_path must be the path of a scan such as 2023/"),
        (b'{"conf": {}}', 400, "file_path is missing: it must be the path of a scan such as 2023/"),
        (b'{"conf": null}', 400, "file_path is missing: it must be the path of a scan such as 2023/"),
        (b"{}", 400, "file_path is missing: it must be the path of a scan such as 2023/"),
        (
            conf('"probe_initialization": "' + "x" * 10**6 + '"'),
            413,
            "The request is longer than 65536 bytes",
        ),
        (json.dumps(GOOD | {"dag_run_id": "scan__1\n"}).encode(), 400, "dag_run_id must be at most 200 "),
        (json.dumps(GOOD | {"dag_run_id": "x" * 250}).encode(), 400, "dag_run_id must be at most 200 "),
        (json.dumps(GOOD | {"dag_run_id": "a/b"}).encode(), 400, "dag_run_id must be at most 200 "),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(content: bytes, status: int, text: str) -> None:
    answer, body, received = post(RUNS, content)
    assert (answer, received) == (status, [])
    assert body["detail"].startswith(text)
    assert body["detail"].isprintable()


@pytest.mark.parametrize("path", ["/api/v2/backfills", "/airflow/api/v2/backfills/dry_run"])
def test_the_conf_of_a_backfill_is_checked_too(path: str) -> None:
    content = b'{"dag_id": "find_missed_scans", "dag_run_conf": {"wich": "failed", "at_once": 401}}'
    status, body, received = post(path, content)
    assert (status, received) == (400, [])
    assert (
        "'wich' (did you mean which?). at_once must be a whole number from 1 to 400, not 401"
        in body["detail"]
    )


def test_what_a_client_left_unfinished_is_dropped() -> None:
    sent: list[Any] = []
    messages = [
        {"type": "http.request", "body": json.dumps(GOOD).encode(), "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": RUNS, "headers": []}
    application = Application()
    asyncio.run(RunRequests(application)(scope, receive, send))
    assert (application.received, sent) == ([], [])


def start(application: Application, path: str = RUNS, **changes: Any) -> int:
    """Status of the answer to the start of a run without an id."""
    body = {"logical_date": None, "conf": {"file_path": SCAN}} | changes
    return post(path, json.dumps(body).encode(), size=50, application=application)[0]


@pytest.mark.parametrize("given", [{}, {"dag_run_id": None}, {"dag_run_id": ""}])
@pytest.mark.parametrize("path", [RUNS, RUNS + "/", "/airflow" + RUNS])
def test_the_first_run_of_a_scan_has_its_name_and_the_next_are_numbered(
    airflow: Application, given: dict[str, Any], path: str
) -> None:
    assert [start(airflow, path, note="by hand", **given) for _ in range(3)] == [200] * 3
    assert airflow.runs == [OURS, f"{OURS}__r2", f"{OURS}__r3"]
    assert json.loads(airflow.received[0])["note"] == "by hand"
    assert json.loads(airflow.received[0])["conf"] == {"file_path": SCAN}


def test_runs_that_start_at_the_same_moment_do_not_share_an_id(airflow: Application) -> None:
    airflow.started_meanwhile = [OURS, f"{OURS}__r2"]
    assert start(airflow) == 200
    assert airflow.runs == [OURS, f"{OURS}__r2", f"{OURS}__r3"]


def test_a_refusal_for_another_reason_is_handed_on(airflow: Application) -> None:
    airflow.dates.add("2026-01-01T00:00:00Z")
    assert start(airflow, logical_date="2026-01-01T00:00:00Z") == 409
    assert len(airflow.received) == 1


def test_airflow_itself_has_the_same_rule_for_run_ids() -> None:
    from airflow.configuration import conf as settings

    pattern = settings.get("scheduler", "allowed_run_id_pattern")
    assert pattern.removesuffix(r"\Z") == "^" + RUN_ID.pattern
    assert re.match(pattern, "x" * MAX_RUN_ID)
    for wrong in ("x" * (MAX_RUN_ID + 1), "x\n", "", "a/b"):
        assert re.match(pattern, wrong) is None


@pytest.mark.parametrize("dag_id", PARAMETERS)
def test_a_logical_date_in_the_future_is_refused_and_no_other(dag_id: str) -> None:
    """Airflow would start no task of the run before that date."""
    needed = {"file_path": SCAN, "scan": "NS_230216033"}
    conf = {name: value for name, value in needed.items() if name in PARAMETERS[dag_id]}
    body = {"dag_run_id": "mine", "conf": conf}
    for hours, status in ((-24 * 365 * 120, 200), (0, 200), (0.5, 200), (2, 400), (24 * 365 * 70, 400)):
        date = (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
        content = json.dumps(body | {"logical_date": date}).encode()
        answer, reply, _ = post(f"/api/v2/dags/{dag_id}/dagRuns", content)
        assert answer == status, (date, reply)
        if status == 400:
            assert "is in the future: the run would wait until then" in reply["detail"]


def test_every_dag_has_its_parameters_here() -> None:
    from airflow.dag_processing.dagbag import DagBag

    from dev.local_airflow.settings import REPOSITORY

    dags = DagBag(dag_folder=REPOSITORY / "dags").dags
    assert {dag_id: set(dag.params) for dag_id, dag in dags.items()} == {
        dag_id: set(table) for dag_id, table in PARAMETERS.items()
    }
