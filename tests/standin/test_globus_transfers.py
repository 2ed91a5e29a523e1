"""Transfers of the stand-in, through globus-sdk: real bytes, folders, sync levels, checksums, rates."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest

from standin.testing import until
from support.globus_client import Globus, codes, tree


def test_a_file_arrives_whole(globus: Globus) -> None:
    content = os.urandom(3_000_001)
    globus.file("/2023/02/a.cxi", content)
    data = globus.data(("/2023/02/a.cxi", "/x/y/a.cxi"), label="scan a", verify_checksum=True)
    reply = globus.transfer.submit_transfer(data)
    assert (reply.http_status, reply["code"], reply["submission_id"]) == (
        202,
        "Accepted",
        data["submission_id"],
    )
    task = globus.wait(reply["task_id"])
    assert (globus.target / "x/y/a.cxi").read_bytes() == content
    expected = {
        "type": "TRANSFER",
        "status": "SUCCEEDED",
        "label": "scan a",
        "files": 1,
        "files_transferred": 1,
        "bytes_transferred": 3_000_001,
        "bytes_checksummed": 3_000_001,
        "faults": 0,
        "subtasks_total": 2,
        "subtasks_succeeded": 2,
        "is_ok": None,
        "nice_status": None,
        "fatal_error": None,
        "source_endpoint_id": globus.data7012,
        "destination_endpoint_id": globus.nersc7012,
    }
    assert {key: task[key] for key in expected} == expected
    assert task["effective_bytes_per_second"] > 0
    assert task["completion_time"] >= task["request_time"]
    (done,) = globus.transfer.task_successful_transfers(task["task_id"])
    assert (done["source_path"], done["destination_path"], done["size"]) == (
        "/2023/02/a.cxi",
        "/x/y/a.cxi",
        3_000_001,
    )
    assert (done["checksum"], done["checksum_algorithm"]) == (hashlib.md5(content).hexdigest(), "MD5")
    assert codes(globus, task["task_id"]) == ["SUCCEEDED", "PROGRESS", "STARTED"]


def test_an_empty_file_and_odd_names_arrive(globus: Globus) -> None:
    globus.file("empty", b"")
    for name in ("a b", "ä", "x'y\"z", "$(touch pwned)", "new\nline"):
        globus.file(f"odd/{name}", name.encode())
    assert globus.run(("/empty", "/empty"), ("/odd", "/odd"))["files_transferred"] == 6
    assert tree(globus.target) == tree(globus.source)


def test_a_folder_arrives_with_all_that_is_in_it(globus: Globus) -> None:
    for number in range(150):
        globus.file(f"day/{number % 3}/scan{number}", bytes([number]) * number)
    (globus.source / "day/none").mkdir()
    (globus.source / "day/link").symlink_to("0/scan0")
    data = globus.data()
    data.add_item("/day/", "/copy/", recursive=True)
    task = globus.wait(globus.transfer.submit_transfer(data)["task_id"])
    assert (task["status"], task["files"], task["directories"], task["symlinks"]) == ("SUCCEEDED", 150, 5, 1)
    expected = {p: c for p, c in tree(globus.source / "day").items() if p != "link"}
    assert tree(globus.target / "copy") == expected
    assert (globus.target / "copy/none").is_dir()
    paged = globus.transfer.paginated.task_successful_transfers(task["task_id"])
    pages = [[done["source_path"] for done in page] for page in paged]
    assert [len(page) for page in pages] == [100, 50]
    assert len({path for page in pages for path in page}) == 150


def test_filter_rules(globus: Globus) -> None:
    for path in ("t/keep.cxi", "t/drop.tmp", "t/raw/keep.tmp", "t/raw/a.cxi", "t/scratch/a.cxi"):
        globus.file(path)
    data = globus.data()
    data.add_item("/t", "/t", recursive=True)
    data.add_filter_rule("keep*", method="include")
    data.add_filter_rule("*.tmp", type="file")
    data.add_filter_rule("scratch", type="dir")
    globus.wait(globus.transfer.submit_transfer(data)["task_id"])
    assert sorted(tree(globus.target)) == ["t/keep.cxi", "t/raw/a.cxi", "t/raw/keep.tmp"]


@pytest.mark.parametrize(
    ("level", "copied"),
    [
        (None, {"same", "size", "newer", "older", "content"}),
        ("exists", set()),
        ("size", {"size"}),
        ("mtime", {"newer"}),
        ("checksum", {"size", "content"}),
    ],
)
def test_sync_levels(globus: Globus, level: str | None, copied: set[str]) -> None:
    """Which of five files is copied over one that is there already."""
    contents = {"same": b"aaaa", "size": b"longer", "newer": b"aaaa", "older": b"aaaa", "content": b"bbbb"}
    seconds = {"newer": 2_000, "older": 500}
    for name, content in contents.items():
        os.utime(globus.file(name, content), (seconds.get(name, 1_000),) * 2)
        (globus.target / name).write_bytes(b"aaaa")
        os.utime(globus.target / name, (1_000, 1_000))
    options: dict[str, Any] = {} if level is None else {"sync_level": level}
    task = globus.run(*((f"/{name}", f"/{name}") for name in contents), **options)
    moved = {d["source_path"][1:] for d in globus.transfer.task_successful_transfers(task["task_id"])}
    assert moved == copied
    assert (task["files_transferred"], task["files_skipped"]) == (len(copied), 5 - len(copied))
    for name in copied:
        assert (globus.target / name).read_bytes() == contents[name]


def test_times_are_preserved_when_asked_for(globus: Globus) -> None:
    os.utime(globus.file("a"), (1_600_000_000, 1_600_000_000))
    globus.run(("/a", "/kept"), preserve_timestamp=True)
    globus.run(("/a", "/new"))
    assert (globus.target / "kept").stat().st_mtime == 1_600_000_000
    assert (globus.target / "new").stat().st_mtime > 1_700_000_000


@pytest.mark.parametrize("algorithm", ["MD5", "SHA256"])
def test_an_external_checksum_is_checked(globus: Globus, algorithm: str) -> None:
    globus.file("a", b"content")
    right = hashlib.new(algorithm, b"content").hexdigest()
    for checksum, status, name in ((right, "SUCCEEDED", "good"), ("0" * len(right), "FAILED", "bad")):
        data = globus.data()
        data.add_item("/a", f"/{name}", external_checksum=checksum, checksum_algorithm=algorithm)
        task = globus.wait(globus.transfer.submit_transfer(data)["task_id"])
        assert task["status"] == status
    assert task["fatal_error"]["code"] == "EXTERNAL_CHECKSUM_MISMATCH"
    assert sorted(tree(globus.target)) == ["good"]


def test_extra_files_at_the_destination_are_deleted_when_asked_for(globus: Globus) -> None:
    globus.file("t/a", b"1")
    globus.file("t/sub/b", b"2")
    for name in ("t/extra", "t/sub/extra", "t/gone/deep/x", "other"):
        path = globus.target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    data = globus.data(delete_destination_extra=True)
    data.add_item("/t", "/t", recursive=True)
    assert globus.wait(globus.transfer.submit_transfer(data)["task_id"])["status"] == "SUCCEEDED"
    assert sorted(tree(globus.target)) == ["other", "t/a", "t/sub/b"]
    assert not (globus.target / "t/gone").exists()


def test_bandwidth_and_progress(globus: Globus) -> None:
    globus.facility.control("globus", "bandwidth", bytes_per_second=50_000)
    for name in ("a", "b"):
        globus.file(name, b"x" * 100_000)
    task_id = globus.submit(("/a", "/a"), ("/b", "/b"))
    seen = [0]

    def look() -> bool:
        task = globus.task(task_id)
        seen.append(task["bytes_transferred"])
        return bool(task["status"] == "SUCCEEDED")

    until(look)
    assert seen == sorted(seen)
    assert len({value for value in seen if 0 < value < 200_000}) >= 3
    line = globus.book(task_id)
    seconds = line["completion_time"] - line["started_time"]
    assert seconds > 3.2
    assert globus.task(task_id)["effective_bytes_per_second"] == pytest.approx(200_000 / seconds, rel=0.3)
