"""What the trigger and the worker's own loop do about a job. Blocking: a trigger uses a thread."""

from __future__ import annotations

import logging
import time
from typing import Any

from facilities.errors import FacilityError
from facilities.polling import Answer, PollFailed
from facilities.superfacility.events import JobEvent, error_values
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.identity import JobIdentity
from facilities.superfacility.lookup import OwnJobs
from facilities.superfacility.source import SlurmJobs
from facilities.superfacility.watching import JobView, JobWatch, Verdict

log = logging.getLogger(__name__)

EMERGENCY_TIMEOUT = 7.0
"""Seconds for a request of `on_kill`, which has 30 s in the triggerer and 5 s in the worker."""


def follow(source: SlurmJobs, watch: JobWatch, logger: Any) -> Verdict:
    """Watch a job to its end from a worker."""
    failures, failing_since = 0, 0.0
    while True:
        time.sleep(watch.wait(time.monotonic()))
        answer: Answer[JobView] | PollFailed
        try:
            answer = Answer(source.look(frozenset({watch.job_id})).get(watch.job_id))
            failures = 0
        except FacilityError as error:
            failing_since = failing_since if failures else time.monotonic()
            failures += 1
            answer = PollFailed(error, failures, time.monotonic() - failing_since)
        verdict = watch.look(answer, time.monotonic())
        say(logger, watch)
        if verdict is not None:
            return verdict


def say(logger: Any, watch: JobWatch) -> None:
    """Write a watch's messages to a task's log."""
    for level, text in watch.drain():
        logger.log(level, text)


def end(hook: SuperfacilityHook, machine: str, watch: JobWatch, verdict: Verdict) -> JobEvent:
    """Cancel the job when its time is up, and put into an event what happened."""
    error = verdict.error
    if error is not None and verdict.cancel:
        note = cancel_and_say(hook, machine, watch.job_id)
        error.details = "\n".join(part for part in (error.details, note) if part)
    return JobEvent(
        outcome="final" if verdict.job is not None else "error",
        job_id=watch.job_id,
        job=verdict.job.to_dict() if verdict.job is not None else None,
        error=None if error is None else error_values(error),
    )


def cancel_and_say(hook: SuperfacilityHook, machine: str, job_id: str) -> str:
    """Cancel a job, and put into words whether that worked."""
    try:
        hook.cancel(machine, job_id)
    except FacilityError as error:
        log.error("Job %s could not be cancelled: %s", job_id, error)
        return f"The job could NOT be cancelled ({error.what}): run 'scancel {job_id}' at NERSC."
    finally:
        hook.close()
    return "The job was cancelled."


def cancel_by_name(hook: SuperfacilityHook, machine: str, identity: JobIdentity) -> list[str]:
    """Cancel the living jobs of a task instance whose id is not known, such as after a lost reply.

    :return: ids of what was cancelled.
    """
    cancelled: list[str] = []
    try:
        living = OwnJobs(hook, identity, machine).all_living()
        if not living:
            log.info("There is no living job of the name %s.", identity.name(0))
        for job in living:
            hook.cancel(machine, job.job_id)
            cancelled.append(job.job_id)
            log.info("Job %s (%s) was cancelled.", job.job_id, job.name)
    except FacilityError as error:
        log.error("Whether a job of the name %s lives could not be found out: %s", identity.name(0), error)
    finally:
        hook.close()
    return cancelled


def emergency_hook(superfacility_conn_id: str, *, own_tokens: bool = True) -> SuperfacilityHook:
    """An impatient hook for `on_kill`.

    :param own_tokens: in a signal handler, since the interrupted code may hold the lock of the shared ones.
    """
    return SuperfacilityHook(
        superfacility_conn_id, attempts=2, timeout=EMERGENCY_TIMEOUT, own_tokens=own_tokens
    )
