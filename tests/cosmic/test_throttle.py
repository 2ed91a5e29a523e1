"""Starting many runs: each once, no more than may start, from wherever it was broken off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosmic import missed_scans, runs
from cosmic.scans import parse_scan_path
from cosmic.throttle import RunLimits, StartRunsOperator, ThrottleTrigger
from facilities.errors import InfrastructureError, TimeLimitError, TransientError, UserError

DAY = "2023-02-16"


class FakeAirflow:
    """The runs of the DAG as Airflow would keep them; they do not end by themselves."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.states: dict[str, str] = {}
        self.copied: set[str] = set()
        self.asked: list[str] = []
        self.fail_at: int | None = None

    def start(self, run_id: str, conf: dict[str, Any], note: str) -> bool:
        self.asked.append(run_id)
        if self.fail_at is not None and len(self.asked) == self.fail_at:
            raise TransientError("A run could not be started")
        if run_id in self.runs:
            return False
        self.runs[run_id] = conf
        self.states[run_id] = "queued"
        return True

    def count_active(self) -> int:
        return sum(state in ("queued", "running") for state in self.states.values())

    def count_copying(self) -> int:
        return sum(state == "queued" and run not in self.copied for run, state in self.states.items())

    def activity(self, started: Sequence[str]) -> runs.Activity:
        assert len(started) <= 50
        assert set(started) <= set(self.runs)
        return runs.Activity(self.count_active(), self.count_copying())

    def end(self, count: int) -> None:
        living = [run for run, state in self.states.items() if state == "queued"]
        for run in living[:count]:
            self.states[run] = "success"


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> FakeAirflow:
    fake = FakeAirflow()
    for name in ("start", "activity"):
        monkeypatch.setattr(runs, name, getattr(fake, name))
    return fake


def paths(count: int) -> list[tuple[str, int]]:
    return [(f"2023/02/230216/NS_230216{n:03}_ccdframes_0_0.cxi", 1) for n in range(count)]


def operator(
    scans: list[tuple[str, int]], *, at_once: Any = 5, copies_at_once: Any = 100
) -> StartRunsOperator:
    return StartRunsOperator(
        task_id="start_runs",
        days=[{"day": DAY, "parameters": {"do_ptychocam": True}, "scans": scans}],
        at_once=at_once,
        copies_at_once=copies_at_once,
        note="by a test",
    )


@dataclass
class Waiting:
    """A deferral."""

    trigger: ThrottleTrigger
    state: dict[str, Any]  # what it hands over

    def event(self) -> Any:
        async def first() -> Any:
            async for event in self.trigger.run():
                return event.payload
            raise AssertionError("no event")

        return asyncio.run(first())


def step(start: StartRunsOperator, waiting: Waiting | None = None, event: object = None) -> Any:
    """Run to the end or to the next deferral; go on after one when its trigger says so."""
    try:
        return start.resume({}, event or waiting.event(), **waiting.state) if waiting else start.execute({})
    except TaskDeferred as raised:
        deferred = raised
    assert deferred.method_name == "resume"
    assert deferred.timeout is not None
    path, arguments = deferred.trigger.serialize()
    assert path == "cosmic.throttle.ThrottleTrigger"
    return Waiting(ThrottleTrigger(**{**arguments, "interval": 0.01}), dict(deferred.kwargs or {}))


def test_as_many_are_started_as_may_start_and_then_the_next(airflow: FakeAirflow) -> None:
    start = operator(paths(12))
    waiting = step(start)
    assert isinstance(waiting, Waiting)
    assert len(airflow.runs) == 5
    most = 0
    while isinstance(waiting, Waiting):
        airflow.end(2)
        waiting = step(start, waiting)
        most = max(most, airflow.count_active())
    assert waiting == {DAY: 12}
    assert most == 5
    assert len(airflow.asked) == 12  # nothing is asked for twice on the way
    (path, _) = paths(1)[0]
    assert airflow.runs[parse_scan_path(path).run_id()] == {"do_ptychocam": True, "file_path": path}


def test_live_scans_count_and_wait_for_nobody(airflow: FakeAirflow) -> None:
    for n in range(7):
        airflow.start(f"live_{n}", {}, "")
    waiting = step(operator(paths(3)))
    assert isinstance(waiting, Waiting)
    assert len(airflow.runs) == 7
    airflow.end(5)
    assert waiting.event() == "free"


def test_transfers_are_limited_apart(airflow: FakeAirflow) -> None:
    start = operator(paths(6), at_once="50", copies_at_once="2")  # as templates give them
    waiting = step(start)
    assert isinstance(waiting, Waiting)
    assert len(airflow.runs) == 2
    airflow.copied |= set(airflow.runs)
    step(start, waiting)
    assert len(airflow.runs) == 4


def test_a_run_that_is_there_counts_as_started(airflow: FakeAirflow) -> None:
    scans = paths(3)
    airflow.start(parse_scan_path(scans[1][0]).run_id(), {"posted": "by the beamline"}, "")
    assert step(operator(scans)) == {DAY: 3}
    assert airflow.runs[parse_scan_path(scans[1][0]).run_id()] == {"posted": "by the beamline"}


def test_nothing_to_start_is_no_reason_to_wait(airflow: FakeAirflow) -> None:
    for n in range(9):
        airflow.start(f"live_{n}", {}, "")
    assert step(operator([])) == {}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.integers(1, 12), st.lists(st.integers(1, 30), max_size=4))
