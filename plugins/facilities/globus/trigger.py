"""The triggers that wait for a Globus task, or for Globus itself to answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from facilities.cancellation import Cancellation
from facilities.errors import BY_CLASS, CredentialsError, FacilityError, InfrastructureError, NotFoundError
from facilities.globus.hook import GlobusHook
from facilities.globus.model import Fault, TaskSnapshot, TaskStatus, condense
from facilities.polling import BlockingSource, SharedPoller, shared_poller
from facilities.progress import Progress
from facilities.waiting import OutageTrigger, WaitEnd, WaitTrigger, format_duration

log = logging.getLogger(__name__)

# Seconds; a triggerer begins a second or two after the submit, when a small file has arrived. Waits that
# begin together share a request.
_FIRST_POLL = 0.1
_LOG_PROGRESS = 60.0  # seconds between lines about progress
_LOG_UNCHANGED = 600.0  # seconds between lines when nothing changes
_MAX_ABSENCES = 3  # answers in a row that do not know the task, for the wait to end
_SAVE_STALL_AFTER = 60.0  # seconds of a stall after which it is worth writing down
_POLL_TIMEOUT = 20.0  # seconds for a request
_CANCEL_TIMEOUT = 7.0  # the same for `on_kill`, which Airflow gives 30 s


@dataclass(eq=False, kw_only=True)
class GlobusTaskTrigger(WaitTrigger[TaskSnapshot]):
    """Waits until a transfer or delete has ended, is stuck, or its deadline has come. Yields a `WaitEvent`.

    Example::

        trigger = GlobusTaskTrigger(
            globus_conn_id="globus_default",
            remote_id="6a9f8d1e-0c0c-11ee-9c5c-0242ac110002",
            deadline=time.time() + 3600,
        )

    :param globus_conn_id: connection of type `globus`.
    :param remote_id: the Globus task.
    :param give_up_after: seconds without progress after which a task is cancelled that cannot move for a
        reason that does not pass by itself (missing file, permission, quota, credentials).
    :param give_up_outage_after: the same for a collection that does not answer, or is paused.
    :param expected_bytes: size of the work, if it is known.
    :param stall: trouble that an earlier wait has found: `since`, in seconds since 1970, and the bytes and
        files that had `moved` by then.

    The others are those of `WaitTrigger`.
    """

    service = "Globus"
    work = "Globus task"
    step_after_deadline = (
        "look at the task's event log at Globus and run it again; the limit is the task's timeout, in the "
        "DAG's file."
    )

    globus_conn_id: str
    give_up_after: float = 1800.0
    give_up_outage_after: float = 43_200.0
    expected_bytes: int | None = None
    stall: dict[str, Any] | None = None

    def begin(self, remaining: float, now: float) -> None:
        """Begin the wait, in a stall if an earlier wait has found one."""
        super().begin(remaining, now)
        self._last: TaskSnapshot | None = None
        self._moved = [0, 0]
        self._stalled_since: float | None = None
        if self.stall is not None:
            self._moved = list(self.stall["moved"])
            self._stalled_since = now - max(time.time() - self.stall["since"], 0.0)
        self._saved_stall = self._stalled_since
        self._faults = 0
        self._absences = 0
        self._logged_at = float("-inf")
        self._logged_bytes = 0
        self._logged_state: tuple[object, ...] | None = None

    def poller(self) -> SharedPoller[TaskSnapshot]:
        """One `task_list` request for a hundred tasks of a connection."""
        return shared_poller(("globus", self.globus_conn_id), lambda: _tasks_of(self.globus_conn_id))

    def poll_interval(self, now: float) -> float:
        """Seconds until the next answer is wanted; the first soon."""
        if self._last is None and now - self.began < _FIRST_POLL:
            return min(_FIRST_POLL, self.min_poll_interval)
        if self.trouble:  # a change is news, but not urgent
            return min(self.min_poll_interval * 5, self.max_poll_interval)
        return self.poll_seconds.after(now - self.began, self._seconds_until_moved())

    def assess(self, value: TaskSnapshot | None, now: float) -> WaitEnd | None:
        if value is None:
            return self._assess_absence()
        self._absences = 0
        self._last, self.state = value, value.state
        if value.is_final:  # of a failed one the operator reads more
            succeeded = value.status is TaskStatus.SUCCEEDED
            return WaitEnd("ended", result=value.to_dict() if succeeded else None)
        self._look_for_trouble(value, now)
        self._log_progress(value, now)
        return self._assess_stall(now)

    def progress(self) -> Progress | None:
        task = self._last
        if task is None:
            return None
        trouble = Fault.of(self.trouble).meaning if self.trouble else ""
        return Progress(task.state, task.bytes_transferred, self.expected_bytes, task.rate, trouble=trouble)

    def _assess_absence(self) -> WaitEnd | None:
        self._absences += 1
        if self._absences < _MAX_ABSENCES:
            return None
        error = InfrastructureError(
            "Globus does not list the task any more",
            remote_id=self.remote_id,
            state=self.state or None,
            next_step="clear the task to transfer again; files that arrived are not copied twice.",
        )
        return WaitEnd("lost", error)

    def _look_for_trouble(self, task: TaskSnapshot, now: float) -> None:
        moved = [task.bytes_transferred, task.files_transferred + task.files_skipped]
        if moved != self._moved:
            self._stalled_since = None
            self._faults = task.faults
        self._moved = moved
        # Faults without progress are trouble, too, even while Globus calls the task OK.
        trouble = task.trouble or ("UNKNOWN" if task.faults > self._faults else "")
        if not trouble:
            self._stalled_since = None
        elif self._stalled_since is None:
            self._stalled_since = now
        if trouble and trouble != self.trouble:
            self.wants_report = True
        self.trouble = trouble

    def _assess_stall(self, now: float) -> WaitEnd | None:
        """Give up after a limit; after a minute have the stall written down, once."""
        if self._stalled_since is None:
            return None
        stalled, limit = now - self._stalled_since, self._stall_limit()
        if stalled >= limit:
            fault = Fault.of(self.trouble)
            error = BY_CLASS[fault.failure_class](
                f"The Globus task made no progress for {format_duration(limit)} because of {self.trouble}: "
                f"{fault.meaning}",
                remote_id=self.remote_id,
                state=self.state,
                next_step=fault.next_step,
            )
            return WaitEnd("stuck", error, cancel=True)
        if self._stalled_since != self._saved_stall and stalled >= _SAVE_STALL_AFTER:
            found = {"trouble": self.trouble, "seconds": stalled, "moved": self._moved}
            return WaitEnd("stalled", result=found)
        return None

    def _stall_limit(self) -> float:
        """Seconds without progress after which the task is cancelled."""
        outage = Fault.of(self.trouble).failure_class == "infrastructure"
        return self.give_up_outage_after if outage else self.give_up_after

    def _outlook(self, now: float) -> str:
        """What the trouble means, and when it is given up."""
        since = now if self._stalled_since is None else self._stalled_since
        left = max(min(since + self._stall_limit() - now, self.seconds_left(now)), 0.0)
        end = datetime.fromtimestamp(time.time() + left, UTC)
        return (
            f" {self.trouble}: {Fault.of(self.trouble).meaning}. Unless it goes on, it is cancelled in "
            f"{format_duration(left)}, at {end:%Y-%m-%d %H:%M} UTC."
        )

    def _log_progress(self, task: TaskSnapshot, now: float) -> None:
        state = (task.state, task.nice_status, task.is_paused, task.is_ok)
        since = now - self._logged_at
        moved = task.bytes_transferred != self._logged_bytes
        if state == self._logged_state and since < (_LOG_PROGRESS if moved else _LOG_UNCHANGED):
            step = (self.expected_bytes or 0) / 10
            if not (step and task.bytes_transferred - self._logged_bytes >= step and since >= 5.0):
                return
        self._logged_state, self._logged_at, self._logged_bytes = state, now, task.bytes_transferred
        if self.trouble:
            self.log.warning("%s%s", self._describe(task), self._outlook(now))
        else:
            self.log.info("%s", self._describe(task))

    def _describe(self, task: TaskSnapshot) -> str:
        text = f"Globus task {task.task_id} is {task.state}"
        if task.is_paused:
            text += ", paused"
        if task.nice_status:
            text += f" ({task.nice_status}{f': {condense(task.nice_details)}' if task.nice_details else ''})"
        of = f" of {format_bytes(self.expected_bytes)}" if self.expected_bytes else ""
        text += f": {format_bytes(task.bytes_transferred)}{of} moved, {format_bytes(task.rate)}/s"
        left = self._seconds_until_moved()
        if left is not None:
            text += f", about {left:.0f} s left"
        if task.faults:
            text += f", {task.faults} faults"
        if task.status is None:
            text += "; this status is unknown here, so the wait goes on"
        return text + "."

    def _seconds_until_moved(self) -> float | None:
        task, expected = self._last, self.expected_bytes
        if task is None or not expected or task.rate <= 0 or not task.bytes_transferred:
            return None
        return max(expected - task.bytes_transferred, 0) / task.rate

    def read_report(self) -> str:
        with closing(self._hook()) as hook:
            return read_report(hook, self.remote_id)

    def read_url(self) -> str:
        return self._hook().task_url(self.remote_id)

    def cancel(self) -> Cancellation:
        with closing(self._hook()) as hook:
            return cancel_task(hook, self.remote_id, within=8.0)

    def _hook(self) -> GlobusHook:
        return GlobusHook(self.globus_conn_id, attempts=2, http_timeout=_CANCEL_TIMEOUT)


@dataclass(eq=False, kw_only=True)
class GlobusOutageTrigger(OutageTrigger):
    """Waits until Globus answers again, at most until a deadline. Yields an `OutageEvent`.

    Example::

        trigger = GlobusOutageTrigger(
            globus_conn_id="globus_default",
            reason="HTTP 503",
            label="scan-0123456789abcdef-01234567",
            kind="TRANSFER",
            deadline=time.time() + 86_400,
            first_pause=10,
        )

    :param globus_conn_id: connection of type `globus`.
    :param label: label of the task that may have been submitted just before Globus fell silent.
    :param kind: `TRANSFER` or `DELETE`.

    The others are those of `OutageTrigger`.
    """

    service = GlobusTaskTrigger.service
    work = GlobusTaskTrigger.work

    globus_conn_id: str
    label: str
    kind: str

    def connection_key(self) -> tuple[str, ...]:
        return (self.globus_conn_id,)

    def check(self) -> None:
        """Send a small request, with the connection as it is now: it may have been corrected."""
        with closing(GlobusHook(self.globus_conn_id, attempts=1, http_timeout=_POLL_TIMEOUT)) as hook:
            hook.ping()

    def cancel(self) -> Cancellation:
        with closing(GlobusHook(self.globus_conn_id, attempts=2, http_timeout=_CANCEL_TIMEOUT)) as hook:
            return cancel_labelled(hook, self.label, self.kind)


def _tasks_of(globus_conn_id: str) -> BlockingSource[TaskSnapshot]:
    hook = GlobusHook(globus_conn_id, attempts=1, http_timeout=_POLL_TIMEOUT)

    def look(ids: frozenset[str]) -> Mapping[str, TaskSnapshot]:
        try:
            found = hook.get_tasks(ids)
            for task_id in ids - found.keys():  # lists may leave out what can be asked for by its id
                try:
                    found[task_id] = hook.get_task(task_id)
                except NotFoundError:
                    log.info("Globus does not know task %s.", task_id)
        except CredentialsError:
            hook.forget()  # the secret may be renewed in the connection while we wait
            raise
        return found

    return BlockingSource(look, hook.close, per_request=hook.ids_per_request)


def read_report(hook: GlobusHook, task_id: str) -> str:
    """Globus's report about a task; when it cannot be read, that: it only adds to a message."""
    try:
        return hook.trouble_report(task_id)
    except FacilityError as error:
        return f"(Globus's report could not be read: {error.what})"


