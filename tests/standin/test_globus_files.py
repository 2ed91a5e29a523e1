"""Collections and foreground file operations, through globus-sdk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import globus_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from standin.globus import filters, times
from standin.globus.collections import BadPathError, Collection, normalize
from standin.globus.errors import TransferError
from support.globus_client import Globus


def refused(call: Callable[[], Any]) -> tuple[int, str | None]:
    """Status and code of a refusal, which must be in Transfer's dialect."""
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        call()
    error = caught.value
    assert error.message
    assert error.request_id is not None
    assert len(error.request_id) == 9
    assert error.raw_json is not None
    assert error.raw_json["resource"].startswith("/v0.10/")
    return error.http_status, error.code


def names(listing: Any) -> list[str]:
    return [entry["name"] for entry in listing]


def test_endpoint_document(globus: Globus) -> None:
    document = globus.transfer.get_endpoint(globus.data7012)
    assert (document["DATA_TYPE"], document["id"]) == ("endpoint", globus.data7012)
    assert document["entity_type"] == "GCSv5_guest_collection"
    assert document["high_assurance"] is False
    assert refused(lambda: globus.transfer.get_endpoint("00000000-0000-0000-0000-000000000000")) == (
        404,
        "EndpointNotFound",
    )


def test_listing(globus: Globus) -> None:
    scan = globus.file("/2023/02/b.cxi", b"12345")
    os.utime(scan, (1_600_000_000, 1_600_000_000))
    scan.chmod(0o640)
    (scan.parent / "sub").mkdir()
    (scan.parent / "link").symlink_to("b.cxi")
    (scan.parent / "broken").symlink_to("gone")
    (scan.parent / ".hidden").touch()
    listing = globus.transfer.operation_ls(globus.data7012, "/2023/02")
    assert names(listing) == [".hidden", "b.cxi", "broken", "link", "sub"]
    assert (listing["path"], listing["endpoint"], listing["length"], listing["total"]) == (
        "/2023/02/",
        globus.data7012,
        5,
        5,
    )
    entries = {entry["name"]: entry for entry in listing}
    assert {key: entries["b.cxi"][key] for key in ("type", "size", "last_modified", "permissions")} == {
        "type": "file",
        "size": 5,
        "last_modified": "2020-09-13 12:26:40+00:00",
        "permissions": "0640",
    }
    assert (entries["link"]["type"], entries["link"]["link_target"], entries["link"]["size"]) == (
        "file",
        "b.cxi",
        5,
    )
    assert entries["broken"]["type"] == "invalid_symlink"
    assert entries["sub"]["type"] == "dir"
    assert names(globus.transfer.operation_ls(globus.data7012, "2023/02", show_hidden=False))[0] == "b.cxi"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("name:f1.txt", ["f1.txt"]),
        ("name:f1.txt,f2.cxi", ["f1.txt", "f2.cxi"]),
        ("name:=f1.txt", ["f1.txt"]),
        ("name:~*.txt", ["big.txt", "f1.txt"]),
        ("name:!~*.txt", ["d", "f2.cxi"]),
        ("name:!f1.txt", ["big.txt", "d", "f2.cxi"]),
        ("name:!=f1.txt", ["big.txt", "d", "f2.cxi"]),
        ("name:~*.txt,!~b*", ["f1.txt"]),
        ("name:~*.txt/size:>5", ["big.txt"]),
        ("type:dir", ["d"]),
        ("type:file/size:<=4", ["f1.txt", "f2.cxi"]),
        ("type:file/size:4", ["f1.txt"]),
        ("type:file/last_modified:,2021-01-01", ["f2.cxi"]),
        ("type:file/last_modified:2021-01-01", ["big.txt", "f1.txt"]),
        ({"type": "file", "name": ["f1.txt", "d"]}, ["f1.txt"]),
        ([{"type": "dir"}, {"name": "~*.cxi"}], ["d", "f2.cxi"]),
        ({"last_modified": ["", "2021-01-01"]}, ["f2.cxi"]),
    ],
)
def test_filters(globus: Globus, wanted: Any, found: list[str]) -> None:
    globus.file("f1.txt", b"1234")
    globus.file("big.txt", b"123456")
    os.utime(globus.file("f2.cxi", b""), (1_600_000_000, 1_600_000_000))
    (globus.source / "d").mkdir()
    assert names(globus.transfer.operation_ls(globus.data7012, filter=wanted)) == found


@pytest.mark.parametrize(
    "query",
    [
        {"filter": "color:red"},
        {"filter": "name"},
        {"filter": "size:>big"},
        {"filter": "last_modified:yesterday"},
        {"filter": "last_modified:2021-01-01,2022-01-01,2023-01-01"},
        {"orderby": "color"},
        {"orderby": "name SIDEWAYS"},
        {"limit": "-1"},
        {"limit": "100001"},
        {"limit": "many"},
        {"offset": "\N{ARABIC-INDIC DIGIT ONE}"},
    ],
)
def test_bad_queries_are_refused(globus: Globus, query: dict[str, str]) -> None:
    assert refused(lambda: globus.transfer.operation_ls(globus.data7012, query_params=query)) == (
        400,
        "ClientError.BadRequest",
    )


