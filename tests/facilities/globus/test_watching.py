"""The watch: when to look, what to say, when to stop. Time is a number here."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilities.errors import CredentialsError, TransientError
from facilities.globus.model import TaskSnapshot
from facilities.globus.trigger import GlobusTaskTrigger, format_bytes
from facilities.polling import Answer, PollFailed
from facilities.waiting import WaitEnd
from support.lines import Lines

LIMITS: dict[str, Any] = {"give_up_after": 600.0, "give_up_outage_after": 7200.0}


@pytest.fixture(autouse=True)
def _stalls_are_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tests of saved stalls have them saved."""
    monkeypatch.setattr("facilities.globus.trigger._SAVE_STALL_AFTER", float("inf"))


def seen(**fields: Any) -> Answer[TaskSnapshot]:
    return Answer(TaskSnapshot.from_document({"task_id": "t", "status": "ACTIVE", "is_ok": True, **fields}))


def watching(remaining: float = 86_400.0, now: float = 0.0, **arguments: Any) -> GlobusTaskTrigger:
    watch = GlobusTaskTrigger(globus_conn_id="none", remote_id="t", deadline=0.0, **{**LIMITS, **arguments})
    watch._log = Lines()  # type: ignore[assignment]
    watch.begin(remaining, now)
    return watch


def drain(watch: GlobusTaskTrigger) -> list[tuple[int, str]]:
    assert isinstance(watch.log, Lines)
    return watch.log.drain()


def said(watch: GlobusTaskTrigger) -> list[str]:
    return [text for _, text in drain(watch)]


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED"])
def test_an_ended_task_is_finished_whatever_became_of_it(status: str) -> None:
    end = watching().take(seen(status=status), 1.0)
    assert end is not None
    assert (end.outcome, end.error, end.cancel) == ("ended", None, False)


def test_the_end_of_a_success_has_the_task_with_it_and_a_failure_is_read_again() -> None:
    answer = seen(status="SUCCEEDED", request_time="2026-01-01T00:00:00+00:00", files_transferred=1)
    end, failed = watching().take(answer, 1.0), watching().take(seen(status="FAILED"), 1.0)
    assert end is not None
    assert failed is not None
    assert end.result is not None
    assert TaskSnapshot.from_dict(json.loads(json.dumps(end.result))) == answer.value
    assert failed.result is None


def test_an_ended_task_is_finished_even_after_the_limit() -> None:
    end = watching(remaining=10.0).take(seen(status="SUCCEEDED"), 99.0)
    assert end is not None
    assert end.error is None


def test_the_limit_cancels() -> None:
    watch = watching(remaining=100.0)
    assert watch.take(seen(), 99.0) is None
    end = watch.take(seen(nice_status="CONNECT_FAILED"), 100.0)
    assert end is not None
    assert end.error is not None
    assert (end.outcome, end.cancel, end.error.failure_class) == ("timeout", True, "resources")
    assert "CONNECT_FAILED" in str(end.error)


def test_the_limit_counts_although_globus_is_silent() -> None:
    end = watching(remaining=100.0).take(PollFailed(TransientError("down"), 9, 90.0), 101.0)
    assert end is not None
    assert end.outcome == "timeout"


def test_missing_file_is_told_at_once_and_given_up_later() -> None:
    watch = watching()
    missing = seen(is_ok=False, nice_status="FILE_NOT_FOUND", nice_status_details="/a.cxi", faults=1)
    assert watch.take(missing, 30.0) is None
    unexplained = watch.wants_report
    assert unexplained
    assert any("FILE_NOT_FOUND: /a.cxi" in text for text in said(watch))
    watch.take_report("FILE_NOT_FOUND at noon: No such file")
    watch.take(missing, 31.0)
    assert not watch.wants_report
    assert any("No such file" in text for text in said(watch))
    assert watch.take(missing, 629.0) is None
    end = watch.take(missing, 630.0)
    assert end is not None
    assert end.error is not None
    assert (end.outcome, end.cancel, end.error.failure_class) == ("stuck", True, "user")
    assert "0:10:00 because of FILE_NOT_FOUND" in str(end.error)
    assert watch.report == "FILE_NOT_FOUND at noon: No such file"


