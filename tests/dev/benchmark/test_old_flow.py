"""What `make bench OLD=...` needs, and a server that has too much to do."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dev.benchmark import __main__ as command
from dev.benchmark import old_flow
from dev.benchmark.old_flow import FLOW, OldFlow

GLOBUS = dict.fromkeys(("client_id", "client_secret", "auth_url", "transfer_url"), "")


@pytest.fixture
def answers() -> list[int]:
    """The statuses that the server answers with, one after the other."""
    return []


@pytest.fixture
def flow(answers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OldFlow]:
    """The old flow at a server that counts five runs."""

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(answers.pop(0))
            self.end_headers()
            self.wfile.write(json.dumps(5).encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server, contextlib.ExitStack() as stack:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(old_flow, "free_port", lambda: server.server_port)
        monkeypatch.setattr(old_flow, "PAUSE", 0.0)
        yield OldFlow(tmp_path, tmp_path, GLOBUS, stack)
        server.shutdown()
        thread.join()


def test_a_request_is_sent_again_while_the_server_answers_503(flow: OldFlow, answers: list[int]) -> None:
    answers += [503, 503, 200]
    assert flow.unfinished("x") == 5
    assert flow.refused == 2


def test_another_error_is_one(flow: OldFlow, answers: list[int]) -> None:
    answers.append(500)
    with pytest.raises(OSError, match="500"):
        flow.unfinished("x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["old"], "OLD is missing. Give OLD=path/to/a/checkout of als-computing/splash_flows."),
        (["--old", "/dev/null"], f"/dev/null has no {FLOW}. Give OLD=path"),
        (["coffee"], "There is no section coffee; there are imports, latency,"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    with pytest.raises(SystemExit):
        command.main()
    assert message in capsys.readouterr().err


def test_with_a_checkout_only_the_comparison_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FLOW).parent.mkdir(parents=True)
    (tmp_path / FLOW).touch()
    made: list[Path] = []
    monkeypatch.setattr("sys.argv", ["bench", "--old", str(tmp_path)])
    monkeypatch.setattr(command, "_print_against", lambda _folder, checkout: made.append(checkout))
    command.main()
    assert made == [tmp_path.resolve()]
