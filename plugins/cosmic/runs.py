"""Counts, reads and starts runs of `transfer_auto_recon`, from a task or a trigger.

Tasks have no access to Airflow's database and no user for its REST API; what they have is a connection to
their supervisor, which Airflow's own TriggerDagRunOperator uses as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypedDict

from airflow.sdk import Asset, AssetAlias
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import (
    AssetEventsResult,
    ErrorResponse,
    GetAssetEventByAssetAlias,
    TriggerDagRun,
)
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from cosmic.dag_constants import CHECK_TASK, COPY_TASK, TRANSFER_AUTO_RECON
from cosmic.scans import ScanPath, parse_scan_path
from facilities.errors import TransientError, UserError

ACTIVE = frozenset({"queued", "running"})
"""States of a run that is not over."""

OTHER = 0
"""Stands for the generation of the runs whose ids are not made from their scan."""

OTHER_RUNS = AssetAlias("cosmic_runs_with_other_ids")
"""Tasks cannot search Airflow's runs for a scan. A run with an id that is not made from its scan, and so
cannot be guessed, is entered here by its first task: an asset event with the scan's path."""

_OTHER_RUN = Asset("cosmic_run_with_other_id")
_UNFINISHED = ["null", "scheduled", "queued", "running", "deferred", "restarting"]
_UNFINISHED += ["up_for_retry", "up_for_reschedule"]
_IDS_PER_REQUEST = 40  # ids travel in the address: 40 of the longest are 10 kB
_GAP = 2  # a run that somebody deleted leaves a gap in the generations


class DayToStart(TypedDict):
    """The runs to start for one day; as small as it can be, because there may be thousands."""

    day: str  # ISO
    parameters: dict[str, Any]
    scans: list[tuple[str, int]]  # path, generation


class RunToStart(NamedTuple):
    """A run that may exist already."""

    day: str
    run_id: str
    conf: dict[str, Any]


def runs_to_start(days: Sequence[DayToStart]) -> list[RunToStart]:
    """The runs of these days, in order.

    :raises UserError: a path is not that of a scan.
    """
    scans = [(day, parse_scan_path(path), number) for day in days for path, number in day["scans"]]
    return [
        RunToStart(day["day"], scan.run_id(number), {**day["parameters"], "file_path": str(scan.relative)})
        for day, scan, number in scans
    ]


class Activity(NamedTuple):
    """How many runs are active, and how many of them have not finished their transfer."""

    active: int
    copying: int


def activity(started: Sequence[str]) -> Activity:
    """Count the active runs, whoever started them.

    A run that has not begun is not counted: its date may be years ahead. (Others begin within a second.)

    :param started: ids of runs that are counted even so.
    """
    active = RuntimeTaskInstance.get_dr_count(dag_id=TRANSFER_AUTO_RECON, states=sorted(ACTIVE))
    copying = _count_tasks(COPY_TASK, _UNFINISHED)
    waiting = _count_tasks(CHECK_TASK, ["null"])
    if waiting:
        waiting -= sum(_count_tasks(CHECK_TASK, ["null"], some) for some in _chunks(started))
    return Activity(max(active - waiting, 0), max(copying - waiting, 0))


def _count_tasks(task_id: str, states: list[str], run_ids: list[str] | None = None) -> int:
    return int(
        RuntimeTaskInstance.get_ti_count(
            dag_id=TRANSFER_AUTO_RECON, task_ids=[task_id], states=states, run_ids=run_ids
        )
    )


def enter_other_run(scan: ScanPath, outlet_events: Any) -> None:
    """Enter the run of the present task, whose id is not made from its scan, so that it can be found."""
    outlet_events[OTHER_RUNS].add(_OTHER_RUN, extra={"scan": str(scan.relative)})


def states_by_generation(scans: Sequence[ScanPath]) -> dict[ScanPath, dict[int, str]]:
    """States of all runs of these scans; scans without a run are left out.

    Those with other ids than the scan's own have one state together, under `OTHER`: "running" when one of
    them is active, "success" when one has succeeded.

    :raises TransientError: Airflow's API server does not answer.
    """
    found: dict[ScanPath, dict[int, str]] = {}
    looked_for, generation = list(scans), 1
    while looked_for:
        states = _states([scan.run_id(generation) for scan in looked_for])
        for scan in looked_for:
            if (state := states.get(scan.run_id(generation))) is not None:
                found.setdefault(scan, {})[generation] = state
        generation += 1
        looked_for = [scan for scan in looked_for if generation - max(found.get(scan, {0: ""})) <= _GAP]
    others = _other_runs(scans)
    states = _states([run_id for run_ids in others.values() for run_id in run_ids])
    for scan, run_ids in others.items():
        known = {states[run_id] for run_id in run_ids if run_id in states}
        if known:
            best = "running" if known & ACTIVE else "success" if "success" in known else "failed"
            found.setdefault(scan, {})[OTHER] = best
    return found


