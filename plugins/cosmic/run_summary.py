"""What became of a run, for people: read from Airflow's database, for the "Result" tab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from cosmic.cancellations import Cancellation, cancellations
from cosmic.dag_constants import COPY_TASK, NO_STACK_KEY, REPORT_TASK, STACK_SCAN, TRANSFER_AUTO_RECON
from cosmic.failures import reprocess_command, stack_command
from cosmic.parameters import ENGINES, RECONSTRUCTION, STACK
from cosmic.scan_files import ScanFiles, scan_files
from cosmic.task_names import step_name
from facilities.failures import ERROR_KEY

_DOING = {
    "deferred": "waiting at the facility",
    "up_for_retry": "failed, will be tried again",
    "running": "running",
    "queued": "about to run",
    "scheduled": "about to run",
    "restarting": "about to run",
}


@dataclass(frozen=True)
class Step:
    """A task that failed or goes on.

    :param name: for people, such as `cdtools: Slurm job`.
    :param state: what it is doing, for people.
    :param error: a `facilities.failures.KeptError`; None: it left none.
    :param log_url: page of its log.
    """

    name: str
    state: str
    engine: str
    error: Mapping[str, Any] | None
    log_url: str


@dataclass(frozen=True)
class RunSummary:
    """A run. What there is not (yet) is None or empty.

    :param outcome: waiting, running, success, failed, partial (failed, but a reconstruction is there) or
        cancelled.
    :param transfer: a `facilities.globus.operators.TransferResult`.
    :param reconstructions: each a `cosmic.results.Reconstruction`.
    :param stacks: a `cosmic.stacks.Stacks`, of a run of `stack_scan`.
    :param no_stack: why such a run made none.
    :param jobs: Slurm job by engine, of engines without a result.
    :param days: the table of a run of `find_missed_scans`.
    :param days_left: of NERSC's client, of a flight check.
    :param files: all files of the scan, when it has several.
    """

    run: DagRun
    outcome: str
    cancelled: Cancellation | None
    failed: Sequence[Step]
    active: Sequence[Step]
    transfer: Mapping[str, Any] | None = None
    reconstructions: Sequence[Mapping[str, Any]] = ()
    stacks: Mapping[str, Any] | None = None
    no_stack: str | None = None
    jobs: Mapping[str, str] = field(default_factory=dict)
    days: Sequence[Mapping[str, Any]] = ()
    days_left: float | None = None
    files: ScanFiles | None = None

    @property
    def run_again(self) -> str:
        """The client's command for another run of the scan, or of its stack; empty for other DAGs' runs."""
        conf = self.run.conf or {}
        if self.run.dag_id == STACK_SCAN:
            return stack_command({name: parameter.default for name, parameter in STACK.items()} | conf)
        if self.run.dag_id != TRANSFER_AUTO_RECON:
            return ""
        defaults = {name: parameter.default for name, parameter in RECONSTRUCTION.items()}
        return reprocess_command(defaults | conf, "")

    @property
    def asked_for(self) -> bool:
        """Whether a reconstruction was."""
        conf = self.run.conf or {}
        return any(conf.get(f"do_{engine}") for engine in ENGINES)

    @property
    def is_stack(self) -> bool:
        """Whether the run is to make stacks of results that are there."""
        return bool(self.run.dag_id == STACK_SCAN)

    @property
    def scan(self) -> str:
        """The path, or the scan to stack, that the run was asked for; empty for other DAGs' runs."""
        conf = self.run.conf or {}
        return str(conf.get("file_path") or conf.get("scan") or "")


class XComs:
    """The XComs of a run, by task and key."""

    def __init__(self, session: Session, run: DagRun) -> None:
        self._session, self._run = session, run

    def get(self, task_id: str, key: str = "return_value") -> Any:
        """A value; None when there is none."""
        query = XComModel.get_many(
            run_id=self._run.run_id, dag_ids=self._run.dag_id, task_ids=task_id, key=key, limit=1
        )
        row = self._session.scalars(query).first()
        return None if row is None else XComModel.deserialize_value(row)

    def mapping(self, task_id: str, key: str = "return_value") -> dict[str, Any] | None:
        """A value that is a mapping; None for any other."""
        value = self.get(task_id, key)
        return value if isinstance(value, dict) else None


