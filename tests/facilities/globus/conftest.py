"""A stand-in Globus, a connection to it, and what a task sees of Airflow."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from facilities.globus.hook import GlobusHook
from standin.testing import Facility, running
from support.globus import CONN_ID, Place, Run, use_connection


@pytest.fixture(scope="package")
def shared_standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    """One stand-in for all tests here; each uses paths of its own."""
    with running(tmp_path_factory.mktemp("globus") / "standin", active_transfers=50) as facility:
        yield facility


@pytest.fixture
def standin(shared_standin: Facility, monkeypatch: pytest.MonkeyPatch) -> Iterator[Facility]:
    """The stand-in without faults, and a connection to it."""
    use_connection(shared_standin, monkeypatch)
    shared_standin.clear_requests()
    yield shared_standin
    shared_standin.clear_faults()
    shared_standin.control("globus", "client", enabled=True)
    shared_standin.control("globus", "bandwidth", bytes_per_second=None)
    shared_standin.control("globus", "pending_limit", limit=1000)
    for name in ("data7012", "nersc7012"):
        shared_standin.control("globus", "login", collection=name, refusal=None)
        shared_standin.control("globus", "pause_rule", collection=name, message=None)
        shared_standin.control("globus", "endpoint", collection=name, condition="up")
        shared_standin.control("globus", "quota", collection=name, bytes_left=None)
        shared_standin.control("globus", "allow", collection=name)
        shared_standin.control("globus", "consent", collection=name, required=False)
    for task in shared_standin.transfers():
        if task["status"] in ("ACTIVE", "INACTIVE"):
            shared_standin.control("globus", "cancel", task_id=task["task_id"])


@pytest.fixture
def hook(standin: Facility) -> Iterator[GlobusHook]:
    """A hook that does not wait long between its attempts."""
    hook = GlobusHook(CONN_ID, first_pause=0.01)
    yield hook
    hook.close()


@pytest.fixture
def place(standin: Facility) -> Place:
    """A file with a name of its own."""
    return Place(standin, f"/2023/02/{uuid.uuid4().hex}/NS_230216033_ccdframes_0_0.cxi").write()


@pytest.fixture
def task_log(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was written to the task's log since the last call; Airflow's loggers write to stdout here."""
    return lambda: capsys.readouterr().out


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def task_state(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set the state that Airflow reports for any task instance."""

    def set_state(state: str) -> None:
        def states(*, task_ids: list[str], run_ids: list[str], **_: Any) -> dict[str, Any]:
            return {run_ids[0]: {task_ids[0]: state}}

        monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(states))

    set_state("deferred")
    return set_state