def test_order_and_pages(globus: Globus) -> None:
    for number in range(25):
        globus.file(f"scan{number:02}", b"x" * (number % 3))
    page = globus.transfer.operation_ls(globus.data7012, orderby=["size DESC", "name"], limit=10, offset=5)
    sizes = sorted(range(25), key=lambda number: (-(number % 3), number))
    assert names(page) == [f"scan{number:02}" for number in sizes[5:15]]
    assert (page["length"], page["limit"], page["offset"], page["total"]) == (10, 10, 5, 25)
    assert names(globus.transfer.operation_ls(globus.data7012, offset=24)) == ["scan24"]
    assert names(globus.transfer.operation_ls(globus.data7012, limit=0)) == []


def test_thousands_of_files_in_pages(globus: Globus) -> None:
    for number in range(2_500):
        (globus.source / f"NS_{number:05}.cxi").touch()
    seen: list[str] = []
    while page := names(globus.transfer.operation_ls(globus.data7012, limit=1000, offset=len(seen))):
        seen += page
    assert seen == [f"NS_{number:05}.cxi" for number in range(2_500)]


def test_what_cannot_be_listed(globus: Globus) -> None:
    globus.file("file")
    ls = globus.transfer.operation_ls
    assert refused(lambda: ls(globus.data7012, "/none")) == (404, "ClientError.NotFound")
    assert refused(lambda: ls(globus.data7012, "/file")) == (
        502,
        "ExternalError.DirListingFailed.NotDirectory",
    )
    globus.facility.control("globus", "deny", collection="data7012", path="/secret")
    assert refused(lambda: ls(globus.data7012, "/secret/a")) == (
        403,
        "ExternalError.DirListingFailed.PermissionDenied",
    )
    globus.facility.control("globus", "allow", collection="data7012")
    assert refused(lambda: ls(globus.data7012, "/secret/a")) == (404, "ClientError.NotFound")


def test_an_endpoint_that_is_down(globus: Globus) -> None:
    tell = globus.facility.control
    tell("globus", "endpoint", collection="data7012", condition="gc_not_connected")
    assert refused(lambda: globus.transfer.operation_ls(globus.data7012)) == (
        502,
        "ExternalError.DirListingFailed.GCDisconnected",
    )
    tell("globus", "endpoint", collection="data7012", condition="endpoint_error")
    assert refused(lambda: globus.transfer.operation_stat(globus.data7012, "/")) == (502, "EndpointError")
    assert globus.transfer.get_endpoint(globus.data7012)["id"] == globus.data7012
    tell("globus", "endpoint", collection="data7012", condition="up")
    globus.transfer.operation_ls(globus.data7012)


def test_stat(globus: Globus) -> None:
    globus.file("a/file", b"1234")
    document = globus.transfer.operation_stat(globus.data7012, "/a/file")
    assert (document["DATA_TYPE"], document["name"], document["type"], document["size"]) == (
        "file",
        "file",
        "file",
        4,
    )
    assert globus.transfer.operation_stat(globus.data7012, "/")["type"] == "dir"
    assert refused(lambda: globus.transfer.operation_stat(globus.data7012, "/a/none")) == (404, "NotFound")
    globus.facility.control("globus", "deny", collection="data7012", path="/a", rights=["read"])
    assert refused(lambda: globus.transfer.operation_stat(globus.data7012, "/a/file")) == (
        403,
        "EndpointPermissionDenied",
    )


def test_mkdir(globus: Globus) -> None:
    reply = globus.transfer.operation_mkdir(globus.nersc7012, "/a")
    assert (reply["DATA_TYPE"], reply["code"]) == ("mkdir_result", "DirectoryCreated")
    assert (globus.target / "a").is_dir()
    mkdir = globus.transfer.operation_mkdir
    assert refused(lambda: mkdir(globus.nersc7012, "/a")) == (502, "ExternalError.MkdirFailed.Exists")
    assert refused(lambda: mkdir(globus.nersc7012, "/x/y")) == (404, "ClientError.NotFound")
    globus.facility.control("globus", "deny", collection="nersc7012", path="/", rights=["write"])
    assert refused(lambda: mkdir(globus.nersc7012, "/b")) == (
        403,
        "ExternalError.MkdirFailed.PermissionDenied",
    )


