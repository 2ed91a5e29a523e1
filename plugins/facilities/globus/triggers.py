"""Triggers that wait for Globus. Their arguments are in the database in plain text: no secrets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from facilities.errors import CredentialsError
from facilities.globus.documents import TaskSnapshot
from facilities.globus.following import ask_by_name, cancel, cancel_by_label, end, explain, say
from facilities.globus.hook import GlobusHook
from facilities.globus.waits import Standstill
from facilities.globus.watching import Limits, TaskWatch, Verdict
from facilities.killing import really_killed
from facilities.polling import Pace, Seen, shared_poller

_POLL_TIMEOUT = 20.0
_LONGEST_HOLD = 300.0
_STILL_HOLDING = 600.0  # seconds between lines while nothing changes
_GRACE = 10.0  # seconds that a look may be late at the limit
_SHORT_TIMEOUT = 7.0  # Airflow gives on_kill 30 s


def _fire(payload: Mapping[str, Any]) -> TriggerEvent:
    return TriggerEvent(dict(payload))  # type: ignore[no-untyped-call]  # Airflow's


class GlobusTasks:
    """Source of the shared poller: one `task_list` request per hundred tasks of a connection."""

    def __init__(self, globus_conn_id: str) -> None:
        self._hook = GlobusHook(globus_conn_id, attempts=1, http_timeout=_POLL_TIMEOUT)

    async def fetch(self, ids: frozenset[str]) -> Mapping[str, TaskSnapshot]:
        """Read all tasks."""
        return await asyncio.to_thread(self._fetch, ids)

    def _fetch(self, ids: frozenset[str]) -> Mapping[str, TaskSnapshot]:
        try:
            return self._hook.get_tasks(ids)
        except CredentialsError:
            self._hook.forget()  # the secret may be renewed in the connection while we wait
            raise

    async def aclose(self) -> None:
        """Release the connections."""
        await asyncio.to_thread(self._hook.close)


class GlobusPing:
    """Source that finds out whether Globus answers, once for all that wait for it."""

    def __init__(self, globus_conn_id: str) -> None:
        self._hook = GlobusHook(globus_conn_id, attempts=1, http_timeout=_POLL_TIMEOUT)

    async def fetch(self, ids: frozenset[str]) -> Mapping[str, bool]:
        """Ask Globus for next to nothing."""
        await asyncio.to_thread(self._ping)
        return dict.fromkeys(ids, True)

    def _ping(self) -> None:
        self._hook.forget()  # the connection may have been corrected
        self._hook.ping()

    async def aclose(self) -> None:
        """Release the connections."""
        await asyncio.to_thread(self._hook.close)


class GlobusTaskTrigger(BaseTrigger):
    """Waits until a transfer or delete has ended, is stuck, or its time is up. Yields a `TaskEvent`.

    :param globus_conn_id: connection of type `globus`.
    :param task_id: the Globus task.
    :param deadline: end of the wait, in seconds since 1970. Airflow's own timeout of a deferred task
        calls nothing that could cancel the transfer, so the trigger keeps the limit.
    :param pace_least: seconds between two looks, at least.
    :param pace_most: seconds between two looks, at most.
    :param give_up_after: see `Limits`, in seconds.
    :param give_up_outage_after: see `Limits`, in seconds.
    :param expected_bytes: see `Limits`.
    :param standstill: fields of the `Standstill` that an earlier wait has found.
    """

    def __init__(
        self,
        *,
        globus_conn_id: str,
        task_id: str,
        deadline: float,
        pace_least: float,
        pace_most: float,
        give_up_after: float,
        give_up_outage_after: float,
        expected_bytes: int | None = None,
        standstill: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.globus_conn_id = globus_conn_id
        self.globus_task_id = task_id  # Airflow keeps its own `task_id` on triggers
        self.deadline = deadline
        self.limits = Limits(
            pace=Pace(least=pace_least, most=pace_most),
            give_up_after=give_up_after,
            give_up_outage_after=give_up_outage_after,
            expected_bytes=expected_bytes,
            keeps=True,
        )
        self.standstill = Standstill.read(standstill)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "globus_conn_id": self.globus_conn_id,
                "task_id": self.globus_task_id,
                "deadline": self.deadline,
                "pace_least": self.limits.pace.least,
                "pace_most": self.limits.pace.most,
                "give_up_after": self.limits.give_up_after,
                "give_up_outage_after": self.limits.give_up_outage_after,
                "expected_bytes": self.limits.expected_bytes,
                "standstill": asdict(self.standstill) if self.standstill else None,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        now = asyncio.get_running_loop().time()
        known, left = self.standstill, max(self.deadline - time.time(), 0.0)
        stuck = (max(time.time() - known.since, 0.0), known.moved) if known else None
        watch = TaskWatch(self.globus_task_id, self.limits, left, now, stuck)
        verdict = await self._watch(watch)
        event = await asyncio.to_thread(end, self._hook(), watch, verdict)
        yield _fire(event)

    async def on_kill(self) -> None:
        """Cancel the Globus task when its Airflow task was really ended."""
        if not await really_killed(self):
            return
        cancelled, task = await asyncio.to_thread(cancel, self._hook(), self.globus_task_id, within=8.0)
        self.log.info(
            "The task was ended here; Globus task %s cancelled: %s, it is %s.",
            self.globus_task_id,
            cancelled,
            task.state if task else "unknown",
        )

    async def _watch(self, watch: TaskWatch) -> Verdict:
        loop = asyncio.get_running_loop()
        poller = shared_poller(("globus", self.globus_conn_id), lambda: GlobusTasks(self.globus_conn_id))
        verdict: Verdict | None = None
        async with poller.subscribe(self.globus_task_id) as subscription:
            while verdict is None:
                now = loop.time()
                patience = watch.seconds_until_limit(now) + _GRACE
                try:
                    answer = await asyncio.wait_for(subscription.next(watch.wait(now)), patience)
                except TimeoutError:
                    verdict = watch.expire()
                else:
                    verdict = watch.look(answer, loop.time())
                if verdict is not None and verdict.outcome == "lost":
                    named = await asyncio.to_thread(ask_by_name, self._hook(), self.globus_task_id)
                    verdict = verdict if named is None else watch.look(named, loop.time())
                if watch.wants_report:
                    await asyncio.to_thread(explain, self._hook(), watch)
                say(self.log, watch)
        return verdict

    def _hook(self) -> GlobusHook:
        return GlobusHook(self.globus_conn_id, attempts=2, http_timeout=_SHORT_TIMEOUT)


class GlobusAnswersTrigger(BaseTrigger):
    """Waits until Globus answers again, however long that takes. Yields {"outcome": "answers" | "timeout"}.

    :param globus_conn_id: connection of type `globus`.
    :param reason: what failed, for the log.
    :param label: label of the task that may have been submitted just before Globus fell silent.
    :param kind: `TRANSFER` or `DELETE`.
    :param deadline: end of the wait, in seconds since 1970.
    :param first_wait: seconds before the first look; then doubled for each, up to 5 minutes.
    """

    def __init__(
        self, *, globus_conn_id: str, reason: str, label: str, kind: str, deadline: float, first_wait: float
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.globus_conn_id = globus_conn_id
        self.reason = reason
        self.label = label
        self.kind = kind
        self.deadline = deadline
        self.first_wait = first_wait

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "globus_conn_id": self.globus_conn_id,
                "reason": self.reason,
                "label": self.label,
                "kind": self.kind,
                "deadline": self.deadline,
                "first_wait": self.first_wait,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        self.log.warning("Holding until Globus answers; nothing is lost. %s", self.reason)
        answers = await self._wait()
        if answers:
            self.log.info("Globus answers: going on.")
        yield _fire({"outcome": "answers" if answers else "timeout"})

    async def on_kill(self) -> None:
        """Cancel what may have been submitted, when the Airflow task was really ended."""
        if await really_killed(self):
            hook = GlobusHook(self.globus_conn_id, attempts=2, http_timeout=_SHORT_TIMEOUT)
            await asyncio.to_thread(cancel_by_label, hook, self.label, self.kind)

    async def _wait(self) -> bool:
        """Tell whether Globus answers before the deadline."""
        poller = shared_poller(
            ("globus answers", self.globus_conn_id), lambda: GlobusPing(self.globus_conn_id)
        )
        wait, said_at = self.first_wait, time.monotonic()
        async with poller.subscribe(self.label) as subscription:
            while (left := self.deadline - time.time()) > 0:
                try:
                    answer = await asyncio.wait_for(subscription.next(wait), left)
                except TimeoutError:
                    return False
                if isinstance(answer, Seen):
                    return True
                if isinstance(answer.error, CredentialsError):
                    # Globus answers, and refuses: the operator meets the same refusal and raises it.
                    return True
                if time.monotonic() - said_at >= _STILL_HOLDING:
                    said_at = time.monotonic()
                    self.log.warning("Still holding. %s", answer.error)
                wait = min(max(wait * 2, self.first_wait), _LONGEST_HOLD)
        return False
