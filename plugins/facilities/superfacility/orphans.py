"""Finds and cancels Slurm jobs for the clean-up of orphans."""

from __future__ import annotations

from collections.abc import Callable

from facilities import orphans
from facilities.orphans import LivingWork, WorkFinder
from facilities.ownership import Owner
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.slurm import SlurmState


class SlurmJobFinder(WorkFinder):
    """Jobs of the connection's user on a machine, by the owner in their comment.

    :param machine: such as perlmutter.
    """

    work = "Slurm jobs"

    def __init__(self, superfacility_conn_id: str, machine: str) -> None:
        self.hook = SuperfacilityHook(superfacility_conn_id)
        self._machine = machine

    def living(self) -> list[LivingWork]:
        jobs = ((job, Owner.read(job.comment)) for job in self.hook.jobs_of_user(self._machine, "squeue"))
        return [
            LivingWork(job.job_id, f"Slurm job {job.job_id} ({job.state_text})", owner)
            for job, owner in jobs
            if owner is not None and not job.final
        ]

    def cancel(self, remote_id: str, still_orphan: Callable[[], bool]) -> bool:
        """Cancel a job that lives; one that was cancelled is COMPLETING until its processes have ended."""
        job = self.hook.jobs(self._machine, [remote_id], "squeue").get(remote_id)
        if job is None or job.final or job.state is SlurmState.COMPLETING or not still_orphan():
            return False
        self.hook.cancel(self._machine, remote_id)
        return True


orphans.FINDERS[SuperfacilityHook.conn_type] = SlurmJobFinder
