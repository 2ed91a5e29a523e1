"""What the page of a scan says of one run: its steps in time, its parameters, the figures of its results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import select
from sqlalchemy.orm import Session

from cosmic.dag_constants import CHECK_TASK, COPY_TASK
from cosmic.parameters import ENGINES, RECONSTRUCTION, REQUIRED, Parameter
from cosmic.run_summary import XComs
from facilities.progress import Progress
from facilities.superfacility.slurm import RUNNING, parse_state

_SECTIONS = {"ptychocam": "ptychocam", "cdtools": "CDTools"}
_LEFT_OUT = frozenset({"skipped", "upstream_failed", "removed"})
_MAX_TEXT = 500  # characters of a value that is shown


@dataclass(frozen=True)
class Step:
    """A step of a run.

    :param end: None: it goes on.
    :param state: success, failed, running or waiting.
    :param note: for people.
    """

    name: str
    start: datetime
    end: datetime | None
    state: str
    note: str = ""

    def seconds(self, now: datetime) -> float:
        """How long it took, or takes by now."""
        return max(((self.end or now) - self.start).total_seconds(), 0.0)


@dataclass(frozen=True)
class Chain:
    """A run's steps, the engines' one after the other, and the time from the first to the last.

    Not in the order of their beginnings: Slurm's are whole seconds, so a job may begin before its submission.
    """

    steps: Sequence[Step]
    now: datetime

    @property
    def first(self) -> datetime:
        """When the first step began."""
        return min(step.start for step in self.steps)

    @property
    def seconds(self) -> float:
        """From the first step's start to the last one's end."""
        last = max(step.end or self.now for step in self.steps)
        return max((last - self.first).total_seconds(), 0.001)

    def place(self, step: Step, width: float) -> tuple[float, float]:
        """Left side and width of a step's bar, of a drawing of that width."""
        scale = width / self.seconds
        left = (step.start - self.first).total_seconds() * scale
        return round(left, 1), round(max(step.seconds(self.now) * scale, 2.0), 1)


@dataclass(frozen=True)
class Value:
    """A parameter of a run.

    :param changed: it is not the default.
    """

    name: str
    title: str
    value: str
    default: str
    changed: bool


@dataclass(frozen=True)
class Section:
    """Parameters under one heading."""

    title: str
    values: Sequence[Value]


@dataclass(frozen=True)
class Figures:
    """What pages show of a reconstruction's figures. What there is not is None or empty.

    :param kept: whether the figures are kept here; otherwise only what the run itself has is known.
    :param binned: how many pixels of the object, per axis, one of the picture's is.
    """

    engine: str
    kept: bool
    values: Sequence[tuple[str, str]] = ()
    parameters: Sequence[tuple[str, str]] = ()
    metadata: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    binned: int | None = None
    warnings: Sequence[str] = field(default_factory=tuple)


def chain(
    session: Session, run: DagRun, progress: Mapping[str, Progress], now: datetime | None = None
) -> Chain | None:
    """The steps of a run; None when it has not begun.

    :param progress: of the tasks that wait, by their ids.
    """
    now = now or datetime.now(UTC)
    tasks = {
        task.task_id: task
        for task in session.scalars(
            select(TaskInstance).where(TaskInstance.dag_id == run.dag_id, TaskInstance.run_id == run.run_id)
        )
    }
    xcoms = XComs(session, run)
    steps = [
        *_posted(run, tasks.get(CHECK_TASK)),
        *_of_task("transfer", tasks.get(COPY_TASK), _transferred(xcoms.mapping(COPY_TASK))),
    ]
    for engine in ENGINES:
        steps += _job(engine, tasks, xcoms, progress.get(f"{engine}.wait"), now)
    return Chain(steps, now) if steps else None


def _posted(run: DagRun, first: TaskInstance | None) -> list[Step]:
    if run.queued_at is None:
        return []
    begun = first.start_date if first is not None else None
    over = begun or run.end_date
    if over is not None and over < run.queued_at:
        return []
    return [Step("waiting to begin", run.queued_at, over, "success" if over else "waiting")]


def _of_task(name: str, task: TaskInstance | None, note: str = "") -> list[Step]:
    state = str(task.state) if task is not None else ""
    if task is None or task.start_date is None or state in _LEFT_OUT:
        return []
    shown = state if state in ("success", "failed") else "running"
    end = task.end_date if shown != "running" else None
    return [Step(name, task.start_date, end, shown, note)]


def _transferred(transfer: Mapping[str, Any] | None) -> str:
    if not transfer:
        return ""
    if not transfer.get("bytes"):
        return "nothing to copy: it was at NERSC already"
    rate = f", {_size(transfer['rate'])}/s" if transfer.get("rate") else ""
    return f"{_size(transfer['bytes'])}{rate}"


