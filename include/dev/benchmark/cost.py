"""Measures the CPU seconds of a scan when a hundred come at once, beside empty steps, and of idling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cosmic.dag_constants import CANCEL_ABANDONED_WORK, FIND_MISSED_SCANS, NOTIFY, TRANSFER_AUTO_RECON
from dev.benchmark.cpu import cores
from dev.benchmark.load import Load, measure_load, new_scan
from dev.benchmark.ours import ONLY_ASKED, RECONSTRUCTED, Ours, running_ours

ROUNDS = 5
SCANS = 100
BYTES = 200_000
SLOTS = 8  # jobs at once
SCHEDULED = (CANCEL_ABANDONED_WORK, NOTIFY, FIND_MISSED_SCANS)
# What is scheduled runs every two minutes, in every second window: the median of an even number lies between.
WINDOWS = 6
WINDOW = 60.0


class Cost(NamedTuple):
    """What scans cost.

    :param scans: the rounds; `empty` those of an empty DAG that defers as often.
    :param steps: tasks that a scan's run has done; `empty_steps` those of the empty DAG.
    :param mismatches: how often Airflow failed a task since its trigger had fired before its worker reported.
    :param second_tries: tasks of scans that were tried again, for that or another reason.
    :param idle: cores that each part uses when no scan comes; with what is scheduled.
    """

    scans: list[Load]
    empty: list[Load]
    steps: int
    empty_steps: int
    mismatches: int
    second_tries: int
    idle: list[dict[str, float]]


def measure_cost(folder: Path, show: Callable[[int, Load, Load], None]) -> Cost:
    """Measure, on SQLite and with the LocalExecutor.

    :param show: gets the number of a round, and its two loads, when they are there.
    """
    with running_ours(folder, extra=ONLY_ASKED, slots=SLOTS) as (airflow, facility):
        ours = Ours(airflow, TRANSFER_AUTO_RECON, RECONSTRUCTED)
        empty = Ours(airflow, "baseline_deferring")
        measure_load(ours, "warm-up-", [new_scan(facility, 0, BYTES)])
        measure_load(empty, "warm-up-", [""])
        scans, empties = [], []
        for number in range(ROUNDS):  # in turn, so that a slow minute hits both
            files = [new_scan(facility, 1000 * (number + 1) + n, BYTES) for n in range(SCANS)]
            scans.append(measure_load(ours, f"round-{number}-", files))
            empties.append(measure_load(empty, f"round-{number}-", [""] * SCANS))
            show(number + 1, scans[-1], empties[-1])
        ours.turn_on(*SCHEDULED)
        idle = [cores(ours.cpu, WINDOW) for _ in range(WINDOWS)]
        return Cost(
            scans=scans,
            empty=empties,
            steps=ours.steps("warm-up-000"),
            empty_steps=empty.steps("warm-up-000"),
            mismatches=ours.state_mismatches(),
            second_tries=ours.second_tries(),
            idle=idle,
        )
