"""Counts, reads and starts runs of `transfer_auto_recon`, from a task or a trigger.

Tasks have no access to Airflow's database and no user for its REST API; what they have is a connection to
their supervisor, which Airflow's own TriggerDagRunOperator uses as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse, TriggerDagRun
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from cosmic.dag_constants import COPY_TASK, TRANSFER_AUTO_RECON
from cosmic.scans import ScanPath, parse_scan_path
from facilities.errors import TransientError, UserError

ACTIVE = frozenset({"queued", "running"})
"""States of a run that is not over."""

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


def count_active() -> int:
    """How many runs are queued or running, whoever started them."""
    return int(RuntimeTaskInstance.get_dr_count(dag_id=TRANSFER_AUTO_RECON, states=sorted(ACTIVE)))


def count_copying() -> int:
    """How many of them have not finished their transfer yet."""
    return int(
        RuntimeTaskInstance.get_ti_count(dag_id=TRANSFER_AUTO_RECON, task_ids=[COPY_TASK], states=_UNFINISHED)
    )


def states_by_generation(scans: Sequence[ScanPath]) -> dict[ScanPath, dict[int, str]]:
    """States of all runs of these scans that have an id of ours; scans without a run are left out.

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
    return found


def with_a_run(scans: Sequence[ScanPath]) -> set[ScanPath]:
    """Those of the scans that have a run, whatever became of it."""
    by_id = {scan.run_id(): scan for scan in scans}
    return {by_id[run_id] for some in _chunks(list(by_id)) for run_id in _existing(some)}


def start(run_id: str, conf: Mapping[str, Any], note: str) -> bool:
    """Start a run; False when there is one with this id already.

    :raises UserError: Airflow refuses these parameters, or has no such DAG.
    :raises TransientError: Airflow's API server does not answer.
    """
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS  # noqa: PLC0415 - set when a task starts

    request = TriggerDagRun(dag_id=TRANSFER_AUTO_RECON, run_id=run_id, conf=dict(conf), note=note)
    try:
        reply = SUPERVISOR_COMMS.send(request)
    except AirflowRuntimeError as error:
        detail = error.error.detail or {}
        message = str(detail.get("detail") or detail.get("message") or error)
        if detail.get("status_code") in (400, 404, 422):
            raise UserError(
                f"Airflow refuses to start a run of {TRANSFER_AUTO_RECON}",
                remote_id=run_id,
                next_step="correct what it names (`processing` in beamline.yaml), then clear this task.",
                details=message,
            ) from error
        raise TransientError(
            f"A run of {TRANSFER_AUTO_RECON} could not be started",
            remote_id=run_id,
            next_step="see the API server's log; this task retries, and starts none twice.",
            details=message,
        ) from error
    return not (isinstance(reply, ErrorResponse) and reply.error is ErrorType.DAGRUN_ALREADY_EXISTS)


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
