"""Both facilities and what Airflow says about its runs, for what looks after both."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.sdk.execution_time import task_runner

from facilities import tokens
from standin.testing import Facility, running
from support import globus, superfacility
from support.airflow_says import AirflowSays


@pytest.fixture(autouse=True)
def no_tokens() -> None:
    """No token is there from before."""
    shutil.rmtree(tokens.FOLDER, ignore_errors=True)
    tokens._shared.clear()


@pytest.fixture
def airflow_says(monkeypatch: pytest.MonkeyPatch) -> AirflowSays:
    """What Airflow says about runs and tasks; nothing is known at first."""
    says = AirflowSays()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", says, raising=False)
    return says


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Facility]:
    """A stand-in of both facilities, and connections to it."""
    with running(tmp_path / "standin") as facility:
        globus.use_connection(facility, monkeypatch)
        superfacility.use_connection(
            monkeypatch, superfacility.CONN_ID, superfacility.connection_to(facility)
        )
        yield facility
