"""The site's settings, read from `include/beamline.yaml` when a task runs (never when a DAG is parsed)."""

from __future__ import annotations

import re
from datetime import date
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from airflow.configuration import conf
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from cosmic.parameters import RECONSTRUCTION, Engine, read_parameters
from cosmic.scan_names import USUAL_NAMES, name_pattern
from facilities.errors import UserError

DEFAULT_FILE = Path(__file__).resolve().parents[2] / "include" / "beamline.yaml"


def _absolute_path(text: str) -> str:
    if not text.startswith("/") or ".." in text.split("/") or re.search(r"[\x00-\x1f]", text):
        raise ValueError("must be an absolute path without '..' or control characters")
    return text


def _word(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise ValueError("must be one word of letters, digits, '.', '_' and '-'")
    return text


def _time_limit(text: str) -> str:
    if not re.fullmatch(r"(\d+-)?\d{1,2}:\d{2}:\d{2}", text):
        raise ValueError('must be "HH:MM:SS" or "D-HH:MM:SS", in quotes')
    return text


def _zone_name(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("must be the name of a time zone, such as America/Los_Angeles") from error
    return text


def _scan_name(text: str) -> str:
    name_pattern(text)
    return text


AbsolutePath = Annotated[str, AfterValidator(_absolute_path)]
Word = Annotated[str, AfterValidator(_word)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Collection(_Section):
    """A Globus collection and the folder in it below which scans lie."""

    name: Word
    id: UUID
    path: AbsolutePath


class SourceCollection(Collection):
    """The beamline's collection; `scan_names` are the forms of names that scans have in a day's folder."""

    scan_names: tuple[Annotated[str, AfterValidator(_scan_name)], ...] = USUAL_NAMES


class DestinationCollection(Collection):
    """NERSC's collection; `file_system_path` is the same folder as jobs and SFAPI see it."""

    file_system_path: AbsolutePath


class Collections(_Section):
    """Where scans come from and where they go."""

    source: SourceCollection
    destination: DestinationCollection


class Job(_Section):
    """What every reconstruction job asks of Slurm."""

    machine: Word
    account: Word
    qos: Word
    constraint: Word
    nodes: int
    time_limit: Annotated[str, AfterValidator(_time_limit)]


class EngineSettings(_Section):
    """Where an engine's reconstruction script is installed at NERSC."""

    script: AbsolutePath


class Engines(_Section):
    """One entry per engine."""

    ptychocam: EngineSettings
    cdtools: EngineSettings


class Stack(_Section):
    """Where `stack.sh` is installed at NERSC, its job's time limit, and how long a scan must be complete."""

    script: AbsolutePath
    time_limit: Annotated[str, AfterValidator(_time_limit)] = "00:30:00"
    wait_minutes: Annotated[float, Field(ge=0, le=1440)] = 10


class Proposal(_Section):
    """The days of a proposal's beam time, both included, and the parameters of its scans."""

    first_day: date
    last_day: date
    parameters: dict[str, Any]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.last_day < self.first_day:
            raise ValueError("last_day is before first_day")
        return self


class Processing(_Section):
    """Parameters of scans that nobody posted.

    Day settings override proposal settings, which override the defaults.
    """

    parameters: dict[str, Any] = {}
    proposals: dict[str, Proposal] = {}
    days: dict[date, dict[str, Any]] = {}


class Defocus(_Section):
    """Distance from the focus to the sample, meters, at an energy; it is in proportion to the energy."""

    distance: float = Field(default=15e-6, ge=-0.01, le=0.01)
    energy_ev: float = Field(default=700.0, gt=1.0, lt=1e6)

    def __str__(self) -> str:
        """As the reconstruction programs take it."""
        return f"{self.distance:g}@{self.energy_ev:g}"


class Notify(_Section):
    """When people are notified (`dags/notify.py`)."""

    late_after_hours: Annotated[float, Field(gt=0, le=1000)] = 24
    client_days: Annotated[float, Field(ge=0, le=365)] = 14
    interval_minutes: Annotated[float, Field(ge=0, le=1440)] = 30


class Beamline(_Section):
    """The whole of `beamline.yaml`."""

    collections: Collections
    job: Job
    engines: Engines
    stack: Stack | None = None
    job_script_folder: str
    flight_check_file: str
    positions: Literal["probe", "sample"] = "probe"
    defocus: Defocus = Defocus()
    time_zone: Annotated[str, AfterValidator(_zone_name)] = "America/Los_Angeles"
    processing: Processing = Processing()
    notify: Notify = Notify()

    def script(self, engine: Engine) -> str:
        """Absolute path of an engine's reconstruction script at NERSC."""
        settings: EngineSettings = getattr(self.engines, engine)
        return settings.script

    def parameters_for(self, day: date) -> dict[str, Any]:
        """Parameters of scans of `day` that differ from the DAG's own defaults, without `file_path`.

        :raises UserError: one of them is not a parameter of `transfer_auto_recon`, or does not fit; the
            message names its key in `beamline.yaml`.
        """
        layers = {"processing.parameters": self.processing.parameters}
        for name, proposal in self.processing.proposals.items():
            if proposal.first_day <= day <= proposal.last_day:
                layers[f"processing.proposals.{name}.parameters"] = proposal.parameters
        layers[f"processing.days.{day}"] = self.processing.days.get(day, {})
        chosen: dict[str, Any] = {}
        for key, values in layers.items():
            for name, value in values.items():
                chosen[name] = _read_parameter(f"{key}.{name}", name, value)
        return chosen


def _read_parameter(key: str, name: str, value: Any) -> Any:
    table = {name: parameter for name, parameter in RECONSTRUCTION.items() if name != "file_path"}
    try:
        return read_parameters(table, {name: value})[name]
    except UserError as error:
        raise UserError(
            f"{key} in the beamline's settings cannot be used: {error.what}",
            next_step="correct the key in beamline.yaml, then clear this task.",
        ) from error


def beamline() -> Beamline:
    """The site's settings, from the file named by `[cosmic] beamline_file`, or from the bundle's own.

    A change of the file takes effect at the next call.

    :raises UserError: the file is missing or wrong; the message names file and key.
    """
    path = Path(conf.get("cosmic", "beamline_file", fallback="") or DEFAULT_FILE)
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise UserError(
            f"The beamline's settings {path} cannot be read: {error.strerror}",
            next_step="correct [cosmic] beamline_file, or put the file there, then clear this task.",
        ) from error
    return _load(path, changed)


def local_zone() -> ZoneInfo:
    """The beamline's time zone; UTC while the file is wrong, which the failed tasks say."""
    try:
        return ZoneInfo(beamline().time_zone)
    except UserError:
        return ZoneInfo("UTC")


def notify_limits() -> Notify:
    """When people are notified; the defaults while the file is wrong, since all scans fail then."""
    try:
        return beamline().notify
    except UserError:
        return Notify()


@cache
def _load(path: Path, _changed: int) -> Beamline:
    try:
        return Beamline.model_validate(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, ValidationError) as error:
        details = str(error)
        if isinstance(error, ValidationError):
            keys = [(".".join(map(str, e["loc"])) or "the file", e["msg"]) for e in error.errors()]
            details = "\n".join(f"{key}: {message}" for key, message in keys)
        raise UserError(
            f"The beamline's settings {path} are wrong",
            next_step="correct the keys named below, then clear this task.",
            details=details,
        ) from error
