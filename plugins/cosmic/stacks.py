"""Stacks of a scan's energies: what is checked before and after the job; the tasks of `stack_scan`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn, TypedDict

from airflow.configuration import AIRFLOW_HOME
from airflow.sdk import get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from cosmic import runs
from cosmic.beamline import Beamline, Stack, beamline
from cosmic.comparison import list_beamline, list_nersc, shorten
from cosmic.dag_constants import (
    GLOBUS_CONN_ID,
    NO_STACK_KEY,
    REPORT_TASK,
    SUPERFACILITY_CONN_ID,
)
from cosmic.parameters import STACK, read_parameters
from cosmic.results import incomplete
from cosmic.scan_names import Scan, parse_file
from cosmic.scans import ScanPath, parse_safe_path, parse_scan_path, parse_whole_scan
from cosmic.stack_start import (
    HAS_RESULT,
    MAX_ENERGIES,
    MAX_REGIONS,
    Place,
    automatic_run_id,
    file_states,
    results_of,
)
from facilities.errors import NotFoundError, UserError
from facilities.globus.hook import GlobusHook
from facilities.superfacility.hook import SuperfacilityHook

log = logging.getLogger(__name__)


class Region(TypedDict):
    """Energies of a region, by their numbers."""

    region: int
    done: list[int]
    missing: list[int]


class StackResult(TypedDict):
    """A region's stack; energies by their numbers."""

    region: int
    stack: str  # absolute path at NERSC
    bytes: int
    energies: list[int]
    missing: list[int]


class Stacks(TypedDict):
    """The result of a run; `message` is for people."""

    message: str
    stacks: list[StackResult]
    without_result: list[int]  # regions
    job_id: str


@task(pool="globus", multiple_outputs=True)
def check_energies(params: Any = None) -> dict[str, Any]:
    """Compare a scan's files with their runs and results, and plan the job of its stack.

    XComs: `machine`, `job_script_folder`, `job_name`, `prefix` of the stacks, `regions` (list of `Region`),
    `job` (`script`, `arguments`) and `resources`; `no_stack`, why none is made, of a run that is skipped.

    :raises AirflowSkipException: the run started by itself, and the scan is not complete, or has more
        results by now, of which a later run makes the stack.
    :raises UserError: a parameter does not fit, the scan has no result, or it is not complete.
    """
    values = read_parameters(STACK, params)
    site, scan, engine = beamline(), parse_whole_scan(values["scan"]), values["engine"]
    if site.stack is None:
        raise UserError(
            "The beamline's settings have no section `stack`",
            next_step="add it to beamline.yaml (the bundle's own has an example), then clear this task.",
        )
    run: Any = get_current_context()["dag_run"]
    with closing(GlobusHook(GLOBUS_CONN_ID)) as hook:
        statuses = find_statuses(hook, site, scan, engine)
    energies, regions = {i for i, _ in statuses}, {j for _, j in statuses}
    if len(energies) > MAX_ENERGIES or len(regions) > MAX_REGIONS or max(energies) >= MAX_ENERGIES:
        raise UserError(
            f"{scan.name} has {len(energies)} energies up to {max(energies)}, and {len(regions)} regions",
            next_step=f"a stack takes energies 0 to {MAX_ENERGIES - 1} of at most {MAX_REGIONS} regions.",
        )
    what = describe_incomplete(scan, statuses)
    if run.run_type == "operator_triggered":
        number = results_of(file_states(scan, engine, max(energies)))
        if number is None or run.run_id != automatic_run_id(scan, engine, number):
            _skip(f"{scan.name} has had more runs since: a later run makes the stack.")
        if what:
            _skip(f"No stack of {what}.")
    if what and not values["incomplete"]:
        raise UserError(
            f"No stack was made of {what}",
            next_step="wait, or process the others; or start a run with incomplete: true.",
        )
    if what:
        log.warning("Stacked all the same (incomplete): %s.", what)
    if "done" not in statuses.values():
        raise UserError(
            f"{scan.name} has no result of {engine} at NERSC",
            next_step=f"process its files with {engine}, or choose the other engine.",
        )
    return {
        "machine": site.job.machine,
        "job_script_folder": str(Path(AIRFLOW_HOME) / site.job_script_folder),
        "regions": [_region(j, energies, statuses) for j in sorted(regions)],
        **_job(site, site.stack, scan, engine, max(energies) + 1),
    }


def _skip(why: str) -> NoReturn:
    log.warning(why)  # Airflow's log does not show the exception
    get_current_context()["ti"].xcom_push(NO_STACK_KEY, why)
    raise AirflowSkipException(why)


def find_statuses(hook: GlobusHook, site: Beamline, scan: Scan, engine: str) -> dict[Place, str]:
    """What became of each file of a scan, at the beamline or at NERSC: done, running, failed or missing.

    Missing is a file without a run, or whose run succeeded without this engine.

    :raises UserError: it has no file.
    """
    source, destination = site.collections.source, site.collections.destination
    files, _ = list_beamline(hook, source, scan.day)
    at_nersc = list_nersc(hook, destination, scan.day)
    stems = {file.path.stem for file in files} | set(at_nersc.results)
    stems |= {name.removesuffix(".cxi") for name in at_nersc.sizes if name.endswith(".cxi")}
    places = _places(scan, stems)
    if not places:
        raise UserError(
            f"{scan.name} has no file {scan.name}_ccdframes_<energy>_<region>.cxi in {scan.folder}, "
            "at the beamline or at NERSC",
            next_step="correct the scan's name, then start a new run.",
        )
    paths = {parse_scan_path(scan.path(*place)): place for place in places}
    states = runs.states_by_generation(list(paths))
    active = _active(states)
    # After the states: a run that ends in between is still running, and not one that left nothing.
    results = list_nersc(hook, destination, scan.day).results
    statuses = {}
    for path, place in sorted(paths.items(), key=lambda item: item[1]):
        if path in active:
            statuses[place] = "running"
        elif engine in {name for name, _ in results.get(path.stem, ())}:
            statuses[place] = "done"
        else:
            known = states.get(path, {})
            failed = known and "success" not in (known[max(known)], known.get(runs.OTHER))
            statuses[place] = "failed" if failed else "missing"
    return statuses


