"""Limits background runs so that live scans go first: starts many runs, only a few at a time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import TaskDeferralTimeout

from cosmic import runs
from facilities.deferral import defer_timeout
from facilities.errors import InfrastructureError, TimeLimitError
from facilities.polling import jittered_sleep
from facilities.waiting import DataTrigger

_LOG_EVERY = 50  # runs


class RunLimits(NamedTuple):
    """How many runs may be active, and how many of them may be before or in their transfer.

    Live runs count too and are never held back: when many scans are posted, the others wait.
    """

    at_once: int
    copies_at_once: int

    def free(self, now: runs.Activity) -> int:
        """How many more runs may start."""
        return min(self.at_once - now.active, self.copies_at_once - now.copying)


@dataclass(eq=False, kw_only=True)
class ThrottleTrigger(DataTrigger):
    """Waits until more runs may start. Yields "free" or "timeout".

    :param at_once: see `RunLimits`.
    :param copies_at_once: see `RunLimits`.
    :param started: see `runs.activity`.
    :param deadline: end of the wait, in seconds since 1970.
    :param interval: seconds between two requests.
    """

    at_once: int
    copies_at_once: int
    started: list[str]
    deadline: float
    interval: float = 5.0

    async def wait(self) -> str:
        limits = RunLimits(self.at_once, self.copies_at_once)
        while (left := self.deadline - time.time()) > 0:
            # First of all a sleep: an event right after the deferral may meet the worker still leaving.
            await jittered_sleep(min(self.interval, left))
            try:
                now = await asyncio.to_thread(runs.activity, self.started)
            except Exception:
                self.log.warning(
                    "How many runs are active could not be read from Airflow's API server.", exc_info=True
                )
                continue
            if limits.free(now) > 0:
                return "free"
        return "timeout"


class StartRunsOperator(BaseOperator):
    """Starts a run for each scan, in order, and waits (deferred) whenever no more may start.

    A run that exists already counts as started: whoever started it, the scan has its run. So the task can
    be retried, cleared, or interrupted and started anew. It does not wait for the runs to end. Example:

        StartRunsOperator(task_id="start_runs", days=found["days"], at_once=50, copies_at_once=2)

    :param days: list of `DayToStart`.
    :param at_once: maximum of active runs of `transfer_auto_recon`, live ones included.
    :param copies_at_once: maximum of those that have not finished their transfer. Globus moves three
        transfers of a user at a time; the rest, live ones too, would queue there.
    :param note: note of each run.
    :param timeout: longest time for all of it.

    Returns {day: runs started}.
    """

    template_fields: Sequence[str] = ("days", "at_once", "copies_at_once", "note")
    ui_color = "#e3ecd9"

    def __init__(
        self,
        *,
        days: Any,
        at_once: int | str,
        copies_at_once: int | str,
        note: str = "",
        timeout: timedelta = timedelta(days=7),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.days = days
        self.at_once = at_once
        self.copies_at_once = copies_at_once
        self.note = note
        self.timeout = timeout

    def execute(self, context: Context) -> dict[str, int]:  # noqa: ARG002 - Airflow's signature
        """Start as many as may start now."""
        return self._continue(0, time.time() + self.timeout.total_seconds())

    def resume(self, context: Context, event: object, position: int, deadline: float) -> dict[str, int]:  # noqa: ARG002 - the same
        """Go on when more may start.

        :param position: how many of the runs are started.
        :param deadline: in seconds since 1970.
        """
        if event == "timeout":
            self._fail_for_time(position)
        if event != "free":
            raise InfrastructureError(
                "The wait until more runs may start has ended without a proper event",
                state=str(event)[:200],
                next_step="clear this task: it continues with the runs that do not exist yet.",
            )
        return self._continue(position, deadline)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Replace the message of Airflow's own timeout, which does not mention the runs."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self._fail_for_time(0)

    def _continue(self, position: int, deadline: float) -> dict[str, int]:
        starts = runs.runs_to_start(self.days or [])
        limits = RunLimits(int(self.at_once), int(self.copies_at_once))

        while position < len(starts):
            started = [start.run_id for start in starts[max(position - limits.at_once, 0) : position]]
            now = runs.activity(started)
            free = limits.free(now)
            if free <= 0:
                self.log.info(
                    "%d of %d runs are started. Waiting: %d are active (at_once is %d), %d of them have not "
                    "finished their transfer (copies_at_once is %d).",
                    *(position, len(starts), now.active, limits.at_once, now.copying, limits.copies_at_once),
                )
                self.defer(
                    trigger=ThrottleTrigger(**limits._asdict(), started=started, deadline=deadline),
                    method_name="resume",
                    kwargs={"position": position, "deadline": deadline},
                    timeout=defer_timeout(deadline),
                )
            for start in starts[position : position + free]:
                if not runs.start(start.run_id, start.conf, self.note):
                    self.log.info("Run %s exists already.", start.run_id)
                position += 1
                if position % _LOG_EVERY == 0:
                    self.log.info("%d of %d runs are started.", position, len(starts))
        self.log.info("All %d runs are started.", len(starts))
        return dict(Counter(start.day for start in starts))

    def _fail_for_time(self, position: int) -> NoReturn:
        raise TimeLimitError(
            f"Not all runs could be started within {self.timeout}: too many others were active",
            state=f"{position} of {len(runs.runs_to_start(self.days or []))} started",
            next_step=(
                "see why runs of transfer_auto_recon do not end, or raise at_once; then clear this task: it "
                "continues with the runs that do not exist yet."
            ),
        )