def test_a_stall_of_a_minute_is_handed_out_once_to_be_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facilities.globus.trigger._SAVE_STALL_AFTER", 60.0)
    watch = watching()
    missing = seen(is_ok=False, nice_status="FILE_NOT_FOUND")
    assert [watch.take(missing, at) for at in (30.0, 89.0)] == [None, None]
    found = {"trouble": "FILE_NOT_FOUND", "seconds": 60.0, "moved": [0, 0]}
    assert watch.take(missing, 90.0) == WaitEnd("stalled", result=found)
    resumed = watching(now=1000.0, stall={"since": time.time() - 590.0, "moved": [0, 0]})
    assert resumed.take(missing, 1009.0) is None
    end = resumed.take(missing, 1010.0)
    assert end is not None
    assert end.outcome == "stuck"


def test_progress_since_it_was_saved_ends_a_stall() -> None:
    moved = seen(is_ok=False, nice_status="FILE_NOT_FOUND", bytes_transferred=1)
    resumed = watching(now=1000.0, stall={"since": time.time() - 599.0, "moved": [0, 0]})
    assert [resumed.take(moved, 1002.0 + later) for later in (0.0, 599.0)] == [None, None]


def test_an_outage_of_a_collection_is_waited_for_longer() -> None:
    watch = watching()
    down = seen(is_ok=False, nice_status="CONNECT_FAILED", faults=1)
    assert watch.take(down, 0.0) is None
    assert watch.take(down, 7199.0) is None
    end = watch.take(down, 7200.0)
    assert end is not None
    assert end.error is not None
    assert (end.outcome, end.error.failure_class) == ("stuck", "infrastructure")


def test_a_pause_is_an_outage() -> None:
    watch = watching()
    for now in (0.0, 7199.0):
        assert watch.take(seen(is_paused=True), now) is None
    end = watch.take(seen(is_paused=True), 7201.0)
    assert end is not None
    assert "PAUSED" in str(end.error)


def test_progress_starts_the_patience_anew() -> None:
    watch = watching()
    for step in range(50):
        trouble = seen(is_ok=False, nice_status="VERIFY_CHECKSUM", bytes_transferred=step, faults=step)
        assert watch.take(trouble, step * 1700.0) is None


def test_trouble_that_passes_starts_the_patience_anew() -> None:
    watch = watching()
    missing = seen(is_ok=False, nice_status="FILE_NOT_FOUND")
    assert watch.take(missing, 0.0) is None
    assert watch.take(seen(), 599.0) is None
    assert watch.take(missing, 601.0) is None
    assert watch.take(missing, 1200.0) is None
    assert watch.take(missing, 1201.0) is not None


def test_faults_without_progress_are_trouble_even_if_globus_says_ok() -> None:
    watch = watching()
    assert watch.take(seen(faults=1), 0.0) is None
    assert watch.wants_report
    end = watch.take(seen(faults=40), 7200.0)
    assert end is not None
    assert end.outcome == "stuck"


def test_an_inactive_task_wants_credentials() -> None:
    watch = watching()
    watch.take(seen(status="INACTIVE"), 0.0)
    end = watch.take(seen(status="INACTIVE"), 600.0)
    assert end is not None
    assert end.error is not None
    assert end.error.failure_class == "credentials"


def test_an_unknown_status_waits_and_says_so() -> None:
    watch = watching()
    assert watch.take(seen(status="THINKING"), 0.0) is None
    assert "THINKING" in (text := said(watch)[0])
    assert "unknown" in text


def test_silence_is_said_once_and_its_end() -> None:
    watch = watching()
    for number in range(20):
        failed = PollFailed(TransientError("Globus is down"), number + 1, number * 20.0)
        assert watch.take(failed, number * 20.0) is None
    assert sum("Globus is down" in text for text in said(watch)) == 1
    watch.take(PollFailed(TransientError("Globus is down"), 40, 700.0), 700.0)
    assert any("700 s" in text for text in said(watch))
    watch.take(seen(), 800.0)
    assert said(watch)[0] == "Globus answers again."


def test_refused_credentials_end_the_wait_but_not_the_transfer() -> None:
    watch = watching()
    refused = PollFailed(CredentialsError("The secret has expired"), 1, 0.0)
    assert watch.take(refused, 0.0) is None
    assert watch.take(refused, 1.0) is None
    end = watch.take(refused, 3.0)
    assert end is not None
    assert (end.outcome, end.cancel) == ("refused", False)
    assert "The secret has expired" in str(end.error)


