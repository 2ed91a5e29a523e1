"""Starting many runs of `transfer_auto_recon`, each once, and only as many as there is room for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypedDict

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import TaskDeferralTimeout

from cosmic import runs
from cosmic.room import Limits, RoomTrigger, read_event
from cosmic.scans import parse_scan_path
from facilities.errors import TimeLimitError

if TYPE_CHECKING:
    from airflow.sdk import Context

# The trigger keeps the limit itself; Airflow's own comes later, in case that no triggerer runs.
_DEFER_GRACE = timedelta(minutes=5)
_LOGGED_EVERY = 50


class DayToStart(TypedDict):
    """The runs to start for one day; as small as it can be, because there may be thousands."""

    day: str  # ISO
    parameters: dict[str, Any]
    scans: list[tuple[str, int]]  # path, generation


class _Start(NamedTuple):
    day: str
    run_id: str
    conf: dict[str, Any]


class StartRunsOperator(BaseOperator):
    """Starts a run for each scan, in order, and waits (deferred) whenever there is no room.

    A run that exists already counts as started: whoever started it, the scan has its run. So the task can
    be tried again, cleared, or broken off and started anew. It does not wait for the runs to end.

    :param days: list of `DayToStart`.
    :param at_once: most runs of `transfer_auto_recon` that may go on, live ones included.
    :param copies_at_once: most of them that may be before or in their transfer. Globus moves three
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

    @property
    def deferrable(self) -> bool:
        """Always: it never waits in a worker."""
        return True

    def execute(self, context: Context) -> dict[str, int]:  # noqa: ARG002 - Airflow's signature
        """Start what there is room for."""
        return self._go_on(0, time.time() + self.timeout.total_seconds())

    def resume(self, context: Context, event: object = None) -> dict[str, int]:  # noqa: ARG002 - the same
        """Go on when there is room again."""
        told = read_event(event)
        if told["outcome"] == "timeout":
            self._fail_for_time(told["position"])
        return self._go_on(told["position"], told["deadline"])

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Tell Airflow's own end of the wait, which says nothing about the runs, in our words."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self._fail_for_time(0)

    def _go_on(self, position: int, deadline: float) -> dict[str, int]:
        starts = self._starts()
        limits = Limits(int(self.at_once), int(self.copies_at_once))
        while position < len(starts) and (room := limits.room()) > 0:
            for start in starts[position : position + room]:
                is_new = runs.start(start.run_id, start.conf, self.note)
                position += 1
                if not is_new:
                    self.log.info("Run %s exists already.", start.run_id)
                if position % _LOGGED_EVERY == 0:
                    self.log.info("%d of %d runs are started.", position, len(starts))
        if position == len(starts):
            self.log.info("All %d runs are started.", len(starts))
            return dict(Counter(start.day for start in starts))
        self.log.info(
            "%d of %d runs are started; the next when fewer than %d are going on and fewer than %d transfer.",
            position,
            len(starts),
            limits.at_once,
            limits.copies_at_once,
        )
        return self._wait(limits, position, len(starts) - position, deadline)

    def _wait(self, limits: Limits, position: int, left: int, deadline: float) -> NoReturn:
        trigger = RoomTrigger(
            at_once=limits.at_once,
            copies_at_once=limits.copies_at_once,
            position=position,
            wanted=min(left, max(1, min(limits.at_once, limits.copies_at_once) // 2)),
            deadline=deadline,
        )
        self.defer(
            trigger=trigger,
            method_name="resume",
            timeout=timedelta(seconds=max(deadline - time.time(), 0.0)) + _DEFER_GRACE,
        )

    def _starts(self) -> list[_Start]:
        days: Sequence[Mapping[str, Any]] = self.days or []
        starts = []
        for day in days:
            for path, generation in day["scans"]:
                scan = parse_scan_path(path)
                conf = {**day["parameters"], "file_path": str(scan.relative)}
                starts.append(_Start(day["day"], scan.run_id(generation), conf))
        return starts

    def _fail_for_time(self, position: int) -> NoReturn:
        raise TimeLimitError(
            f"Not all runs could be started within {self.timeout}: there was no room for more",
            state=f"{position} of {len(self._starts())} started",
            next_step=(
                "see why runs of transfer_auto_recon do not end, or raise at_once; then clear this task: it "
                "goes on with the runs that do not exist yet."
            ),
        )
