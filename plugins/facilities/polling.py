"""Polls a service once for all: triggers that wait at one service share one request per interval.

A trigger subscribes to the poller of its service and connection with the id that it waits for. One
background task sends one request at a time, for as many ids as a request holds: those whose answer is due,
and, where there is room, those whose answer is due next. Up to one request's worth of ids are thus all asked
for at the shortest interval that a subscriber wants; of more, each at its own. A failed poll is never a
failed job: it is handed out as a `PollFailed`, and the next one comes later.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import random
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from facilities.errors import TransientError

_TOGETHER = 50  # answers that are handed out at once

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Answer(Generic[T]):
    """The service's answer about one id; `value` is None when the service does not list the id."""

    value: T | None


@dataclass(frozen=True)
class PollFailed:
    """The service did not answer. `consecutive` counts failures in a row, `seconds` since the first."""

    error: Exception
    consecutive: int
    seconds: float


class Source(Protocol[T_co]):
    """Where a poller gets its answers from; ids that the service does not list are left out of an answer."""

    per_request: int
    """How many ids one request holds."""

    async def fetch(self, ids: frozenset[str]) -> Mapping[str, T_co]: ...
    async def aclose(self) -> None: ...


class BlockingSource(Generic[T]):
    """A source that asks with blocking calls, in threads.

    :param look: asks about ids, as `Source.fetch` does.
    :param close: releases connections.
    :param per_request: how many ids one request holds.
    """

    def __init__(
        self,
        look: Callable[[frozenset[str]], Mapping[str, T]],
        close: Callable[[], None] = lambda: None,
        *,
        per_request: int = sys.maxsize,
    ) -> None:
        self._look = look
        self._close = close
        self.per_request = per_request

    async def fetch(self, ids: frozenset[str]) -> Mapping[str, T]:
        return await asyncio.to_thread(self._look, ids)

    async def aclose(self) -> None:
        await asyncio.to_thread(self._close)


@dataclass(frozen=True)
class PollInterval:
    """How often to poll, in seconds: between `min_seconds` and `max_seconds`.

    Example::

        PollInterval(min_seconds=5, max_seconds=60).after(elapsed=120, remaining=1800)  # 12.0
    """

    min_seconds: float = 5.0
    max_seconds: float = 60.0

    def after(self, elapsed: float, remaining: float | None = None) -> float:
        """Seconds until the next poll.

        Short after a submit (a tenth of the time `elapsed`) and near the expected end (a tenth of the
        time `remaining`), long in between.
        """
        wanted = elapsed / 10
        if remaining is not None:
            wanted = min(wanted, max(remaining, 0.0) / 10)
        return min(max(wanted, self.min_seconds), self.max_seconds)


@dataclass(eq=False)
class Subscription(Generic[T]):
    """One waiter's end of a poller."""

    remote_id: str
    due: float
    _poller: SharedPoller[T]
    _inbox: asyncio.Queue[Answer[T] | PollFailed] = field(default_factory=lambda: asyncio.Queue(maxsize=1))

    async def next(self, within: float) -> Answer[T] | PollFailed:
        """Wait for an answer that was asked for from now on, at most `within` seconds away (plus backoff)."""
        while not self._inbox.empty():
            self._inbox.get_nowait()
        self._poller.want(self, within)
        return await self._inbox.get()

    def deliver(self, answer: Answer[T] | PollFailed) -> None:
        """Replace an answer nobody has taken: only the newest counts."""
        if self._inbox.full():
            self._inbox.get_nowait()
        self._inbox.put_nowait(answer)