def test_broken_off_anywhere_and_begun_again_each_is_started_once(
    monkeypatch: pytest.MonkeyPatch, count: int, at_once: int, breaks: list[int]
) -> None:
    fake = FakeAirflow()
    for name in ("start", "activity"):
        monkeypatch.setattr(runs, name, getattr(fake, name))
    result: Any = None
    for fail_after in [*breaks, None]:
        fake.fail_at = None if fail_after is None else len(fake.asked) + fail_after
        start, result = operator(paths(count), at_once=at_once), None
        try:
            result = step(start)
            while isinstance(result, Waiting):
                assert fake.count_active() <= at_once
                fake.end(at_once)
                result = step(start, result, "free")
        except TransientError:
            fake.end(at_once)
    assert result == {DAY: count}
    assert sorted(fake.runs) == sorted(parse_scan_path(path).run_id() for path, _ in paths(count))


def test_the_log_names_what_is_waited_for(airflow: FakeAirflow, capsys: pytest.CaptureFixture[str]) -> None:
    step(operator(paths(8)))
    expected = "5 of 8 runs are started. Waiting: 5 are active (at_once is 5), 5 of them have not"
    assert expected in capsys.readouterr().out


def test_after_the_time_limit_the_error_says_how_many_are_started(airflow: FakeAirflow) -> None:
    start = operator(paths(8))
    waiting = step(start)
    assert isinstance(waiting, Waiting)
    waiting.trigger.deadline = time.time() + 0.05
    with pytest.raises(TimeLimitError, match=r"(?s)5 of 8 started.*raise at_once; then clear this task"):
        step(start, waiting)
    with pytest.raises(TimeLimitError):
        start.resume_execution("__fail__", {"error": "Trigger timeout"}, {})


def test_a_strange_event_starts_nothing(airflow: FakeAirflow) -> None:
    for event in ({"outcome": "free"}, "room", None):
        with pytest.raises(InfrastructureError, match="without a proper event"):
            operator(paths(1)).resume({}, event, 0, time.time() + 60)
    assert airflow.runs == {}


def test_a_path_that_is_no_scan_is_refused(airflow: FakeAirflow) -> None:
    with pytest.raises(UserError, match="not the path of a scan"):
        operator([("2023/../x.cxi", 1)]).execute({})
    assert airflow.runs == {}


def test_an_api_server_that_is_silent_is_asked_again(
    airflow: FakeAirflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = step(operator(paths(8)))
    assert isinstance(waiting, Waiting)
    answers: Iterator[Any] = iter([ConnectionError("refused"), ConnectionError("refused"), 0])

    def activity(started: Sequence[str]) -> runs.Activity:
        assert len(started) == 5
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return runs.Activity(answer, answer)

    monkeypatch.setattr(runs, "activity", activity)
    assert waiting.event() == "free"


def test_the_lower_of_two_limits_counts() -> None:
    assert RunLimits(5, 2).free(runs.Activity(0, 0)) == 2
    assert RunLimits(2, 5).free(runs.Activity(0, 0)) == 2
    assert RunLimits(9, 5).free(runs.Activity(3, 1)) == 4


# Reprocessing everything


class Store(dict[str, Any]):
    """A task state store."""

    def set(self, key: str, value: Any) -> None:
        assert value is not None
        self[key] = value


SCANS = [parse_scan_path(path) for path, _ in paths(5)]
ASKED = {"which": "everything"}


def test_a_plan_that_was_broken_off_is_kept_to_the_end() -> None:
    store = Store()
    wanted = dict.fromkeys(SCANS, 2)
    assert missed_scans.keep_to_plan(store, ASKED, wanted, {}) == wanted
    # Two are started and over, one runs (and is not wanted); a new scan has come.
    known = {SCANS[0]: {1: "success", 2: "success"}, SCANS[1]: {2: "failed"}, SCANS[2]: {2: "running"}}
    late = parse_scan_path(paths(9)[8][0])
    wanted = {SCANS[0]: 3, SCANS[1]: 3, SCANS[3]: 2, SCANS[4]: 2, late: 1}
    assert missed_scans.keep_to_plan(store, ASKED, wanted, known) == {SCANS[3]: 2, SCANS[4]: 2, late: 1}
    # Broken off once more: the late one is processed now, and not a second time.
    known |= {late: {1: "success"}, SCANS[3]: {2: "success"}}
    wanted = {SCANS[0]: 3, SCANS[3]: 3, SCANS[4]: 2, late: 2}
    assert missed_scans.keep_to_plan(store, ASKED, wanted, known) == {SCANS[4]: 2}


def test_after_the_end_it_is_a_new_plan_and_so_it_is_for_another_request() -> None:
    store = Store()
    missed_scans.keep_to_plan(store, ASKED, dict.fromkeys(SCANS, 2), {})
    known = {scan: {1: "success", 2: "success"} for scan in SCANS}
    again = dict.fromkeys(SCANS, 3)
    assert missed_scans.keep_to_plan(store, ASKED, again, known) == again
    other = {**ASKED, "first_day": DAY}
    assert missed_scans.keep_to_plan(store, other, dict.fromkeys(SCANS, 4), known) == dict.fromkeys(SCANS, 4)


def test_a_plan_of_thousands_fits_into_the_store() -> None:
    import json

    store = Store()
    scans = [parse_scan_path(f"2023/02/230216/NS_230216{n:05}_ccdframes_0_0.cxi") for n in range(5000)]
    missed_scans.keep_to_plan(store, ASKED, dict.fromkeys(scans, 12), {})
    assert max(len(json.dumps(value)) for value in store.values()) < 64_000
    left = {scans[4999]: 12}
    known = {scan: {12: "success"} for scan in scans[:-1]}
    wanted = dict.fromkeys(scans[:-1], 13) | left
    assert missed_scans.keep_to_plan(store, ASKED, wanted, known) == left
