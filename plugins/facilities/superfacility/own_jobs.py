"""Finds the Slurm jobs of a task instance by their name, which leads back to it when nothing else is left."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from facilities.errors import TransientError
from facilities.ownership import Owner
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.slurm import FAILED, RUNNING, SUCCEEDED, SlurmJob, read_rows

log = logging.getLogger(__name__)

CLOCK_SKEW = 120.0  # seconds by which the facility's clock may differ from ours
_NAMELESS_FOR = 600.0  # seconds; Slurm needs four to give a job its name
_COLUMNS = ("JobID", "State", "Submit", "Start", "End", "ElapsedRaw", "ExitCode", "NodeList", "JobName")
_GENERATIONS = 10  # that a look at earlier days asks for
_FURTHEST = timedelta(days=30)  # sacct refuses ranges of more than about 60 days


@dataclass(frozen=True)
class JobIdentity(Owner):
    """The task instance that a job belongs to, and the names that its jobs have.

    Example::

        identity = JobIdentity.of_task(context, base="ptychocam")
        identity.name(0)  # ptychocam-0123456789abcdef-g0

    :param base: readable beginning of the name; may change between tries.
    """

    base: str = "job"

    @classmethod
    def of_task(cls, context: Mapping[str, Any], *, base: str = "job", task_id: str = "") -> JobIdentity:
        """The identity of the task that runs, or of another one of its run with the same map index."""
        fields = asdict(Owner.of(context["ti"]))
        run_after = context["dag_run"].run_after.isoformat()
        return cls(
            **{**fields, "task_id": task_id or fields["task_id"], "run_after": run_after, "base": base}
        )

    def name(self, generation: int) -> str:
        """Job name of a generation, in characters that Slurm's look-up survives."""
        base = re.sub(r"[^A-Za-z0-9._-]+", "_", self.base).strip("_.-")[:60] or "job"
        return f"{base}-{self.digest}-g{generation}"

    def generation_of(self, name: str | None) -> int | None:
        """Generation that a job's name has, if the job is of this task instance."""
        match = re.fullmatch(rf".*-{self.digest}-g(\d+)", name or "", re.IGNORECASE)
        return int(match[1]) if match else None


class OwnJobs:
    """Looks for the jobs of a task instance on a machine, by their name.

    Uses what the Superfacility API surely offers: the user's jobs from squeue (held and waiting ones are
    only there), and those of today from sacct. A submit of an earlier day is looked for with the sacct
    command, because the API's list begins at midnight.
    """

    def __init__(self, hook: SuperfacilityHook, identity: JobIdentity, machine: str) -> None:
        self._hook = hook
        self._identity = identity
        self._machine = machine
        self._rows: list[SlurmJob] = []

    def living(self) -> tuple[int, SlurmJob] | None:
        """The waiting or running job, with its generation; of several the one that runs."""
        return self._newest(self.all_living())

    def all_living(self) -> list[SlurmJob]:
        """All jobs that wait or run; one more than wanted when a submit has arrived late."""
        jobs = self._hook.jobs_of_user(self._machine, "squeue")
        return [job for job in jobs if not job.final and self._identity.generation_of(job.name) is not None]

    def failed(self) -> list[str]:
        """Ids of those that `ended` met and that have ended without success."""
        own = [job for job in self._rows if self._identity.generation_of(job.name) is not None]
        return [job.job_id for job in own if job.state in FAILED and not job.refused]

    def ended(self, since: float | None, now: float) -> tuple[int, SlurmJob] | None:
        """The newest job in accounting, which may also be one that still runs, with its generation.

        :param since: when the first submit in question was sent, in seconds since the epoch.
        """
        self._rows = self._hook.jobs_of_user(self._machine, "sacct")
        if since and self._newest(self._rows) is None:
            zone = self._hook.config.zone
            first = datetime.fromtimestamp(max(since - CLOCK_SKEW, now - _FURTHEST.total_seconds()), zone)
            if first.date() < datetime.fromtimestamp(now, zone).date():
                self._rows += self._of_earlier_days(first)
        return self._newest(self._rows)

    def nameless(self, since: float, now: float) -> list[str]:
        """Ids of jobs that `ended` met and that accounting has no name for yet."""
        after = datetime.fromtimestamp(max(since, now - _NAMELESS_FOR) - CLOCK_SKEW, UTC)
        nameless = [job for job in self._rows if job.name is None]
        return [j.job_id for j in nameless if not j.submitted or datetime.fromisoformat(j.submitted) > after]

    def _newest(self, jobs: Iterable[SlurmJob]) -> tuple[int, SlurmJob] | None:
        """The own job of the highest generation; one that runs or succeeded before the others."""
        numbered = ((self._identity.generation_of(job.name), job) for job in jobs)
        own = [(generation, job) for generation, job in numbered if generation is not None]
        return max(own, key=lambda pair: (pair[0], _rank(pair[1])), default=None)

    def _of_earlier_days(self, first: datetime) -> list[SlurmJob]:
        command = ["sacct", "-X", "-n", "-P", "--delimiter=|", f"--user={self._hook.user}"]
        command += [f"--name={','.join(self._identity.name(number) for number in range(_GENERATIONS))}"]
        command += [f"--starttime={first:%Y-%m-%dT%H:%M:%S}", f"--format={','.join(_COLUMNS)}"]
        result = self._hook.command(self._machine, command)
        if result.exit_code == 127 or "No such file" in result.error:
            log.warning("No sacct command on %s: jobs of before midnight are not seen.", self._machine)
            return []
        if result.exit_code:
            raise TransientError(
                "Looking up the jobs of earlier days",
                next_step="look at https://www.nersc.gov/live-status/motd if it stays so.",
                details=result.error,
            )
        keys = [column.lower() for column in _COLUMNS]
        rows = [line.split("|", len(keys) - 1) for line in result.output.splitlines() if line.strip()]
        return read_rows(
            [dict(zip(keys, row, strict=False)) for row in rows], "sacct", self._hook.config.zone
        )


def _rank(job: SlurmJob) -> int:
    """Which of several jobs of one generation counts: the highest."""
    if job.refused:
        return 0
    if job.state in FAILED:
        return 1
    return 3 if job.state in RUNNING or job.state in SUCCEEDED else 2
