"""Finds and cancels Globus tasks for the clean-up of orphans."""

from __future__ import annotations

from collections.abc import Callable

from facilities import orphans
from facilities.globus.hook import GlobusHook
from facilities.orphans import LivingWork, WorkFinder
from facilities.ownership import owner_digest


class GlobusTaskFinder(WorkFinder):
    """Tasks of the connection's client, by the owner's hash in their label."""

    work = "Globus tasks"

    def __init__(self, globus_conn_id: str) -> None:
        self.hook = GlobusHook(globus_conn_id)

    def living(self) -> list[LivingWork]:
        tasks = ((task, owner_digest(task.label)) for task in self.hook.living_tasks())
        return [
            LivingWork(task.task_id, f"Globus task {task.task_id} ({task.state})", digest)
            for task, digest in tasks
            if digest is not None
        ]

    def cancel(self, remote_id: str, still_orphan: Callable[[], bool]) -> bool:
        if self.hook.get_task(remote_id).is_final or not still_orphan():
            return False
        self.hook.cancel(remote_id)
        return True


orphans.FINDERS[GlobusHook.conn_type] = GlobusTaskFinder
