"""Stands in for Airflow around Superfacility operators: connections, a task state store, jobs to submit."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from facilities.superfacility.operators import SfapiSubmitJobOperator
from facilities.superfacility.own_jobs import JobIdentity
from facilities.superfacility.sensors import SlurmJobSensor
from standin.testing import Facility
from support.globus import Run

CONN_ID = "nersc_test"

RESOURCES: dict[str, Any] = {
    "account": "als_g",
    "qos": "regular",
    "constraint": "gpu",
    "time_limit": "01:00:00",
    "gpus": 1,
}
"""What the stand-in's Slurm accepts."""


def connection_to(facility: Facility, **extra: Any) -> dict[str, Any]:
    """The connection to a stand-in."""
    nersc = facility.description["nersc"]
    return {
        "conn_type": "superfacility",
        "host": nersc["api_url"],
        "extra": {
            "token_url": nersc["token_url"],
            "client_id_file": nersc["client_id_path"],
            "key_file": nersc["key_path"],
            **extra,
        },
    }


def use_connection(monkeypatch: pytest.MonkeyPatch, conn_id: str, connection: dict[str, Any]) -> None:
    """Put a connection where Airflow finds it."""
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))


class Store(dict[str, Any]):
    """A task state store; can be told to fail, as one whose database is away."""

    failing: frozenset[str] = frozenset()

    def set(self, key: str, value: Any) -> None:
        if key in self.failing:
            raise ConnectionError("the database is away")
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self.pop(key, None)


class Task(Run):
    """A task instance that submits or waits, and what it leaves at the stand-in."""

    def __init__(self, facility: Facility, task_id: str = "submit") -> None:
        super().__init__()
        self.facility = facility
        self.store: Any = Store()
        self.ti.task_id = task_id
        self.pulled: dict[str, Any] = {}
        self.ti.xcom_pull = self._pull  # type: ignore[attr-defined]
        self.log = facility.nersc / f"{uuid.uuid4().hex}.out"

    def _pull(self, *, key: str, **_: Any) -> Any:
        return self.pulled.get(key)

    @property
    def identity(self) -> JobIdentity:
        return JobIdentity.of_task(self.context())

    def submit(
        self, script: str = "echo reconstructed", **changes: Any
    ) -> Callable[[], SfapiSubmitJobOperator]:
        """Makes the submit operator, as each worker does."""
        resources = {**RESOURCES, "output": str(self.log), **changes.pop("resources", {})}
        arguments: dict[str, Any] = {"task_id": self.ti.task_id, "superfacility_conn_id": CONN_ID}
        arguments |= {"settle": 0.5, **changes}
        if "template" not in arguments:
            arguments["script"] = script
        return lambda: SfapiSubmitJobOperator(resources=resources, confirm=0.2, **arguments)

    def wait(self, job_id: str, **changes: Any) -> Callable[[], SlurmJobSensor]:
        """Makes the sensor."""
        arguments: dict[str, Any] = {
            "task_id": "wait",
            "job_id": job_id,
            "superfacility_conn_id": CONN_ID,
            "min_poll_interval": 0.05,
            "max_poll_interval": 0.2,
            "confirm": 0.3,
            "grace": 0.5,
            "stdout": str(self.log),
            "timeout": 60.0,
        }
        return lambda: SlurmJobSensor(**arguments | changes)

    def submit_held(self) -> str:
        """Submit a job that runs until `let_go`; its id."""
        return str(self.finish(self.submit(f"until [ -e {self.log}.go ]; do sleep 0.05; done")))

    def let_go(self) -> None:
        """Let the job that is held end well."""
        Path(f"{self.log}.go").touch()

    def books(self) -> list[dict[str, Any]]:
        """Every job ever of this task instance."""
        return [job for job in self.facility.jobs() if self.identity.digest in (job["name"] or "")]


def job_of(facility: Facility, job_id: str) -> dict[str, Any]:
    """A job's line in the books."""
    return next(job for job in facility.jobs() if job["job_id"] == job_id)


def submits(facility: Facility) -> list[dict[str, Any]]:
    """The submits that the stand-in has been sent."""
    sent = facility.requests("nersc")
    return [one for one in sent if one["method"] == "POST" and "/compute/jobs/" in one["path"]]


def private(path: Path, text: str, mode: int = 0o600) -> Path:
    """Write a file of that mode."""
    path.write_text(text)
    path.chmod(mode)
    return path


class Logged:
    """What tasks and triggers have written to their logs, which go through structlog to stdout."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def __contains__(self, text: str) -> bool:
        self._text += self._capsys.readouterr().out
        return text in self._text


async def eventually(condition: Callable[[], Any], within: float = 60.0) -> None:
    """Wait for a condition without holding the loop."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"Nothing within {within} s.")
        await asyncio.sleep(0.02)
