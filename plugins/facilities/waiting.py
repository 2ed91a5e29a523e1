"""Waits for remote work to end, or for a service to answer; the same at Globus and at NERSC.

An operator (`facilities.deferral`) begins a `Wait`, whose deadline counts over all tries, and defers to a
`WaitTrigger`. That polls the service (`facilities.polling`), logs changes for the task, and decides when
the wait ends. The operator gets a `WaitEvent`. A task that is not deferrable runs the same trigger in its
worker. Arguments of triggers are in Airflow's database in plain text: no secrets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, Literal, NotRequired, TypedDict, TypeVar, cast

from airflow.triggers.base import BaseTrigger, TriggerEvent

from facilities.cancellation import Cancellation, trigger_is_over
from facilities.errors import (
    CredentialsError,
    ErrorFields,
    FacilityError,
    InfrastructureError,
    TimeLimitError,
    TransientError,
)
from facilities.polling import (
    Answer,
    BlockingSource,
    PollFailed,
    PollInterval,
    SharedPoller,
    jittered_sleep,
    shared_poller,
)
from facilities.progress import Progress, forget_progress, note_progress

T = TypeVar("T")
log = logging.getLogger(__name__)

_OVERDUE = 10.0  # seconds that an answer may come after the deadline
_REPEAT_WARNING = 600.0  # seconds between warnings while a service does not answer
_MAX_REFUSALS = 5  # in a row, for a wait to end
_MAX_REFUSED_CREDENTIALS = 3  # the same for credentials
_MAX_PAUSE = 300.0  # seconds between two looks whether a service answers


# What a trigger hands to its operator


class WaitEvent(TypedDict):
    """Why a wait has ended."""

    outcome: str  # "ended": the work has ended; others are reasons to end the wait
    remote_id: str
    result: dict[str, Any] | None  # what the operator needs to go on
    error: ErrorFields | None  # what it has to raise
    cancelled: Literal["yes", "no", "not asked"]


def read_event(event: object, remote_id: str | None = None) -> WaitEvent:
    """Check an event.

    :param remote_id: the work that it has to be about; None when that is not known.
    :raises InfrastructureError: it is not one of ours: the next try takes the work up again.
    """
    if (
        isinstance(event, Mapping)
        and isinstance(event.get("outcome"), str)
        and isinstance(event.get("remote_id"), str)
        and remote_id in (None, event["remote_id"])
        and isinstance(event.get("error"), Mapping | None)
        and isinstance(event.get("result"), Mapping | None)
    ):
        return cast("WaitEvent", event)
    raise InfrastructureError(
        "The trigger ended without a proper event",
        remote_id=remote_id,
        state=str(event)[:200],
        next_step="clear the task: it takes its work up again.",
    )


@dataclass(frozen=True)
class WaitEnd:
    """A wait is over; see `WaitEvent`.

    :param cancel: the work must be cancelled, it would go on otherwise.
    """

    outcome: str
    error: FacilityError | None = None
    cancel: bool = False
    result: dict[str, Any] | None = None


# Triggers


class DataTrigger(BaseTrigger):
    """Base of triggers that are dataclasses; their fields are their arguments."""

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments."""
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {f.name: getattr(self, f.name) for f in fields(self) if f.init}  # type: ignore[arg-type]

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        yield TriggerEvent(await self.wait())  # type: ignore[no-untyped-call]  # Airflow's

    @abstractmethod
    async def wait(self) -> Any:
        """Wait; returns the event's payload."""


class RemoteTrigger(DataTrigger):
    """Base of triggers that wait for remote work or for a service."""

    service: ClassVar[str]
    work: ClassVar[str]

    @abstractmethod
    def cancel(self) -> Cancellation:
        """Cancel the remote work. Blocking; must take less than the 30 s that Airflow gives `on_kill`."""

    async def on_kill(self) -> None:
        """Cancel the remote work when its task was really ended."""
        if await trigger_is_over(self):
            cancellation = await asyncio.to_thread(self.cancel)
            self.log.info("The task was ended. %s", cancellation.note)


