"""Many scans at once, sent to an installation."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace

import pytest

from dev.benchmark.latency import middle
from dev.benchmark.load import measure_load


class Counting:
    """Ends a run each time it is asked how many have not ended; each costs two CPU seconds."""

    def __init__(self) -> None:
        self.posts: dict[str, str] = {}
        self.ended = 0

    def post(self, run_id: str, file_path: str) -> None:
        self.posts[run_id] = file_path

    def unfinished(self, prefix: str) -> int:
        assert all(run_id.startswith(prefix) for run_id in self.posts)
        self.ended += 1
        return len(self.posts) - self.ended

    def last_end(self, prefix: str) -> float:
        return time.time() + 100

    def cpu(self) -> dict[str, float]:
        return {"server": 10.0, "worker": 5.0 + 2 * self.ended}


class Refusing(Counting):
    """Takes no scan."""

    def post(self, run_id: str, file_path: str) -> None:
        raise RuntimeError(f"{run_id} is refused")


def test_all_are_sent_and_cpu_is_that_of_these_alone() -> None:
    installation = Counting()
    load = measure_load(installation, "a-", ["one", "two"])
    assert installation.posts == {"a-000": "one", "a-001": "two"}
    assert load.cpu == {"server": 0.0, "worker": 4.0}
    assert load.cpu_of_one == 2.0
    assert load.seconds >= 100  # by the installation's own records


def test_runs_that_do_not_end_are_an_error_or_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(Counting):
        def unfinished(self, prefix: str) -> int:
            return max(super().unfinished(prefix), 1)

    now = itertools.count(1000.0, 100.0)  # on no clock of this machine
    clock = SimpleNamespace(time=time.time, monotonic=lambda: next(now), sleep=lambda _seconds: None)
    monkeypatch.setattr("dev.benchmark.load.time", clock)
    scans = ["one", "two", "three"]
    with pytest.raises(TimeoutError, match="1 of 3 runs do not end"):
        measure_load(Stuck(), "a-", scans)
    load = measure_load(Stuck(), "a-", scans, may_stand_still=True)
    assert (load.runs, load.unended) == (3, 1)
    assert load.cpu["worker"] == 4.0  # until the last end: waiting for the others in vain is no cost of a run


def test_a_post_that_is_refused_is_not_taken_for_a_run() -> None:
    with pytest.raises(RuntimeError, match="a-000 is refused"):
        measure_load(Refusing(), "a-", ["one"])


def test_a_median_is_shown_with_its_range() -> None:
    assert middle([4.0, 1.0, 2.0, 8.0]) == "3.00 (1.00 to 8.00)"
    assert middle([0.01234], digits=4) == "0.0123 (0.0123 to 0.0123)"
