"""What a run is going to do, worked out and checked before anything is sent anywhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypedDict

from cosmic.beamline import Beamline, Engine, beamline
from cosmic.parameters import chosen_engines, command_arguments
from cosmic.scans import ScanPath, parse_safe_path, parse_scan_path

log = logging.getLogger(__name__)


class JobPlan(TypedDict):
    """One reconstruction job: what Slurm is asked for and what the job script says."""

    resources: dict[str, Any]
    script: str  # absolute path of the reconstruction script at NERSC
    arguments: list[str]  # unquoted; the job script quotes them
    output: str  # absolute prefix of the result files at NERSC


class TransferPlan(TypedDict):
    """One copy from the beamline's collection to NERSC's."""

    source_collection: str
    source_path: str
    destination_collection: str
    destination_path: str


class RunPlan(TransferPlan):
    """A whole run; `jobs` has an entry for each engine that was chosen."""

    scan: str
    stem: str
    machine: str
    engines: list[Engine]
    jobs: dict[Engine, JobPlan]


def plan_transfer(params: Mapping[str, Any]) -> TransferPlan:
    """Work out a transfer only.

    :raises UserError: `file_path` is not a safe relative path, or the site's settings are wrong.
    """
    return _transfer(beamline(), parse_safe_path(params["file_path"]))


def plan_run(params: Mapping[str, Any], *, reprocessing: str = "") -> RunPlan:
    """Work out a transfer and its reconstructions.

    :param reprocessing: a tag that keeps a reprocessing's results apart from earlier ones.
    :raises UserError: `file_path` is not the path of a scan, or the site's settings are wrong.
    """
    site = beamline()
    scan = parse_scan_path(params["file_path"])
    if scan.day is None:
        log.warning("%s is not named year/month/yymmdd/NS_<yymmdd>...: taken all the same.", scan.relative)
    return RunPlan(
        **_transfer(site, scan),
        scan=str(scan.relative),
        stem=scan.stem,
        machine=site.job.machine,
        engines=chosen_engines(params),
        jobs={engine: _job(site, scan, engine, params, reprocessing) for engine in chosen_engines(params)},
    )


def _transfer(site: Beamline, path: ScanPath) -> TransferPlan:
    source, destination = site.collections.source, site.collections.destination
    return TransferPlan(
        source_collection=str(source.id),
        source_path=path.under(source.path),
        destination_collection=str(destination.id),
        destination_path=path.under(destination.path),
    )


def _job(
    site: Beamline, scan: ScanPath, engine: Engine, params: Mapping[str, Any], reprocessing: str
) -> JobPlan:
    root = site.collections.destination.file_system_path
    scan_file = scan.under(root)
    output = f"{scan_file.removesuffix('.cxi')}_{engine}" + (f"_{reprocessing}" if reprocessing else "")
    minutes = params["time_limit_minutes"]
    return JobPlan(
        resources={
            "account": site.job.account,
            "qos": params["qos"] or site.job.qos,
            "constraint": site.job.constraint,
            "nodes": site.job.nodes,
            "gpus": params["n_gpu"],
            "time_limit": f"{minutes // 60:02}:{minutes % 60:02}:00" if minutes else site.job.time_limit,
            "output": f"{output}_%j.out",
            "error": f"{output}_%j.err",
        },
        script=site.script(engine),
        arguments=command_arguments(engine, params, scan_file, root),
        output=output,
    )
