"""Fixtures for all tests: an Airflow that belongs to the session, the stand-in facility, no outside network.

Airflow reads its settings when it is imported, so they are in the environment before anything else happens.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from support import needs

REPOSITORY = Path(__file__).resolve().parents[1]
for _folder in ("plugins", "include"):
    sys.path.insert(0, str(REPOSITORY / _folder))

from dev.local_airflow.settings import local_environment  # noqa: E402

SESSION = Path(tempfile.mkdtemp(prefix="cosmic-tests-"))
HOME = SESSION / "airflow"
BEAMLINE_FILE = SESSION / "beamline.yaml"
atexit.register(shutil.rmtree, SESSION, ignore_errors=True)

for _key in [key for key in os.environ if key.startswith(("AIRFLOW", "GLOBUS_", "COSMIC_", "NOTIFY"))]:
    del os.environ[_key]
# Port 9 (discard): in-process tests must not reach any API server.
os.environ |= local_environment(HOME, 9, {"AIRFLOW__COSMIC__BEAMLINE_FILE": str(BEAMLINE_FILE)})

# Tests run side by side: threads of BLAS that wait for each other take ten times the time.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

# A test run that is told to stop stops its servers first.
signal.signal(signal.SIGTERM, signal.default_int_handler)

# The production stack takes a Docker engine and a quarter of an hour: make compose-test.
collect_ignore = [] if os.environ.get("COMPOSE_TEST") else ["deployment/stack"]

# On a busy machine an example may take long for reasons of its own.
settings.register_profile("cosmic", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cosmic")

LOOPBACK = {"127.0.0.1", "::1", "localhost", "0.0.0.0", ""}


LOWER_PRIORITY = 5  # as nice(1) has it
LIVE = "tests/live/"
PAGES = "tests/cosmic/"  # seconds pass until Airflow's API server and its DAGs are there
OWN_AIRFLOW = (
    "tests/live/test_chaos.py",
    "tests/live/test_as_operated.py",
    "tests/live/test_resumed_tasks.py",
)
# Those that wait come first, while Airflow starts, and then between those that compute.
LONGEST = (
    "tests/browser/test_trigger_form.py",
    LIVE,
    *OWN_AIRFLOW,
    "tests/facilities/superfacility/test_sensors.py",
    "tests/facilities/superfacility/test_windows.py",
    "tests/facilities/superfacility/test_claims.py",
    PAGES,
    "tests/facilities/superfacility/test_submission.py",
    "tests/reconstruction/test_cdtools.py",
    "tests/reconstruction/test_damaged_scans.py",
    "tests/standin/test_schedulers_contract.py",
    "tests/reconstruction/test_image.py",
    "tests/facilities/superfacility/test_resubmission.py",
    "tests/reconstruction/test_memory.py",
    "tests/facilities/globus/test_answers.py",
    "tests/dev/test_install.py",
    "tests/facilities/test_random_windows.py",
    "tests/reconstruction/test_conventions.py",
)


def scope(nodeid: str) -> str:
    """What is run in one process: what shares an Airflow together; of the others, each file."""
    file = nodeid.partition("::")[0]
    shared = next((folder for folder in (LIVE, PAGES) if file.startswith(folder)), file)
    return file if file in OWN_AIRFLOW else shared


class FilesAndLive(LoadScopeScheduling):  # type: ignore[misc]  # of a package without types
    """How tests are shared out where there are several processes."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesAndLive:
    """Take ours."""
    return FilesAndLive(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    """For machines that must have it all."""
    text = "fail a test that needs what is missing here and can be installed, instead of skipping it"
    parser.addoption("--all-needs", action="store_true", help=text)


def pytest_collection_finish() -> None:
    """What has been imported and collected stays to the end: the garbage collector need not go through it."""
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test where what it needs is missing; let those on a running Airflow have the processor first.

    They take longest, and mostly wait. The process of another test has a lower priority from then on.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and item.get_closest_marker("live") is None:
        os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), LOWER_PRIORITY))
    names = [name for marker in item.iter_markers("needs") for name in marker.args]
    lacking = next((name for name in names if not needs.NEEDS[name].here()), None)
    if lacking is None:
        return
    if item.config.getoption("all_needs") and needs.NEEDS[lacking].packages:
        pytest.fail(needs.message(lacking), pytrace=False)
    pytest.skip(needs.message(lacking))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that the processes end together."""

    def place(item: pytest.Item) -> int:
        own = scope(item.nodeid)
        return LONGEST.index(own) if own in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _plugins() -> None:
    """Airflow's plugins are there whichever test is first; what they import warns, an error in a test."""
    from airflow import plugins_manager

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "cosmic.timetable.BeamlineDays" in plugins_manager.get_timetables_plugins()


@pytest.fixture(autouse=True)
def _no_outside_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a connection to anywhere but this machine an error."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            raise AssertionError(f"A test tried to connect to {address}.")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """The session's database, for tests that need connections, pools or `dag.test()` in this process."""
    import json

    from deployment.database import prepare_database

    prepare_database({"pools": json.loads((REPOSITORY / "include" / "pools.json").read_text())})


@pytest.fixture
def facility(tmp_path: Path) -> Iterator[Any]:
    """A stand-in facility of the test's own, in a thread, control on."""
    from standin.testing import running

    with running(tmp_path / "standin") as standin:
        yield standin


@pytest.fixture(scope="session")
def live_airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The session's running Airflow and stand-in, shared by all `live` tests; leave it healthy."""
    from support.live import start_live
    from support.nersc import SCHEDULER

    slots = 20  # more than there are jobs that tests hold at once
    yield from start_live(tmp_path_factory.mktemp("live"), scheduler=SCHEDULER, slots=slots)
