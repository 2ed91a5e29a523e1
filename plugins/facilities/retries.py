"""Which failures are worth another try, and when: a hook's repeated requests, and Airflow's retry policy.

A policy cannot go beyond a task's own `retries`. Airflow hands it the exception of `execute` or of
the resumed method; one that was raised inside a trigger arrives as `TaskDeferralError`, without its
type, which is why triggers yield events instead.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from datetime import timedelta

import tenacity
from airflow.sdk import Context
from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import TaskDeferralError, TaskDeferralTimeout

from facilities.errors import FacilityError, FailureClass, TransientError

log = logging.getLogger(__name__)

RETRIES = 10
"""`retries` of tasks with this policy. Airflow also counts a try when a worker dies or is restarted, and
the policy ends what cannot pass by itself, so the number is a bound and not a habit."""

_UNEXPECTED_TRIES = 5  # of a failure that nobody has classed: a mistake of ours, or Airflow's own trouble

_WORTH_ANOTHER_TRY: frozenset[FailureClass] = frozenset({"transient", "infrastructure"})


class FacilityRetryPolicy(RetryPolicy):
    """Tries again what may pass by itself, and fails at once what somebody must correct.

    :param first_delay: before the second try; doubled for each further one.
    :param longest_delay: limit of the doubling; a service's own Retry-After may be longer.
    """

    def __init__(
        self,
        *,
        first_delay: timedelta = timedelta(seconds=30),
        longest_delay: timedelta = timedelta(minutes=10),
    ) -> None:
        self.first_delay = first_delay
        self.longest_delay = longest_delay

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,
        max_tries: int,  # noqa: ARG002 - Airflow's signature; Airflow itself counts the tries
        context: Context | None = None,  # noqa: ARG002 - the same
    ) -> RetryDecision:
        """Decide by the class of a facility's failure; of anything else, five tries."""
        if isinstance(exception, FacilityError):
            return self._evaluate_failure(exception, try_number)
        if isinstance(exception, (TaskDeferralError, TaskDeferralTimeout)):
            return RetryDecision.retry(
                self._delay(try_number), "the wait was broken off; it is taken up again"
            )
        if try_number >= _UNEXPECTED_TRIES:
            return RetryDecision.fail(f"{type(exception).__name__} for the {try_number}th time")
        return RetryDecision.retry(self._delay(try_number), f"unexpected: {type(exception).__name__}")

    def _evaluate_failure(self, error: FacilityError, try_number: int) -> RetryDecision:
        reason = f"{error.failure_class}: {error.what}"
        if error.failure_class not in _WORTH_ANOTHER_TRY:
            return RetryDecision.fail(reason)
        delay = self._delay(try_number)
        if isinstance(error, TransientError) and error.retry_after:
            delay = max(delay, timedelta(seconds=min(error.retry_after, 86_400.0)))
        return RetryDecision.retry(delay, reason)

    def _delay(self, try_number: int) -> timedelta:
        doublings = min(max(try_number - 1, 0), 20)
        return min(self.first_delay * float(2**doublings), self.longest_delay)


def asked_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header; None when there is none that can be read."""
    try:
        seconds = float(headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if 0 < seconds < float("inf") else None


def resending(attempts: int, *, first_pause: float, longest_pause: float) -> tenacity.Retrying:
    """Sends a request again a few times while the service is silent or busy, so that a hiccup fails no task.

    Example::

        reply = resending(4, first_pause=1.0, longest_pause=30.0)(send, request)

    :param attempts: how often it is sent at most.
    :param first_pause: seconds before the second attempt; doubled each time, up to `longest_pause`. A service
        that asks for a longer one is left to the caller.
    """

    def worth_it(error: BaseException) -> bool:
        return isinstance(error, TransientError) and (error.retry_after or 0.0) <= longest_pause

    def pause(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = (error.retry_after if isinstance(error, TransientError) else None) or 0.0
        doubled = min(first_pause * 2.0 ** (state.attempt_number - 1), longest_pause)
        return max(doubled + random.uniform(0, first_pause / 2), asked)  # noqa: S311 - no secret depends on it

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(worth_it),
        stop=tenacity.stop_after_attempt(attempts),
        wait=pause,
        before_sleep=tenacity.before_sleep_log(log, logging.INFO),
        reraise=True,
    )