def task_states(run_ids: Sequence[str], task_ids: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """States of these tasks in those of the runs that exist, by run id and task id."""
    found: dict[str, dict[str, str | None]] = {}
    for some in _chunks(run_ids):
        found |= RuntimeTaskInstance.get_task_states(
            dag_id=TRANSFER_AUTO_RECON, task_ids=list(task_ids), run_ids=some
        )
    return found


def with_a_run(scans: Sequence[ScanPath]) -> set[ScanPath]:
    """Those of the scans that have a run, whatever became of it."""
    by_id = {scan.run_id(): scan for scan in scans}
    by_id |= {run_id: scan for scan, run_ids in _other_runs(scans).items() for run_id in run_ids}
    return {by_id[run_id] for some in _chunks(list(by_id)) for run_id in _existing(some)}


def start(
    run_id: str,
    conf: Mapping[str, Any],
    note: str,
    *,
    dag_id: str = TRANSFER_AUTO_RECON,
    run_after: datetime | None = None,
) -> bool:
    """Start a run; False when there is one with this id already.

    :param run_after: when it may begin; None: now.

    :raises UserError: Airflow refuses these parameters, or has no such DAG.
    :raises TransientError: Airflow's API server does not answer.
    """
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS  # noqa: PLC0415 - set when a task starts

    request = TriggerDagRun(dag_id=dag_id, run_id=run_id, conf=dict(conf), note=note, run_after=run_after)
    try:
        reply = SUPERVISOR_COMMS.send(request)
    except AirflowRuntimeError as error:
        detail = error.error.detail or {}
        message = str(detail.get("detail") or detail.get("message") or error)
        if detail.get("status_code") in (400, 404, 422):
            raise UserError(
                f"Airflow refuses to start a run of {dag_id}",
                remote_id=run_id,
                next_step="correct what it names (`processing` in beamline.yaml), then clear this task.",
                details=message,
            ) from error
        raise TransientError(
            f"A run of {dag_id} could not be started",
            remote_id=run_id,
            next_step="see the API server's log; this task retries, and starts none twice.",
            details=message,
        ) from error
    return not (isinstance(reply, ErrorResponse) and reply.error is ErrorType.DAGRUN_ALREADY_EXISTS)


def _other_runs(scans: Sequence[ScanPath]) -> dict[ScanPath, set[str]]:
    """Ids of the runs of these scans that have entered themselves."""
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS  # noqa: PLC0415 - set when a task starts

    by_path = {str(scan.relative): scan for scan in scans}
    found: dict[ScanPath, set[str]] = {}
    reply = SUPERVISOR_COMMS.send(GetAssetEventByAssetAlias(alias_name=OTHER_RUNS.name))
    if not isinstance(reply, AssetEventsResult):
        raise TransientError("Airflow does not list the runs with other ids", state=str(reply)[:200])
    for event in reply.asset_events:
        scan = by_path.get(str((event.extra or {}).get("scan")))
        if scan is not None and event.source_run_id is not None:
            found.setdefault(scan, set()).add(event.source_run_id)
    return found


def _states(run_ids: Sequence[str]) -> dict[str, str]:
    states: dict[str, str] = {}
    for some in _chunks(run_ids):
        there = _existing(some)
        # Usually all of a chunk have succeeded, and one request is enough.
        if there and RuntimeTaskInstance.get_dr_count(
            dag_id=TRANSFER_AUTO_RECON, run_ids=there, states=["success"]
        ) == len(there):
            states |= dict.fromkeys(there, "success")
        else:
            states |= {
                run_id: RuntimeTaskInstance.get_dagrun_state(TRANSFER_AUTO_RECON, run_id) for run_id in there
            }
    return states


def _existing(run_ids: list[str]) -> list[str]:
    return list(
        RuntimeTaskInstance.get_task_states(dag_id=TRANSFER_AUTO_RECON, task_ids=[COPY_TASK], run_ids=run_ids)
    )


def _chunks(run_ids: Sequence[str]) -> Iterator[list[str]]:
    for first in range(0, len(run_ids), _IDS_PER_REQUEST):
        yield list(run_ids[first : first + _IDS_PER_REQUEST])
