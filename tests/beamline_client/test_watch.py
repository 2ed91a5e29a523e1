"""Watching a folder: finished scans are submitted once, everything else is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import pytest

from beamline_client import spool, waiting, watch
from beamline_client.client import Client
from beamline_client.config import Settings
from beamline_client.scan_names import scan_run_id
from beamline_client.watch import Journal, WatchedFolder, Watcher
from dev.local_airflow.stack import wait_until
from support.airflow_api import DAG_RUNS, AirflowApi
from support.client import PROGRAM


def scan(number: int) -> str:
    return f"2023/02/230216/NS_230216{number:03}_ccdframes_0_0.cxi"


class Beamline:
    """A folder of scans, a clock that tests move, and a watch of both."""

    def __init__(
        self, client: Client, folder: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.client = client
        self.folder = folder
        self.messages = messages
        self.now = 1000.0
        folder.mkdir()
        self.clock = SimpleNamespace(monotonic=lambda: self.now, sleep=time.sleep, strftime=time.strftime)
        for module in (waiting, watch):
            monkeypatch.setattr(module, "time", self.clock)

    def write(self, name: str, content: int = 1, *, libver: str = "earliest", **options: Any) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w", libver=libver, **options) as file:
            file["x"] = [content] * content
        return path

    def watch(
        self, *, existing: bool = True, settle: float = 30.0, done: str = "", any_name: bool = False
    ) -> Watcher:
        """A watch as after a start of the program."""
        self.client.spool.add([])  # makes the folders
        journal = Journal(self.client.spool.folder / "watch.jsonl")
        watched = WatchedFolder(
            self.folder,
            journal,
            prefix="",
            settle=settle,
            done_suffix=done,
            any_name=any_name,
            log=self.messages.append,
        )
        if journal.is_new:
            journal.begin({} if existing else watched.files())
        return Watcher(self.client, watched, {"n_iter": 7})

    def check(self, watcher: Watcher, after: float = 31.0) -> None:
        self.now += after
        watcher.check()


@pytest.fixture
def beamline(
    client: Client, tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> Beamline:
    return Beamline(client, tmp_path / "data", messages, monkeypatch)


def test_a_scan_is_submitted_when_it_has_settled(api: AirflowApi, beamline: Beamline) -> None:
    watcher = beamline.watch()
    beamline.write(scan(1), 1)
    beamline.check(watcher, 0)
    beamline.check(watcher, 29)
    assert api.created == []
    beamline.write(scan(1), 5000)  # it grows
    beamline.check(watcher, 29)
    beamline.check(watcher, 29)
    assert api.created == []
    beamline.check(watcher, 2)
    assert api.created == [scan_run_id(scan(1))]
    assert api.runs[scan_run_id(scan(1))]["conf"] == {"file_path": scan(1), "n_iter": 7}
    beamline.check(watcher)
    beamline.check(watcher)
    assert api.count("POST", DAG_RUNS) == 1


def test_a_changed_time_is_a_change_too(api: AirflowApi, beamline: Beamline) -> None:
    watcher = beamline.watch()
    path = beamline.write(scan(1))
    beamline.check(watcher, 0)
    os.utime(path, ns=(1, 1))
    beamline.check(watcher, 31)
    assert api.created == []
    beamline.check(watcher, 31)
    assert len(api.created) == 1


def test_oldest_first(api: AirflowApi, beamline: Beamline) -> None:
    watcher = beamline.watch()
    for number, when in ((1, 300), (2, 100), (3, 200)):
        os.utime(beamline.write(scan(number)), (when, when))
    beamline.check(watcher, 0)
    beamline.check(watcher)
    assert api.created == [scan_run_id(scan(number)) for number in (2, 3, 1)]


def test_a_marker_says_that_a_scan_is_finished(api: AirflowApi, beamline: Beamline) -> None:
    watcher = beamline.watch(done=".done")
    path = beamline.write(scan(1))
    beamline.check(watcher)
    beamline.check(watcher)
    assert api.created == []
    path.with_name(path.name + ".done").touch()
    beamline.check(watcher, 0)
    assert len(api.created) == 1


def test_what_was_there_before_is_left_unless_it_changes(api: AirflowApi, beamline: Beamline) -> None:
    beamline.write(scan(1))
    beamline.write(scan(2))
    watcher = beamline.watch(existing=False)
    beamline.write(scan(2), 5000)  # it was being written when the watch began
    beamline.write(scan(3))
    beamline.check(watcher, 0)
    beamline.check(watcher)
    assert sorted(api.created) == [scan_run_id(scan(2)), scan_run_id(scan(3))]


def test_a_restart_remembers_and_finds_what_came_meanwhile(api: AirflowApi, beamline: Beamline) -> None:
    beamline.write(scan(1))
    watcher = beamline.watch(existing=False)
    beamline.write(scan(2))
    beamline.check(watcher, 0)
    beamline.check(watcher)
    beamline.write(scan(3))
    again = beamline.watch(existing=False)
    beamline.check(again, 0)
    beamline.check(again)
    assert api.created == [scan_run_id(scan(2)), scan_run_id(scan(3))]
    assert api.count("POST", DAG_RUNS) == 2


@pytest.mark.parametrize("torn", [1, 5, 30])
def test_a_torn_memory_submits_again_which_is_harmless(
    api: AirflowApi, beamline: Beamline, torn: int
) -> None:
    watcher = beamline.watch()
    beamline.write(scan(1))
    beamline.check(watcher, 0)
    beamline.check(watcher)
    journal = beamline.client.spool.folder / "watch.jsonl"
    os.truncate(journal, journal.stat().st_size - torn)
    again = beamline.watch()
    beamline.write(scan(2))
    beamline.check(again, 0)
    beamline.check(again)
    assert sorted(api.created) == [scan_run_id(scan(1)), scan_run_id(scan(2))]
    after = Journal(journal)
    assert set(after.submitted) == {scan(1), scan(2)}


def test_a_scan_that_changes_after_it_was_submitted_is_logged_once(
    api: AirflowApi, beamline: Beamline
) -> None:
    watcher = beamline.watch()
    beamline.write(scan(1))
    beamline.check(watcher, 0)
    beamline.check(watcher)
    beamline.write(scan(1), 5000)
    for _ in range(3):
        beamline.check(watcher)
    assert sum("changed after it was submitted" in line for line in beamline.messages) == 1
    assert len(api.created) == 1


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        (scan(1), b"", "not an HDF5 file"),
        (scan(1), b"\0" * 5000, "not an HDF5 file"),
        (scan(1), b"\x89HDF\r\n\x1a\n", "only a part of an HDF5 file"),
        ("2023/02/230216/NS 1.cxi", None, "cannot be a scan"),
        ("2023/02/230216/other.cxi", None, "to submit such files too: --any-name"),
        ("2023/02/230216/NS_230217001_ccdframes_0_0.cxi", None, "the folder of its day is 2023/02/230217"),
    ],
)
def test_what_is_no_whole_scan_is_left_alone_and_logged_once(
    api: AirflowApi, beamline: Beamline, name: str, content: bytes | None, why: str
) -> None:
    watcher = beamline.watch()
    path = beamline.write(name)
    if content is not None:
        path.write_bytes(content)
    for _ in range(4):
        beamline.check(watcher)
    assert api.created == []
    assert sum("Left alone: " in line and why in line for line in beamline.messages) == 1


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("userblock", [0, 1024])
def test_a_copy_that_stalls_is_left_until_it_is_whole(
    api: AirflowApi, beamline: Beamline, libver: str, userblock: int
) -> None:
    watcher = beamline.watch()
    path = beamline.write(scan(1), 5000, libver=libver, userblock_size=userblock)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    beamline.check(watcher, 0)
    beamline.check(watcher, 9999)
    assert api.created == []
    assert any("bytes are there" in line for line in beamline.messages)
    path.write_bytes(whole)
    beamline.check(watcher, 0)
    beamline.check(watcher)
    assert len(api.created) == 1


def test_links_hidden_files_and_other_things_are_not_followed(
    api: AirflowApi, beamline: Beamline, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    real = beamline.write(scan(1))
    secret = outside / "NS_230216009_ccdframes_0_0.cxi"
    secret.write_bytes(real.read_bytes())
    (real.parent / "NS_230216008_ccdframes_0_0.cxi").symlink_to(secret)
    (real.parent / "NS_230216007_ccdframes_0_0.cxi").symlink_to(real)
    (real.parent / "NS_230216006_ccdframes_0_0.cxi").mkdir()
    os.mkfifo(real.parent / "NS_230216005_ccdframes_0_0.cxi")
    (beamline.folder / "2023" / "03").symlink_to(outside)
    beamline.write(".partial/NS_230216004_ccdframes_0_0.cxi")
    beamline.write("2023/02/230216/.NS_230216003_ccdframes_0_0.cxi")
    beamline.write("2023/02/230216/NS_230216002_ccdframes_0_0.cxi.part")
    watcher = beamline.watch(any_name=True)
    beamline.check(watcher, 0)
    beamline.check(watcher)
    assert api.created == [scan_run_id(scan(1))]
    assert not [line for line in beamline.messages if "Left alone" in line]


def test_unusual_names_when_asked_for(api: AirflowApi, beamline: Beamline) -> None:
    watcher = beamline.watch(any_name=True)
    beamline.write("tests/star.cxi")
    beamline.check(watcher, 0)
    beamline.check(watcher)
    assert api.created == [scan_run_id("tests/star.cxi")]


def test_an_outage_is_logged_once_and_nothing_is_lost(api: AirflowApi, beamline: Beamline) -> None:
    url = beamline.client.settings.url
    watcher = beamline.watch()
    object.__setattr__(beamline.client.settings, "url", "http://127.0.0.1:1")
    beamline.clock.sleep = lambda wait: setattr(beamline, "now", beamline.now + wait)
    for number in range(1, 4):
        beamline.write(scan(number))
        beamline.check(watcher, 0)
        beamline.check(watcher)
    assert len(beamline.client.spool.names()) == 3
    assert sum("waiting: It waits in" in line for line in beamline.messages) == 1
    object.__setattr__(beamline.client.settings, "url", url)
    beamline.check(watcher, 120)
    assert api.created == [scan_run_id(scan(number)) for number in range(1, 4)]
    assert any("All that waited was sent" in line for line in beamline.messages)


def test_a_wrong_password_is_not_tried_at_every_check(api: AirflowApi, beamline: Beamline) -> None:
    api.users.clear()
    watcher = beamline.watch()
    beamline.write(scan(1))
    for _ in range(60):
        beamline.check(watcher, 31 / 5)
    assert 1 <= api.count("POST", "/auth/token") <= 12
    api.users["beamline"] = "secret"
    beamline.check(watcher, 61)
    assert len(api.created) == 1


def test_a_full_disk_is_logged_and_the_scan_is_found_again(
    api: AirflowApi, beamline: Beamline, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = beamline.watch()
    beamline.write(scan(1))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spool, "write_file", full)
        beamline.check(watcher, 0)
        beamline.check(watcher)
    assert any("No space left" in line for line in beamline.messages)
    beamline.check(watcher)
    assert api.created == [scan_run_id(scan(1))]


def test_the_program_watches_until_it_is_stopped(
    api: AirflowApi, program: Callable[..., subprocess.Popen[str]], config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "2023" / "02" / "230216"
    folder.mkdir(parents=True)
    config.write_text(config.read_text() + f"data_root = {tmp_path / 'data'}\n")
    watching = program("watch", str(folder), "--settle", "0.1", "--interval", "0.05", "--engine", "cdtools")
    assert watching.stdout is not None
    assert "Watching" in watching.stdout.readline()
    second = program("watch", str(folder))
    assert second.wait(60) == 2
    assert "being watched already" in second.communicate()[0]
    for number in (1, 2):
        with h5py.File(folder / Path(scan(number)).name, "w") as file:
            file["x"] = number
    assert wait_until(lambda: len(api.created) == 2, 60, 0.02)
    watching.send_signal(signal.SIGTERM)
    out, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0, out
    assert "Stopped. What was found is kept or sent." in out
    assert sorted(api.created) == [scan_run_id(scan(1)), scan_run_id(scan(2))]
    assert api.runs[scan_run_id(scan(1))]["conf"]["do_cdtools"] is True


def test_a_folder_outside_the_data_root_is_refused(client: Client, config: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    config.write_text(config.read_text() + f"data_root = {tmp_path / 'data'}\n")
    command = [sys.executable, str(PROGRAM), "watch", str(tmp_path), "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{tmp_path} is not below data_root" in done.stderr


def test_many_files_are_looked_at_quickly(beamline: Beamline) -> None:
    content = beamline.write(scan(0)).read_bytes()
    for number in range(1, 2000):
        (beamline.folder / scan(number)).write_bytes(content)
    watcher = beamline.watch(existing=False)
    started = time.process_time()
    beamline.check(watcher, 0)
    assert time.process_time() - started < 1.0


def test_the_settings_of_a_watch_reach_its_requests(settings: Settings, tmp_path: Path) -> None:
    client = Client(Settings(**{**settings.__dict__, "parameters": {"n_gpu": 4}}))
    (request,) = client.requests("submit", [scan(1)], {"n_iter": 3})
    assert request.conf == {"file_path": scan(1), "n_gpu": 4, "n_iter": 3}
