"""Runs that are started without an id: named after their scan, each with a number of its own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cosmic import run_names
from cosmic.run_names import RunNames
from cosmic.scans import ScanPath

RUNS = "/api/v2/dags/transfer_auto_recon/dagRuns"
SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
OURS = "NS_230216033_0_0"


class Application:
    """Airflow, as far as it keeps run ids and logical dates apart."""

    def __init__(self, *there: str) -> None:
        self.received: list[bytes] = []
        self.runs = list(there)
        self.dates: set[str] = set()
        self.started_meanwhile: list[str] = []  # one by one, before a request is acted on

    def free(self, scan: ScanPath) -> str:
        return scan.run_id(1 + max((scan.generation(run_id) for run_id in self.runs), default=0))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        content = (await receive())["body"]
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
        await send({"type": "http.response.body", "body": b"half, ", "more_body": True})
        await send({"type": "http.response.body", "body": b"whole"})


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Application:
    application = Application()
    monkeypatch.setattr(run_names, "free_run_id", application.free)
    return application


def post(application: Application, content: bytes, path: str = RUNS, method: str = "POST") -> int:
    """Status of the answer to a request that comes in pieces."""
    pieces = [content[n : n + 50] for n in range(0, len(content), 50)] or [b""]
    messages = [
        {"type": "http.request", "body": piece, "more_body": n < len(pieces)}
        for n, piece in enumerate(pieces, start=1)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-length", str(len(content)).encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(RunNames(application)(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start"] + ["http.response.body"] * 2
    return int(sent[0]["status"])


def request(**changes: Any) -> bytes:
    return json.dumps({"logical_date": None, "conf": {"file_path": SCAN}} | changes).encode()


@pytest.mark.parametrize("given", [{}, {"dag_run_id": None}, {"dag_run_id": ""}])
@pytest.mark.parametrize("path", [RUNS, RUNS + "/", "/airflow" + RUNS])
def test_the_first_run_of_a_scan_has_its_name_and_the_next_are_numbered(
    airflow: Application, given: dict[str, Any], path: str
) -> None:
    assert [post(airflow, request(note="by hand", **given), path) for _ in range(3)] == [200] * 3
    assert airflow.runs == [OURS, f"{OURS}__r2", f"{OURS}__r3"]
    assert json.loads(airflow.received[0])["note"] == "by hand"
    assert json.loads(airflow.received[0])["conf"] == {"file_path": SCAN}


def test_runs_that_start_at_the_same_moment_do_not_share_an_id(airflow: Application) -> None:
    airflow.started_meanwhile = [OURS, f"{OURS}__r2"]
    assert post(airflow, request()) == 200
    assert airflow.runs == [OURS, f"{OURS}__r2", f"{OURS}__r3"]


def test_a_refusal_for_another_reason_is_handed_on(airflow: Application) -> None:
    airflow.dates.add("2026-01-01T00:00:00Z")
    assert post(airflow, request(logical_date="2026-01-01T00:00:00Z")) == 409
    assert len(airflow.received) == 1


@pytest.mark.parametrize(
    ("content", "path"),
    [
        (request(dag_run_id="mine"), RUNS),
        (request(conf={"file_path": "../x.cxi"}), RUNS),
        (request(conf={"file_path": 5}), RUNS),
        (request(conf={}), RUNS),
        (request(conf=None), RUNS),
        (b'{"logical_date": null}', RUNS),
        (b"[]", RUNS),
        (b"not JSON", RUNS),
        (b"[" * 50_000, RUNS),
        (b"", RUNS),
        (b'{"conf": {}}', "/api/v2/dags/find_missed_scans/dagRuns"),
        (b'{"conf": {}}', RUNS + "/x/clear"),
    ],
)
def test_everything_else_comes_through_as_it_is(airflow: Application, content: bytes, path: str) -> None:
    if path == RUNS:
        assert post(airflow, content, path) == 200
        assert airflow.received == [content]
    else:
        assert post(airflow, content[:50], path) == 200


def test_reading_is_no_start(airflow: Application) -> None:
    assert post(airflow, b"", method="GET") == 200
    assert airflow.received == [b""]
