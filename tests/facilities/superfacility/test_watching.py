"""The wait for a job, answer by answer. Time is a number here."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilities.errors import CredentialsError, NotFoundError, TimeLimitError, TransientError, UserError
from facilities.polling import Answer, PollFailed
from facilities.superfacility.slurm import (
    CONFIRM,
    FINAL,
    SlurmJob,
    SlurmState,
    combine,
    parse_state,
)
from facilities.superfacility.triggers import SlurmJobTrigger
from facilities.waiting import WaitEnd
from support.lines import Lines

START = datetime(2026, 11, 22, 17, tzinfo=UTC)


def _watch(patience: float = 86_400) -> SlurmJobTrigger:
    watch = SlurmJobTrigger(superfacility_conn_id="none", machine="perlmutter", remote_id="80", deadline=0.0)
    watch._log = Lines()  # type: ignore[assignment]
    watch.begin(patience, 0.0)
    return watch


def _drain(watch: SlurmJobTrigger) -> list[tuple[int, str]]:
    assert isinstance(watch.log, Lines)
    return watch.log.drain()


def _state(end: WaitEnd | None) -> str | None:
    """State of the job that a wait ended with."""
    return end.result["state"] if end is not None and end.result is not None else None


def _row(text: str, origin: Any = "sacct", **values: Any) -> SlurmJob:
    return SlurmJob("80", origin, text, parse_state(text), **values)


def _seen(accounted: str | None, queued: str | None = None) -> Answer[SlurmJob]:
    return Answer(
        combine(
            None if accounted is None else _row(accounted),
            None if queued is None else _row(queued, "squeue"),
        )
    )


@pytest.mark.parametrize("state", sorted(FINAL - CONFIRM))
def test_a_final_state_ends_the_wait_at_once(state: SlurmState) -> None:
    assert _state(_watch().take(_seen(state.value), 1)) == state.value


@pytest.mark.parametrize("state", sorted(frozenset(SlurmState) - FINAL))
def test_an_active_state_does_not(state: SlurmState) -> None:
    watch = _watch()
    assert all(watch.take(_seen(state.value), now) is None for now in range(0, 80_000, 500))


@pytest.mark.parametrize("state", ["LAUNCH_FAILED", "", "CANCELLEDX"])
def test_an_unknown_state_waits_and_warns_once(state: str) -> None:
    watch = _watch()
    assert all(watch.take(_seen(state), now) is None for now in range(0, 3000, 30))
    if state:
        assert [level for level, text in _drain(watch) if "not known here" in text] == [logging.WARNING]


@pytest.mark.parametrize("state", sorted(CONFIRM))
def test_a_failure_that_a_requeue_undoes_is_believed_when_it_stays(state: SlurmState) -> None:
    watch = _watch()
    assert watch.take(_seen(state.value), 0) is None
    assert watch.take(_seen(state.value), 29) is None
    assert _state(watch.take(_seen(state.value), 30)) == state.value


@pytest.mark.parametrize("state", sorted(CONFIRM))
def test_a_failure_that_squeue_contradicts_is_not_believed(state: SlurmState) -> None:
    watch = _watch()
    for now in range(0, 600, 10):
        assert watch.take(_seen(state.value, "PENDING"), now) is None
    assert watch.take(_seen("RUNNING"), 610) is None
    assert watch.take(_seen(state.value), 620) is None  # the count begins anew
    assert watch.take(_seen("COMPLETED"), 630) is not None


def test_a_failure_while_the_nodes_are_still_being_cleared_counts() -> None:
    watch = _watch()
    assert watch.take(_seen("NODE_FAIL", "COMPLETING"), 0) is None
    assert watch.take(_seen("NODE_FAIL", "COMPLETING"), 31) is not None


def test_a_job_never_seen_has_a_grace_and_then_a_clear_error() -> None:
    watch = _watch()
    assert watch.take(Answer(None), 0) is None
    assert watch.take(Answer(None), 599) is None
    end = watch.take(Answer(None), 600)
    assert end is not None
    assert isinstance(end.error, NotFoundError)
    assert not end.cancel
    assert "sacct -j 80" in str(end.error)
    assert "never seen" in str(end.error)


def test_a_job_that_vanishes_tells_its_last_state() -> None:
    watch = _watch()
    watch.take(_seen("RUNNING"), 0)
    watch.take(Answer(None), 10)
    assert watch.take(_seen("RUNNING"), 20) is None
    watch.take(Answer(None), 30)
    end = watch.take(Answer(None), 631)
    assert end is not None
    assert "It was RUNNING when last seen" in str(end.error)


def test_a_job_that_only_squeue_knows_is_not_judged_by_it_soon() -> None:
    watch = _watch()
    assert watch.take(_seen(None, "RUNNING"), 0) is None
    assert watch.take(_seen(None, "COMPLETED"), 10) is None
    assert _state(watch.take(_seen("FAILED", "COMPLETED"), 20)) == "FAILED"


def _failed(error: Exception, consecutive: int, seconds: float) -> PollFailed:
    return PollFailed(error, consecutive, seconds)


def test_hours_without_an_answer_are_told_now_and_then_and_end_nothing() -> None:
    watch = _watch()
    watch.take(_seen("RUNNING"), 0)
    _drain(watch)
    error = TransientError("Looking up jobs", details="Planned outage: from 1 until 2.")
    for number in range(1, 241):
        assert watch.take(_failed(error, number, number * 60), number * 60) is None
    silence = _drain(watch)
    assert 10 <= len(silence) <= 25
    assert all("Planned outage: from 1 until 2." in text for _, text in silence)
    assert watch.take(_seen("RUNNING"), 15_000) is None
    assert "answers again" in _drain(watch)[0][1]


def test_one_failed_look_is_not_worth_a_word() -> None:
    watch = _watch()
    watch.take(_failed(TransientError("Looking up jobs"), 1, 0), 5)
    assert _drain(watch) == []


@pytest.mark.parametrize(("error", "needed"), [(CredentialsError("refused"), 3), (UserError("422"), 5)])
def test_a_refusal_that_stays_ends_the_wait_and_leaves_the_job_alone(
    error: TransientError | UserError | CredentialsError, needed: int
) -> None:
    watch = _watch()
    for number in range(1, needed):
        assert watch.take(_failed(error, number, number), number) is None
    end = watch.take(_failed(error, needed, needed), needed)
    assert end is not None
    assert type(end.error) is type(error)
    assert str(error.what) in str(end.error)
    assert not end.cancel


@pytest.mark.parametrize("answer", [_seen("RUNNING"), Answer(None), _failed(TransientError("x"), 9, 9)])
def test_the_limit_cancels(answer: Any) -> None:
    watch = _watch(patience=100)
    assert watch.take(answer, 99) is None
    end = watch.take(answer, 100)
    assert end is not None
    assert end.cancel
    assert isinstance(end.error, TimeLimitError)
    assert "0:01:40" in str(end.error)


def test_an_end_at_the_limit_is_an_end() -> None:
    assert _state(_watch(patience=100).take(_seen("COMPLETED"), 100)) == "COMPLETED"


def _told(watch: SlurmJobTrigger, job: SlurmJob, now: float) -> list[str]:
    watch.take(Answer(job), now)
    return [text for _, text in _drain(watch)]


def test_the_queue_is_told_with_reason_and_estimate_when_they_change() -> None:
    watch = _watch()
    estimate = (START + timedelta(hours=1)).isoformat()
    later = (START + timedelta(hours=1, minutes=10)).isoformat()
    much_later = (START + timedelta(hours=3)).isoformat()
    assert _told(watch, _row("PENDING", reason="Priority"), 0) == ["Job 80 waits in the queue, Priority."]
    assert _told(watch, _row("PENDING", reason="Priority"), 60) == []
    assert estimate in _told(watch, _row("PENDING", reason="Priority", start_estimate=estimate), 120)[0]
    assert _told(watch, _row("PENDING", reason="Priority", start_estimate=later), 180) == []
    assert much_later in _told(watch, _row("PENDING", reason="Priority", start_estimate=much_later), 240)[0]
    assert "Resources" in _told(watch, _row("PENDING", reason="Resources"), 300)[0]


def test_a_running_job_is_told_with_elapsed_of_limit_each_minute_and_later_each_ten() -> None:
    watch = _watch()
    texts = [
        text
        for elapsed in range(0, 14_400, 60)
        for text in _told(watch, _row("RUNNING", elapsed=elapsed, limit=14_400, node_list="nid1"), elapsed)
    ]
    assert texts[0] == "Job 80 runs on nid1: 0 s of 4:00:00."
    assert texts[1:11] == [f"Job 80 runs on nid1: 0:{minute:02}:00 of 4:00:00." for minute in range(1, 11)]
    assert texts[11:13] == [f"Job 80 runs on nid1: 0:{minute:02}:00 of 4:00:00." for minute in (20, 30)]
    assert len(texts) == 1 + 10 + 22


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("REQUEUE_HOLD", None),
        ("PENDING", "DependencyNeverSatisfied"),
        ("PENDING", "JobHeldUser"),
        ("PENDING", "job requeued in held state"),
    ],
)
def test_a_held_job_is_a_warning(state: str, reason: str | None) -> None:
    watch = _watch()
    watch.take(Answer(_row(state, reason=reason)), 0)
    [(level, text)] = _drain(watch)
    assert level == logging.WARNING
    assert "scontrol release 80" in text


def test_a_job_that_was_held_before_it_started_is_not_held() -> None:
    """sacct goes on telling why a job waited (recorded, Slurm 22.05)."""
    watch = _watch()
    watch.take(Answer(_row("RUNNING", reason="JobHeldUser")), 0)
    [(level, text)] = _drain(watch)
    assert level == logging.INFO
    assert "runs" in text


def test_looks_are_quick_after_the_start_and_near_the_end_and_slow_between() -> None:
    watch = _watch()
    watch.take(_seen("PENDING"), 0)
    assert watch.poll_interval(1) == 5
    assert watch.poll_interval(5000) == 60
    for elapsed, expected in [(10, 5), (7200, 60), (14_380, 5)]:
        watch.take(Answer(_row("RUNNING", elapsed=elapsed, limit=14_400)), elapsed)
        assert watch.poll_interval(elapsed) == expected
    watch.take(_seen("NODE_FAIL"), 14_390)
    assert watch.poll_interval(14_390) == 5


STATES = st.none() | st.sampled_from([state.value for state in SlurmState]) | st.just("LAUNCH_FAILED")


@given(st.lists(st.tuples(STATES, STATES, st.floats(0, 100)), max_size=30))
def test_no_sequence_of_looks_succeeds_without_an_explicit_success(looks: list[Any]) -> None:
    watch, now = _watch(), 0.0
    for accounted, queued, pause in looks:
        now += pause
        end = watch.take(_seen(accounted, queued), now)
        if end is None:
            continue
        if end.result is not None:
            assert end.result["state"] in FINAL
            if end.result["state"] == "COMPLETED":
                assert "COMPLETED" in (accounted, queued)
        else:
            assert isinstance(end.error, NotFoundError | TimeLimitError)
        return
