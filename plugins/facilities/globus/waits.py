"""What is kept about the wait for one Globus task, so that its limits count from the first wait on.

Triggers start anew when the triggerer does, and tasks when they are retried; what they counted would be
forgotten with them.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

from facilities.globus.submission import StateStore

STATE_KEY = "globus_wait"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standstill:
    """Trouble in which a task makes no progress.

    :param since: seconds since 1970.
    :param moved: bytes and files that it had moved by then.
    """

    since: float
    moved: tuple[int, int]

    @classmethod
    def read(cls, kept: Any) -> Standstill | None:
        """Read what was kept; None when there is none."""
        try:
            moved = (int(kept["moved"][0]), int(kept["moved"][1]))
            return cls(float(kept["since"]), moved)
        except (KeyError, IndexError, TypeError, ValueError):
            return None


@dataclass(frozen=True)
class Wait:
    """The wait for one Globus task.

    :param deadline: its end, in seconds since 1970.
    :param expected: bytes that the task will move, if they are known.
    """

    task_id: str
    deadline: float
    expected: int | None = None
    standstill: Standstill | None = None

    @classmethod
    def read(cls, store: StateStore | None, task_id: str) -> Wait | None:
        """The wait that has begun for this task; None for one of another task."""
        kept = store.get(STATE_KEY) if store is not None else None
        if not isinstance(kept, dict) or kept.get("task_id") != task_id:
            return None
        try:
            expected = kept.get("expected")
            deadline = float(kept["deadline"])
            bytes_ = None if expected is None else int(expected)
        except (KeyError, TypeError, ValueError):
            return None
        return cls(task_id, deadline, bytes_, Standstill.read(kept.get("standstill")))

    def stand_still(self, since: float, moved: tuple[int, int]) -> Wait:
        """The same wait, in trouble."""
        return replace(self, standstill=Standstill(since, moved))

    def keep(self, store: StateStore | None) -> Wait:
        """Write it down; a store that is away costs nothing but the count."""
        try:
            if store is not None:
                store.set(STATE_KEY, asdict(self))
        except Exception:
            log.exception("Could not keep since when Globus task %s is waited for.", self.task_id)
        return self


def forget(store: StateStore | None) -> None:
    """The wait is over: another one, for the same task too, counts from its own beginning."""
    if store is not None and store.get(STATE_KEY):
        store.set(STATE_KEY, {})