def _size(count: float) -> str:
    """Bytes as people say them."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"


def _job(
    engine: str, tasks: Mapping[str, TaskInstance], xcoms: XComs, far: Progress | None, now: datetime
) -> list[Step]:
    """Submission, queue and run of an engine's job, and the check of its result."""
    steps = _of_task(f"{engine}: submission", tasks.get(f"{engine}.submit"))
    wait = tasks.get(f"{engine}.wait")
    job = xcoms.mapping(f"{engine}.wait") or {}
    submitted, started, ended = (_moment(job.get(key)) for key in ("submitted", "started", "ended"))
    if submitted and started and ended:
        steps.append(Step(f"{engine}: in Slurm's queue", submitted, started, "success"))
        steps.append(Step(f"{engine}: Slurm job", started, ended, "success", f"job {job.get('job_id')}"))
    elif far is not None and wait is not None and wait.start_date is not None:
        steps += _going_on(engine, wait.start_date, far, now)
    else:
        steps += _of_task(f"{engine}: queue and Slurm job", wait)
    return steps + _of_task(f"{engine}: check of the result", tasks.get(f"{engine}.collect"))


def _going_on(engine: str, waits_since: datetime, far: Progress, now: datetime) -> list[Step]:
    queue, job = f"{engine}: in Slurm's queue", f"{engine}: Slurm job"
    if parse_state(far.state) not in RUNNING or far.elapsed is None:
        return [Step(queue, waits_since, None, "waiting", far.trouble)]
    began = max(now - timedelta(seconds=far.elapsed), waits_since)
    limit = f"of {duration(far.limit)}" if far.limit else ""
    return [Step(queue, waits_since, began, "success"), Step(job, began, None, "running", limit)]


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(7260)
    '2 h 1 min'
    """
    if seconds < 60:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def parameters(conf: Mapping[str, Any], engines: Iterable[str]) -> list[Section]:
    """The parameters of a run, without those of engines that it does not run.

    :param conf: as the run was started with.
    """
    left_out = {"Scan"} | {title for engine, title in _SECTIONS.items() if engine not in engines}
    sections: dict[str, list[Value]] = {}
    for name, parameter in RECONSTRUCTION.items():
        if parameter.section not in left_out:
            sections.setdefault(parameter.section, []).append(_value(name, parameter, conf))
    return [Section(title, values) for title, values in sections.items()]


def _value(name: str, parameter: Parameter, conf: Mapping[str, Any]) -> Value:
    default = None if parameter.default is REQUIRED else parameter.default
    given = conf.get(name, default)
    try:
        changed = parameter.read(given) != parameter.read(default)
    except ValueError:  # of an older version, with other bounds
        changed = True
    return Value(name, parameter.title, text_of(given), text_of(default), changed)


def text_of(value: object) -> str:
    """A value of JSON as people write it."""
    if value is None or value == "":
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)[:_MAX_TEXT]


def figures_of(result: Mapping[str, Any], held: Mapping[str, Any] | None) -> Figures:
    """What a page shows of a reconstruction.

    :param result: a `cosmic.results.Reconstruction`.
    :param held: the kept figures, None when there are none.
    """
    quality = result.get("quality") or {}
    known = held or {}
    view = known.get("view")
    binned = view.get("binned") if isinstance(view, Mapping) else None
    return Figures(
        engine=str(result.get("engine")),
        kept=held is not None,
        values=_figures(quality, known, result),
        parameters=_pairs(known.get("parameters")),
        metadata=_pairs(known.get("metadata")),
        notes=_texts(known.get("notes")),
        binned=binned if isinstance(binned, int) else None,
        warnings=_texts(result.get("warnings")),
    )


def _figures(
    quality: Mapping[str, Any], known: Mapping[str, Any], result: Mapping[str, Any]
) -> list[tuple[str, str]]:
    error, pixel = number(quality.get("final_error")), quality.get("pixel_size_m")
    resolution, energy = number(quality.get("resolution_m")), number(known.get("energy_ev"))
    found: list[tuple[str, str]] = []
    if error is not None:
        after = f" after {quality.get('iterations')} iterations" if quality.get("iterations") else ""
        found.append(("Error", f"{error:.4g}{after}"))
    if quality.get("frames"):
        found.append(("Frames", text_of(quality["frames"])))
    if energy is not None:
        found.append(("Energy", f"{energy:.2f} eV"))
    if isinstance(pixel, list) and pixel and (size := number(pixel[0])) is not None:
        found.append(("Pixel", f"{size * 1e9:.2f} nm"))
    if resolution is not None:
        found.append(("Resolution", f"{resolution * 1e9:.1f} nm, half a period"))
    if result.get("node_hours") is not None:
        found.append(("Node-hours", f"{result['node_hours']:.4f}"))
    return [*found, ("Slurm job", text_of(result.get("job_id"))), ("At NERSC", text_of(result.get("result")))]


def number(value: object) -> float | None:
    """A number; None for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _pairs(values: object) -> list[tuple[str, str]]:
    return (
        [(str(k)[:100], text_of(v)) for k, v in values.items()][:100] if isinstance(values, Mapping) else []
    )


def _texts(values: object) -> list[str]:
    return [str(value)[:_MAX_TEXT] for value in values][:50] if isinstance(values, list) else []
