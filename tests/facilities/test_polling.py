"""The shared poller: one request for everybody, backoff, and who gets which answer.

The loop's clock is turned by hand, so that hours pass at once.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilities.errors import TransientError
from facilities.polling import Answer, PollFailed, PollInterval, SharedPoller, jittered_sleep, shared_poller


class FastLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait: with nothing to do its clock jumps to the next timer."""

    offset = 0.0

    def time(self) -> float:
        return super().time() + self.offset

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            first = heapq.nsmallest(1, self._scheduled)[0].when()  # type: ignore[attr-defined]
            self.offset += max(first - self.time(), 0.0)
        super()._run_once()  # type: ignore[misc]


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    with asyncio.Runner(loop_factory=FastLoop) as runner:
        return runner.run(asyncio.wait_for(_awaited(main), 100_000))


async def _awaited(main: Callable[[], Awaitable[Any]]) -> Any:
    return await main()


class Book:
    """A source that answers with how often it was asked."""

    def __init__(self, per_request: int = 1000) -> None:
        self.per_request = per_request
        self.asked: list[tuple[float, frozenset[str]]] = []
        self.failures: list[Exception] = []
        self.unknown: set[str] = set()
        self.begun = asyncio.Event()
        self.closed = asyncio.Event()
        self.gate: asyncio.Event | None = None

    async def fetch(self, ids: frozenset[str]) -> Mapping[str, int]:
        self.asked.append((asyncio.get_running_loop().time(), ids))
        self.begun.set()
        number = len(self.asked)
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        return dict.fromkeys(ids - self.unknown, number)

    async def aclose(self) -> None:
        self.closed.set()


def test_many_waiters_share_one_request() -> None:
    async def main() -> None:
        book = Book()
        poller: SharedPoller[int] = SharedPoller(book)

        async def wait(name: str) -> object:
            async with poller.subscribe(name) as subscription:
                return await subscription.next(5.0)

        answers = await asyncio.gather(*(wait(f"t{number}") for number in range(200)))
        assert answers == [Answer(1)] * 200
        assert [len(ids) for _, ids in book.asked] == [200]

    run(main)


def test_the_most_impatient_waiter_sets_the_time() -> None:
    async def main() -> None:
        book = Book()
        poller: SharedPoller[int] = SharedPoller(book)
        begin = asyncio.get_running_loop().time()
        async with poller.subscribe("slow") as slow, poller.subscribe("quick") as quick:
            await asyncio.gather(slow.next(100.0), quick.next(3.0))
        assert len(book.asked) == 1
        assert 2.7 <= book.asked[0][0] - begin <= 3.1

    run(main)


async def _wait_often(poller: SharedPoller[int], name: str, within: float, times: int) -> None:
    async with poller.subscribe(name) as subscription:
        for _ in range(times):
            assert isinstance(await subscription.next(within), Answer)


def test_ten_thousand_waiters_share_as_few_requests_as_hold_them() -> None:
    rounds = 3

    async def main() -> None:
        book = Book(per_request=350)
        poller: SharedPoller[int] = SharedPoller(book)
        poller.pause = 10.0  # so that a slow machine's second does not matter
        waits = (_wait_often(poller, f"t{number}", 60.0, rounds) for number in range(10_000))
        await asyncio.gather(*waits)
        needed = 10_000 / book.per_request
        assert sum(len(ids) for _, ids in book.asked) == rounds * 10_000
        assert rounds * needed <= len(book.asked) <= rounds * (needed + 1)
        times = [at for at, _ in book.asked]
        assert min(later - sooner for sooner, later in itertools.pairwise(times)) >= poller.pause * 0.9
        assert times[-1] - times[0] <= rounds * (60.0 + needed * poller.pause)

    run(main)


def test_the_impatient_do_not_make_others_be_asked_for() -> None:
    async def main() -> None:
        book = Book(per_request=10)
        poller: SharedPoller[int] = SharedPoller(book)
        patient = (_wait_often(poller, f"t{number}", 1000.0, 1) for number in range(100))
        await asyncio.gather(_wait_often(poller, "quick", 5.0, 200), *patient)
        of_patient = sum(len(ids - {"quick"}) for _, ids in book.asked)
        assert of_patient == 100  # each was asked for once, in the room that a request had left
        assert len(book.asked) <= 200 + 10

    run(main)


def test_none_is_starved_by_more_than_can_be_asked_for() -> None:
    """Twenty requests' worth want an answer each two seconds, which takes a second a request."""

    async def main() -> None:
        book = Book(per_request=10)
        poller: SharedPoller[int] = SharedPoller(book)
        await asyncio.gather(*(_wait_often(poller, f"t{number}", 2.0, 10) for number in range(200)))
        asked = Counter(name for _, ids in book.asked for name in ids)
        assert set(asked.values()) == {10}
        last = {name: at for at, ids in book.asked for name in ids}
        assert max(last.values()) - min(last.values()) <= 2 * 20 * SharedPoller.pause

    run(main)


