"""Names the task instance that a remote job or transfer belongs to, so that the remote side leads back to it.

A Slurm job carries its owner in its comment, which squeue shows with every job; its name can hold a hash
only. A Globus task has nothing but a label of 128 characters, so that holds the same hash, and Airflow is
asked which of its task instances has it.

Several Airflows may share an account at the facility (a test system beside the production). Hash and comment
name their Airflow, so that none of them touches another's work.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

from airflow.configuration import conf

_DIGITS = 16
_LABEL = re.compile(rf".*-([0-9a-f]{{{_DIGITS}}})-[0-9a-f]{{8}}")


class TaskInstanceId(Protocol):
    """What identifies a task instance; both of Airflow's classes for it have these."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int | None


@dataclass(frozen=True)
class Owner:
    """A task instance; `map_index` is -1 for a task that is not mapped.

    Example::

        owner = Owner.of(context["ti"])
        script = f"#SBATCH --comment={owner.mark}"

    :param run_after: of the run, where it matters that a run of the same id may have been deleted before.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    run_after: str = ""

    @classmethod
    def of(cls, ti: TaskInstanceId) -> Owner:
        """The owner that a task instance of Airflow's is."""
        return cls(ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index)

    @property
    def mark(self) -> str:
        """Text for a Slurm comment: one word, safe in a job script."""
        # No slash in any part: Airflow refuses one in ids, and what its patterns may be widened to is quoted.
        parts = (self.dag_id, self.run_id, self.task_id, str(self.map_index))
        return "/".join(["airflow", this_airflow(), *(quote(part, safe="+:~") for part in parts)])

    @classmethod
    def read(cls, mark: str | None) -> Owner | None:
        """The owner that a comment names; None when it is not a mark of this Airflow."""
        parts = (mark or "").split("/")
        if len(parts) != 6 or parts[:2] != ["airflow", this_airflow()]:
            return None
        dag_id, run_id, task_id, index = (unquote(part) for part in parts[2:])
        return cls(dag_id, run_id, task_id, int(index)) if re.fullmatch(r"-?\d{1,9}", index) else None

    @property
    def digest(self) -> str:
        """Hash of the task instance, 16 hexadecimal digits; in Globus labels and Slurm job names."""
        parts = (this_airflow(), self.dag_id, self.run_id, self.task_id, str(self.map_index), self.run_after)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_DIGITS]

    def __str__(self) -> str:
        index = "" if self.map_index < 0 else f"[{self.map_index}]"
        return f"{self.dag_id}.{self.task_id}{index} of run {self.run_id}"


def owner_digest(label: str) -> str | None:
    """The owner's hash in a Globus label; None when the label is not of this kind."""
    match = _LABEL.fullmatch(label)
    return match[1] if match else None


@cache
def this_airflow() -> str:
    """Distinguishes this Airflow from others: a hash of its address, `[api] base_url`."""
    return hashlib.sha256(_address().encode()).hexdigest()[:8]


def has_own_address() -> bool:
    """Whether no other Airflow can have the same address: each is `localhost` to itself."""
    return urlsplit(_address()).hostname not in (None, "localhost", "127.0.0.1", "::1")


def _address() -> str:
    return str(conf.get("api", "base_url", fallback="") or "").rstrip("/")
