"""Waits with a time limit: how long to pause between two attempts, and when to stop."""

from __future__ import annotations

import random
import time


class Wait:
    """A wait of at most `limit` seconds, whose pauses double from `first` to `longest` seconds.

        wait = Wait(30.0, first=0.25, longest=10.0)
        while not ready():
            if not wait.pause():
                raise TimeoutError

    :param jitter: shorten each pause at random, to half at most, so that clients do not retry in step.
    """

    def __init__(self, limit: float, *, first: float, longest: float, jitter: bool = False) -> None:
        self.first = first
        self.longest = longest
        self.jitter = jitter
        self._end = time.monotonic() + limit
        self._next = first

    def remaining(self) -> float:
        """Seconds until the limit; negative after it."""
        return self._end - time.monotonic()

    def next_pause(self) -> float:
        """The next pause in seconds, for who waits elsewhere; the one after it is longer."""
        pause = self._next
        self._next = min(pause * 2, self.longest)
        return pause * random.uniform(0.5, 1.0) if self.jitter else pause  # noqa: S311 - no secret

    def reset(self) -> None:
        """Begin again with the first pause; the limit stays."""
        self._next = self.first

    def pause(self, minimum: float = 0.0, *, whole: bool = False) -> bool:
        """Sleep before the next attempt; False, at once, when the time is over.

        :param minimum: seconds to sleep at least.
        :param whole: the time is over, too, when the pause would end after it; else the pause is cut short.
        """
        pause = max(self.next_pause(), minimum)
        remaining = self.remaining()
        if remaining <= 0 or (whole and pause >= remaining):
            return False
        time.sleep(min(pause, remaining))
        return True
