"""Remote work is cancelled only for a task that is really over."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import GetTaskStates, TaskStatesResult
from airflow.triggers.base import BaseTrigger, TriggerEvent

from facilities.cancellation import task_is_over, timed_out, trigger_is_over

TI = SimpleNamespace(dag_id="transfer_auto_recon", run_id="scan__1", task_id="wait", map_index=-1)
MAPPED = SimpleNamespace(dag_id="d", run_id="scan__1", task_id="wait", map_index=3)


class Supervisor:
    """The other end of Airflow's connection between a task and its supervisor."""

    def __init__(self, states: dict[str, Any] | Exception, hold: threading.Event | None = None) -> None:
        self.states = states
        self.hold = hold
        self.asked: list[GetTaskStates] = []

    def send(self, message: GetTaskStates) -> TaskStatesResult:
        self.asked.append(message)
        if self.hold is not None:
            self.hold.wait(10)
        if isinstance(self.states, Exception):
            raise self.states
        return TaskStatesResult(task_states=self.states)


class Waiting(BaseTrigger):
    """A trigger that waits for nothing."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "Waiting", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        yield TriggerEvent({})  # type: ignore[no-untyped-call]


def _waiting() -> Waiting:
    return Waiting()  # type: ignore[no-untyped-call]


def _supervise(monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor) -> Supervisor:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    return supervisor


@pytest.mark.parametrize("state", ["success", "failed", "skipped", "upstream_failed"])
def test_a_task_in_a_final_state_is_over(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    supervisor = _supervise(monkeypatch, Supervisor({"scan__1": {"wait": state}}))
    assert task_is_over(TI)
    asked = supervisor.asked[0]
    assert (asked.dag_id, asked.run_ids, asked.task_ids) == ("transfer_auto_recon", ["scan__1"], ["wait"])
    assert asked.map_index is None


@pytest.mark.parametrize(
    "state",
    [None, "deferred", "running", "queued", "scheduled", "up_for_retry", "restarting", "removed", "odd"],
)
def test_a_task_in_any_other_state_lives(monkeypatch: pytest.MonkeyPatch, state: str | None) -> None:
    _supervise(monkeypatch, Supervisor({"scan__1": {"wait": state}}))
    assert not task_is_over(TI)


def test_a_task_that_is_gone_with_its_run_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    _supervise(monkeypatch, Supervisor({}))
    assert task_is_over(TI)


def test_a_mapped_task_is_asked_for_by_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = _supervise(monkeypatch, Supervisor({"scan__1": {"wait_3": "failed"}}))
    assert task_is_over(MAPPED)
    assert supervisor.asked[0].map_index == 3


def test_a_state_that_cannot_be_read_cancels_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _supervise(monkeypatch, Supervisor(ConnectionError("the API server is away")))
    with caplog.at_level(logging.WARNING):
        assert not task_is_over(TI)
    assert "Not cancelling: the state of task transfer_auto_recon.wait of run scan__1" in caplog.text


def test_a_supervisor_that_the_interrupted_code_blocks_cancels_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hold = threading.Event()
    _supervise(monkeypatch, Supervisor({"scan__1": {"wait": "failed"}}, hold))
    began = time.monotonic()
    assert not task_is_over(TI, within=0.1)
    assert time.monotonic() - began < 30
    assert "no answer about the state" in caplog.text
    hold.set()


@pytest.mark.parametrize(("state", "over"), [("failed", True), ("deferred", False)])
def test_a_trigger_asks_about_its_task(monkeypatch: pytest.MonkeyPatch, state: str, over: bool) -> None:
    _supervise(monkeypatch, Supervisor({"scan__1": {"wait": state}}))
    trigger = _waiting()
    trigger._task_instance = TI
    assert asyncio.run(trigger_is_over(trigger)) is over


def test_a_trigger_without_a_task_cancels_nothing() -> None:
    assert not asyncio.run(trigger_is_over(_waiting()))


def test_a_timeout_is_known_by_the_exception_that_is_handled() -> None:
    assert not timed_out()
    try:
        raise AirflowTaskTimeout("8 s")
    except AirflowTaskTimeout:
        assert timed_out()
    assert not timed_out()
