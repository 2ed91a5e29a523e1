"""A stand-in of NERSC, and connections that lead to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from facilities.superfacility import session
from facilities.superfacility.hook import SuperfacilityHook
from standin.testing import Facility, running
from support.superfacility import CONN_ID, Task, connection_to, use_connection

QUICK = {
    "sacct_lag": 0.0,
    "time_scale": 0.02,
    "slots": 8,
    "task_delay": 0.0,
    "token_seconds": 600.0,
    "requeue_delay": 20.0,
    "kill_wait": 5.0,
    "timezone": "America/Los_Angeles",
    "job_path": "",
}


@pytest.fixture(scope="package")
def shared_nersc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    """One stand-in for all tests here; each has jobs of its own."""
    with running(tmp_path_factory.mktemp("nersc") / "standin") as facility:
        yield facility


@pytest.fixture
def nersc(shared_nersc: Facility, monkeypatch: pytest.MonkeyPatch) -> Iterator[Facility]:
    """The stand-in without faults and with a quick Slurm."""
    shared_nersc.control("nersc", "set", **QUICK)
    monkeypatch.setattr(session, "_FIRST_WAIT", 0.01)
    use_connection(monkeypatch, CONN_ID, connection_to(shared_nersc))
    shared_nersc.clear_requests()
    yield shared_nersc
    shared_nersc.clear_faults()
    shared_nersc.control("nersc", "api_up")
    shared_nersc.control("nersc", "end_maintenance")
    shared_nersc.control("nersc", "degrade", note=None)
    shared_nersc.control("nersc", "client_expiry", days=30)
    shared_nersc.control("nersc", "end_all")


@pytest.fixture
def hook(nersc: Facility) -> Iterator[SuperfacilityHook]:
    """A hook to the stand-in."""
    hook = SuperfacilityHook(CONN_ID, attempts=2)
    yield hook
    hook.close()


@pytest.fixture
def task(nersc: Facility) -> Task:
    """A task instance of its own."""
    return Task(nersc)


@pytest.fixture
def task_state(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set the state that Airflow reports for any task instance."""

    def set_state(state: str) -> None:
        def states(*, task_ids: list[str], run_ids: list[str], **_: Any) -> dict[str, Any]:
            return {run_ids[0]: {task_ids[0]: state}}

        monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(states))

    set_state("deferred")
    return set_state
