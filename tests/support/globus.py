"""Stands in for Airflow around Globus operators: a connection, a file to be copied, a task instance."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from facilities.globus.operators import GlobusTransferOperator
from facilities.globus.submission import TransferRequest
from standin.testing import Facility

CONN_ID = "globus_test"


def use_connection(facility: Facility, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Put a connection to the facility where Airflow finds it."""
    globus = facility.description["globus"]
    connection = {
        "conn_type": "globus",
        "login": globus["client_id"],
        "password": globus["client_secret"],
        "extra": {"auth_base_url": globus["auth_url"], "transfer_base_url": globus["transfer_url"]},
        **changes,
    }
    monkeypatch.setenv(f"AIRFLOW_CONN_{CONN_ID.upper()}", json.dumps(connection))


@dataclass
class Place:
    """A file at the beamline that is to be copied, and where to."""

    facility: Facility
    path: str
    source: str = field(init=False)
    destination: str = field(init=False)

    def __post_init__(self) -> None:
        self.source = self.facility.description["collections"]["data7012"]["id"]
        self.destination = self.facility.description["collections"]["nersc7012"]["id"]

    @property
    def at_source(self) -> Path:
        return self.facility.collection("data7012") / self.path.lstrip("/")

    @property
    def at_destination(self) -> Path:
        return self.facility.collection("nersc7012") / self.path.lstrip("/")

    def write(self, content: bytes = b"frames" * 100) -> Place:
        self.at_source.parent.mkdir(parents=True, exist_ok=True)
        self.at_source.write_bytes(content)
        return self

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """Arguments of a transfer operator."""
        return {
            "task_id": "copy",
            "globus_conn_id": CONN_ID,
            "source_collection": self.source,
            "source_path": self.path,
            "destination_collection": self.destination,
            "destination_path": self.path,
            "min_poll_interval": 0.05,
            "max_poll_interval": 0.2,
            **changes,
        }

    def books(self) -> list[dict[str, Any]]:
        """Every Globus task ever for this path."""
        return [task for task in self.facility.transfers() if self.path in json.dumps(task["items"])]


class Store(dict[str, Any]):
    """A task state store."""

    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self.pop(key, None)


@dataclass
class FakeTaskInstance:
    """A task instance as operators see it; keeps its XComs."""

    run_id: str
    dag_id: str = "transfer_auto_recon"
    task_id: str = "copy"
    map_index: int = -1
    try_number: int = 1
    max_tries: int = 0
    xcoms: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))


class Run:
    """One task of one DAG run: execute, trigger, resume, as Airflow does it."""

    def __init__(self) -> None:
        self.ti = FakeTaskInstance(run_id=f"scan__{uuid.uuid4().hex}")
        self.dag_run = SimpleNamespace(run_after=datetime.now(UTC))
        self.store: Store | None = Store()
        self.deferrals: list[TaskDeferred] = []

    def context(self) -> Any:
        values: dict[str, Any] = {"ti": self.ti, "run_id": self.ti.run_id, "dag_run": self.dag_run}
        return values if self.store is None else {**values, "task_state_store": self.store}

    def start(self, make: Callable[[], Any]) -> Any:
        """Execute; returns the result, or the deferral."""
        return self._step(lambda: make().execute(self.context()))

    def resume(self, make: Callable[[], Any], deferral: TaskDeferred, event: Any) -> Any:
        """Go on after an event, in a new operator instance, as on another worker."""
        kwargs = {**(deferral.kwargs or {}), "event": event}
        return self._step(lambda: make().resume_execution(deferral.method_name, kwargs, self.context()))

    def finish(self, make: Callable[[], Any]) -> Any:
        """Execute, and follow deferrals to the end."""
        return self.follow(make, self.start(make))

    def follow(self, make: Callable[[], Any], outcome: Any) -> Any:
        """Follow deferrals to the end; returns the result."""
        while isinstance(outcome, TaskDeferred):
            outcome = self.resume(make, outcome, self.fire(outcome))
        return outcome

    def fire(self, deferral: TaskDeferred) -> Any:
        """Run the deferral's trigger, rebuilt from what the database keeps of it; returns its payload."""
        return asyncio.run(first_event(self.trigger(deferral)))

    def trigger(self, deferral: TaskDeferred) -> Any:
        path, kwargs = deferral.trigger.serialize()
        module, _, name = path.rpartition(".")
        trigger = getattr(import_module(module), name)(**json.loads(json.dumps(kwargs)))
        trigger._task_instance = self.ti
        return trigger

    def retry(self) -> None:
        """The next try, which Airflow begins by itself; XComs are gone, the state store stays."""
        self.ti.try_number += 1
        self.ti.xcoms.clear()

    def clear(self) -> None:
        """The next try, after somebody has cleared the task."""
        self.ti.max_tries = self.ti.try_number
        self.retry()

    def _step(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except TaskDeferred as deferral:
            self.deferrals.append(deferral)
            return deferral


async def first_event(trigger: Any) -> Any:
    async for event in trigger.run():
        return event.payload
    return None


def making(place: Place, **changes: Any) -> Callable[[], GlobusTransferOperator]:
    def make() -> GlobusTransferOperator:
        operator = GlobusTransferOperator(**place.arguments(**changes))
        operator.hook.first_pause = 0.01
        return operator

    return make


def deferred(outcome: Any) -> TaskDeferred:
    assert isinstance(outcome, TaskDeferred), outcome
    return outcome


def transfer_request(place: Place, **changes: Any) -> TransferRequest:
    return TransferRequest(
        source_collection=place.source,
        source_path=place.path,
        destination_collection=place.destination,
        destination_path=place.path,
        **{"label": "test", **changes},
    )
