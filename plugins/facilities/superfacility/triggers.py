"""Triggers that wait for NERSC. Their arguments are in the database in plain text: no secrets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from facilities.cancellation import trigger_is_over
from facilities.errors import CredentialsError, FacilityError, TransientError
from facilities.polling import PollInterval, jittered_sleep, shared_poller
from facilities.superfacility.events import WaitEvent
from facilities.superfacility.following import cancel_and_say, cancel_by_name, emergency_hook, end, say
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.identity import JobIdentity
from facilities.superfacility.outages import explain_outage
from facilities.superfacility.source import POLL_TIMEOUT, SlurmJobs
from facilities.superfacility.watching import JobWatch, Limits, Verdict

_LATE = 10.0  # seconds that a look may be late at the limit
_SAY_EVERY = 900.0
_LONGEST_WAIT = 300.0


def fire(payload: Mapping[str, Any]) -> TriggerEvent:
    """Make an event of plain values."""
    return TriggerEvent(dict(payload))  # type: ignore[no-untyped-call]  # Airflow's


class SlurmJobTrigger(BaseTrigger):
    """Waits until a Slurm job has ended, or its time is up. Yields a `JobEvent`.

    All jobs of a connection share one look (`facilities.polling`).

    :param superfacility_conn_id: connection of type `superfacility`.
    :param machine: such as perlmutter.
    :param job_id: the job.
    :param deadline: end of the wait, in seconds since 1970. Airflow's own timeout of a deferred task
        calls nothing that could cancel the job, so the trigger keeps the limit and cancels.
    :param poll_least: seconds between two looks, at least.
    :param poll_most: seconds between two looks, at most.
    :param confirm: see `Limits`.
    :param grace: see `Limits`.
    :param first_look: seconds before the first look. A trigger that fires while the worker is still
        leaving the task can get the task failed.
    """

    def __init__(
        self,
        *,
        superfacility_conn_id: str,
        machine: str,
        job_id: str,
        deadline: float,
        poll_least: float = 5.0,
        poll_most: float = 60.0,
        confirm: float = 30.0,
        grace: float = 600.0,
        first_look: float = 2.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.superfacility_conn_id = superfacility_conn_id
        self.machine = machine
        self.job_id = job_id
        self.deadline = deadline
        self.limits = Limits(pace=PollInterval(poll_least, poll_most), confirm=confirm, grace=grace)
        self.first_look = first_look

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "superfacility_conn_id": self.superfacility_conn_id,
                "machine": self.machine,
                "job_id": self.job_id,
                "deadline": self.deadline,
                "poll_least": self.limits.pace.min_seconds,
                "poll_most": self.limits.pace.max_seconds,
                "confirm": self.limits.confirm,
                "grace": self.limits.grace,
                "first_look": self.first_look,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        await jittered_sleep(self.first_look)
        now = asyncio.get_running_loop().time()
        patience = max(self.deadline - time.time(), 0.0)
        watch = JobWatch(self.job_id, self.machine, self.limits, patience, now)
        verdict = await self._watch(watch)
        hook = SuperfacilityHook(self.superfacility_conn_id, timeout=POLL_TIMEOUT)
        event = await asyncio.to_thread(end, hook, self.machine, watch, verdict)
        yield fire(event)

    async def on_kill(self) -> None:
        """Cancel the job when the task was really ended."""
        if await trigger_is_over(self):
            note = await asyncio.to_thread(
                cancel_and_say,
                emergency_hook(self.superfacility_conn_id, own_tokens=False),
                self.machine,
                self.job_id,
            )
            self.log.info("The task was ended here. Job %s: %s", self.job_id, note)

    async def _watch(self, watch: JobWatch) -> Verdict:
        loop = asyncio.get_running_loop()
        conn_id, machine = self.superfacility_conn_id, self.machine
        poller = shared_poller(("superfacility", conn_id, machine), lambda: SlurmJobs(conn_id, machine))
        wait = 0.0
        async with poller.subscribe(self.job_id) as subscription:
            while True:
                patience = watch.seconds_until_limit(loop.time()) + _LATE
                try:
                    answer = await asyncio.wait_for(subscription.next(wait), patience)
                except TimeoutError:
                    return watch.expire()
                verdict = watch.look(answer, loop.time())
                say(self.log, watch)
                if verdict is not None:
                    return verdict
                wait = watch.wait(loop.time())


class SubmitHoldTrigger(BaseTrigger):
    """Waits until a submit can go on: some seconds, or until NERSC answers. Yields a `WaitEvent`.

    :param superfacility_conn_id: connection of type `superfacility`.
    :param machine: such as perlmutter.
    :param identity: fields of the `JobIdentity`, to find a job that may have been submitted.
    :param reason: why, for the log.
    :param wait: seconds before the event, or before NERSC is first asked.
    :param until_up: whether NERSC has to answer and the machine has to be up.
    :param deadline: end of the wait, in seconds since 1970.
    """

    def __init__(
        self,
        *,
        superfacility_conn_id: str,
        machine: str,
        identity: dict[str, Any],
        reason: str,
        wait: float,
        until_up: bool,
        deadline: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.superfacility_conn_id = superfacility_conn_id
        self.machine = machine
        self.identity = JobIdentity(**identity)
        self.reason = reason
        self.wait = wait
        self.until_up = until_up
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "superfacility_conn_id": self.superfacility_conn_id,
                "machine": self.machine,
                "identity": asdict(self.identity),
                "reason": self.reason,
                "wait": self.wait,
                "until_up": self.until_up,
                "deadline": self.deadline,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        if not self.until_up:
            self.log.info("Waiting for %.0f s: %s.", self.wait, self.reason)
            await jittered_sleep(self.wait)
            yield fire(WaitEvent(outcome="again"))
            return
        self.log.warning("Holding until NERSC can be used; nothing is lost. %s", self.reason)
        wait, said_at = self.wait, float("-inf")
        while (left := self.deadline - time.time()) > 0:
            await jittered_sleep(min(wait, left))
            obstacle = await asyncio.to_thread(self._obstacle)
            if obstacle is None:
                self.log.info("NERSC answers and %s is up: going on.", self.machine)
                yield fire(WaitEvent(outcome="again"))
                return
            if time.monotonic() - said_at >= _SAY_EVERY:
                said_at = time.monotonic()
                self.log.warning("Still holding. %s", obstacle)
            wait = min(wait * 2, _LONGEST_WAIT)
        yield fire(WaitEvent(outcome="given up"))

    async def on_kill(self) -> None:
        """Cancel what may have been submitted, when the task was really ended."""
        if await trigger_is_over(self):
            hook = emergency_hook(self.superfacility_conn_id, own_tokens=False)
            await asyncio.to_thread(cancel_by_name, hook, self.machine, self.identity)

    def _obstacle(self) -> str | None:
        """Why NERSC cannot be used; None when it can, or refuses us (the task then raises the refusal)."""
        hook = SuperfacilityHook(self.superfacility_conn_id, attempts=1, timeout=POLL_TIMEOUT)
        try:
            if not hook.status(self.machine).up:
                return explain_outage(hook, self.machine)
            hook.session.get("account/", "Asking NERSC who the client is")
        except TransientError as error:
            return f"{error} {explain_outage(hook, self.machine)}"
        except CredentialsError as error:
            self.log.error("%s", error)
        except FacilityError as error:
            self.log.warning("%s", error)
        finally:
            hook.close()
        return None
