"""What a scan is doing or has become, in plain words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from cosmic.dag_constants import COPY_TASK
from cosmic.parameters import ENGINES
from cosmic.scan_records import File, Run, Scan
from facilities.progress import Progress
from facilities.superfacility.slurm import RUNNING, SlurmState, parse_state

Words = Sequence[str | datetime]
"""A sentence; a moment in it is shown in its reader's time zone."""

_UNKNOWN = Progress()
_WAITING, _TRANSFER, _QUEUE, _RUNNING, _CHECKING = (
    "waiting to begin",
    "waiting for the transfer",
    "in Slurm's queue",
    "running",
    "checking the result",
)


def state_of(scan: Scan) -> tuple[str, Words]:
    """A scan's state: one of waiting, running, success, partial, failed, cancelled; and its words."""
    if len(scan.files) == 1:
        return _state_of_run(scan.files[0].run)
    return _state_of_files(scan.files)


def doing(run: Run) -> Words:
    """What an active run is at."""
    steps = dict(_step(task_id, state, run.progress.get(task_id)) for task_id, state in run.tasks.items())
    if not steps:
        return [_WAITING]
    engines = [engine for engine in ENGINES if engine in steps]
    if len(engines) < 2:
        return next((steps[engine] for engine in engines), None) or steps[""]
    words: list[str | datetime] = []
    for engine in engines:
        words += ["; " if words else "", f"{engine}: ", *steps[engine]]
    return words


def _state_of_run(run: Run) -> tuple[str, Words]:
    if run.outcome == "active":
        words = doing(run)
        return ("running" if any(_RUNNING in str(word) for word in words) else "waiting"), words
    if run.outcome == "stopped":
        return "cancelled", [f"stopped by {run.stopped_by}"]
    if run.outcome == "failed":
        reason = run.error or "no task has left a reason; its worker may have been ended"
        done = " and ".join(engine for engine in ENGINES if engine in run.results)
        part = f" in part, {done} is done" if done else ""
        return ("partial" if done else "failed"), [f"failed{part}: {reason}"]
    warnings = sum(result.warnings for result in run.results.values())
    if warnings:
        return "partial", [f"done, with {warnings} warning{'s' if warnings > 1 else ''}"]
    if run.lacks_result:
        return "partial", [
            "done, but without a result: it was marked as success by hand, or Airflow's record of the result "
            "was removed"
        ]
    return "success", ["done" if run.results else "done: copied to NERSC, no reconstruction asked for"]


def _state_of_files(files: Sequence[File]) -> tuple[str, Words]:
    """`7 of 80 done, 2 failed (the probe has no support), 71 go on: 60 in Slurm's queue, 11 running`."""
    count = Counter(file.run.outcome for file in files)
    text = f"{count['done']} of {len(files)} done"
    if count["failed"]:
        reasons = Counter(file.run.error for file in files if file.run.outcome == "failed" and file.run.error)
        text += f", {count['failed']} failed" + (f" ({reasons.most_common(1)[0][0]})" if reasons else "")
    if count["stopped"]:
        by = next(file.run.stopped_by for file in files if file.run.outcome == "stopped")
        text += f", {count['stopped']} stopped by {by}"
    if count["active"]:
        steps = Counter(str(doing(file.run)[0]) for file in files if file.run.outcome == "active")
        at = ", ".join(f"{number} {_short(step)}" for step, number in steps.most_common(4))
        text += f", {count['active']} to go: {at}"
    warnings = sum(result.warnings for file in files for result in file.results.values())
    text += f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    empty = sum(file.run.lacks_result for file in files)
    text += f", {empty} without a result" if empty else ""
    if count["active"]:
        return "running" if not count["failed"] else "partial", [text]
    if count["failed"]:
        return "partial" if count["done"] else "failed", [text]
    return ("cancelled" if count["stopped"] else "partial" if warnings or empty else "success"), [text]


def _short(step: str) -> str:
    return step.partition(",")[0].partition(":")[0]


def _step(task_id: str, state: str, progress: Progress | None) -> tuple[str, Words]:
    """The engine (empty for none), and what its task is at."""
    engine, _, task = task_id.rpartition(".")
    far = progress or _UNKNOWN
    if state == "up_for_retry":
        words: Words = [f"{_NAMES.get(task, task)} failed, it is tried again"]
    elif task == COPY_TASK:
        words = _transfer(far)
    elif task == "submit":
        words = [f"waiting for NERSC: {far.trouble}" if far.trouble else "being submitted to Slurm"]
    elif task == "wait":
        words = _job(far)
    elif task in ("collect", "report"):
        words = [_CHECKING]
    else:
        words = [_WAITING]
    return engine, words


_NAMES: Mapping[str, str] = {
    COPY_TASK: "the transfer",
    "submit": "the submission to Slurm",
    "wait": "the Slurm job",
    "collect": "the check of the result",
}


def _transfer(far: Progress) -> Words:
    parts = []
    if far.total and far.done is not None:
        parts.append(f"{min(far.done / far.total, 1):.0%}".replace("%", " %"))
    if far.rate:
        parts.append(f"{far.rate / 1e6:.3g} MB/s" if far.rate >= 1e6 else f"{far.rate / 1e3:.3g} kB/s")
    if far.trouble:
        parts.append(far.trouble)
    return [_TRANSFER + (f": {', '.join(parts)}" if parts else "")]


def _job(far: Progress) -> Words:
    state = parse_state(far.state)
    if far.trouble:
        return [f"{_QUEUE}, {far.trouble}"]
    if state in RUNNING and far.elapsed is not None:
        of = f" of {far.limit / 60:.0f}" if far.limit else ""
        return [f"{_RUNNING}, {far.elapsed // 60:.0f}{of} min"]
    if state is SlurmState.PENDING:
        return _queue(far.start_estimate)
    return [f"Slurm job {far.state.lower()}" if far.state else "waiting for its Slurm job"]


def _queue(start_estimate: str | None) -> Words:
    try:
        start = datetime.fromisoformat(start_estimate or "")
    except ValueError:
        return [_QUEUE]
    return [f"{_QUEUE}, starts about ", start] if start.tzinfo else [_QUEUE]
