"""A local Airflow with the bundle, as the benchmark sends scans to it."""

from __future__ import annotations

import contextlib
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from deployment.env_file import read_env_file
from deployment.standin_settings import standin_beamline, standin_seed
from dev.benchmark.bundles import BENCHMARK, DAGS, dag_bundles
from dev.benchmark.cpu import cpu_of
from dev.benchmark.latency import install_engine
from dev.local_airflow.rest import Rest
from dev.local_airflow.settings import SETTINGS_FILE
from dev.local_airflow.stack import LocalAirflow, running
from standin.testing import SpawnedFacility, spawn

TASKS = "tasks"
ONLY_ASKED = {
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True"
}  # the DAGs that are measured, and no other
RECONSTRUCTED = {"do_ptychocam": True}


@contextlib.contextmanager
def running_ours(
    folder: Path, *, extra: Mapping[str, str] | None = None, **standin: Any
) -> Iterator[tuple[LocalAirflow, SpawnedFacility]]:
    """An Airflow on SQLite with the bundle and the DAGs to compare with, and the stand-in that it works with.

    :param extra: more of Airflow's settings.
    :param standin: settings of the stand-in.
    """
    with spawn(folder / "standin", **standin) as facility:
        install_engine(facility)
        beamline = standin_beamline(facility.description, folder / "beamline.yaml", folder / "scripts")
        settings = {
            "AIRFLOW__COSMIC__BEAMLINE_FILE": str(beamline),
            **dag_bundles(bundle=DAGS, baselines=BENCHMARK / "dags"),
            **(extra or {}),
        }
        airflow = LocalAirflow(folder / "airflow", extra=settings)
        with running(airflow, standin_seed(facility.description)):
            yield airflow, facility


@contextlib.contextmanager
def running_bare(folder: Path) -> Iterator[LocalAirflow]:
    """An Airflow as it comes, with the empty DAGs: its own settings and executor, no plugins.

    Of ours are where its files and its database (SQLite) are, and that one process serves the API.
    """
    airflow = LocalAirflow(folder, extra=dag_bundles(baselines=BENCHMARK / "dags"))
    for name in read_env_file(SETTINGS_FILE):
        airflow.environment.pop(name, None)
    airflow.environment |= {
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(folder / "no-plugins"),
    }
    with running(airflow, {}):
        yield airflow


class Ours:
    """One DAG of a running Airflow.

    :param conf: parameters of each run besides `file_path`.
    :param others: names and ids of processes that belong to the installation, too, with what they start.
    """

    def __init__(
        self,
        airflow: LocalAirflow,
        dag_id: str,
        conf: Mapping[str, Any] | None = None,
        others: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._airflow = airflow
        self._dag_id = dag_id
        self._conf = conf or {}
        self._others = others
        self._rest = Rest(airflow.url, "admin", airflow.passwords["admin"])
        self.turn_on(dag_id)

    def post(self, run_id: str, file_path: str) -> None:
        """Start the run for a scan."""
        self._rest.trigger(self._dag_id, {"file_path": file_path, **self._conf}, run_id)

    def unfinished(self, prefix: str) -> int:
        """How many of the runs whose ids begin with `prefix` have not ended."""
        return sum(self._runs(prefix, state)["total_entries"] for state in ("queued", "running"))

    def last_end(self, prefix: str) -> float:
        """When the last of these runs ended that have, by Airflow's records (seconds of the epoch).

        :raises RuntimeError: one has failed, or none has ended.
        """
        if failed := self._runs(prefix, "failed")["dag_runs"]:
            raise RuntimeError(f"Run {failed[0]['dag_run_id']} of {self._dag_id} has failed.")
        ended = self._runs(prefix, "success")["dag_runs"]
        if not ended:
            raise RuntimeError(f"No run of {self._dag_id} has ended.")
        return datetime.fromisoformat(ended[0]["end_date"]).timestamp()

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far. What the scheduler starts are the tasks, unless `others` has `TASKS`."""
        seconds: dict[str, float] = defaultdict(float)
        executes = TASKS not in dict(self._others)
        for name, process in self._airflow.processes.items():
            cpu = cpu_of(process.pid)
            if name == "scheduler" and executes:
                seconds[name] += cpu.own
                seconds[TASKS] += cpu.others
            else:
                seconds[name] += cpu.all
        for name, pid in self._others:
            seconds[name] += cpu_of(pid).all
        return seconds

    def steps(self, run_id: str) -> int:
        """How many tasks of a run did something."""
        tasks = self._rest.task_instances(self._dag_id, run_id).values()
        return sum(task["state"] == "success" for task in tasks)

    def state_mismatches(self) -> int:
        """How often a worker reported a deferral after the trigger had fired, which fails the task's try."""
        found = self._rest.call("GET", "/api/v2/eventLogs?event=state%20mismatch&limit=1")
        return int(found["total_entries"])

    def second_tries(self) -> int:
        """How many tasks of the DAG's runs so far were tried a second time."""
        path = f"/api/v2/dags/{self._dag_id}/dagRuns/~/taskInstances?try_number=2&limit=1"
        return int(self._rest.call("GET", path)["total_entries"])

    def turn_on(self, *dag_ids: str) -> None:
        """Let DAGs run that were paused when they came."""
        for dag_id in dag_ids:
            self._rest.wait_for_dag(dag_id)
            self._rest.call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})

    def _runs(self, prefix: str, state: str) -> dict[str, Any]:
        """The last to end of the runs in a state, and how many there are."""
        query = {"run_id_prefix_pattern": prefix, "state": state, "order_by": "-end_date", "limit": 1}
        path = f"/api/v2/dags/{self._dag_id}/dagRuns?{urllib.parse.urlencode(query)}"
        found: dict[str, Any] = self._rest.call("GET", path)
        return found