@dataclass(eq=False, kw_only=True)
class WaitTrigger(RemoteTrigger, Generic[T]):
    """Waits until remote work has ended, or its deadline has come. Yields a `WaitEvent`.

    A subclass for a service says where answers come from (`poller`) and what they mean (`assess`)::

        @dataclass(eq=False, kw_only=True)
        class MyJobTrigger(WaitTrigger[Job]):
            service, work = "My service", "job"
            conn_id: str

            def poller(self):
                return shared_poller(("my", self.conn_id), lambda: BlockingSource(MyHook(self.conn_id).jobs))

            def assess(self, job, now):
                return WaitEnd("ended") if job and job.final else None

            def cancel(self):
                return MyHook(self.conn_id).cancel(self.remote_id)

    :param deadline: end of the wait, in seconds since 1970. Airflow's own timeout of a deferred task calls
        nothing that could cancel the work, so the trigger keeps the deadline itself.
    :param min_poll_interval: seconds between two polls, at least.
    :param max_poll_interval: seconds between two polls, at most.
    """

    step_after_deadline: ClassVar[str] = "run it again; the limit is the task's timeout, in the DAG's file."
    failures_before_warning: ClassVar[int] = 1

    remote_id: str
    deadline: float
    min_poll_interval: float = 2.0
    max_poll_interval: float = 30.0

    @abstractmethod
    def poller(self) -> SharedPoller[T]:
        """The poller that is shared with all who wait at the same service and connection."""

    @abstractmethod
    def assess(self, value: T | None, now: float) -> WaitEnd | None:
        """Take in the service's answer; None while the wait goes on.

        :param value: None when the service does not know the work.
        :param now: seconds on the clock of `begin`.
        """

    def poll_interval(self, now: float) -> float:
        """Seconds until the next answer is wanted, whatever the deadline."""
        return self.poll_seconds.after(now - self.began)

    def progress(self) -> Progress | None:
        """How far the work has come, by the last answer; None when nothing is known."""
        return None

    def read_report(self) -> str:
        """The service's report about work in trouble. Blocking."""
        return ""

    def read_url(self) -> str:
        """Address of a page about the work. Blocking."""
        return ""

    # Deciding: no network, no clock of its own

    def begin(self, remaining: float, now: float) -> None:
        """Begin the wait.

        :param remaining: seconds until the deadline.
        :param now: seconds on a monotonic clock; every later `now` is on the same one.
        """
        self.poll_seconds = PollInterval(self.min_poll_interval, self.max_poll_interval)
        self.began = now
        self.limit = remaining
        self.state = ""  # last that the service reported, as it wrote it
        self.trouble = ""  # what keeps the work from going on
        self.report = ""  # the service's own report about that
        self.wants_report = False
        self._refusals = 0
        self._warned_at: float | None = None

    def seconds_left(self, now: float) -> float:
        """Seconds until the deadline, not below zero."""
        return max(self.began + self.limit - now, 0.0)

    def seconds_until_poll(self, now: float) -> float:
        """Seconds until the next answer is wanted, not later than the deadline."""
        return min(self.poll_interval(now), self.seconds_left(now))

    def take(self, answer: Answer[T] | PollFailed, now: float) -> WaitEnd | None:
        """Take in an answer; None while the wait goes on."""
        if isinstance(answer, PollFailed):
            end = self._take_failure(answer, now)
        else:
            self._refusals = 0
            if self._warned_at is not None:
                self._warned_at = None
                self.log.info("%s answers again.", self.service)
            end = self.assess(answer.value, now)
        return end or (self.expire() if self.seconds_left(now) <= 0 else None)

    def take_report(self, report: str) -> None:
        """Take the service's report about the trouble into the log and into a later error."""
        self.wants_report = False
        if report and report != self.report:
            self.report = report
            self.log.warning("%s reports about %s: %s", self.service, self.remote_id, report)

    def expire(self) -> WaitEnd:
        """The end when the deadline has come."""
        because = f"; it was in trouble: {self.trouble}" if self.trouble else ""
        error = TimeLimitError(
            f"The {self.work} had not ended when the wait reached its limit of "
            f"{format_duration(self.limit)}{because}",
            remote_id=self.remote_id,
            state=self.state or None,
            next_step=self.step_after_deadline,
        )
        return WaitEnd("timeout", error, cancel=True)

    def _take_failure(self, failed: PollFailed, now: float) -> WaitEnd | None:
        error = failed.error
        if isinstance(error, FacilityError) and not isinstance(error, TransientError):
            self._refusals += 1
            enough = _MAX_REFUSED_CREDENTIALS if isinstance(error, CredentialsError) else _MAX_REFUSALS
            if self._refusals >= enough:
                refusal = type(error)(
                    f"{self.service} refuses us while the {self.work} runs on: {error.what}",
                    remote_id=self.remote_id,
                    state=self.state or None,
                    next_step=f"{error.next_step} The task, when cleared, takes the {self.work} up again.",
                    details=error.details,
                )
                return WaitEnd("refused", refusal)
        else:
            self._refusals = 0
        due = self._warned_at is None or now - self._warned_at >= _REPEAT_WARNING
        if due and failed.consecutive >= self.failures_before_warning:
            self._warned_at = now
            self.log.warning(
                "%s has not answered for %.0f s; the %s is not affected, and the wait goes on. %s",
                *(self.service, failed.seconds, self.work, error),
            )
        return None

    # Waiting

    async def wait(self) -> WaitEvent:
        """Wait; returns why the wait has ended."""
        self.begin(max(self.deadline - time.time(), 0.0), asyncio.get_running_loop().time())
        try:
            end = await self._poll()
        finally:
            forget_progress(self.task_instance)
        return await asyncio.to_thread(self._conclude, end)

    async def _poll(self) -> WaitEnd:
        loop = asyncio.get_running_loop()
        async with self.poller().subscribe(self.remote_id) as subscription:
            while True:
                now = loop.time()
                limit = self.seconds_left(now) + _OVERDUE
                try:
                    answer = await asyncio.wait_for(subscription.next(self.seconds_until_poll(now)), limit)
                except TimeoutError:
                    return self.expire()
                end = self.take(answer, loop.time())
                if self.wants_report:
                    self.take_report(await asyncio.to_thread(self.read_report))
                if end is not None:
                    return end
                note_progress(self.task_instance, self.progress())

    def _conclude(self, end: WaitEnd) -> WaitEvent:
        """Cancel what must be cancelled, and put into an event what happened."""
        cancelled: Literal["yes", "no", "not asked"] = "not asked"
        note = f"The {self.work} was not cancelled."
        if end.cancel:
            cancellation = self.cancel()
            cancelled, note = "yes" if cancellation.done else "no", cancellation.note
            if cancellation.had_ended:
                end = WaitEnd("ended")
        if end.error is not None:
            end.error.add_details(self.report, note, self.read_url())
        error = None if end.error is None else end.error.to_fields()
        return WaitEvent(
            outcome=end.outcome,
            remote_id=self.remote_id,
            result=end.result,
            error=error,
            cancelled=cancelled,
        )


