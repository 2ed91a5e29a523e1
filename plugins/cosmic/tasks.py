"""The bodies of the DAGs' own tasks; everything else in the DAGs is an operator or a sensor."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from airflow.configuration import AIRFLOW_HOME
from airflow.sdk import get_current_context

import facilities.globus.orphans
import facilities.superfacility.orphans  # noqa: F401 - both register what finds their work
from cosmic.beamline import Beamline, Engine, beamline
from cosmic.plan import plan_run, plan_transfer
from cosmic.results import Reconstruction, collect_result, summarise
from facilities.orphans import CleanupResult, OrphanCleanup
from facilities.superfacility.hook import SuperfacilityHook

log = logging.getLogger(__name__)


def check_scan(params: Any = None) -> dict[str, Any]:
    """Check the run's parameters (Airflow gives them) and work out the run; one XCom per key.

    An engine's job is under the engine's name and `<engine>_resources`.
    """
    run_id = str(get_current_context()["run_id"])
    plan = plan_run(params, reprocessing=_reprocessing_tag(run_id))
    site = beamline()
    values: dict[str, Any] = {key: value for key, value in plan.items() if key != "jobs"}
    values |= _connections(site)
    for engine, job in plan["jobs"].items():
        values[engine] = {key: job[key] for key in ("script", "arguments", "output")}
        values[f"{engine}_resources"] = job["resources"]
    log.info("Scan %s; engines: %s.", plan["scan"], ", ".join(plan["engines"]) or "none, transfer only")
    return values


def check_path(params: Any = None) -> dict[str, Any]:
    """Check the parameters of a transfer (Airflow gives them); one XCom per key."""
    return {**plan_transfer(params), **_connections(beamline())}


def choose_engines(engines: Sequence[Engine]) -> list[str]:
    """Ids of the tasks that a run goes on with."""
    if not engines:
        log.info("No engine was chosen (do_ptychocam, do_cdtools): the scan is only copied to NERSC.")
        return ["transfer_only"]
    return [f"{engine}.perlmutter_is_up" for engine in engines]


def collect(engine: Engine, job: Mapping[str, Any]) -> Reconstruction:
    """Check a finished job's results and read their figures."""
    context = get_current_context()
    plan = context["ti"].xcom_pull(task_ids="check_scan", key=engine)
    site = beamline()
    with closing(SuperfacilityHook(site.connections.superfacility)) as hook:
        return collect_result(
            engine=engine, output=plan["output"], job=job, hook=hook, machine=site.job.machine
        )


def report(
    scan: str, transfer: Mapping[str, Any], results: Sequence[Reconstruction | None]
) -> dict[str, Any]:
    """The run's result, for people and for programs."""
    return summarise(scan, transfer, results)


def cancel_abandoned(owning_tasks: Mapping[str, Sequence[Sequence[str]]]) -> CleanupResult:
    """Cancel jobs and transfers that nobody waits for any more.

    :param owning_tasks: by DAG, groups of tasks that own one job or transfer.
    """
    site = beamline()
    cleanup = OrphanCleanup(
        {dag_id: [tuple(group) for group in groups] for dag_id, groups in owning_tasks.items()}
    )
    cleanup.cancel_orphans("superfacility", site.connections.superfacility, machine=site.job.machine)
    cleanup.cancel_orphans("globus", site.connections.globus)
    living = ", ".join(f"{number} {work}" for work, number in cleanup.result["living"].items())
    log.info("Living: %s. Orphans cancelled: %d.", living, len(cleanup.result["cancelled"]))
    return cleanup.result


def _connections(site: Beamline) -> dict[str, Any]:
    return {
        "globus_conn_id": site.connections.globus,
        "superfacility_conn_id": site.connections.superfacility,
        "status_conn_id": site.connections.status,
        "job_script_folder": str(Path(AIRFLOW_HOME) / site.job_script_folder),
    }


def _reprocessing_tag(run_id: str) -> str:
    """`r2` for a run id that ends in `__r2` (a deliberate reprocessing), else nothing."""
    match = re.search(r"__(r\d+)$", run_id)
    return match[1] if match else ""
