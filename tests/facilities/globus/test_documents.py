"""Globus's documents: read as they are meant, and never trusted to be well formed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilities.errors import TransientError
from facilities.globus.model import (
    Fault,
    FileEntry,
    TaskSnapshot,
    TaskStatus,
    parse_time,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
KEYS = [
    "is_ok",
    "is_paused",
    "nice_status",
    "bytes_transferred",
    "files",
    "faults",
    "fatal_error",
    "request_time",
    "completion_time",
    "effective_bytes_per_second",
    "label",
]


def task(**changes: Any) -> TaskSnapshot:
    return TaskSnapshot.from_document({"task_id": "t", "status": "ACTIVE", **changes})


def test_reads_a_finished_task() -> None:
    read = task(
        status="SUCCEEDED",
        is_ok=None,
        nice_status=None,
        bytes_transferred=4,
        files=2,
        files_transferred=1,
        files_skipped=1,
        effective_bytes_per_second=2,
        request_time="2026-01-02T12:00:00+00:00",
        completion_time="2026-01-02T12:00:02+00:00",
    )
    assert read.status is TaskStatus.SUCCEEDED
    assert read.is_final
    assert (read.bytes_transferred, read.files_transferred, read.files_skipped) == (4, 1, 1)
    assert (read.rate, read.seconds, read.trouble) == (2.0, 2.0, "")


def test_seconds_are_never_negative() -> None:
    odd = task(request_time="2026-01-02T12:00:00+00:00", completion_time="2026-01-02T11:00:00+00:00")
    assert odd.seconds == 0.0
    assert task(request_time="2026-01-02T12:00:00+00:00").seconds is None


@pytest.mark.parametrize(
    "document", [None, [], "x", {}, {"task_id": "t"}, {"status": "ACTIVE"}, {"task_id": 1}]
)
def test_what_is_no_task_is_a_passing_failure(document: object) -> None:
    with pytest.raises(TransientError, match="Globus answered with"):
        TaskSnapshot.from_document(document)


@pytest.mark.parametrize("document", [None, {}, {"type": 3}])
def test_what_is_no_file_is_a_passing_failure(document: object) -> None:
    with pytest.raises(TransientError, match="Globus answered with"):
        FileEntry.from_document(document)


@given(st.dictionaries(st.sampled_from(KEYS), JSON))
def test_odd_fields_never_break_or_end_a_task(fields: dict[str, Any]) -> None:
    read = task(**fields)
    assert not read.is_final
    assert min(read.bytes_transferred, read.faults) >= 0
    assert read.rate >= 0


@given(st.text(min_size=1))
def test_only_the_two_final_states_are_final(state: str) -> None:
    assert task(status=state).is_final == (state in ("SUCCEEDED", "FAILED"))


def test_an_unknown_state_is_not_final() -> None:
    read = task(status="CANCELED")
    assert read.status is None
    assert read.state == "CANCELED"
    assert not read.is_final


@pytest.mark.parametrize(
    ("fields", "trouble"),
    [
        ({"is_ok": True, "nice_status": "OK"}, ""),
        ({"is_ok": True, "nice_status": "Queued"}, ""),
        ({"is_ok": None}, ""),
        ({"is_ok": False, "nice_status": "FILE_NOT_FOUND"}, "FILE_NOT_FOUND"),
        ({"is_ok": False}, "UNKNOWN"),
        ({"is_paused": True, "nice_status": "OK"}, "PAUSED"),
        ({"status": "INACTIVE"}, "NO_CREDENTIALS"),
        ({"status": "FAILED", "nice_status": "FILE_NOT_FOUND", "is_ok": False}, ""),
    ],
)
def test_trouble(fields: dict[str, Any], trouble: str) -> None:
    assert task(**fields).trouble == trouble


def test_a_cancelled_task() -> None:
    assert task(status="FAILED", fatal_error={"code": "CANCELED"}).was_cancelled
    assert not task(status="FAILED", fatal_error={"code": "EXPIRED"}).was_cancelled
    assert not task(status="SUCCEEDED").was_cancelled


def test_times_have_a_zone() -> None:
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    assert parse_time("2026-01-02 12:00:00+00:00") == noon
    assert parse_time("2026-01-02T12:00:00") == noon
    assert parse_time("2026-01-02T14:00:00+02:00") == noon
    odd: list[object] = ["", "yesterday", None, 5, {}]
    assert [parse_time(value) for value in odd] == [None] * 5


@pytest.mark.parametrize(
    ("code", "failure_class"),
    [
        ("FILE_NOT_FOUND", "user"),
        ("permission_denied", "user"),
        ("QUOTA_EXCEEDED", "user"),
        ("NO_CREDENTIALS", "credentials"),
        ("EXPIRED", "resources"),
        ("CONNECT_FAILED", "infrastructure"),
        ("SOMETHING_NEW", "infrastructure"),
        ("", "infrastructure"),
    ],
)
def test_fault_codes_have_a_class_and_a_next_step(code: str, failure_class: str) -> None:
    assert Fault.of(code).failure_class == failure_class
    assert Fault.of(code).next_step.endswith(".")
