"""What the trigger and the worker's own loop do about a watched task. Blocking: a trigger uses a thread."""

from __future__ import annotations

import logging
import time
from typing import Any

from facilities.errors import FacilityError, NotFoundError
from facilities.globus.documents import TaskSnapshot
from facilities.globus.events import Cancelled, TaskEvent
from facilities.globus.hook import GlobusHook
from facilities.globus.watching import TaskWatch, Verdict
from facilities.polling import PollFailed, Seen

log = logging.getLogger(__name__)


def follow(
    hook: GlobusHook, watch: TaskWatch, answer: Seen[TaskSnapshot] | PollFailed | None, logger: Any
) -> TaskEvent:
    """Watch a task to its end from a worker.

    :param answer: what is known already.
    """
    verdict = watch.look(answer, time.monotonic()) if answer else None
    failures, failing_since = 0, 0.0
    while verdict is None:
        time.sleep(watch.wait(time.monotonic()))
        answer = ask_by_name(hook, watch.task_id)
        now = time.monotonic()
        if isinstance(answer, PollFailed):
            failing_since = failing_since if failures else now
            failures += 1
            answer = PollFailed(answer.error, failures, now - failing_since)
        else:
            failures = 0
        verdict = watch.look(answer if answer is not None else Seen(None), now)
        if watch.wants_report:
            explain(hook, watch)
        say(logger, watch)
    return end(hook, watch, verdict)


def ask_by_name(hook: GlobusHook, task_id: str) -> Seen[TaskSnapshot] | PollFailed | None:
    """Ask for a task that lists leave out; None when Globus does not know it."""
    try:
        return Seen(hook.get_task(task_id))
    except NotFoundError:
        return None
    except FacilityError as error:
        return PollFailed(error, 1, 0.0)


def explain(hook: GlobusHook, watch: TaskWatch) -> None:
    """Fetch Globus's report about the trouble that a task is in."""
    watch.explain(report_about(hook, watch.task_id))


def report_about(hook: GlobusHook, task_id: str) -> str:
    """Globus's report about a task; an unreadable one is said to be so, as it only adds to a message."""
    try:
        return hook.trouble_report(task_id)
    except FacilityError as error:
        return f"(Globus's report could not be read: {error.what})"


def say(logger: Any, watch: TaskWatch) -> None:
    """Write a watch's messages to a task's log."""
    for level, text in watch.drain():
        logger.log(level, text)


def end(hook: GlobusHook, watch: TaskWatch, verdict: Verdict) -> TaskEvent:
    """Cancel what must be cancelled, and put into an event what happened."""
    cancelled: Cancelled = "not asked"
    last = watch.last
    if verdict.cancel:
        cancelled, ended = cancel(hook, watch.task_id, within=15.0)
        last = ended or last
        if last is not None and last.is_final and not last.was_cancelled:
            verdict = Verdict("finished")  # it ended by itself just before
    return TaskEvent(
        outcome=verdict.outcome,
        task_id=watch.task_id,
        state=last.state if last else "",
        reason=verdict.reason,
        failure_class=verdict.failure_class,
        next_step=verdict.next_step,
        report=watch.report,
        cancelled=cancelled,
        stuck_seconds=watch.stuck_for(time.monotonic()),
        moved=list(watch.moved),
    )


def cancel(hook: GlobusHook, task_id: str, *, within: float) -> tuple[Cancelled, TaskSnapshot | None]:
    """Cancel a task; tells whether Globus agreed, and the task as it is then."""
    try:
        return "yes", hook.cancel(task_id, within=within)
    except FacilityError as error:
        log.error("Globus task %s could not be cancelled: %s", task_id, error)
        return "no", None


def cancel_by_label(hook: GlobusHook, label: str, kind: str) -> None:
    """Cancel our living tasks of a label: a submit's reply was lost, so their id is not known."""
    try:
        living = [task for task in hook.find_tasks(label, kind) if task.is_living]
    except FacilityError as error:
        log.error("Whether Globus has a task of label %s could not be found out: %s", label, error)
        return
    for task in living:
        cancelled, _ = cancel(hook, task.task_id, within=8.0)
        log.info("Globus task %s of label %s cancelled: %s", task.task_id, label, cancelled)
