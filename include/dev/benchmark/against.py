"""Compares the copying of scans with the old flow's: the same files, stand-in and machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cosmic.dag_constants import PROCESS_NEWFILE
from dev.benchmark.cpu import cores
from dev.benchmark.load import Installation, measure_load, new_scan
from dev.benchmark.old_flow import running_old_flow
from dev.benchmark.ours import ONLY_ASKED, Ours, running_bare, running_ours
from standin.testing import SpawnedFacility, spawn

EMPTY_COPY = "baseline_copy"
REPEATS = 5
AT_ONCE = 20
BYTES = 4_000_000
WINDOW = 30.0  # seconds: the longest interval at which something of either looks whether there is work


class Cost(NamedTuple):
    """What an installation takes, each several times.

    Seconds of a scan alone, and of 20 at once, those that end; CPU seconds of each of the 20. `unended` are
    the runs, of the 20s, that did not end.
    """

    alone: list[float]
    at_once: list[float]
    cpu: list[float]
    unended: int


class Measured(NamedTuple):
    """Copying with ours and with the old flow, and an empty DAG that defers once.

    `refused` is how often the old flow's server answered 503. The last three are the cores that each part
    uses when nothing happens, several times; `bare_idle` is of an Airflow as it comes.
    """

    ours: Cost
    empty: Cost
    old: Cost
    refused: int
    ours_idle: list[dict[str, float]]
    bare_idle: list[dict[str, float]]
    old_idle: list[dict[str, float]]


def measure_against(checkout: Path, folder: Path, show: Callable[[str, Cost], None]) -> Measured:
    """Measure both, each with the machine to itself and its data in SQLite.

    Of ours only the DAG that copies is on: the old flow looks neither for orphans nor for what to report.

    :param show: gets what was measured of one as soon as it is there.
    """
    with running_ours(folder, extra=ONLY_ASKED) as (airflow, facility):
        installation = Ours(airflow, PROCESS_NEWFILE)
        ours = _measure(installation, facility, 0)
        show("ours", ours)
        ours_idle = _idle(installation)
        empty = _measure(Ours(airflow, EMPTY_COPY), facility, 10_000)
        show("an empty DAG that defers once", empty)
    with running_bare(folder / "bare") as airflow:
        bare = Ours(airflow, EMPTY_COPY)
        measure_load(bare, "warm-up-", ["none"])
        bare_idle = _idle(bare)
    with (
        spawn(folder / "standin-of-old") as facility,
        running_old_flow(checkout, folder / "old", facility.description["globus"]) as old_flow,
    ):
        old = _measure(old_flow, facility, 20_000)
        show("the old flow", old)
        old_idle = _idle(old_flow)
    return Measured(ours, empty, old, old_flow.refused, ours_idle, bare_idle, old_idle)


def _idle(installation: Installation) -> list[dict[str, float]]:
    return [cores(installation.cpu, WINDOW) for _ in range(REPEATS)]


def _measure(installation: Installation, facility: SpawnedFacility, first: int) -> Cost:
    """The scans are numbered from `first`: a file that is at NERSC already would not be sent again."""
    numbers = iter(range(first, first + 10_000))

    def scans(count: int) -> list[str]:
        return [new_scan(facility, next(numbers), BYTES) for _ in range(count)]

    measure_load(installation, "warm-up-", scans(1))
    alone = [measure_load(installation, f"alone-{n}-", scans(1)) for n in range(REPEATS)]
    at_once = [
        measure_load(installation, f"at-once-{n}-", scans(AT_ONCE), may_stand_still=True)
        for n in range(REPEATS)
    ]
    return Cost(
        alone=[load.seconds for load in alone],
        at_once=[load.seconds for load in at_once],
        cpu=[load.cpu_of_one for load in at_once],
        unended=sum(load.unended for load in at_once),
    )