class SharedPoller(Generic[T]):
    """Polls one source on behalf of all its subscribers. Belongs to one event loop."""

    pause = 1.0  # seconds from one request to the next, at least, when there are more ids than one holds
    max_backoff = 300.0
    max_retry_after = 3600.0  # seconds; a service that asks for a longer pause gets this one

    def __init__(self, source: Source[T]) -> None:
        self._source = source
        self._subscriptions: set[Subscription[T]] = set()
        # Who waits, by when the answer is due. An entry whose time is not its subscription's is void.
        self._due: list[tuple[float, int, Subscription[T]]] = []
        self._numbers = itertools.count()
        self._wakes_at = float("inf")
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.closed = False
        self._not_before = 0.0
        self._failures = 0
        self._failing_since = 0.0

    @asynccontextmanager
    async def subscribe(self, remote_id: str) -> AsyncIterator[Subscription[T]]:
        """Join the poll for `remote_id` until the block ends."""
        subscription: Subscription[T] = Subscription(remote_id, float("inf"), self)
        self._subscriptions.add(subscription)
        if self._task is None:
            # A context of its own: what the poll logs must not end up in the first subscriber's task log.
            self._task = asyncio.create_task(self._run(), context=contextvars.Context())
        try:
            yield subscription
        finally:
            subscription.due = float("inf")
            self._subscriptions.discard(subscription)
            if not self._subscriptions:
                self._changed.set()

    def want(self, subscription: Subscription[T], within: float) -> None:
        """Ask for an answer within that many seconds, or up to a tenth earlier, so that waiters spread."""
        sooner = random.uniform(0.9, 1.0)  # noqa: S311 - no secret depends on it
        subscription.due = asyncio.get_running_loop().time() + within * sooner
        heapq.heappush(self._due, (subscription.due, next(self._numbers), subscription))
        if subscription.due < self._wakes_at:
            self._changed.set()

    async def _run(self) -> None:
        try:
            while self._subscriptions:
                await self._sleep_until_due()
                if self._subscriptions:
                    await self._poll()
        finally:
            self.closed = True  # before the await: who subscribes now needs a new poller
            await self._source.aclose()

    async def _sleep_until_due(self) -> None:
        loop = asyncio.get_running_loop()
        while self._subscriptions:
            first = self._first_due()
            self._wakes_at = float("inf") if first is None else max(first, self._not_before)
            wait = self._wakes_at - loop.time()
            if wait <= 0:
                return
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), None if first is None else wait)
            except TimeoutError:
                return

    def _first_due(self) -> float | None:
        """When the next answer is due; None when nobody waits."""
        while self._due:
            due, _, subscription = self._due[0]
            if due == subscription.due:
                return due
            heapq.heappop(self._due)
        return None

    def _take_due(self, count: int) -> list[Subscription[T]]:
        """Take out those whose answers are due first: they do not wait for another one."""
        taken: list[Subscription[T]] = []
        while len(taken) < count and self._first_due() is not None:
            subscription = heapq.heappop(self._due)[2]
            subscription.due = float("inf")
            taken.append(subscription)
        return taken

    async def _poll(self) -> None:
        # Only those who wait: an answer counts for who was waiting when the request was sent.
        asked = self._take_due(self._source.per_request)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            answers = await self._source.fetch(frozenset(s.remote_id for s in asked))
        except Exception as error:  # noqa: BLE001 - whatever went wrong is handed to all who wait
            failed = self._note_failure(error, loop.time())
            await _deliver((one, failed) for one in asked + self._take_due(sys.maxsize))
        else:
            self._failures = 0
            self._not_before = begun + self.pause if len(asked) == self._source.per_request else 0.0
            await _deliver((one, Answer(answers.get(one.remote_id))) for one in asked)

    def _note_failure(self, error: Exception, now: float) -> PollFailed:
        if self._failures == 0:
            self._failing_since = now
        self._failures += 1
        backoff = min(2.0 ** min(self._failures - 1, 10), self.max_backoff) * random.uniform(0.75, 1.25)  # noqa: S311
        if isinstance(error, TransientError) and error.retry_after:
            backoff = max(backoff, min(error.retry_after, self.max_retry_after))
        self._not_before = now + backoff
        return PollFailed(error, self._failures, now - self._failing_since)


async def _deliver(answers: Iterable[tuple[Subscription[T], Answer[T] | PollFailed]]) -> None:
    """Hand out answers, some at a time, so that others get to run in between.

    Each may write a line to its log. In Airflow 3.3.2 lines go to the triggerer's parent process, and writing
    them blocks when the parent does not read. It does not while it sends new triggers
    (`TriggerRunnerSupervisor.send_msg`): when neither reads, both stand still for ever.
    """
    for number, (subscription, answer) in enumerate(answers, 1):
        subscription.deliver(answer)
        if number % _TOGETHER == 0:
            await asyncio.sleep(0)


_pollers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, ...], SharedPoller[Any]]] = (
    weakref.WeakKeyDictionary()
)


def shared_poller(key: tuple[str, ...], make_source: Callable[[], Source[T]]) -> SharedPoller[T]:
    """The poller of this event loop for `key`, such as ("superfacility", conn_id, machine).

    A poller whose last subscriber left is replaced, so that an edited connection is read again.
    """
    pollers = _pollers.setdefault(asyncio.get_running_loop(), {})
    poller: SharedPoller[T] | None = pollers.get(key)
    if poller is None or poller.closed:
        poller = pollers[key] = SharedPoller(make_source())
    return poller


async def jittered_sleep(seconds: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    """Sleep for about `seconds` (within a tenth), so that waiters spread."""
    await sleep(seconds * random.uniform(0.9, 1.1))  # noqa: S311
