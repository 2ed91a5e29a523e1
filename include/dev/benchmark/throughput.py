"""Measures how many scans an hour go through with one executor or another, and which parts use the CPU."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cosmic.dag_constants import TRANSFER_AUTO_RECON
from deployment.settings import Settings
from deployment.standin_settings import standin_beamline, standin_seed
from dev.benchmark.latency import install_engine
from dev.benchmark.load import Load, measure_load, new_scan
from dev.benchmark.ours import ONLY_ASKED, RECONSTRUCTED, TASKS, Ours
from dev.benchmark.servers import spawned, wait_for_text
from dev.local_airflow.postgres import programs, running_postgres
from dev.local_airflow.settings import REPOSITORY
from dev.local_airflow.stack import LocalAirflow, free_port, running
from standin.testing import spawn

SCANS = 60
BYTES = 200_000
SLOTS = 8  # jobs at once
CELERY_PYTHON = REPOSITORY / ".venv-celery" / "bin" / "python"
_QUEUE = "transfer_auto_recon"


@dataclass(frozen=True)
class Configuration:
    """A kind of installation.

    :param postgres: its database is PostgreSQL, otherwise SQLite.
    :param workers: Celery's; 0: tasks run in the scheduler's own processes.
    """

    name: str
    postgres: bool
    workers: int = 0

    def missing(self) -> str:
        """What must be installed for it; empty: nothing."""
        if self.postgres and programs() is None:
            return "apt-get install postgresql"
        if self.workers and shutil.which("redis-server") is None:
            return "apt-get install redis-server"
        return ""


CONFIGURATIONS = (
    Configuration("SQLite, LocalExecutor", postgres=False),
    Configuration("PostgreSQL, LocalExecutor", postgres=True),
    Configuration("PostgreSQL, Celery, 2 workers", postgres=True, workers=2),
    Configuration("PostgreSQL, Celery, 3 workers", postgres=True, workers=3),
)


def measure_throughput(configuration: Configuration, folder: Path) -> Load:
    """Send scans at once to an installation of that kind, when a first one has been through."""
    folder.mkdir()
    installation = Settings.model_validate(
        {"COMPOSE_PROFILES": "celery"}
    )  # what .env has when it has no more
    others: list[tuple[str, int]] = []
    with contextlib.ExitStack() as stack:
        facility = stack.enter_context(spawn(folder / "standin", slots=SLOTS))
        others.append(("stand-in and its jobs", facility.pid))
        install_engine(facility)
        beamline = standin_beamline(facility.description, folder / "beamline.yaml", folder / "scripts")
        settings = {"AIRFLOW__COSMIC__BEAMLINE_FILE": str(beamline), **ONLY_ASKED}
        settings["AIRFLOW__CORE__PARALLELISM"] = str(installation.parallelism)
        if configuration.postgres:
            found = programs()
            assert found is not None  # noqa: S101 - `missing` looked
            server = stack.enter_context(running_postgres(found))
            others.append(("PostgreSQL", server.pid))
            settings["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = server.address
        if configuration.workers:
            address, pid = stack.enter_context(_running_redis(folder))
            others.append(("Redis", pid))
            settings |= {
                "AIRFLOW__CORE__EXECUTOR": installation.executor,
                "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(installation.worker_concurrency),
                "AIRFLOW__CELERY__BROKER_URL": address,
                "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{server.address}",
                "AIRFLOW__OPERATORS__DEFAULT_QUEUE": _QUEUE,
            }
        python = CELERY_PYTHON if configuration.workers else Path(sys.executable)
        airflow = LocalAirflow(folder / "airflow", extra=settings, python=python)
        stack.enter_context(running(airflow, standin_seed(facility.description)))
        for number in range(configuration.workers):
            others.append((TASKS, stack.enter_context(_running_worker(airflow, f"worker-{number + 1}"))))
        ours = Ours(airflow, TRANSFER_AUTO_RECON, RECONSTRUCTED, others)
        measure_load(ours, "warm-up-", [new_scan(facility, 0, BYTES)])
        return measure_load(ours, "scan-", [new_scan(facility, n + 1, BYTES) for n in range(SCANS)])


@contextlib.contextmanager
def _running_redis(folder: Path) -> Iterator[tuple[str, int]]:
    """Debian's Redis on the loopback interface, with a password: its address and process id."""
    port, password = free_port(), secrets.token_urlsafe(16)
    settings = f'bind 127.0.0.1\nport {port}\ndir {folder}\nsave ""\nrequirepass {password}\n'
    log = folder / "redis.log"
    # On the command line the password could be seen.
    with spawned(["redis-server", "-"], log, cwd=folder, text=settings) as server:
        wait_for_text(server, log, "Ready to accept connections")
        yield f"redis://:{password}@127.0.0.1:{port}/0", server.pid


@contextlib.contextmanager
def _running_worker(airflow: LocalAirflow, name: str) -> Iterator[int]:
    """A Celery worker, as include/deployment/start-worker starts it; gives its process id."""
    arguments = f"celery worker --queues {_QUEUE} --without-gossip --without-mingle --skip-serve-logs".split()
    command = [str(airflow.python), "-m", "airflow", *arguments, "--celery-hostname", f"{name}@%h"]
    log = airflow.home / f"{name}.log"
    with spawned(command, log, cwd=REPOSITORY, environment=airflow.environment) as worker:
        wait_for_text(worker, log, " ready.")
        yield worker.pid
