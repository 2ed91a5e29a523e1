"""How the components of a local Airflow end, with small programs in their places."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dev.local_airflow.stack import LocalAirflow, wait_until

# Says that it is there; told to end it takes `seconds` for that, and says that it has.
PROGRAM = """
import pathlib, signal, sys, time
name, seconds, folder = sys.argv[1], float(sys.argv[2]), pathlib.Path(sys.argv[3])
def end(*_):
    time.sleep(seconds)
    with (folder / "ended").open("a") as file:
        file.write(name + " ")
    sys.exit()
signal.signal(signal.SIGTERM, end)
(folder / name).touch()
signal.pause()
"""


@pytest.fixture
def airflow(tmp_path: Path) -> LocalAirflow:
    """Nothing runs yet."""
    return LocalAirflow(tmp_path)


def begin(airflow: LocalAirflow, name: str, seconds: float) -> None:
    airflow.processes[name] = subprocess.Popen(
        [sys.executable, "-S", "-c", PROGRAM, name, str(seconds), str(airflow.home)], start_new_session=True
    )
    assert wait_until((airflow.home / name).exists, 60)


def test_the_api_server_ends_when_the_tasks_of_the_scheduler_have_ended(airflow: LocalAirflow) -> None:
    begin(airflow, "api-server", 0)
    begin(airflow, "scheduler", 0.5)
    airflow.stop()
    assert (airflow.home / "ended").read_text() == "scheduler api-server "
    assert airflow.processes == {}


def test_the_triggerer_is_not_waited_for_long(airflow: LocalAirflow) -> None:
    begin(airflow, "triggerer", 600)
    begin(airflow, "dag-processor", 0)
    before = time.monotonic()
    airflow.stop(timeout=300)
    assert time.monotonic() - before < 200
    assert (airflow.home / "ended").read_text() == "dag-processor "


def test_what_does_not_end_in_time_is_killed(airflow: LocalAirflow) -> None:
    begin(airflow, "scheduler", 600)
    process = airflow.processes["scheduler"]
    airflow.stop(timeout=0.2)
    assert process.returncode == -9


def test_one_component_is_stopped_and_the_others_stay(airflow: LocalAirflow) -> None:
    begin(airflow, "api-server", 0)
    begin(airflow, "scheduler", 0)
    airflow.stop("scheduler")
    assert list(airflow.processes) == ["api-server"]
    assert airflow.processes["api-server"].poll() is None
    airflow.stop()