def test_one_refusal_in_between_is_not_believed() -> None:
    watch = watching()
    refused = PollFailed(CredentialsError("no"), 1, 0.0)
    for now in range(20):
        assert watch.take(refused if now % 3 else seen(), float(now)) is None


def test_a_task_must_be_missing_three_times() -> None:
    watch = watching()
    assert watch.take(Answer(None), 0.0) is None
    assert watch.take(seen(), 1.0) is None
    assert watch.take(Answer(None), 2.0) is None
    assert watch.take(Answer(None), 3.0) is None
    end = watch.take(Answer(None), 4.0)
    assert end is not None
    assert (end.outcome, end.cancel) == ("lost", False)


def test_progress_is_told_at_tenths_and_each_minute() -> None:
    watch = watching(expected_bytes=1000)
    lines = []
    for second in range(0, 600):
        watch.take(seen(bytes_transferred=min(second * 2, 1000), effective_bytes_per_second=2), float(second))
        lines += said(watch)
    assert 10 <= len(lines) <= 16
    assert "1 kB moved" in lines[-1] or "1 kB of 1 kB" in lines[-1]
    assert any("about" in line and "s left" in line for line in lines)


def test_nothing_new_is_not_told_again() -> None:
    watch = watching()
    lines = []
    for second in range(0, 3600, 10):
        watch.take(seen(nice_status="Queued"), float(second))
        lines += said(watch)
    assert len(lines) == 6


def test_trouble_is_a_warning() -> None:
    watch = watching()
    watch.take(seen(is_ok=False, nice_status="PERMISSION_DENIED"), 0.0)
    assert drain(watch)[0][0] == logging.WARNING


@given(
    st.lists(
        st.tuples(
            st.floats(min_value=0.01, max_value=5000),
            st.sampled_from(
                [
                    seen(),
                    seen(nice_status="Queued"),
                    seen(is_ok=False, nice_status="FILE_NOT_FOUND"),
                    seen(is_ok=False, nice_status="CONNECT_FAILED", faults=3),
                    seen(bytes_transferred=5),
                    seen(bytes_transferred=9, status="INACTIVE"),
                    seen(status="ODD"),
                    Answer(None),
                    PollFailed(TransientError("down"), 3, 10.0),
                    PollFailed(CredentialsError("no"), 3, 10.0),
                    PollFailed(ZeroDivisionError("bug"), 3, 10.0),
                ]
            ),
        ),
        max_size=40,
    )
)
def test_a_watch_only_ends_for_a_reason_and_always_at_its_limit(
    answers: list[tuple[float, Answer[TaskSnapshot] | PollFailed]],
) -> None:
    watch, now = watching(remaining=20_000.0), 0.0
    for pause, answer in answers:
        wait = watch.seconds_until_poll(now)
        assert 0.0 <= wait <= 30.0
        assert now + wait <= 20_000.0 or wait == 0.0
        now += pause
        end = watch.take(answer, now)
        drain(watch)
        if end is not None:
            assert end.outcome in ("stuck", "timeout", "lost", "refused")
            assert end.error is not None
            assert end.error.what
            assert end.error.next_step
            assert end.cancel == (end.outcome in ("stuck", "timeout"))
            return
        assert now < 20_000.0


def test_looks_are_quick_after_the_submit_and_near_the_end() -> None:
    watch = watching(expected_bytes=100_000)
    assert watch.seconds_until_poll(0.0) == 0.1  # a small file is there when the wait begins
    watch.take(seen(bytes_transferred=0, effective_bytes_per_second=0), 0.5)
    assert watch.seconds_until_poll(0.5) == 2.0
    assert watch.seconds_until_poll(100.0) == 10.0
    watch.take(seen(bytes_transferred=50_000, effective_bytes_per_second=100), 1000.0)
    assert watch.seconds_until_poll(1000.0) == 30.0
    watch.take(seen(bytes_transferred=99_500, effective_bytes_per_second=100), 1500.0)
    assert watch.seconds_until_poll(1500.0) == 2.0


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e15, "3000 TB")]
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert format_bytes(size) == text
