"""Globus over kills and restarts of the server: nothing lost, nothing twice, nothing half."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import globus_sdk
import pytest

from standin.globus.listing import part_name
from standin.testing import Facility, SpawnedFacility, running, spawn, until
from support.globus_client import Globus, tree

Connect = Callable[[Facility], Globus]


def slow(globus: Globus, rate: float | None) -> None:
    globus.facility.control("globus", "bandwidth", bytes_per_second=rate)


def kill_and_restart(globus: Globus) -> None:
    assert isinstance(globus.facility, SpawnedFacility)
    globus.facility.kill()
    globus.facility.restart()


def test_killed_in_the_middle_of_a_file(tmp_path: Path, connect: Connect) -> None:
    with spawn(tmp_path) as facility:
        globus = connect(facility)
        slow(globus, 20_000)
        globus.file("done", b"1")
        content = bytes(range(256)) * 1000
        globus.file("a", content)
        task_id = globus.submit(("/done", "/done"), ("/a", "/a"), verify_checksum=True)
        until(lambda: globus.task(task_id)["bytes_transferred"] > 4000)
        facility.kill()
        assert "a" not in tree(globus.target)
        assert len(tree(globus.target)) == 2  # one file that is done, one half
        facility.restart()
        assert globus.task(task_id)["status"] == "ACTIVE"
        slow(globus, None)
        task = globus.wait(task_id)
        assert (task["status"], task["files_transferred"], task["faults"]) == ("SUCCEEDED", 2, 0)
        assert task["bytes_transferred"] == len(content) + 1
        assert tree(globus.target) == {"done": b"1", "a": content}
        line = globus.book(task_id)
        assert (line["files_moved"], line["bytes_moved"], line["runs"]) == (2, len(content) + 1, 2)
        done = [d["source_path"] for d in globus.transfer.task_successful_transfers(task_id)]
        assert sorted(done) == ["/a", "/done"]


def test_killed_again_and_again(tmp_path: Path, connect: Connect) -> None:
    """Kills at random moments of many small copies: every file is moved, and counted, exactly once."""
    chance = random.Random(7012)
    with spawn(tmp_path) as facility:
        globus = connect(facility)
        for number in range(120):
            globus.file(f"day/scan{number}", chance.randbytes(2000))
        slow(globus, 100_000)
        data = globus.data(label="day", verify_checksum=True)
        data.add_item("/day", "/day", recursive=True)
        task_id = globus.transfer.submit_transfer(data)["task_id"]
        for target in (20, 45, 70):
            wanted = target + chance.randrange(15)
            until(lambda wanted=wanted: globus.task(task_id)["files_transferred"] >= wanted)  # type: ignore[misc]
            kill_and_restart(globus)
        slow(globus, None)
        task = globus.wait(task_id)
        assert (task["status"], task["files_transferred"], task["bytes_transferred"]) == (
            "SUCCEEDED",
            120,
            240_000,
        )
        assert tree(globus.target) == tree(globus.source)
        assert (globus.book(task_id)["files_moved"], globus.book(task_id)["runs"]) == (120, 4)
        assert globus.transfer.submit_transfer(data)["code"] == "Duplicate"
        assert len(facility.transfers()) == 1


def test_tokens_and_submission_ids_outlive_a_kill(tmp_path: Path, connect: Connect) -> None:
    with spawn(tmp_path) as facility:
        globus = connect(facility)
        data = globus.data(("/late", "/late"), submission_id=globus.transfer.get_submission_id()["value"])
        first = globus.transfer.submit_transfer(data)
        globus.facility.control("globus", "pause", task_id=first["task_id"], message="later")
        kill_and_restart(globus)
        assert globus.transfer.submit_transfer(data)["task_id"] == first["task_id"]
        assert globus.task(first["task_id"])["is_paused"] is True
        assert [r["path"] for r in facility.requests() if "token" in r["path"]] == []  # the old token is good
        facility.control("globus", "revoke_tokens")
        kill_and_restart(globus)
        with pytest.raises(globus_sdk.TransferAPIError) as caught:
            globus.transfer.get_submission_id()
        assert caught.value.http_status == 401


def test_an_ended_task_is_not_taken_up_again(tmp_path: Path, connect: Connect) -> None:
    with spawn(tmp_path) as facility:
        globus = connect(facility)
        globus.file("a")
        done = globus.run(("/a", "/a"))
        canceled = globus.submit(("/none", "/none"))
        globus.transfer.cancel_task(canceled)
        (globus.target / "a").unlink()
        kill_and_restart(globus)
        assert globus.task(done["task_id"]) == done
        assert globus.task(canceled)["fatal_error"]["code"] == "CANCELED"
        assert tree(globus.target) == {}
        assert [line["status"] for line in facility.transfers()] == ["SUCCEEDED", "FAILED"]


def test_an_orderly_restart_interrupts_and_takes_up(tmp_path: Path, connect: Connect) -> None:
    content = b"x" * 100_000
    with running(tmp_path, bandwidth=20_000.0) as facility:
        globus = connect(facility)
        globus.file("a", content)
        task_id = globus.submit(("/a", "/a"))
        until(lambda: globus.task(task_id)["bytes_transferred"] > 0)
    assert tree(globus.target) == {}  # nothing half is left
    with running(tmp_path) as facility:
        globus = connect(facility)
        assert globus.wait(task_id)["status"] == "SUCCEEDED"
        assert tree(globus.target) == {"a": content}


def test_switches_outlive_a_kill(tmp_path: Path, connect: Connect) -> None:
    with spawn(tmp_path) as facility:
        globus = connect(facility)
        globus.file("a")
        settings: list[tuple[str, dict[str, Any]]] = [
            ("endpoint", {"collection": "data7012", "condition": "gc_not_connected"}),
            ("quota", {"collection": "nersc7012", "bytes_left": 0}),
            ("deny", {"collection": "nersc7012", "path": "/x"}),
            ("token_seconds", {"seconds": 120}),
        ]
        for verb, body in settings:
            facility.control("globus", verb, **body)
        kill_and_restart(globus)
        task_id = globus.submit(("/a", "/a"))
        globus.wait(task_id, "nice_status", "GC_NOT_CONNECTED")
        facility.control("globus", "endpoint", collection="data7012", condition="up")
        globus.wait(task_id, "nice_status", "QUOTA_EXCEEDED")
        with pytest.raises(globus_sdk.TransferAPIError) as caught:
            globus.transfer.operation_mkdir(globus.nersc7012, "/x/y")
        assert caught.value.http_status == 403
        granted = globus.auth().oauth2_client_credentials_tokens(requested_scopes="openid")
        assert granted["expires_in"] == 120


def test_killed_between_putting_a_file_into_place_and_counting_it(tmp_path: Path, connect: Connect) -> None:
    """The narrowest window: the file is there, the books do not know it yet."""
    with running(tmp_path) as facility:
        globus = connect(facility)
        globus.file("a", b"content")
        task_id = globus.run(("/a", "/a"), sync_level="checksum", verify_checksum=True)["task_id"]
    database = sqlite3.connect(tmp_path / "state" / "globus.sqlite", isolation_level=None)
    moved = database.execute("SELECT size, checksummed, checksum, algorithm FROM files").fetchone()
    columns = dict(zip(("size", "checksummed", "checksum", "algorithm"), moved, strict=True))
    part = globus.target / part_name(task_id, 0)
    (record,) = database.execute("SELECT record FROM tasks").fetchone()
    unfinished = json.loads(record) | {"status": "ACTIVE", "completion_time": None}
    database.execute("UPDATE tasks SET record = ?", (json.dumps(unfinished),))
    database.execute("DELETE FROM files")
    row = (task_id, str(part), "/a", "/a", json.dumps(columns))
    database.execute("INSERT INTO partials VALUES (?, ?, ?, ?, ?)", row)
    database.close()
    before = (globus.target / "a").stat()
    with running(tmp_path) as facility:
        globus = connect(facility)
        assert globus.wait(task_id)["status"] == "SUCCEEDED"
        line = globus.book(task_id)
        assert (line["files_moved"], line["bytes_moved"], line["files_skipped"]) == (1, 7, 0)
        (done,) = globus.transfer.task_successful_transfers(task_id)
        assert done["checksum"] == columns["checksum"]
    after = (globus.target / "a").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # not copied again
