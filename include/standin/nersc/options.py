"""Options that can be changed while the stand-in runs. Kept in the database: a restart carries on with it.

Durations are in Slurm's seconds where the comment says "scaled": they last `time_scale` real seconds
each, so that a test with a scale of 0.01 sees a one-minute time limit pass in 0.6 s. Elapsed times in
rows are in Slurm's seconds too; points in time are real ones.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from standin.nersc.database import Database
from standin.service import ControlError


@dataclass(frozen=True)
class Options:
    """The options and their defaults."""

    user: str = ""
    """Login name; empty: the name of the user who runs the stand-in."""
    timezone: str = "America/Los_Angeles"
    """Zone of the naive times in squeue's and sacct's rows; NERSC's own."""
    time_scale: float = 1.0
    token_seconds: float = 600.0
    """Life of an access token."""
    task_keep: float = 600.0
    """Seconds for which a finished task is remembered."""
    task_delay: float = 0.0
    """Seconds between a request that makes a task and the task's beginning."""
    sacct_lag: float = 1.0
    """Seconds by which sacct is behind. A job that starts at once is called "allocation" as long again."""
    cached_lag: float = 30.0
    """Seconds by which the cached view (squeue or sacct) is behind."""
    slots: int = 4
    """Jobs at once."""
    kill_wait: float = 30.0
    """From TERM to KILL; scaled."""
    min_job_age: float = 300.0
    """How long squeue knows a finished job; scaled."""
    requeue_delay: float = 120.0
    """A requeued job may begin after this; scaled."""
    requeue_shown: float = 4.0
    """How long sacct shows why a job was requeued before it shows PENDING; scaled."""
    configure_seconds: float = 0.0
    """How long a job is CONFIGURING before its script begins; scaled."""
    orphan_seconds: float = 600.0
    """A job ends when no server has looked after it for so long."""
    accounts: tuple[str, ...] = ("als", "als_g")
    job_path: str = ""
    """Folders put before PATH in jobs and commands, separated by colons."""
    quota_bytes: int | None = None
    """Uploads fail when NERSC's file system would hold more than this."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not 0 <= value < 1e9:
                raise ControlError(f"{field.name} is {value}; it must be from 0 to 1e9.")
        if self.time_scale <= 0:
            raise ControlError(f"time_scale is {self.time_scale}; it must be more than 0.")
        if self.slots < 0:
            raise ControlError(f"slots is {self.slots}; it must not be negative.")
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ControlError(f"timezone is {self.timezone!r}; there is no such zone.") from error

    @property
    def user_name(self) -> str:
        """Login name at NERSC."""
        return self.user or pwd.getpwuid(os.getuid()).pw_name

    @property
    def zone(self) -> ZoneInfo:
        """Zone of naive times."""
        return ZoneInfo(self.timezone)

    def real(self, slurm_seconds: float) -> float:
        """Real seconds of a scaled duration."""
        return slurm_seconds * self.time_scale

    def scaled(self, real_seconds: float) -> float:
        """Slurm's seconds of a real duration."""
        return real_seconds / self.time_scale


_FLOATS = {field.name for field in fields(Options) if field.type == "float"}


def _checked(name: str, value: Any) -> Any:
    if name in _FLOATS and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if name == "accounts" and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if name in ("slots", "quota_bytes") and isinstance(value, int) and not isinstance(value, bool):
        return value
    if name == "quota_bytes" and value is None:
        return None
    if name in ("user", "timezone", "job_path") and isinstance(value, str):
        return value
    known = ", ".join(field.name for field in fields(Options))
    raise ControlError(f"{name} = {value!r} is not an option or not of its type; options are {known}.")


class LiveOptions:
    """The options as they are now."""

    def __init__(self, database: Database, slots: int) -> None:
        """`slots` is what the server was started with; a changed value wins over it."""
        self._database = database
        kept = database.kept("options", {})
        self.now = replace(
            Options(slots=slots), **{name: _checked(name, value) for name, value in kept.items()}
        )
        self._changed: dict[str, Any] = dict(kept)

    def change(self, **changes: Any) -> dict[str, Any]:
        """Change some options and keep them; returns all.

        :raises ControlError: for an unknown name or an impossible value.
        """
        self.now = replace(self.now, **{name: _checked(name, value) for name, value in changes.items()})
        self._changed.update(changes)
        self._database.keep("options", self._changed)
        return asdict(self.now)
