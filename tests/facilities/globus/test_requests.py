"""Requests: paths, ids and labels that Globus reads as they were meant, and the documents sent."""

from __future__ import annotations

import re
import uuid

import globus_sdk
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from facilities.errors import UserError
from facilities.globus.model import check_collection, check_path, check_task_id
from facilities.globus.submission import DeleteRequest, TransferRequest, check_sync_level, make_label
from facilities.ownership import Owner

SOURCE = "741b96e1-1b98-42a8-918d-daacc24c145f"
DESTINATION = "d40248e6-d874-4f7b-badd-2c06c16f1a58"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("2023/02/a.cxi", "/2023/02/a.cxi"),
        ("/2023/02/a.cxi", "/2023/02/a.cxi"),
        ("//2023//02/./a.cxi", "/2023/02/a.cxi"),
        ("/folder/", "/folder/"),
        ("/", "/"),
        (".", "/"),
        ("/~/a", "/~/a"),
        ('/a b/it\'s $(rm -rf) "x";.cxi', '/a b/it\'s $(rm -rf) "x";.cxi'),
        ("/..a/b..", "/..a/b.."),
    ],
)
def test_paths_are_normalised(path: str, expected: str) -> None:
    assert check_path(path, "source_path") == expected


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "source_path is empty"),
        ("  ", "source_path is empty"),
        (None, "source_path is empty"),
        ("/a/../b", "climbs out with '..'"),
        ("..", "climbs out with '..'"),
        ("/a\nb", "has control characters"),
        ("/a\x00b", "has control characters"),
        ("/a\x7fb", "has control characters"),
        ("/a\u2028b", "has control characters"),
        ("/a\ud800b", "has control characters"),
        ("/" + "é" * 2100, "is longer than 4096 bytes"),
    ],
)
def test_bad_paths_are_refused(path: object, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        check_path(path, "source_path")


@given(st.text())
def test_an_accepted_path_is_absolute_and_stays_below_the_root(path: str) -> None:
    try:
        checked = check_path(path, "path")
    except UserError:
        return
    assert checked.startswith("/")
    assert not checked.startswith("//")
    assert ".." not in checked.split("/")
    assert check_path(checked, "path") == checked


@given(st.uuids())
def test_ids_are_accepted_in_any_form(value: uuid.UUID) -> None:
    for form in (str(value), str(value).upper(), value.hex, f"  {value} ", value):
        assert check_collection(form, "source_collection") == str(value)


@pytest.mark.parametrize("value", ["", "data7012", None, 7, "../task", SOURCE + "/x"])
def test_bad_ids_are_refused(value: object) -> None:
    with pytest.raises(UserError, match="is not a Globus collection's id"):
        check_collection(value, "source_collection")
    with pytest.raises(UserError, match="is not a Globus task's id"):
        check_task_id(value)


def test_sync_levels() -> None:
    assert [check_sync_level(level) for level in ("exists", "size", "mtime", "checksum")]
    with pytest.raises(UserError, match="choose one of exists, size, mtime, checksum"):
        check_sync_level("md5")


OWNERS = st.builds(Owner, st.text(), st.text(), st.text(), st.integers(-1, 9))
FINGERPRINTS = st.text("0123456789abcdef", min_size=32, max_size=32)


@given(st.text(max_size=300), OWNERS, FINGERPRINTS)
def test_labels_are_what_globus_takes_and_filters_exactly(base: str, owner: Owner, work: str) -> None:
    label = make_label(base, owner, work)
    assert re.fullmatch(r"[A-Za-z0-9._ -]{12,128}", label)
    assert label == label.strip()
    assert label == make_label(base, owner, work)


@given(OWNERS, OWNERS, FINGERPRINTS, FINGERPRINTS)
def test_labels_of_different_work_differ(one: Owner, other: Owner, this: str, that: str) -> None:
    assume(one != other and this[:8] != that[:8])
    labels = {make_label("scan", owner, work) for owner in (one, other) for work in (this, that)}
    assert len(labels) == 4


def request(**changes: object) -> TransferRequest:
    fields: dict[str, object] = {
        "source_collection": SOURCE,
        "source_path": "/a.cxi",
        "destination_collection": DESTINATION,
        "destination_path": "/b.cxi",
        "label": "scan",
    }
    return TransferRequest(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_transfer_document() -> None:
    document = request(recursive=False).document
    assert {key: value for key, value in document.items() if value is not globus_sdk.MISSING} == {
        "DATA_TYPE": "transfer",
        "DATA": [
            {
                "DATA_TYPE": "transfer_item",
                "source_path": "/a.cxi",
                "destination_path": "/b.cxi",
                "recursive": False,
                "external_checksum": globus_sdk.MISSING,
                "checksum_algorithm": globus_sdk.MISSING,
            }
        ],
        "source_endpoint": SOURCE,
        "destination_endpoint": DESTINATION,
        "label": "scan",
        "sync_level": 3,
        "verify_checksum": True,
        "preserve_timestamp": True,
        "skip_source_errors": False,
        "fail_on_quota_errors": True,
        "notify_on_succeeded": False,
        "notify_on_failed": False,
        "notify_on_inactive": False,
    }


def test_the_delete_document_never_expands_patterns() -> None:
    document = DeleteRequest(DESTINATION, "/a*", "scan").document
    assert document["interpret_globs"] is False
    assert document["ignore_missing"] is True
    assert [item["path"] for item in document["DATA"]] == ["/a*"]


def test_the_fingerprint_is_of_the_work_not_of_the_label() -> None:
    assert request().fingerprint == request(label="other", recursive=True).fingerprint
    for change in (
        {"source_path": "/c"},
        {"destination_path": "/c"},
        {"source_collection": DESTINATION},
        {"sync_level": "size"},
    ):
        assert request().fingerprint != request(**change).fingerprint
