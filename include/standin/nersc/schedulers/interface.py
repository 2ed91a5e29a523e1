"""The interface that the Superfacility API needs from a batch scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from standin.service import Control

Row = dict[str, str]


class RejectedError(Exception):
    """The scheduler refused a request; the message is what its command wrote to stderr."""


class QueryError(Exception):
    """squeue or sacct failed; the message is what it wrote to stderr."""


@dataclass(frozen=True)
class Submission:
    """One call of sbatch.

    :param request_id: identity of the request: the same one again is the same job.
    :param text: the batch script.
    :param name: the script's file name; the job's name when no directive gives one. None when the text
        came without a file.
    """

    request_id: str
    text: str
    args: tuple[str, ...] = ()
    name: str | None = None


@dataclass(frozen=True)
class Query:
    """One call of squeue or sacct.

    :param filters: option name (without dashes) to value; values with commas mean any of them.
    :param cached: answer from the cached view, which is behind and holds today's jobs only.
    """

    filters: Mapping[str, str] = field(default_factory=dict)
    cached: bool = False

    @property
    def job_ids(self) -> list[str] | None:
        """Ids asked for, or None when the query names none."""
        for name in ("jobid", "jobs", "job", "j"):
            if name in self.filters:
                return [part.strip() for part in self.filters[name].split(",") if part.strip()]
        return None


class Scheduler(Protocol):
    """A batch scheduler. Rows are lower-cased column names to strings, as the commands print them."""

    name: str

    async def start(self) -> None:
        """Take up what an earlier server left."""

    async def stop(self) -> None:
        """Stop watching; jobs go on."""

    async def submit(self, submission: Submission) -> str:
        """Submit a job; returns its id.

        :raises RejectedError: when sbatch refuses.
        """

    async def cancel(self, job_id: str) -> None:
        """Cancel a job; finished and unknown ids are silently accepted, as scancel does."""

    async def squeue(self, query: Query) -> list[Row]:
        """Rows of squeue.

        :raises QueryError: when squeue would fail.
        """

    async def sacct(self, query: Query) -> list[Row]:
        """Rows of sacct, one per job.

        :raises QueryError: when sacct would fail.
        """

    async def all_jobs(self) -> list[dict[str, Any]]:
        """Every job ever, with how often it ran."""

    def controls(self) -> dict[str, Control]:
        """Verbs that act on jobs: failures of nodes, holds and so on, as far as the scheduler can."""