class OutageEvent(TypedDict):
    """Why the wait for a service has ended."""

    outcome: Literal["answers", "timeout"]
    error: NotRequired[ErrorFields]  # of the last look, when all were in vain


@dataclass(eq=False, kw_only=True)
class OutageTrigger(RemoteTrigger):
    """Waits until a service can be used again. Yields an `OutageEvent`.

    :param reason: why it waits, for the log and for pages.
    :param deadline: end of the wait, in seconds since 1970.
    :param first_pause: seconds before the first look; then doubled for each, up to 5 minutes.
    :param delay: seconds to wait in any case, before that. With it, `reason` is not that the service is out.
    """

    reason: str
    deadline: float
    first_pause: float
    delay: float = 0.0

    @abstractmethod
    def connection_key(self) -> tuple[str, ...]:
        """Triggers with the same key share one look."""

    @abstractmethod
    def check(self) -> None:
        """Look whether the service can be used. Blocking.

        :raises TransientError: it cannot.
        """

    async def wait(self) -> OutageEvent:
        try:
            if self.delay:
                self.log.info("Waiting for %.0f s: %s.", self.delay, self.reason)
                note_progress(self.task_instance, Progress(trouble=self.reason))
                await jittered_sleep(min(self.delay, max(self.deadline - time.time(), 0.0)))
            else:
                self._say_it_is_out(self.reason)
            return await self._wait_for_answer(out=not self.delay)
        finally:
            forget_progress(self.task_instance)

    def _say_it_is_out(self, why: str) -> None:
        end = datetime.fromtimestamp(self.deadline, UTC)
        self.log.warning(
            "Holding until %s can be used, at most until %s UTC; nothing is lost. %s",
            *(self.service, f"{end:%Y-%m-%d %H:%M}", why),
        )
        note_progress(self.task_instance, Progress(trouble=f"{self.service} does not answer"))

    async def _wait_for_answer(self, *, out: bool) -> OutageEvent:
        vain = OutageEvent(outcome="timeout")
        key = (type(self).__qualname__, *self.connection_key())
        poller = shared_poller(key, lambda: BlockingSource(lambda _: self._answers()))
        pause, logged, logged_at = self.first_pause, self.reason, time.monotonic()
        async with poller.subscribe("") as subscription:
            while (left := self.deadline - time.time()) > 0:
                try:
                    answer = await asyncio.wait_for(subscription.next(pause), left)
                except TimeoutError:
                    break
                if isinstance(answer, Answer):
                    if out:
                        self.log.info("%s answers: trying again.", self.service)
                    return OutageEvent(outcome="answers")
                if isinstance(answer.error, FacilityError):
                    vain["error"] = answer.error.to_fields()
                said = str(answer.error)
                if not out or said != logged or time.monotonic() - logged_at >= _REPEAT_WARNING:
                    logged, logged_at = said, time.monotonic()
                    if out:
                        self.log.warning("Still holding. %s", said)
                    else:
                        out = True
                        self._say_it_is_out(said)
                pause = min(pause * 2, max(_MAX_PAUSE, self.first_pause))
        return vain

    def _answers(self) -> Mapping[str, bool]:
        try:
            self.check()
        except TransientError:
            raise
        except FacilityError as error:  # it answers, and refuses: the operator raises the refusal
            log.warning("%s", error)
        return {"": True}


def format_duration(seconds: float) -> str:
    """Write a duration as hours:minutes:seconds; one under a minute in seconds."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
