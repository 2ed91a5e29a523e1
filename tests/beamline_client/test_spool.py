"""The spool: processes that share it, crashes, damage and full disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from beamline_client import spool
from beamline_client.client import Client
from beamline_client.config import Settings
from beamline_client.errors import LockedError, SpoolError
from beamline_client.output import Outcome
from beamline_client.rest import Airflow
from beamline_client.scan_names import scan_run_id
from beamline_client.spool import Spool
from support.airflow_api import DAG_RUNS, AirflowApi
from support.client import codes, environment, offline, scan


def test_two_flushes_at_once_do_not_double(api: AirflowApi, settings: Settings) -> None:
    for number in range(20):
        offline(settings).spool.add(offline(settings).requests("submit", [scan(number)]))
    clients = [Client(settings, log=lambda _: None) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda client: client.sender.flush(), clients))
    assert api.created == [scan_run_id(scan(number)) for number in range(20)]
    assert api.count("POST", DAG_RUNS) == 20


def test_a_submit_that_another_process_sends_for_it_shows_its_outcome(
    api: AirflowApi, settings: Settings, client: Client
) -> None:
    other = Client(settings, log=lambda _: None)
    with other.spool.lock("sending", 1.0):
        thread_outcomes: list[Outcome] = []
        thread = threading.Thread(
            target=lambda: thread_outcomes.extend(client.submit([scan(1), scan(2)], None))
        )
        thread.start()
        _until(lambda: len(other.spool.names()) == 2)
        first, second = other.spool.pending()
        other.runs.start(first.run_id, first.conf, "")
        other.spool.finish(first, other.spool.sent_folder, "accepted")
        other.spool.finish(second, other.spool.rejected_folder, "no good")
        thread.join()
    assert codes(thread_outcomes) == [("already accepted", 0), ("rejected", 4)]
    assert thread_outcomes[1].message == "no good"


def test_a_submit_that_cannot_get_the_turn_is_kept(settings: Settings) -> None:
    away = offline(settings)
    with Spool(settings.spool).lock("sending", 1.0):
        (outcome,) = away.submit([scan(1)])
    assert codes([outcome]) == [("kept", 3)]
    assert "Another submit_scan is sending" in outcome.message


def test_a_lock_of_a_dead_process_is_free(settings: Settings) -> None:
    code = (
        "import os, sys; from pathlib import Path; from beamline_client.spool import Spool\n"
        "with Spool(Path(sys.argv[1])).lock('sending', 1.0): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(settings.spool)], check=False, env=environment())
    with Spool(settings.spool).lock("sending", 1.0), pytest.raises(LockedError):
        Spool(settings.spool).lock("sending", 0.1).__enter__()


def test_a_damaged_request_is_set_aside_and_logged(
    api: AirflowApi, client: Client, messages: list[str]
) -> None:
    offline(client.settings).submit([scan(1)])
    for number, content in enumerate(["", "{}", "[1]", "null", '{"kind": "submit"', "\0\0\0"]):
        (client.spool.pending_folder / f"{number:020}-00000000.json").write_text(content)
    client.sender.flush()
    assert api.created == [scan_run_id(scan(1))]
    assert client.spool.names() == []
    assert sum("damaged" in line for line in messages) == 6
    assert len(list(client.spool.rejected_folder.glob("*.damaged"))) == 6


def test_records_of_what_was_sent_are_limited(
    api: AirflowApi, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "SENT_KEPT", 3)
    for number in range(6):
        client.submit([scan(number)])
    client.sender.flush()
    assert len(list(client.spool.sent_folder.iterdir())) == 3


def test_leftovers_of_a_crash_are_cleared(api: AirflowApi, client: Client) -> None:
    client.submit([scan(1)])
    leftovers = [client.spool.pending_folder / "a.json.tmp", client.spool.sent_folder / "b.json.tmp"]
    for leftover in leftovers:
        leftover.write_text("{")
    client.submit([scan(2)])
    assert not any(leftover.exists() for leftover in leftovers)
    assert len(api.created) == 2


@pytest.fixture
def no_spool(settings: Settings, tmp_path: Path) -> Settings:
    (tmp_path / "file").touch()
    return Settings(**{**settings.__dict__, "spool": tmp_path / "file" / "spool"})


def test_without_a_spool_a_scan_is_sent_all_the_same(
    api: AirflowApi, no_spool: Settings, messages: list[str]
) -> None:
    client = Client(no_spool, log=messages.append)
    assert codes(client.submit([scan(1)])) == [("accepted", 0)]
    assert any("without keeping it first" in line for line in messages)


def test_without_a_spool_and_without_airflow_it_says_that_it_is_lost(no_spool: Settings) -> None:
    (outcome,) = offline(no_spool).submit([scan(1)])
    assert codes([outcome]) == [("lost", 7)]
    assert "NOT kept" in outcome.message
    (outcome,) = offline(no_spool).reprocess([scan(1)])
    assert codes([outcome]) == [("refused", 2)]


def test_a_full_disk_is_logged_and_the_scan_is_sent(api: AirflowApi, config: Path) -> None:
    """No file may grow beyond 0 bytes: what a full disk does to writes."""
    code = (
        "import resource, sys; from beamline_client.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, scan(1), "--config", str(config), "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["outcome"] == "accepted"
    assert "File too large" in done.stderr


def test_a_disk_that_fills_up_after_the_acceptance_holds_up_nothing(
    api: AirflowApi, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = spool.write_file

    def full(path: Path, text: str) -> None:
        if path.parent.name == "sent":
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(spool, "write_file", full)
    assert codes(client.submit([scan(1)])) == [("accepted", 0)]
    assert client.spool.names() == []


def test_a_request_is_on_disk_before_it_is_sent(
    api: AirflowApi, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content synced, then renamed, then the folder synced, then sent; gone only after the answer."""
    events: list[str] = []

    def spy(owner: Any, name: str, label: Callable[..., str]) -> None:
        real = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            events.append(label(*args))
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    spy(os, "fsync", lambda fd: "sync " + Path(f"/proc/self/fd/{fd}").readlink().name.split("-")[-1][8:])
    spy(Path, "replace", lambda _, target: f"rename into {target.parent.name}")
    spy(Path, "unlink", lambda path, *_: f"remove from {path.parent.name}")
    spy(Airflow, "_send", lambda _, method, address, *__: f"{method} {address.rsplit('/', 1)[1]}")
    client.spool.add([])  # makes the folders
    events.clear()
    client.submit([scan(1)])
    assert events == [
        "sync .json.tmp",
        "rename into pending",
        "sync ",
        "POST token",
        "POST dagRuns",
        "sync .json.tmp",
        "rename into sent",
        "sync ",
        "remove from pending",
        "sync ",
        "GET transfer_auto_recon",  # is it paused?
    ]


def test_an_unreadable_spool_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpoolError, match=r"The spool folder .* cannot be used"):
        Spool(tmp_path / "file").names()


def _until(condition: Callable[[], bool]) -> None:
    from dev.local_airflow.stack import wait_until

    assert wait_until(condition, 60, 0.01)
