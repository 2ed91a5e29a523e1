"""Watching one task: what to say, when to look again, and when to stop. No network, no clock of its own.

The trigger and the worker's own loop feed it with answers and do what it concludes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Literal

from facilities.errors import CredentialsError, FailureClass
from facilities.globus.documents import TaskSnapshot
from facilities.globus.states import failure_class_of, next_step_for
from facilities.polling import Pace, PollFailed, Seen

Outcome = Literal["finished", "in trouble", "stuck", "timeout", "lost", "credentials"]

_SAY_AGAIN = 60.0  # seconds between lines about progress
_STILL_THE_SAME = 600.0  # seconds between lines when nothing changes
_ABSENCES = 3  # looks in a row that do not list the task before it is asked for by name
_REFUSALS = 3  # looks in a row that are refused for their credentials
_KEEP_AFTER = 60.0  # seconds of a standstill after which it is worth writing down


@dataclass(frozen=True)
class Limits:
    """How a task is watched. Times in seconds.

    :param pace: how often to look.
    :param give_up_after: a task that cannot move for a reason that does not pass by itself (missing
        file, permission, quota, credentials) is cancelled after that time without progress.
    :param give_up_outage_after: the same for a collection that does not answer, or is paused.
    :param expected_bytes: size of the work, if it is known.
    :param keeps: whether whoever watches writes a standstill down, when told so by the outcome "in trouble".
    """

    pace: Pace = Pace(least=2.0, most=30.0)  # noqa: RUF009 - frozen
    give_up_after: float = 1800.0
    give_up_outage_after: float = 12 * 3600.0
    expected_bytes: int | None = None
    keeps: bool = False


@dataclass(frozen=True)
class Verdict:
    """Why the watch ends."""

    outcome: Outcome
    reason: str = ""
    failure_class: FailureClass = "infrastructure"
    next_step: str = ""
    cancel: bool = False  # the task must be cancelled, it would go on otherwise


_FIRST_LOOK = 0.5  # seconds; waits that begin together still share a request


@dataclass
class TaskWatch:
    """One task, from the first look to a verdict.

    :param task_id: the task.
    :param limits: how it is watched.
    :param remaining: seconds until the wait's own limit.
    :param now: seconds on a monotonic clock; every later `now` is on the same one.
    :param stuck: how long the task had been in trouble when the watch began, and what it had moved by then.
    """

    task_id: str
    limits: Limits
    remaining: float
    now: float
    stuck: tuple[float, tuple[int, int]] | None = None
    messages: list[tuple[int, str]] = field(default_factory=list)
    wants_report: bool = False
    """The task is in trouble that has not been explained: fetch Globus's report, and `explain` it."""

    last: TaskSnapshot | None = None

    def __post_init__(self) -> None:
        self._looked = False
        self._began = self.now
        self._deadline = self.now + self.remaining
        self._said_at = float("-inf")
        self._said_bytes = 0
        self._said_state: tuple[object, ...] | None = None
        self.moved: tuple[int, int] = self.stuck[1] if self.stuck else (0, 0)
        self._faults = 0
        self._trouble = ""
        self._trouble_since = self._kept_since = self.now - self.stuck[0] if self.stuck else None
        self._report = ""
        self._absences = 0
        self._refusals = 0
        self._silence_said_at: float | None = None

    def wait(self, now: float) -> float:
        """Seconds until the next look; the first comes soon: a small file has arrived by now."""
        if not self._looked:
            return min(_FIRST_LOOK, self.limits.pace.least, self.seconds_until_limit(now))
        pace = self.limits.pace
        # In trouble a change is news, but not urgent.
        in_peace = pace.interval(now - self._began, self._seconds_left())
        wanted = pace.least * 5 if self._trouble else in_peace
        return max(min(wanted, pace.most, self._deadline - now), 0.0)

    def seconds_until_limit(self, now: float) -> float:
        """Seconds until `expire` is due."""
        return max(self._deadline - now, 0.0)

    def look(self, answer: Seen[TaskSnapshot] | PollFailed, now: float) -> Verdict | None:
        """Take in an answer; returns a verdict when the wait is over."""
        self._looked = True
        if isinstance(answer, PollFailed):
            verdict = self._unanswered(answer, now)
        elif answer.value is None:
            verdict = self._absent()
        else:
            verdict = self._seen(answer.value, now)
        return verdict or (self.expire() if now >= self._deadline else None)

    def expire(self) -> Verdict:
        """The verdict when the wait's own limit has come."""
        said = f"; it was in trouble: {self._trouble}" if self._trouble else ""
        hours = (self._deadline - self._began) / 3600
        return Verdict(
            "timeout",
            f"the Globus task had not ended when the wait reached its limit (of {hours:.3g} h{said})",
            failure_class="resources",
            next_step="look at the task's event log at Globus; clear the task to try again, or raise "
            "its wait_timeout.",
            cancel=True,
        )

    def explain(self, report: str) -> None:
        """Take Globus's report about the trouble into the log and into a later verdict."""
        self.wants_report = False
        if report and report != self._report:
            self._report = report
            self._say(logging.WARNING, f"Globus reports about task {self.task_id}: {report}")

    @property
    def report(self) -> str:
        """The newest report about the trouble."""
        return self._report

    def drain(self) -> list[tuple[int, str]]:
        """Messages for the task's log since the last call, with their levels."""
        messages, self.messages = self.messages, []
        return messages

    # An answer

    def _seen(self, task: TaskSnapshot, now: float) -> Verdict | None:
        self._absences = self._refusals = 0
        if self._silence_said_at is not None:
            self._silence_said_at = None
            self._say(logging.INFO, "Globus answers again.")
        self.last = task
        if task.is_final:
            return Verdict("finished")
        self._note_trouble(task, now)
        self._say_progress(task, now)
        return self._give_up(now)

    def _note_trouble(self, task: TaskSnapshot, now: float) -> None:
        moved = (task.bytes_transferred, task.files_transferred + task.files_skipped)
        if moved != self.moved:
            self._trouble_since = None
            self._faults = task.faults
        self.moved = moved
        # Faults without progress are trouble, too, even while Globus calls the task OK.
        trouble = task.trouble or ("UNKNOWN" if task.faults > self._faults else "")
        if not trouble:
            self._trouble_since = None
        elif self._trouble_since is None:
            self._trouble_since = now
        if trouble and trouble != self._trouble:
            self.wants_report = True
        self._trouble = trouble

    def _give_up(self, now: float) -> Verdict | None:
        if self._trouble_since is None:
            return None
        kind = failure_class_of(self._trouble)
        limit = self.limits.give_up_outage_after if kind == "infrastructure" else self.limits.give_up_after
        if now - self._trouble_since < limit:
            return self._keep(now)
        return Verdict(
            "stuck",
            f"the Globus task made no progress for {limit / 60:.3g} min because of {self._trouble}",
            failure_class=kind,
            next_step=next_step_for(self._trouble),
            cancel=True,
        )

    def _keep(self, now: float) -> Verdict | None:
        """Have a standstill written down, once."""
        wanted = self.limits.keeps and self._trouble_since != self._kept_since
        return Verdict("in trouble", self._trouble) if wanted and self.stuck_for(now) >= _KEEP_AFTER else None

    def stuck_for(self, now: float) -> float:
        """Seconds since the task has made progress, if it is in trouble."""
        return 0.0 if self._trouble_since is None else now - self._trouble_since

    def _unanswered(self, failed: PollFailed, now: float) -> Verdict | None:
        self._refusals = self._refusals + 1 if isinstance(failed.error, CredentialsError) else 0
        if self._refusals >= _REFUSALS:
            return Verdict(
                "credentials",
                f"Globus refuses us while its task runs on: {failed.error}",
                failure_class="credentials",
                next_step="renew the connection's client secret, then clear the task: it takes the "
                "Globus task up again.",
            )
        if self._silence_said_at is None or now - self._silence_said_at >= _STILL_THE_SAME:
            self._silence_said_at = now
            self._say(
                logging.WARNING,
                f"Globus has not answered for {failed.seconds:.0f} s; waiting, its task is "
                f"not affected by this. {failed.error}",
            )
        return None

    def _absent(self) -> Verdict | None:
        self._absences += 1
        if self._absences < _ABSENCES:
            return None
        return Verdict(
            "lost",
            "Globus does not list the task any more",
            next_step="clear the task to transfer again; files that arrived are not copied twice.",
        )

    # Messages

    def _say_progress(self, task: TaskSnapshot, now: float) -> None:
        state = (task.state, task.nice_status, task.is_paused, task.is_ok)
        since = now - self._said_at
        moved = task.bytes_transferred != self._said_bytes
        if state == self._said_state and since < (_SAY_AGAIN if moved else _STILL_THE_SAME):
            step = (self.limits.expected_bytes or 0) / 10
            if not (step and task.bytes_transferred - self._said_bytes >= step and since >= 5.0):
                return
        self._said_state, self._said_at, self._said_bytes = state, now, task.bytes_transferred
        self._say(logging.WARNING if self._trouble else logging.INFO, self._describe(task))

    def _describe(self, task: TaskSnapshot) -> str:
        text = f"Globus task {task.task_id} is {task.state}"
        if task.is_paused:
            text += ", paused"
        if task.nice_status:
            text += f" ({task.nice_status}{f': {task.nice_details}' if task.nice_details else ''})"
        of = f" of {format_bytes(self.limits.expected_bytes)}" if self.limits.expected_bytes else ""
        text += f": {format_bytes(task.bytes_transferred)}{of} moved, {format_bytes(task.rate)}/s"
        left = self._seconds_left()
        if left is not None:
            text += f", about {left:.0f} s left"
        if task.faults:
            text += f", {task.faults} faults"
        if task.status is None:
            text += "; this status is unknown here, so the wait goes on"
        return text + "."

    def _seconds_left(self) -> float | None:
        task, expected = self.last, self.limits.expected_bytes
        if task is None or not expected or task.rate <= 0 or not task.bytes_transferred:
            return None
        return max(expected - task.bytes_transferred, 0) / task.rate

    def _say(self, level: int, text: str) -> None:
        self.messages.append((level, text))


def format_bytes(size: float) -> str:
    """Write a size in bytes for people, such as `1.5 GB` (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"
