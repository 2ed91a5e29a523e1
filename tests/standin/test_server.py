"""The facility's server: start, health, standin.json, control, restarts."""

from __future__ import annotations

import json
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from standin.__main__ import parse
from standin.requestlog import Entry, RequestLog
from standin.settings import Settings
from standin.store import open_database, write_atomically
from standin.testing import Facility, running, spawn, until

INCLUDE = Path(__file__).parents[2] / "include"


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "standin", *arguments],
        cwd=INCLUDE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_health_and_description(facility: Facility) -> None:
    health = requests.get(f"{facility.base_url}/healthz", timeout=10)
    assert health.json()["status"] == "ok"
    assert "globus" in health.json()["services"]
    written = json.loads((facility.root / "standin.json").read_text())
    assert written == facility.description
    assert written["base_url"] == facility.base_url
    assert written["globus"]["transfer_url"] == f"{facility.base_url}/globus/transfer/"
    assert written["collections"]["data7012"]["id"] == "741b96e1-1b98-42a8-918d-daacc24c145f"
    assert written["collections"]["nersc7012"]["root"] == str(facility.nersc / "gsharing" / "7012")


def test_secrets_are_for_the_owner_only(facility: Facility) -> None:
    assert mode(facility.root / "standin.json") == 0o600
    assert mode(facility.root / "credentials") == 0o700
    assert mode(facility.root / "state") == 0o700
    assert mode(facility.root / "credentials" / "globus.json") == 0o600


def test_a_restart_keeps_credentials(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        before = first.description["globus"]
    with running(tmp_path) as second:
        after = second.description["globus"]
    assert (before["client_id"], before["client_secret"]) == (after["client_id"], after["client_secret"])


def test_one_server_for_one_root(facility: Facility) -> None:
    ended = run_program("--root", str(facility.root))
    assert ended.returncode != 0
    assert f"Another stand-in facility is running on {facility.root}" in ended.stderr
    assert requests.get(f"{facility.base_url}/healthz", timeout=10).ok


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run_program("--root", str(tmp_path), "--port", str(port))
    assert ended.returncode != 0
    assert f"Cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "give another --port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_root_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = run_program("--root", str(tmp_path / "file"))
    assert ended.returncode != 0
    assert f"Cannot use {tmp_path / 'file'}" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--slots=0", "slots is 0; it must be at least 1."),
        ("--bandwidth=-1", "bandwidth is -1.0; it must be more than 0"),
        ("--port=70000", "port is 70000; it must be from 0"),
    ],
)
def test_bad_options_are_refused(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--root", "x", option])
    assert message in capsys.readouterr().err


def test_an_unknown_scheduler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it must be one of auto, slurm, builtin"):
        Settings(root=tmp_path, scheduler="pbs")


def test_control_is_off_unless_asked_for(tmp_path: Path) -> None:
    with running(tmp_path, control=False) as facility:
        for method, path in (("GET", "faults"), ("POST", "faults"), ("POST", "globus/transfers")):
            reply = requests.request(method, f"{facility.base_url}/control/{path}", json={}, timeout=10)
            assert reply.status_code == 404


def test_control_refuses_what_it_does_not_know(facility: Facility) -> None:
    with pytest.raises(RuntimeError, match=r"404.*No such service; there are"):
        facility.control("slurm", "jobs")
    with pytest.raises(RuntimeError, match=r"404.*No such verb; there are"):
        facility.control("globus", "explode")
    for body in (b"[1]", b"{", b'"x"'):
        reply = requests.post(f"{facility.base_url}/control/globus/endpoint", data=body, timeout=10)
        assert reply.status_code == 400
        assert "JSON" in reply.json()["error"]


def test_the_log_of_requests(facility: Facility) -> None:
    url = facility.base_url
    requests.get(f"{url}/healthz", timeout=10)
    requests.get(
        f"{url}/globus/transfer/v0.10/task/1?a=b", headers={"Authorization": "Bearer s3cret"}, timeout=10
    )
    entries = facility.requests()
    assert [(e["service"], e["method"], e["path"], e["query"], e["status"], e["fault"]) for e in entries] == [
        ("globus", "GET", "/globus/transfer/v0.10/task/1", "a=b", 401, None)
    ]
    assert "s3cret" not in json.dumps(entries)
    assert facility.requests("globus") == entries
    assert facility.requests("nersc") == []
    facility.clear_requests()
    assert facility.requests() == []


def test_the_log_keeps_the_newest_and_counts_all() -> None:
    log = RequestLog(limit=3)
    for number in range(5):
        log.add(Entry(float(number), "globus", "GET", f"/{number}", ""))
    assert [entry["path"] for entry in log.to_json()["requests"]] == ["/2", "/3", "/4"]
    assert log.to_json()["counts"] == {"globus": 5}


def test_as_a_process_it_prints_its_url_and_ends_in_order(tmp_path: Path) -> None:
    with spawn(tmp_path) as facility:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", facility.base_url)
        assert requests.get(f"{facility.base_url}/healthz", timeout=10).ok
        facility.terminate()
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{facility.base_url}/healthz", timeout=10)
    assert "Traceback" not in (tmp_path / "state" / "server.log").read_text()


def test_killed_and_started_again_on_the_same_port(tmp_path: Path) -> None:
    with spawn(tmp_path) as facility:
        before = facility.description
        facility.kill()
        facility.restart()
        assert facility.description == before
        assert requests.get(f"{facility.base_url}/healthz", timeout=10).ok


def test_public_url_is_what_clients_are_told(tmp_path: Path) -> None:
    with running(tmp_path, public_url="http://standin.example:8080/") as facility:
        assert facility.base_url == "http://standin.example:8080"
        assert facility.description["globus"]["auth_url"].startswith(
            "http://standin.example:8080/globus/auth"
        )


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "standin.json"
    write_atomically(path, "one")
    with pytest.raises(TypeError):
        write_atomically(path, 2)  # type: ignore[arg-type]
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["standin.json"]
    assert mode(path) == 0o600


def test_databases_are_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    database = open_database(path, "CREATE TABLE IF NOT EXISTS t (a)")
    database.execute("INSERT INTO t VALUES (1)")
    again = open_database(path, "CREATE TABLE IF NOT EXISTS t (a)")
    assert [row["a"] for row in again.execute("SELECT a FROM t")] == [1]
    database.close()
    again.close()
    assert mode(path) == 0o600


def test_until_gives_up_with_the_last_answer() -> None:
    answers: list[Any] = []
    with pytest.raises(TimeoutError, match=r"last answer: \[\]"):
        until(lambda: answers, within=0.02)
