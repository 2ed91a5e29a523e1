"""Waiting for room: runs that nobody is waiting for start only when few others are going on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast

from airflow.triggers.base import BaseTrigger, TriggerEvent

from cosmic import runs
from facilities.errors import InfrastructureError
from facilities.polling import jittered_sleep

_SAID_AGAIN_AFTER = 600.0  # seconds between two lines in the log while nothing changes


@dataclass(frozen=True)
class Limits:
    """How many runs may go on, and how many of them may be before or in their transfer.

    Live runs count too and wait for nobody: when many scans are posted, the others hold back.
    """

    at_once: int
    copies_at_once: int

    def room(self) -> int:
        """How many more runs may start now; asks Airflow.

        :raises Exception: Airflow's API server does not answer.
        """
        return min(self.at_once - runs.count_living(), self.copies_at_once - runs.count_copying())


class RoomEvent(TypedDict):
    """Why the wait has ended, and where the list of runs to start had got to."""

    outcome: Literal["room", "timeout"]
    position: int
    deadline: float


def read_event(event: object) -> RoomEvent:
    """Check an event.

    :raises InfrastructureError: it is not one of ours; the next try starts from the beginning, and what
        was started already is not started again.
    """
    if (
        not isinstance(event, Mapping)
        or event.get("outcome") not in ("room", "timeout")
        or not isinstance(event.get("position"), int)
        or not isinstance(event.get("deadline"), (int, float))
    ):
        raise InfrastructureError(
            "The wait for room ended without a proper event",
            state=str(event)[:200],
            next_step="clear this task: it goes on with the runs that do not exist yet.",
        )
    return cast("RoomEvent", event)


class RoomTrigger(BaseTrigger):
    """Waits until there is room for more runs. Yields a `RoomEvent`.

    :param at_once: see `Limits`.
    :param copies_at_once: see `Limits`.
    :param position: handed back in the event.
    :param wanted: fire at once when there is room for so many; for fewer after `patience`.
    :param deadline: end of the wait, in seconds since 1970.
    :param interval: seconds between two looks.
    :param patience: seconds.
    """

    def __init__(
        self,
        *,
        at_once: int,
        copies_at_once: int,
        position: int,
        wanted: int,
        deadline: float,
        interval: float = 5.0,
        patience: float = 20.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.limits = Limits(at_once, copies_at_once)
        self.position = position
        self.wanted = wanted
        self.deadline = deadline
        self.interval = interval
        self.patience = patience

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "at_once": self.limits.at_once,
                "copies_at_once": self.limits.copies_at_once,
                "position": self.position,
                "wanted": self.wanted,
                "deadline": self.deadline,
                "interval": self.interval,
                "patience": self.patience,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        has_room = await self._wait_for_room()
        event = RoomEvent(
            outcome="room" if has_room else "timeout", position=self.position, deadline=self.deadline
        )
        yield TriggerEvent(dict(event))  # type: ignore[no-untyped-call]  # Airflow's

    async def _wait_for_room(self) -> bool:
        room_since: float | None = None
        said_at = float("-inf")
        while (left := self.deadline - time.time()) > 0:
            # First of all a sleep: an event right after the deferral may meet the worker still leaving.
            await jittered_sleep(min(self.interval, left))
            now = time.monotonic()
            room = await self._look()
            if room is None or room < 1:
                room_since = None
                if room is not None and now - said_at >= _SAID_AGAIN_AFTER:
                    said_at = now
                    self.log.info("Waiting for room: %s", self.limits)
                continue
            room_since = room_since if room_since is not None else now
            if room >= self.wanted or now - room_since >= self.patience:
                return True
        return False

    async def _look(self) -> int | None:
        try:
            return await asyncio.to_thread(self.limits.room)
        except Exception:
            self.log.warning("Airflow's API server does not tell how many runs there are.", exc_info=True)
            return None
