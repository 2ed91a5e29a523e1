"""What a run is going to do, worked out and checked before anything is sent anywhere."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from airflow.configuration import AIRFLOW_HOME
from airflow.sdk import Context, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from cosmic import runs
from cosmic.beamline import Beamline, beamline
from cosmic.dag_constants import TRANSFER_AUTO_RECON
from cosmic.parameters import (
    ENGINES,
    RECONSTRUCTION,
    TRANSFER,
    Engine,
    chosen_engines,
    command_arguments,
    read_parameters,
)
from cosmic.scans import ScanPath, parse_safe_path, parse_scan_path

if TYPE_CHECKING:
    from airflow.providers.standard.operators.python import ShortCircuitOperator

log = logging.getLogger(__name__)

# Perlmutter's nodes have 128 hardware threads and 4 GPUs. All queues but "shared" give whole nodes.
CPUS_OF_GPU = 32


class Run(Protocol):
    """What is needed of a run of `transfer_auto_recon`, in a task or in Airflow's database."""

    @property
    def run_id(self) -> str:
        """Its id."""

    @property
    def run_after(self) -> datetime:
        """When it may begin; tells apart two runs that had the same id one after the other."""


def plan_transfer(params: Mapping[str, Any]) -> dict[str, str]:
    """Collections and paths of a transfer, for a template.

    :raises UserError: a parameter does not fit, or the site's settings are wrong.
    """
    path = read_parameters(TRANSFER, params)["file_path"]
    return _transfer(beamline(), parse_safe_path(path))


@task.short_circuit(multiple_outputs=True, outlets=[runs.OTHER_RUNS])
def check_scan(params: Any = None) -> dict[str, Any]:
    """Plan a transfer and its reconstructions, one XCom per key; skip the engines that were not chosen.

    An engine's job is under the engine's name (`script`: absolute path at NERSC, `arguments`: unquoted,
    `output`: absolute prefix of the result files at NERSC, `positions` and `defocus`: as in `beamline.yaml`)
    and `<engine>_resources`.

    :raises UserError: a parameter does not fit, or the site's settings are wrong.
    """
    values = read_parameters(RECONSTRUCTION, params)
    site = beamline()
    scan = parse_scan_path(values["file_path"])
    if not scan.is_named(site.collections.source.scan_names):
        log.warning("%s has no name of collections.source.scan_names: accepted anyway.", scan.relative)
    context = get_current_context()
    run: Any = context["dag_run"]
    scan.check_run_id(run.run_id)
    if not scan.generation(run.run_id):
        runs.enter_other_run(scan, context["outlet_events"])
    engines = chosen_engines(values)
    log.info("Scan %s; engines: %s.", scan.relative, ", ".join(engines) or "none, it is only copied to NERSC")
    plan: dict[str, Any] = {
        **_transfer(site, scan),
        "scan": str(scan.relative),
        "name": scan.name + scan.result_tag(TRANSFER_AUTO_RECON, run.run_id, run.run_after),
        "machine": site.job.machine,
        "engines": engines,
        "job_script_folder": str(Path(AIRFLOW_HOME) / site.job_script_folder),
    }
    for engine in engines:
        plan |= _job(site, scan, engine, values, run)
    _skip_all_but(engines, plan, context)
    return plan


def result_prefix(site: Beamline, scan: ScanPath, engine: str, run: Run) -> str:
    """What the names of a run's result files begin with, absolute at NERSC; no other run has the same."""
    scan_file = scan.under(site.collections.destination.file_system_path)
    tag = scan.result_tag(TRANSFER_AUTO_RECON, run.run_id, run.run_after)
    return f"{scan_file.removesuffix('.cxi')}_{engine}{tag}"


def skip_without_plan(context: Mapping[str, Any]) -> None:
    """Skip a submit task without a job: in runs that an older version has begun, `check_scan` skips none.

    :raises AirflowSkipException: the task's engine was not chosen.
    """
    if context["task"].slurm_resources is None:
        raise AirflowSkipException("This engine was not chosen.")


def _skip_all_but(engines: Collection[Engine], plan: Mapping[str, Any], context: Context) -> None:
    """Skip the other engines' tasks, also when they are cleared. If there are any, this ends the task."""
    others, this = {*ENGINES} - {*engines}, cast("ShortCircuitOperator", context["task"])
    if others:
        for key, value in plan.items():
            context["ti"].xcom_push(key, value)
        this.skip(context["ti"], [t for t in this.downstream_list if t.task_id.partition(".")[0] in others])


def _transfer(site: Beamline, path: ScanPath) -> dict[str, str]:
    source, destination = site.collections.source, site.collections.destination
    return {
        "source_collection": str(source.id),
        "source_path": path.under(source.path),
        "destination_collection": str(destination.id),
        "destination_path": path.under(destination.path),
    }


def _job(
    site: Beamline, scan: ScanPath, engine: Engine, values: Mapping[str, Any], run: Run
) -> dict[str, Any]:
    root = site.collections.destination.file_system_path
    scan_file = scan.under(root)
    output = result_prefix(site, scan, engine, run)
    minutes, qos = values["time_limit_minutes"], values["qos"] or site.job.qos
    return {
        engine: {
            "script": site.script(engine),
            "arguments": command_arguments(engine, values, scan_file, root),
            "output": output,
            "positions": values["positions"] or site.positions,
            "defocus": str(site.defocus),
        },
        f"{engine}_resources": {
            "account": site.job.account,
            "qos": qos,
            "constraint": site.job.constraint,
            "nodes": site.job.nodes,
            "gpus": values["n_gpu"],
            "cpus_per_task": CPUS_OF_GPU * values["n_gpu"] if qos == "shared" else None,
            "time_limit": f"{minutes // 60:02}:{minutes % 60:02}:00" if minutes else site.job.time_limit,
            "output": f"{output}_%j.out",
            "error": f"{output}_%j.err",
            "requeue": True,  # after a node failure or a preemption: under the same id, with the same claim
        },
    }
