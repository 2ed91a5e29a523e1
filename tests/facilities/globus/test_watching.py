"""The watch: when to look, what to say, when to stop. Time is a number here."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilities.errors import CredentialsError, TransientError
from facilities.globus.documents import TaskSnapshot
from facilities.globus.watching import Limits, TaskWatch, Verdict, format_bytes
from facilities.polling import Pace, PollFailed, Seen

LIMITS = Limits(pace=Pace(2.0, 30.0), give_up_after=600.0, give_up_outage_after=7200.0)


def seen(**fields: Any) -> Seen[TaskSnapshot]:
    return Seen(TaskSnapshot.from_document({"task_id": "t", "status": "ACTIVE", "is_ok": True, **fields}))


def watching(limits: Limits = LIMITS, remaining: float = 86_400.0) -> TaskWatch:
    return TaskWatch("t", limits, remaining, 0.0)


def said(watch: TaskWatch) -> list[str]:
    return [text for _, text in watch.drain()]


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED"])
def test_an_ended_task_is_finished_whatever_became_of_it(status: str) -> None:
    assert watching().look(seen(status=status), 1.0) == Verdict("finished")


def test_an_ended_task_is_finished_even_after_the_limit() -> None:
    assert watching(remaining=10.0).look(seen(status="SUCCEEDED"), 99.0) == Verdict("finished")


def test_the_limit_cancels() -> None:
    watch = watching(remaining=100.0)
    assert watch.look(seen(), 99.0) is None
    verdict = watch.look(seen(nice_status="CONNECT_FAILED"), 100.0)
    assert verdict is not None
    assert (verdict.outcome, verdict.cancel, verdict.failure_class) == ("timeout", True, "resources")
    assert "CONNECT_FAILED" in verdict.reason


def test_the_limit_counts_although_globus_is_silent() -> None:
    verdict = watching(remaining=100.0).look(PollFailed(TransientError("down"), 9, 90.0), 101.0)
    assert verdict is not None
    assert verdict.outcome == "timeout"


def test_missing_file_is_told_at_once_and_given_up_later() -> None:
    watch = watching()
    missing = seen(is_ok=False, nice_status="FILE_NOT_FOUND", nice_status_details="/a.cxi", faults=1)
    assert watch.look(missing, 30.0) is None
    unexplained = watch.wants_report
    assert unexplained
    assert any("FILE_NOT_FOUND: /a.cxi" in text for text in said(watch))
    watch.explain("FILE_NOT_FOUND at noon: No such file")
    watch.look(missing, 31.0)
    assert not watch.wants_report
    assert any("No such file" in text for text in said(watch))
    assert watch.look(missing, 629.0) is None
    verdict = watch.look(missing, 630.0)
    assert verdict is not None
    assert (verdict.outcome, verdict.cancel, verdict.failure_class) == ("stuck", True, "user")
    assert "10 min because of FILE_NOT_FOUND" in verdict.reason
    assert watch.report == "FILE_NOT_FOUND at noon: No such file"


def test_a_standstill_of_a_minute_is_handed_out_once_to_be_kept() -> None:
    watch = watching(replace(LIMITS, keeps=True))
    missing = seen(is_ok=False, nice_status="FILE_NOT_FOUND")
    assert [watch.look(missing, at) for at in (30.0, 89.0)] == [None, None]
    assert watch.look(missing, 90.0) == Verdict("in trouble", "FILE_NOT_FOUND")
    assert (watch.stuck_for(90.0), watch.moved) == (60.0, (0, 0))
    resumed = TaskWatch("t", replace(LIMITS, keeps=True), 86_400.0, 1000.0, (590.0, (0, 0)))
    assert resumed.look(missing, 1009.0) is None
    assert resumed.look(missing, 1010.0) == watching_since(410.0).look(missing, 1010.0)


def watching_since(began: float) -> TaskWatch:
    watch = watching()
    watch.look(seen(is_ok=False, nice_status="FILE_NOT_FOUND"), began)
    return watch


def test_progress_since_it_was_kept_ends_a_standstill() -> None:
    moved = seen(is_ok=False, nice_status="FILE_NOT_FOUND", bytes_transferred=1)
    resumed = TaskWatch("t", LIMITS, 86_400.0, 1000.0, (599.0, (0, 0)))
    assert resumed.look(moved, 1002.0) is None
    assert resumed.stuck_for(1002.0) == 0.0


def test_an_outage_of_a_collection_is_waited_for_longer() -> None:
    watch = watching()
    down = seen(is_ok=False, nice_status="CONNECT_FAILED", faults=1)
    assert watch.look(down, 0.0) is None
    assert watch.look(down, 7199.0) is None
    verdict = watch.look(down, 7200.0)
    assert verdict is not None
    assert (verdict.outcome, verdict.failure_class) == ("stuck", "infrastructure")


def test_a_pause_is_an_outage() -> None:
    watch = watching()
    for now in (0.0, 7199.0):
        assert watch.look(seen(is_paused=True), now) is None
    verdict = watch.look(seen(is_paused=True), 7201.0)
    assert verdict is not None
    assert "PAUSED" in verdict.reason


def test_progress_starts_the_patience_anew() -> None:
    watch = watching()
    for step in range(50):
        trouble = seen(is_ok=False, nice_status="VERIFY_CHECKSUM", bytes_transferred=step, faults=step)
        assert watch.look(trouble, step * 1700.0) is None


def test_trouble_that_passes_starts_the_patience_anew() -> None:
    watch = watching()
    missing = seen(is_ok=False, nice_status="FILE_NOT_FOUND")
    assert watch.look(missing, 0.0) is None
    assert watch.look(seen(), 599.0) is None
    assert watch.look(missing, 601.0) is None
    assert watch.look(missing, 1200.0) is None
    assert watch.look(missing, 1201.0) is not None


def test_faults_without_progress_are_trouble_even_if_globus_says_ok() -> None:
    watch = watching()
    assert watch.look(seen(faults=1), 0.0) is None
    assert watch.wants_report
    verdict = watch.look(seen(faults=40), 7200.0)
    assert verdict is not None
    assert verdict.outcome == "stuck"


def test_an_inactive_task_wants_credentials() -> None:
    watch = watching()
    watch.look(seen(status="INACTIVE"), 0.0)
    verdict = watch.look(seen(status="INACTIVE"), 600.0)
    assert verdict is not None
    assert verdict.failure_class == "credentials"


def test_an_unknown_status_waits_and_says_so() -> None:
    watch = watching()
    assert watch.look(seen(status="THINKING"), 0.0) is None
    assert "THINKING" in (text := said(watch)[0])
    assert "unknown" in text


def test_silence_is_said_once_and_its_end() -> None:
    watch = watching()
    for number in range(20):
        failed = PollFailed(TransientError("Globus is down"), number + 1, number * 20.0)
        assert watch.look(failed, number * 20.0) is None
    assert sum("Globus is down" in text for text in said(watch)) == 1
    watch.look(PollFailed(TransientError("Globus is down"), 40, 700.0), 700.0)
    assert any("700 s" in text for text in said(watch))
    watch.look(seen(), 800.0)
    assert said(watch)[0] == "Globus answers again."


def test_refused_credentials_end_the_wait_but_not_the_transfer() -> None:
    watch = watching()
    refused = PollFailed(CredentialsError("The secret has expired"), 1, 0.0)
    assert watch.look(refused, 0.0) is None
    assert watch.look(refused, 1.0) is None
    verdict = watch.look(refused, 3.0)
    assert verdict is not None
    assert (verdict.outcome, verdict.cancel) == ("credentials", False)
    assert "The secret has expired" in verdict.reason


def test_one_refusal_in_between_is_not_believed() -> None:
    watch = watching()
    refused = PollFailed(CredentialsError("no"), 1, 0.0)
    for now in range(20):
        assert watch.look(refused if now % 3 else seen(), float(now)) is None


def test_a_task_must_be_missing_three_times() -> None:
    watch = watching()
    assert watch.look(Seen(None), 0.0) is None
    assert watch.look(seen(), 1.0) is None
    assert watch.look(Seen(None), 2.0) is None
    assert watch.look(Seen(None), 3.0) is None
    verdict = watch.look(Seen(None), 4.0)
    assert verdict is not None
    assert (verdict.outcome, verdict.cancel) == ("lost", False)


def test_progress_is_told_at_tenths_and_each_minute() -> None:
    watch = watching(Limits(expected_bytes=1000))
    lines = []
    for second in range(0, 600):
        watch.look(seen(bytes_transferred=min(second * 2, 1000), effective_bytes_per_second=2), float(second))
        lines += said(watch)
    assert 10 <= len(lines) <= 16
    assert "1 kB moved" in lines[-1] or "1 kB of 1 kB" in lines[-1]
    assert any("about" in line and "s left" in line for line in lines)


def test_nothing_new_is_not_told_again() -> None:
    watch = watching()
    lines = []
    for second in range(0, 3600, 10):
        watch.look(seen(nice_status="Queued"), float(second))
        lines += said(watch)
    assert len(lines) == 6


def test_trouble_is_a_warning() -> None:
    watch = watching()
    watch.look(seen(is_ok=False, nice_status="PERMISSION_DENIED"), 0.0)
    assert watch.drain()[0][0] == logging.WARNING


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
                    Seen(None),
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
    answers: list[tuple[float, Seen[TaskSnapshot] | PollFailed]],
) -> None:
    watch, now = watching(remaining=20_000.0), 0.0
    for pause, answer in answers:
        wait = watch.wait(now)
        assert 0.0 <= wait <= 30.0
        assert now + wait <= 20_000.0 or wait == 0.0
        now += pause
        verdict = watch.look(answer, now)
        watch.drain()
        if verdict is not None:
            assert verdict.outcome in ("stuck", "timeout", "lost", "credentials")
            assert verdict.reason
            assert verdict.next_step
            assert verdict.cancel == (verdict.outcome in ("stuck", "timeout"))
            return
        assert now < 20_000.0


def test_looks_are_quick_after_the_submit_and_near_the_end() -> None:
    watch = watching(Limits(pace=Pace(2.0, 30.0), expected_bytes=100_000))
    assert watch.wait(0.0) == 0.5  # a small file is there when the wait begins
    watch.look(seen(bytes_transferred=0, effective_bytes_per_second=0), 0.5)
    assert watch.wait(0.5) == 2.0
    assert watch.wait(100.0) == 10.0
    watch.look(seen(bytes_transferred=50_000, effective_bytes_per_second=100), 1000.0)
    assert watch.wait(1000.0) == 30.0
    watch.look(seen(bytes_transferred=99_500, effective_bytes_per_second=100), 1500.0)
    assert watch.wait(1500.0) == 2.0


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e15, "3000 TB")]
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert format_bytes(size) == text
