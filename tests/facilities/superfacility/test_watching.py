"""The judge of a waiting job, look by look."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilities.errors import CredentialsError, NotFoundError, TimeLimitError, TransientError, UserError
from facilities.polling import Answer, PollFailed, PollInterval
from facilities.superfacility.job import JobSnapshot
from facilities.superfacility.states import ACTIVE, CONFIRM, FINAL, SlurmState, parse_state
from facilities.superfacility.watching import JobView, JobWatch, Limits, Verdict

LIMITS = Limits(pace=PollInterval(5, 60), confirm=30, grace=600)
START = datetime(2026, 11, 22, 17, tzinfo=UTC)


def _watch(patience: float = 86_400) -> JobWatch:
    return JobWatch("80", "perlmutter", LIMITS, patience, 0.0)


def _row(text: str, origin: Any = "sacct", **values: Any) -> JobSnapshot:
    return JobSnapshot("80", origin, text, parse_state(text), **values)


def _seen(accounted: str | None, queued: str | None = None) -> Answer[JobView]:
    return Answer(
        JobView(
            None if accounted is None else _row(accounted),
            None if queued is None else _row(queued, "squeue"),
        )
    )


@pytest.mark.parametrize("state", sorted(FINAL - CONFIRM))
def test_a_final_state_ends_the_wait_at_once(state: SlurmState) -> None:
    verdict = _watch().look(_seen(state.value), 1)
    assert verdict is not None
    assert verdict.job is not None
    assert verdict.job.state is state


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_an_active_state_does_not(state: SlurmState) -> None:
    watch = _watch()
    assert all(watch.look(_seen(state.value), now) is None for now in range(0, 80_000, 500))


@pytest.mark.parametrize("state", ["LAUNCH_FAILED", "", "CANCELLEDX"])
def test_an_unknown_state_waits_and_warns_once(state: str) -> None:
    watch = _watch()
    assert all(watch.look(_seen(state), now) is None for now in range(0, 3000, 30))
    if state:
        assert [level for level, text in watch.drain() if "not known here" in text] == [logging.WARNING]


@pytest.mark.parametrize("state", sorted(CONFIRM))
def test_a_failure_that_a_requeue_undoes_is_believed_when_it_stays(state: SlurmState) -> None:
    watch = _watch()
    assert watch.look(_seen(state.value), 0) is None
    assert watch.look(_seen(state.value), 29) is None
    verdict = watch.look(_seen(state.value), 30)
    assert verdict is not None
    assert verdict.job is not None


@pytest.mark.parametrize("state", sorted(CONFIRM))
def test_a_failure_that_squeue_contradicts_is_not_believed(state: SlurmState) -> None:
    watch = _watch()
    for now in range(0, 600, 10):
        assert watch.look(_seen(state.value, "PENDING"), now) is None
    assert watch.look(_seen("RUNNING"), 610) is None
    assert watch.look(_seen(state.value), 620) is None  # the count begins anew
    assert watch.look(_seen("COMPLETED"), 630) is not None


def test_a_failure_while_the_nodes_are_still_being_cleared_counts() -> None:
    watch = _watch()
    assert watch.look(_seen("NODE_FAIL", "COMPLETING"), 0) is None
    assert watch.look(_seen("NODE_FAIL", "COMPLETING"), 31) is not None


def test_a_job_never_seen_has_a_grace_and_then_a_clear_error() -> None:
    watch = _watch()
    assert watch.look(Answer(None), 0) is None
    assert watch.look(Answer(None), 599) is None
    verdict = watch.look(Answer(None), 600)
    assert verdict is not None
    assert isinstance(verdict.error, NotFoundError)
    assert not verdict.cancel
    assert "sacct -j 80" in str(verdict.error)
    assert "never seen" in str(verdict.error)


def test_a_job_that_vanishes_tells_its_last_state() -> None:
    watch = _watch()
    watch.look(_seen("RUNNING"), 0)
    watch.look(Answer(None), 10)
    assert watch.look(_seen("RUNNING"), 20) is None
    watch.look(Answer(None), 30)
    verdict = watch.look(Answer(None), 631)
    assert verdict is not None
    assert "It was RUNNING when last seen" in str(verdict.error)


def test_a_job_that_only_squeue_knows_is_not_judged_by_it_soon() -> None:
    watch = _watch()
    assert watch.look(_seen(None, "RUNNING"), 0) is None
    assert watch.look(_seen(None, "COMPLETED"), 10) is None
    assert watch.look(_seen("FAILED", "COMPLETED"), 20) == Verdict(job=_row("FAILED"))


def _failed(error: Exception, consecutive: int, seconds: float) -> PollFailed:
    return PollFailed(error, consecutive, seconds)


def test_hours_without_an_answer_are_told_now_and_then_and_end_nothing() -> None:
    watch = _watch()
    watch.look(_seen("RUNNING"), 0)
    watch.drain()
    error = TransientError("Looking up jobs", details="Planned outage: from 1 until 2.")
    for number in range(1, 241):
        assert watch.look(_failed(error, number, number * 60), number * 60) is None
    silence = watch.drain()
    assert 10 <= len(silence) <= 17
    assert all("Planned outage: from 1 until 2." in text for _, text in silence)
    assert watch.look(_seen("RUNNING"), 15_000) is None
    assert "answers again" in watch.drain()[0][1]


def test_one_failed_look_is_not_worth_a_word() -> None:
    watch = _watch()
    watch.look(_failed(TransientError("Looking up jobs"), 1, 0), 5)
    assert watch.drain() == []


@pytest.mark.parametrize(("error", "needed"), [(CredentialsError("refused"), 2), (UserError("422"), 5)])
def test_a_refusal_that_stays_ends_the_wait_and_leaves_the_job_alone(error: Any, needed: int) -> None:
    watch = _watch()
    for number in range(1, needed):
        assert watch.look(_failed(error, number, number), number) is None
    assert watch.look(_failed(error, needed, needed), needed) == Verdict(error=error, cancel=False)


@pytest.mark.parametrize("answer", [_seen("RUNNING"), Answer(None), _failed(TransientError("x"), 9, 9)])
def test_the_limit_cancels(answer: Any) -> None:
    watch = _watch(patience=100)
    assert watch.look(answer, 99) is None
    verdict = watch.look(answer, 100)
    assert verdict is not None
    assert verdict.cancel
    assert isinstance(verdict.error, TimeLimitError)
    assert "0:01:40" in str(verdict.error)


def test_an_end_at_the_limit_is_an_end() -> None:
    assert _watch(patience=100).look(_seen("COMPLETED"), 100) == Verdict(job=_row("COMPLETED"))


def _told(watch: JobWatch, job: JobSnapshot, now: float) -> list[str]:
    watch.look(Answer(JobView(job, None)), now)
    return [text for _, text in watch.drain()]


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


def test_a_running_job_is_told_with_elapsed_of_limit_each_tenth() -> None:
    watch = _watch()
    texts = [
        text
        for elapsed in range(0, 14_400, 60)
        for text in _told(watch, _row("RUNNING", elapsed=elapsed, limit=14_400, node_list="nid1"), elapsed)
    ]
    assert texts[0] == "Job 80 runs on nid1: 0:00:00 of 4:00:00."
    assert 9 <= len(texts) <= 11


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
    watch.look(Answer(JobView(_row(state, reason=reason), None)), 0)
    [(level, text)] = watch.drain()
    assert level == logging.WARNING
    assert "scontrol release 80" in text


def test_a_job_that_was_held_before_it_started_is_not_held() -> None:
    """sacct goes on telling why a job waited (recorded, Slurm 22.05)."""
    watch = _watch()
    watch.look(Answer(JobView(_row("RUNNING", reason="JobHeldUser"), None)), 0)
    [(level, text)] = watch.drain()
    assert level == logging.INFO
    assert "runs" in text


def test_looks_are_quick_after_the_start_and_near_the_end_and_slow_between() -> None:
    watch = _watch()
    watch.look(_seen("PENDING"), 0)
    assert watch.wait(1) == 5
    assert watch.wait(5000) == 60
    for elapsed, expected in [(10, 5), (7200, 60), (14_380, 5)]:
        watch.look(Answer(JobView(_row("RUNNING", elapsed=elapsed, limit=14_400), None)), elapsed)
        assert watch.wait(elapsed) == expected
    watch.look(_seen("NODE_FAIL"), 14_390)
    assert watch.wait(14_390) == 5
    assert _watch(patience=3).wait(1) == 2


STATES = st.none() | st.sampled_from([state.value for state in SlurmState]) | st.just("LAUNCH_FAILED")


@given(st.lists(st.tuples(STATES, STATES, st.floats(0, 100)), max_size=30))
def test_no_sequence_of_looks_succeeds_without_an_explicit_success(looks: list[Any]) -> None:
    watch, now = _watch(), 0.0
    for accounted, queued, pause in looks:
        now += pause
        verdict = watch.look(_seen(accounted, queued), now)
        if verdict is None:
            continue
        if verdict.job is not None:
            assert verdict.job.state in FINAL
            if verdict.job.state is SlurmState.COMPLETED:
                assert "COMPLETED" in (accounted, queued)
        else:
            assert isinstance(verdict.error, NotFoundError | TimeLimitError)
        return
