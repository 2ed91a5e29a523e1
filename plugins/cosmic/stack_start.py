"""Starts the stack of a scan's energies by itself, when the last of its files is done."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from cosmic import runs
from cosmic.beamline import Stack, beamline
from cosmic.dag_constants import REPORT_TASK, STACK_SCAN, TRANSFER_AUTO_RECON
from cosmic.scan_names import Scan, parse_path
from cosmic.scans import parse_scan_path
from facilities.errors import UserError

log = logging.getLogger(__name__)

MAX_ENERGIES, MAX_REGIONS = 200, 4  # of a stack
Place = tuple[int, int]  # energy and region

_ENERGIES_PER_REQUEST = 10  # ten energies of four regions are one request for states

# Of a run's last task: its result is there, or it will not come any more. In all other states it may.
HAS_RESULT = frozenset({"running", "success"})
_HAS_NONE = frozenset({"failed", "upstream_failed", "skipped", "removed"})


def start_when_done(path: str, engines: Sequence[str]) -> None:
    """Start a stack of each engine's results if this was the last file of a scan of several energies.

    Called by the last task of the file's run. Of files that end together, the last to begin this task sees
    the others' results, so at least one starts the stack; the run id has the number of results, so only one
    does.
    """
    file = parse_path(str(parse_scan_path(path).relative))
    if file is None or file.region is None or file.suffix:
        return
    try:
        settings, scan = beamline().stack, file.scan
        if settings is None:
            return
        for engine in engines:
            states = file_states(scan, engine, file.energy)
            number = results_of(states)
            if number is not None and len({energy for energy, _ in states}) > 1:
                _start(settings, scan, engine, number)
    except UserError as error:  # the file's own result is there
        log.warning("No stack was started: %s", error)


def _start(settings: Stack, scan: Scan, engine: str, number: int) -> None:
    run_id = automatic_run_id(scan, engine, number)
    new = runs.start(
        run_id,
        {"scan": scan.name, "engine": engine},
        f"Started by {TRANSFER_AUTO_RECON}: {number} results",
        dag_id=STACK_SCAN,
        run_after=datetime.now(UTC) + timedelta(minutes=settings.wait_minutes),
    )
    log.info("All files of %s are done: %s %s.", scan.name, run_id, "starts" if new else "exists already")


def automatic_run_id(scan: Scan, engine: str, number: int) -> str:
    """Id of the run that starts when a scan has so many results."""
    return f"{scan.name}_{engine}_{number}"


def file_states(scan: Scan, engine: str, energy: int) -> dict[Place, list[Mapping[str, str | None]]]:
    """States of the last tasks of all runs of a scan's files, the first run first.

    :param energy: one that the scan has. Looking ends at ten energies without a run after it, and at a scan
        of which no other energy is near the first.
    """
    tasks = [f"{engine}.collect", REPORT_TASK]
    found: dict[Place, list[Mapping[str, str | None]]] = {}
    for first in range(0, MAX_ENERGIES, _ENERGIES_PER_REQUEST):
        places = [(i, j) for i in range(first, first + _ENERGIES_PER_REQUEST) for j in range(MAX_REGIONS)]
        new = _runs_of(scan, places, 1, tasks)
        found |= new
        if first + _ENERGIES_PER_REQUEST > energy and (not new or {i for i, _ in found} == {energy}):
            break
    again, generation = list(found), 2
    while again and len({i for i, _ in found}) > 1:
        new = _runs_of(scan, again, generation, tasks)
        for place, states in new.items():
            found[place] += states
        again, generation = list(new), generation + 1
    return found


def _runs_of(
    scan: Scan, places: Sequence[Place], generation: int, tasks: Sequence[str]
) -> dict[Place, list[Mapping[str, str | None]]]:
    ids = {parse_scan_path(scan.path(*place)).run_id(generation): place for place in places}
    return {ids[run_id]: [states] for run_id, states in runs.task_states(list(ids), tasks).items()}


def results_of(states: Mapping[Place, Sequence[Mapping[str, str | None]]]) -> int | None:
    """How many results the runs of a scan's files have left; None while one may still come."""
    number = 0
    for of_file in states.values():
        for of_run in of_file:
            report = of_run.get(REPORT_TASK)
            if report not in HAS_RESULT | _HAS_NONE:
                return None
            collected = (state for task_id, state in of_run.items() if task_id != REPORT_TASK)
            number += report in HAS_RESULT and "success" in collected
    return number
