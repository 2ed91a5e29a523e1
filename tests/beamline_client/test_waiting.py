"""Waits: how pauses grow, and what happens at the limit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from beamline_client import waiting
from beamline_client.waiting import Wait


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=clock.sleep))
    return clock


def test_pauses_double_up_to_the_longest_and_the_last_one_ends_at_the_limit(clock: Clock) -> None:
    wait = Wait(20.0, first=1.0, longest=5.0)
    while wait.pause():
        pass
    assert clock.slept == [1.0, 2.0, 4.0, 5.0, 5.0, 3.0]
    assert wait.remaining() == 0


def test_a_pause_that_must_be_whole_is_not_begun_when_it_does_not_fit(clock: Clock) -> None:
    wait = Wait(20.0, first=1.0, longest=5.0)
    assert wait.pause(19.0, whole=True)
    assert not wait.pause(whole=True)
    assert clock.slept == [19.0]


def test_after_a_reset_pauses_are_short_again_and_the_limit_stays(clock: Clock) -> None:
    wait = Wait(20.0, first=1.0, longest=5.0)
    wait.pause()
    wait.pause()
    wait.reset()
    wait.pause()
    assert clock.slept == [1.0, 2.0, 1.0]
    assert wait.remaining() == 16.0


def test_jitter_shortens_pauses_to_half_at_most(clock: Clock) -> None:
    wait = Wait(1e9, first=4.0, longest=4.0, jitter=True)
    for _ in range(100):
        wait.pause()
    assert all(2.0 <= pause <= 4.0 for pause in clock.slept)
    assert len(set(clock.slept)) > 50