def _places(scan: Scan, stems: Iterable[str]) -> set[Place]:
    """Energies and regions of those of the names, without `.cxi`, that are the scan's files'."""
    files = (file for stem in stems if (file := parse_file(stem)) and file.scan == scan and not file.suffix)
    return {(file.energy, file.region) for file in files if file.region is not None}


def _active(states: Mapping[ScanPath, Mapping[int, str]]) -> set[ScanPath]:
    """Which of the scans have an active run, one that has only its report to finish left out."""
    active = [
        (path, n) for path, known in states.items() for n, state in known.items() if state in runs.ACTIVE
    ]
    own = {path.run_id(generation): path for path, generation in active if generation != runs.OTHER}
    reports = runs.task_states(list(own), [REPORT_TASK])
    others = {path for path, generation in active if generation == runs.OTHER}
    return others | {
        path for run_id, path in own.items() if reports.get(run_id, {}).get(REPORT_TASK) not in HAS_RESULT
    }


def describe_incomplete(scan: Scan, statuses: Mapping[Place, str]) -> str:
    """Which files of a scan have no result, in words; empty when all have one."""
    parts = []
    for status in ("running", "failed", "missing"):
        names = [f"{i}_{j}" for (i, j), found in statuses.items() if found == status]
        if names:
            parts.append(f"{len(names)} {status} ({shorten(names)})")
    energies, regions = {i for i, _ in statuses}, {j for _, j in statuses}
    absent = [f"{i}_{j}" for i in range(max(energies) + 1) for j in sorted(regions) if (i, j) not in statuses]
    if absent:
        parts.append(f"{len(absent)} without a file ({shorten(absent)})")
    done = sum(status == "done" for status in statuses.values())
    return f"{scan.name}: of its files <energy>_<region> {done} are done, {', '.join(parts)}" if parts else ""


def _region(region: int, energies: Iterable[int], statuses: Mapping[Place, str]) -> Region:
    numbers = range(max(energies) + 1)
    done = [i for i in numbers if statuses.get((i, region)) == "done"]
    return Region(region=region, done=done, missing=[i for i in numbers if i not in done])


def _job(site: Beamline, settings: Stack, scan: Scan, engine: str, energies: int) -> dict[str, Any]:
    root = site.collections.destination.file_system_path
    folder = parse_safe_path(scan.folder).under(root)
    prefix = f"{folder}/{scan.name}_{engine}_stack"
    return {
        "job_name": f"stack-{engine}-{scan.name}",
        "prefix": prefix,
        "job": {
            "script": settings.script,
            "arguments": ["-e", engine, "-n", str(energies), f"{folder}/{scan.name}"],
        },
        "resources": {
            "account": site.job.account,
            "qos": site.job.qos,
            "constraint": site.job.constraint,
            "nodes": 1,
            "gpus": 1,
            "time_limit": settings.time_limit,
            "output": f"{prefix}_%j.out",
            "error": f"{prefix}_%j.err",
            "requeue": True,
        },
    }


@task(pool="nersc", multiple_outputs=False)
def collect_stacks(
    machine: str, prefix: str, regions: Sequence[Region], job: Mapping[str, Any] | None
) -> Stacks:
    """Check that there is one stack per region, and say which energies are in it; the result of the run.

    :raises UserError: a stack is missing, empty or of another job, or there is no finished job.
    """
    if job is None:
        raise UserError(
            "wait was marked as success before its job had ended, which cancelled the job",
            next_step="clear submit: the job is submitted again.",
        )
    with closing(SuperfacilityHook(SUPERFACILITY_CONN_ID)) as hook:
        stacks = [_stack(hook, machine, prefix, region, job) for region in regions if region["done"]]
    lines = [f"{stack['stack']}: {len(stack['energies'])} energies" + _without(stack) for stack in stacks]
    lines += [f"region {region['region']} has no result" for region in regions if not region["done"]]
    message = "; ".join(lines)
    log.info(message)
    without = [region["region"] for region in regions if not region["done"]]
    return Stacks(message=message, stacks=stacks, without_result=without, job_id=str(job["job_id"]))


def _without(stack: StackResult) -> str:
    missing = stack["missing"]
    return f", {len(missing)} missing ({shorten(map(str, missing))})" if missing else ""


def _stack(
    hook: SuperfacilityHook, machine: str, prefix: str, region: Region, job: Mapping[str, Any]
) -> StackResult:
    path = f"{prefix}_{region['region']}.nxs"
    try:
        size = hook.stat(machine, path).size
        summary = json.loads(hook.download(machine, path.removesuffix(".nxs") + ".json"))
        energies, missing = summary["energy_index"], summary["missing_energy_index"]
        if not size or str(summary["job_id"]) != str(job["job_id"]):
            raise ValueError(f"{size} bytes, made by job {summary['job_id']}")
    except (NotFoundError, ValueError, KeyError, TypeError) as error:
        raise incomplete(path, f"is missing or is not this job's ({error})", job) from error
    return StackResult(region=region["region"], stack=path, bytes=size, energies=energies, missing=missing)
