"""Waiting for Perlmutter: what the status page says counts, not that it answers."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from facilities.errors import TimeLimitError, UserError
from facilities.superfacility.sensors import SystemStatusSensor
from standin.testing import Facility
from support.globus import first_event
from support.superfacility import CONN_ID, Logged, Task, eventually

STATUS = {"service": "nersc", "method": "GET", "path": "/status/perlmutter"}


def _sensor(**changes: Any) -> Any:
    arguments: dict[str, Any] = {"task_id": "up", "superfacility_conn_id": CONN_ID, "timeout": 20.0}
    arguments["poke_interval"] = 0.05
    return lambda: SystemStatusSensor(**arguments | changes)


@pytest.mark.parametrize("deferrable", [True, False])
@pytest.mark.parametrize("note", [None, "slow scratch"])
def test_an_active_or_degraded_system_passes_at_once(
    nersc: Facility, task: Task, note: str | None, deferrable: bool
) -> None:
    nersc.control("nersc", "degrade", note=note)
    assert not isinstance(task.start(_sensor(deferrable=deferrable)), TaskDeferred)
    assert len(nersc.requests("nersc")) == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 503},
        {"kind": "status", "status": 401},
        {"kind": "status", "status": 404},
        {"kind": "drop_before"},
        {"kind": "status", "status": 200, "body": "<html>"},
        {"kind": "status", "status": 200, "body": []},
        {"kind": "status", "status": 200, "body": {"name": "perlmutter", "status": "other"}},
    ],
)
def test_a_page_that_says_nothing_good_is_waited_for_without_spinning(
    nersc: Facility, task: Task, fault: dict[str, Any]
) -> None:
    nersc.fault(**fault, **STATUS)
    deferral = task.start(_sensor(poke_interval=0.1))
    assert isinstance(deferral, TaskDeferred)
    nersc.clear_requests()

    async def asked() -> int:
        requests = await asyncio.to_thread(nersc.requests, "nersc")
        return sum(one["path"].endswith("/status/perlmutter") for one in requests)

    async def through() -> Any:
        event = asyncio.create_task(first_event(task.trigger(deferral)))
        began = time.monotonic()
        while (count := await asked()) < 3:
            pass
        assert not event.done()
        assert count <= 2 + (time.monotonic() - began) / 0.08
        await asyncio.to_thread(nersc.clear_faults)
        return await asyncio.wait_for(event, 120)

    event = asyncio.run(through())
    assert event["outcome"] == "answers"
    task.resume(_sensor(), deferral, event)


def test_a_maintenance_is_waited_for_and_told_with_its_end(
    nersc: Facility, task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = nersc.control("nersc", "maintenance", seconds=3600, description="Slurm upgrade")
    until = datetime.fromisoformat(planned["end_at"]).astimezone(UTC)
    logged = Logged(capsys)
    deferral = task.start(_sensor())
    assert isinstance(deferral, TaskDeferred)
    assert "Waiting for perlmutter" in logged

    async def through() -> Any:
        event = asyncio.create_task(first_event(task.trigger(deferral)))
        await eventually(lambda: "Outage (Slurm upgrade)" in logged)
        assert f"until {until:%Y-%m-%dT%H:%M}" in logged
        await asyncio.to_thread(nersc.control, "nersc", "end_maintenance")
        return await asyncio.wait_for(event, 120)

    assert asyncio.run(through())["outcome"] == "answers"


@pytest.mark.parametrize("deferrable", [True, False])
def test_the_limit_is_an_error_that_says_what_the_page_says(
    nersc: Facility, task: Task, deferrable: bool
) -> None:
    nersc.control("nersc", "maintenance", seconds=3600, description="Slurm upgrade")
    with pytest.raises(TimeLimitError, match=r"perlmutter was not up within .*unavailable"):
        task.finish(_sensor(timeout=0.3, deferrable=deferrable))


def test_the_trigger_can_be_made_again_from_what_is_kept(nersc: Facility, task: Task) -> None:
    nersc.control("nersc", "maintenance", seconds=3600)
    deferral = task.start(_sensor())
    assert isinstance(deferral, TaskDeferred)
    trigger = task.trigger(deferral)
    assert trigger.serialize() == deferral.trigger.serialize()


@pytest.mark.parametrize("machine", ["../x", "a b", "", "perlmutter?x"])
def test_a_machines_name_cannot_reach_another_address(nersc: Facility, task: Task, machine: str) -> None:
    with pytest.raises(UserError, match="Not a machine's name"):
        task.start(_sensor(machine=machine))