def summarize(session: Session, run: DagRun, prefix: str) -> RunSummary:
    """Read all about a run.

    :param prefix: of Airflow's address, for links.
    """
    xcoms = XComs(session, run)
    ended = summarize_end(session, run, prefix)
    stacks = xcoms.mapping("collect") if run.dag_id == STACK_SCAN else None
    done = {"stack"} if stacks else {result["engine"] for result in ended.reconstructions}
    return replace(
        ended,
        active=[_step(task, xcoms, prefix) for task in _tasks(session, run) if task.state in _DOING],
        transfer=xcoms.mapping(COPY_TASK),
        stacks=stacks,
        no_stack=xcoms.get("check", NO_STACK_KEY) if run.dag_id == STACK_SCAN else None,
        jobs=_jobs(xcoms, done),
        days=_days(xcoms),
        days_left=xcoms.get("check_nersc"),
        files=scan_files(session, run, prefix),
    )


def summarize_end(session: Session, run: DagRun, prefix: str) -> RunSummary:
    """Read only how a run has ended, and what it has reconstructed; for many runs at a time."""
    tasks = _tasks(session, run)
    xcoms = XComs(session, run)
    reconstructions = [found for name in ENGINES if (found := xcoms.mapping(f"{name}.collect"))]
    failed = [_step(task, xcoms, prefix) for task in tasks if task.state == "failed"]
    cancelled = cancellations(session, DagRun.id == run.id).get(run.run_id) if run.state == "failed" else None
    return RunSummary(
        run=run,
        outcome=_outcome(run, cancelled, failed, reconstructions),
        cancelled=cancelled,
        # A task that was ended by hand has no error of its own: the cancellation is its reason.
        failed=[step for step in failed if step.error or not cancelled],
        active=(),
        reconstructions=reconstructions,
    )


def _tasks(session: Session, run: DagRun) -> Sequence[TaskInstance]:
    return session.scalars(
        select(TaskInstance)
        .where(TaskInstance.dag_id == run.dag_id, TaskInstance.run_id == run.run_id)
        .order_by(TaskInstance.start_date.is_(None), TaskInstance.start_date, TaskInstance.task_id)
    ).all()


def _outcome(
    run: DagRun, cancelled: Cancellation | None, failed: Sequence[Step], reconstructions: Sequence[object]
) -> str:
    if run.state != "failed":
        return "waiting" if run.state == "queued" else str(run.state)
    if cancelled is not None and not any(step.error for step in failed):
        return "cancelled"
    return "partial" if reconstructions else "failed"


def _step(task: TaskInstance, xcoms: XComs, prefix: str) -> Step:
    state = str(task.state)
    error = xcoms.mapping(task.task_id, ERROR_KEY) if state in ("failed", "up_for_retry") else None
    mapped = f"/mapped/{task.map_index}" if task.map_index >= 0 else ""
    return Step(
        name=step_name(task.task_id),
        state=_DOING.get(state, state),
        engine=task.task_id.partition(".")[0] if "." in task.task_id else "",
        error=error,
        log_url=f"{prefix}/dags/{task.dag_id}/runs/{task.run_id}/tasks/{task.task_id}{mapped}",
    )


def _jobs(xcoms: XComs, done: set[str]) -> dict[str, str]:
    tasks = {name: f"{name}.submit" for name in ENGINES} | {"stack": "submit"}
    submitted = {name: xcoms.mapping(task, "job") for name, task in tasks.items() if name not in done}
    return {name: str(job["job_id"]) for name, job in submitted.items() if job and job.get("job_id")}


def _days(xcoms: XComs) -> list[Mapping[str, Any]]:
    """The table of a run of `find_missed_scans`: the final one, or the one from before the starts."""
    for task_id, key in ((REPORT_TASK, "return_value"), ("compare", "rows")):
        rows = xcoms.get(task_id, key)
        if isinstance(rows, list):
            return [row for row in rows if isinstance(row, dict)]
    return []