def test_rename(globus: Globus) -> None:
    globus.file("a", b"1")
    globus.file("b", b"2")
    rename = globus.transfer.operation_rename
    assert rename(globus.data7012, "/a", "/c")["code"] == "FileRenamed"
    assert (globus.source / "c").read_bytes() == b"1"
    assert refused(lambda: rename(globus.data7012, "/a", "/d")) == (404, "ClientError.NotFound")
    assert refused(lambda: rename(globus.data7012, "/c", "/b")) == (502, "ExternalError.RenameFailed.Exists")
    assert (globus.source / "b").read_bytes() == b"2"


@pytest.mark.parametrize("path", ["/../x", "a/../../x", "..", "/a\0b", "/a\r\nb", "/" + "x" * 4100])
def test_bad_paths_are_refused_everywhere(globus: Globus, path: str) -> None:
    client = globus.transfer
    calls: list[Callable[[], Any]] = [
        lambda: client.operation_ls(globus.data7012, path),
        lambda: client.operation_stat(globus.data7012, path),
        lambda: client.operation_mkdir(globus.data7012, path),
        lambda: client.operation_rename(globus.data7012, path, "/y"),
        lambda: client.operation_rename(globus.data7012, "/y", path),
        lambda: globus.submit((path, "/y")),
        lambda: globus.submit(("/y", path)),
    ]
    for call in calls:
        assert refused(call) == (400, "ClientError.BadRequest")
    assert globus.facility.transfers() == []


def test_a_symlink_does_not_lead_out(globus: Globus, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (globus.source / "out").symlink_to(tmp_path / "outside")
    ls = globus.transfer.operation_ls
    assert refused(lambda: ls(globus.data7012, "/out"))[0] == 403
    assert refused(lambda: globus.transfer.operation_stat(globus.data7012, "/out/secret"))[0] == 403
    assert refused(lambda: globus.transfer.operation_mkdir(globus.data7012, "/out/new"))[0] == 403
    assert refused(lambda: globus.transfer.operation_rename(globus.data7012, "/out/secret", "/got"))[0] == 403
    assert sorted(p.name for p in (tmp_path / "outside").iterdir()) == ["secret"]


def test_odd_names_come_back_as_they_are(globus: Globus) -> None:
    odd = ["a b", "ä", "x'y\"z", "$(touch pwned)", "new\nline", "%41", "a&b=c", "~", "-rf", "#?"]
    for name in odd:
        globus.file(f"d/{name}")
    (globus.source / "d" / os.fsdecode(b"\xff")).touch()
    listing = globus.transfer.operation_ls(globus.data7012, "/d")
    assert sorted(names(listing)) == sorted([*odd, "\N{REPLACEMENT CHARACTER}"])
    for name in odd:
        assert globus.transfer.operation_stat(globus.data7012, f"/d/{name}")["name"] == name


def test_what_is_not_offered_says_so(globus: Globus) -> None:
    assert refused(lambda: globus.transfer.endpoint_search("x")) == (404, "ClientError.NotFound")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
def test_bodies_that_are_no_documents(globus: Globus, body: bytes) -> None:
    path = f"/v0.10/operation/endpoint/{globus.data7012}/mkdir"
    headers = {"Content-Type": "application/json"}
    call = lambda: globus.transfer.request("POST", path, data=body, headers=headers)  # noqa: E731 - a call to be made
    assert refused(call) == (400, "ClientError.BadRequest")


paths = st.lists(st.sampled_from(["a", "b.cxi", "..", ".", "", "~", "...", "a b", "-"]), max_size=6).map(
    "/".join
)


@given(paths | st.text(max_size=20))
def test_normalised_paths_stay_inside(path: str) -> None:
    try:
        normal = normalize(path)
    except BadPathError:
        return
    assert normal.startswith("/")
    assert ".." not in normal.split("/")
    assert normal == "/" or not normal.endswith("/")
    if normal.split("/")[1] != "~":
        assert normalize(normal) == normal
    local = Collection("id", "name", "Name", Path("/srv/data")).local(normal)
    assert local.is_relative_to("/srv/data")


@given(st.text(max_size=20))
def test_an_exact_filter_finds_its_name(name: str) -> None:
    if {"/", ","} & set(name) or name[:1] in ("!", "~", "="):
        return
    test = filters.parse_filter(f"name:{name}", {"name": filters.text_test})["name"]
    assert test({"name": name})
    assert not test({"name": f"{name}x"})


@given(st.text(max_size=30))
def test_any_filter_is_read_or_refused(text: str) -> None:
    makers = {"name": filters.text_test, "size": filters.number_test, "when": filters.range_test}
    try:
        clauses = filters.parse_filter(text, makers)
    except TransferError as error:
        assert error.status == 400  # noqa: PT017 - both ways are right
        return
    for test in clauses.values():
        test({"name": "x", "size": 1, "when": "2021-09-02T18:04:49+00:00"})


@given(st.integers(min_value=0, max_value=4_000_000_000))
def test_times_are_read_back(seconds: int) -> None:
    assert times.parse(times.iso(seconds) or "") == seconds
    assert times.parse(times.listing_time(seconds)) == seconds