def cancel_task(hook: GlobusHook, task_id: str, *, within: float) -> Cancellation:
    """Cancel a task, and wait some seconds for its end."""
    try:
        task = hook.cancel(task_id, within=within)
    except FacilityError as error:
        log.error("Globus task %s could not be cancelled: %s", task_id, error)
        return Cancellation(
            False, f"The Globus task could NOT be cancelled and may go on ({task_id}: {error.what})."
        )
    had_ended = task.is_final and not task.was_cancelled
    return Cancellation(True, "The Globus task was cancelled.", had_ended)


def cancel_labelled(hook: GlobusHook, label: str, kind: str) -> Cancellation:
    """Cancel our living tasks of a label, when a submit's reply was lost and their id is not known."""
    try:
        living = [task for task in hook.find_tasks(label, kind) if not task.is_final]
    except FacilityError as error:
        log.error("Whether Globus has a task of label %s could not be found out: %s", label, error)
        return Cancellation(False, f"Whether Globus has a task of label {label} is not known: {error.what}.")
    results = [cancel_task(hook, task.task_id, within=8.0) for task in living]
    notes = [f"{task.task_id}: {result.note}" for task, result in zip(living, results, strict=True)]
    return Cancellation(all(result.done for result in results), "\n".join(notes))


def format_bytes(size: float) -> str:
    """Write a size in bytes for people, such as `1.5 GB` (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"
