"""Which job is whose: names that a task instance's jobs have, and what a task keeps about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from facilities.ownership import Owner


class Store(Protocol):
    """Where a task keeps small values between its tries; Airflow's task state store."""

    def get(self, key: str) -> Any:
        """Value of a key, or None."""

    def set(self, key: str, value: Any) -> None:
        """Keep a value."""

    def delete(self, key: str) -> None:
        """Forget a key; no error when there is none."""


@dataclass(frozen=True)
class JobIdentity:
    """What makes a job the one of a task instance.

    :param run_after: of the run; tells it from an earlier one of the same id that was deleted.
    :param base: readable beginning of the name; may change between tries.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    run_after: str = ""
    base: str = "job"

    @classmethod
    def of(cls, context: Mapping[str, Any], *, base: str, task_id: str | None = None) -> JobIdentity:
        """The identity of the task that runs, or of another one of its run with the same map index."""
        ti = context["ti"]
        return cls(
            ti.dag_id,
            ti.run_id,
            task_id or ti.task_id,
            -1 if ti.map_index is None else ti.map_index,
            run_after=context["dag_run"].run_after.isoformat(),
            base=base,
        )

    @property
    def digest(self) -> str:
        """Hash that only this task instance has."""
        return replace(self.owner, run_after=self.run_after).digest

    @property
    def owner(self) -> Owner:
        """The task instance."""
        return Owner(self.dag_id, self.run_id, self.task_id, self.map_index)

    def name(self, generation: int) -> str:
        """Job name of a generation, in characters that Slurm's look-up survives."""
        base = re.sub(r"[^A-Za-z0-9._-]+", "_", self.base).strip("_.-")[:60] or "job"
        return f"{base}-{self.digest}-g{generation}"

    def generation_of(self, name: str | None) -> int | None:
        """Generation that a job's name tells, if the job is of this task instance."""
        match = re.fullmatch(rf".*-{self.digest}-g(\d+)", name or "", re.IGNORECASE)
        return int(match[1]) if match else None


@dataclass(frozen=True)
class Intent:
    """A submit that was about to be sent.

    :param attempted_at: seconds since the epoch, by our clock.
    :param task_id: the API's task, once it is known.
    :param missed_at: when the job was first looked for and not found, in the same seconds.
    """

    generation: int
    name: str
    attempted_at: float
    task_id: str | None = None
    missed_at: float | None = None

    @classmethod
    def read(cls, kept: Any) -> Intent | None:
        """Read what a store kept; None when it is not an intent."""
        try:
            missed_at = kept.get("missed_at")
            return cls(
                int(kept["generation"]),
                str(kept["name"]),
                float(kept["attempted_at"]),
                kept.get("task_id"),
                None if missed_at is None else float(missed_at),
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            return None


@dataclass(frozen=True)
class Submitted:
    """The task's job.

    :param new: whether this step has submitted it; otherwise it was there already.
    """

    job_id: str
    name: str
    generation: int
    new: bool


@dataclass(frozen=True)
class NotYet:
    """Nothing can be said or done for some seconds."""

    seconds: float
    why: str