def test_the_cost_of_a_wait_does_not_grow_with_the_number_of_waits() -> None:
    """Counted in comparisons of times, so that no slow machine matters."""

    class Time(float):
        compared = 0

        def __lt__(self, other: float) -> bool:
            Time.compared += 1
            return super().__lt__(other)

        def __eq__(self, other: object) -> bool:
            Time.compared += 1
            return super().__eq__(other)

        __hash__ = float.__hash__

        def __add__(self, other: float) -> Time:
            return Time(super().__add__(other))

    class TimedLoop(FastLoop):
        def time(self) -> float:
            return Time(super().time())

    def comparisons_a_wait(waits: int) -> float:
        async def main() -> None:
            poller: SharedPoller[int] = SharedPoller(Book(per_request=100))
            gate = asyncio.Semaphore(50)  # they begin and end at different times

            async def wait(number: int) -> None:
                async with gate:
                    await asyncio.sleep(number % 7)
                await _wait_often(poller, f"t{number}", 10.0, 2)

            await asyncio.gather(*(wait(number) for number in range(waits)))

        Time.compared = 0
        with asyncio.Runner(loop_factory=TimedLoop) as runner:
            runner.run(main())
        return Time.compared / waits

    assert comparisons_a_wait(4000) <= 3 * comparisons_a_wait(500)


@pytest.mark.parametrize("failures", [[], [TransientError("down")]])
def test_others_run_while_many_answers_are_handed_out(failures: list[Exception]) -> None:
    async def main() -> None:
        book = Book()
        book.failures = failures
        poller: SharedPoller[int] = SharedPoller(book)
        answered: list[int] = []  # how many had their answer, each time that the others got to run

        async def wait(name: str) -> None:
            async with poller.subscribe(name) as subscription:
                await subscription.next(5.0)
                answered[-1] += 1

        waits = [asyncio.create_task(wait(f"t{number}")) for number in range(1000)]
        while not all(waiter.done() for waiter in waits):
            answered.append(0)
            await asyncio.sleep(0)
        assert sum(answered) == 1000
        assert max(answered) <= 100

    run(main)


def test_a_failure_reaches_all_who_wait() -> None:
    async def main() -> None:
        book = Book(per_request=10)
        book.failures = [TransientError("down")]
        poller: SharedPoller[int] = SharedPoller(book)

        async def wait(name: str) -> object:
            async with poller.subscribe(name) as subscription:
                return await subscription.next(5.0)

        answers = await asyncio.gather(*(wait(f"t{number}") for number in range(100)))
        assert len(book.asked) == 1
        assert all(isinstance(answer, PollFailed) for answer in answers)

    run(main)


def test_an_answer_was_asked_for_after_the_question() -> None:
    async def main() -> None:
        book = Book()
        book.gate = asyncio.Event()
        poller: SharedPoller[int] = SharedPoller(book)
        async with poller.subscribe("early") as early, poller.subscribe("late") as late:
            first = asyncio.create_task(early.next(0.0))
            await book.begun.wait()
            second = asyncio.create_task(late.next(0.0))  # while the first request is under way
            await asyncio.sleep(0.1)
            book.gate.set()
            assert await first == Answer(1)
            assert await second == Answer(2)

    run(main)


def test_an_id_that_is_not_listed_is_none() -> None:
    async def main() -> None:
        book = Book()
        book.unknown = {"gone"}
        poller: SharedPoller[int] = SharedPoller(book)
        async with poller.subscribe("gone") as subscription:
            assert await subscription.next(0.0) == Answer(None)

    run(main)


def test_failures_are_handed_out_and_back_off() -> None:
    async def main() -> None:
        book = Book()
        book.failures = [TransientError("down") for _ in range(8)]
        poller: SharedPoller[int] = SharedPoller(book)
        seen: list[Answer[int] | PollFailed] = []
        async with poller.subscribe("t") as subscription:
            while not seen or not isinstance(seen[-1], Answer):
                seen.append(await subscription.next(0.0))
        failures = [answer for answer in seen if isinstance(answer, PollFailed)]
        assert [failed.consecutive for failed in failures] == list(range(1, 9))
        assert failures[-1].seconds > failures[0].seconds == 0.0
        pauses = [later[0] - sooner[0] for sooner, later in zip(book.asked, book.asked[1:], strict=False)]
        for number, pause in enumerate(pauses):
            assert 0.74 * 2**number <= pause <= 1.26 * 2**number + 0.1

    run(main)


