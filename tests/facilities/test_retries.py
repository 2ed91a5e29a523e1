"""The retry policy: what is tried again, when, and with which reason."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.sdk.exceptions import TaskDeferralError, TaskDeferralTimeout
from hypothesis import given
from hypothesis import strategies as st

from facilities.errors import (
    CredentialsError,
    FacilityError,
    InfrastructureError,
    LostReplyError,
    NotFoundError,
    ResourcesError,
    TimeLimitError,
    TransientError,
    UserError,
)
from facilities.retries import FacilityRetryPolicy


def decide(error: BaseException, try_number: int = 1) -> tuple[RetryAction, timedelta | None, str | None]:
    decision = FacilityRetryPolicy().evaluate(error, try_number, 3)
    return decision.action, decision.retry_delay, decision.reason


@pytest.mark.parametrize("kind", [TransientError, LostReplyError, InfrastructureError])
def test_what_may_pass_is_tried_again(kind: type[FacilityError]) -> None:
    action, delay, reason = decide(kind("The node died"))
    assert action is RetryAction.RETRY
    assert delay == timedelta(seconds=30)
    assert reason == f"{kind.failure_class}: The node died"


@pytest.mark.parametrize("kind", [UserError, NotFoundError, CredentialsError, ResourcesError, TimeLimitError])
def test_what_somebody_must_correct_fails_at_once(kind: type[FacilityError]) -> None:
    action, _, reason = decide(kind("No such account"))
    assert action is RetryAction.FAIL
    assert reason == f"{kind.failure_class}: No such account"


@pytest.mark.parametrize("error", [TaskDeferralError("trigger"), TaskDeferralTimeout("time")])
def test_a_wait_that_broke_off_is_taken_up_again(error: Exception) -> None:
    assert decide(error)[0] is RetryAction.RETRY


def test_what_nobody_has_classed_is_tried_five_times() -> None:
    for try_number in range(1, 5):
        action, _, reason = decide(ValueError("bug"), try_number)
        assert (action, reason) == (RetryAction.RETRY, "unexpected: ValueError")
    assert decide(ValueError("bug"), 5)[::2] == (RetryAction.FAIL, "ValueError for the 5th time")


def test_the_service_may_ask_for_a_longer_delay() -> None:
    assert decide(TransientError("Busy", retry_after=900.0))[1] == timedelta(seconds=900)
    assert decide(TransientError("Busy", retry_after=1.0))[1] == timedelta(seconds=30)
    assert decide(TransientError("Busy", retry_after=1e30))[1] == timedelta(days=1)


@given(st.integers(min_value=-5, max_value=10_000))
def test_delays_double_within_bounds(try_number: int) -> None:
    policy = FacilityRetryPolicy(first_delay=timedelta(seconds=10), longest_delay=timedelta(minutes=5))
    error = TransientError("Busy")
    delay = policy.evaluate(error, try_number, 3).retry_delay
    following = policy.evaluate(error, try_number + 1, 3).retry_delay
    assert delay is not None
    assert following is not None
    assert timedelta(seconds=10) <= delay <= following <= timedelta(minutes=5)
    assert following <= delay * 2