def test_backoff_is_bounded_and_ends_with_success() -> None:
    async def main() -> None:
        book = Book()
        book.failures = [TransientError("down") for _ in range(30)]
        poller: SharedPoller[int] = SharedPoller(book)
        async with poller.subscribe("t") as subscription:
            for _ in range(30):
                assert isinstance(await subscription.next(0.0), PollFailed)
            assert isinstance(await subscription.next(0.0), Answer)
            before = asyncio.get_running_loop().time()
            await subscription.next(1.0)
            assert asyncio.get_running_loop().time() - before < 1.1
        pauses = [later[0] - sooner[0] for sooner, later in zip(book.asked, book.asked[1:], strict=False)]
        assert max(pauses) <= SharedPoller.max_backoff * 1.26

    run(main)


@pytest.mark.parametrize(("asked_for", "least", "most"), [(40.0, 40.0, 41.0), (1e9, 3600.0, 3601.0)])
def test_retry_after_is_honoured_within_reason(asked_for: float, least: float, most: float) -> None:
    async def main() -> None:
        book = Book()
        book.failures = [TransientError("busy", retry_after=asked_for)]
        poller: SharedPoller[int] = SharedPoller(book)
        async with poller.subscribe("t") as subscription:
            await subscription.next(0.0)
            await subscription.next(0.0)
        assert least <= book.asked[1][0] - book.asked[0][0] <= most

    run(main)


def test_any_exception_is_a_failed_poll() -> None:
    async def main() -> None:
        book = Book()
        book.failures = [ZeroDivisionError("bug")]
        poller: SharedPoller[int] = SharedPoller(book)
        async with poller.subscribe("t") as subscription:
            failed = await subscription.next(0.0)
            assert isinstance(failed, PollFailed)
            assert isinstance(failed.error, ZeroDivisionError)

    run(main)


def test_the_source_is_closed_with_the_last_waiter_and_replaced_for_the_next() -> None:
    async def main() -> None:
        books: list[Book] = []

        def make() -> Book:
            books.append(Book())
            return books[-1]

        first: SharedPoller[int] = shared_poller(("s", "conn"), make)
        async with first.subscribe("a") as a:
            await a.next(0.0)
            assert shared_poller(("s", "conn"), make) is first
            assert shared_poller(("s", "other"), make) is not first
        await books[0].closed.wait()
        second: SharedPoller[int] = shared_poller(("s", "conn"), make)
        assert second is not first
        async with second.subscribe("b") as b:
            assert await b.next(0.0) == Answer(1)

    run(main)


def test_a_cancelled_waiter_leaves_the_others_alone() -> None:
    async def main() -> None:
        book = Book()
        poller: SharedPoller[int] = SharedPoller(book)

        async def wait(name: str, within: float) -> object:
            async with poller.subscribe(name) as subscription:
                return await subscription.next(within)

        leaver, stayer = asyncio.create_task(wait("l", 1.0)), asyncio.create_task(wait("s", 5.0))
        await asyncio.sleep(0.5)
        leaver.cancel()
        assert await stayer == Answer(1)
        assert book.asked[0][1] == frozenset({"s"})

    run(main)


def test_a_waiter_that_comes_back_while_the_poller_ends_is_served() -> None:
    async def main() -> None:
        poller: SharedPoller[int] = SharedPoller(Book())
        for _ in range(3):
            async with poller.subscribe("t") as subscription:
                assert isinstance(await subscription.next(0.0), Answer)

    run(main)


@given(
    st.floats(min_value=0, max_value=1e7),
    st.none() | st.floats(min_value=-1e7, max_value=1e7),
    st.floats(min_value=0.01, max_value=10),
    st.floats(min_value=10, max_value=1000),
)
def test_pace_stays_within_its_bounds(
    elapsed: float, remaining: float | None, least: float, most: float
) -> None:
    assert least <= PollInterval(least, most).after(elapsed, remaining) <= most


def test_pace_is_quick_at_both_ends_and_slow_between() -> None:
    interval = PollInterval(min_seconds=2.0, max_seconds=60.0)
    assert interval.after(0.0) == 2.0
    assert interval.after(300.0) == 30.0
    assert interval.after(36_000.0) == 60.0
    assert interval.after(36_000.0, remaining=50.0) == 5.0
    assert interval.after(36_000.0, remaining=0.0) == 2.0


def test_jitter_is_within_a_tenth() -> None:
    slept: list[float] = []

    async def record(seconds: float) -> None:
        slept.append(seconds)

    async def main() -> None:
        for _ in range(100):
            await jittered_sleep(10.0, record)

    run(main)
    assert 9.0 <= min(slept) < max(slept) <= 11.0
