"""Cancels orphans: remote work whose task or run has ended in Airflow, so that nobody takes it up again.

Triggers' and operators' `on_kill` cancel what a person ends while a task runs or waits. What they cannot see
is found here, from the remote side: a run or a task that was ended between a submit and its wait, before its
trigger has started, or while the facility did not answer; a worker that was killed in the middle of a submit,
so that no record of its job exists.

Work is an orphan when its run is over (or was deleted), or when the run goes on and all tasks that own the
work are over. Between two tries, cleared, or waiting is not over. What has no owner in this Airflow is left
alone; so is, with a warning, what a task owns that an upgrade took out of its DAG, while the run goes on.

Each service enters what finds and cancels its work into `FINDERS`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from airflow.sdk.exceptions import AirflowRuntimeError
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from facilities.cancellation import OVER, task_states
from facilities.errors import TransientError
from facilities.ownership import Owner, has_own_address

log = logging.getLogger(__name__)

OwningTasks = Mapping[str, Sequence[tuple[str, ...]]]
"""By DAG id: groups of tasks that own one job or transfer, the one that submits it first."""

_RUN_OVER = frozenset({"success", "failed"})
_REMOVED = "removed"  # state of a task that is not in its DAG any more


@dataclass(frozen=True)
class LivingWork:
    """A job or transfer that has not ended.

    :param name: for messages, such as `Slurm job 80 (RUNNING)`.
    :param owner: its task instance, or its hash where the service's labels are too short for more.
    """

    remote_id: str
    name: str
    owner: Owner | str


class WorkFinder(ABC):
    """Finds and cancels the work of one service."""

    work: ClassVar[str]
    """What the service calls its work, in the plural, such as `Slurm jobs`."""

    hook: Any

    @abstractmethod
    def living(self) -> list[LivingWork]:
        """All living work that carries an owner.

        :raises FacilityError: the service does not answer, or refuses.
        """

    @abstractmethod
    def cancel(self, remote_id: str, still_orphan: Callable[[], bool]) -> bool:
        """Cancel the work if it lives; returns whether it did.

        :param still_orphan: called right before, once the work is known to live: whether to go on.
        :raises FacilityError: the service does not answer, or refuses.
        """

    def close(self) -> None:
        """Release connections."""
        self.hook.close()


FINDERS: dict[str, Callable[..., WorkFinder]] = {}
"""By connection type: what finds a connection's work, called with its id and options of the service."""


class CleanupResult(TypedDict):
    """What one clean-up did; for people and for programs."""

    living: dict[str, int]  # by kind of work: how much of ours lived
    cancelled: list[str]
    not_cancelled: list[str]  # orphans, but the service did not take the cancellation
    unreachable: list[str]  # services that did not answer


class OrphanCleanup:
    """Looks once at all work that lives, and cancels the orphans.

    Example::

        cleanup = OrphanCleanup({"my_dag": [("copy",), ("submit", "wait")]})
        cleanup.cancel_orphans("globus", "globus_default")
        cleanup.cancel_orphans("superfacility", "nersc", machine="perlmutter")
        log.info("Cancelled: %s", cleanup.result["cancelled"])

    :param owning_tasks: tasks that own remote work.
    """

    def __init__(self, owning_tasks: OwningTasks) -> None:
        self.owning_tasks = owning_tasks
        self.result = CleanupResult(living={}, cancelled=[], not_cancelled=[], unreachable=[])

    def cancel_orphans(self, conn_type: str, conn_id: str, **options: Any) -> None:
        """Cancel the orphans of one connection.

        :param options: what the service's finder takes besides.
        :raises FacilityError: the service refuses us.
        """
        with closing(FINDERS[conn_type](conn_id, **options)) as finder:
            try:
                found = self._with_owners(finder.living())
            except TransientError as error:
                log.warning("Connection %s: no answer; the next run looks again. %s", conn_id, error)
                self.result["unreachable"].append(f"{finder.work}: {error.what}")
                found = []
            self.result["living"][finder.work] = len(found)
            for work, owner in found:
                self._cancel_orphan(finder, work, owner)

    def _with_owners(self, living: list[LivingWork]) -> list[tuple[LivingWork, Owner]]:
        """Living work whose owner is in this Airflow."""
        by_digest: dict[str, Owner] = {}
        if any(isinstance(work.owner, str) for work in living):
            for dag_id, groups in self.owning_tasks.items():
                for group in groups:
                    by_digest |= _task_instances(dag_id, group[0])
        owners = [by_digest.get(work.owner) if isinstance(work.owner, str) else work.owner for work in living]
        return [(work, owner) for work, owner in zip(living, owners, strict=True) if owner is not None]

    def _cancel_orphan(self, finder: WorkFinder, work: LivingWork, owner: Owner) -> None:
        why = self._why_orphan(owner)
        if why is None:
            log.info("%s belongs to %s, which goes on.", work.name, owner)
            return
        whose = f"{work.name} of {owner}"
        try:
            # Asked again at the last moment: somebody may be clearing the task just now.
            if finder.cancel(work.remote_id, lambda: self._why_orphan(owner) is not None):
                log.warning("Cancelled %s: %s.", whose, why)
                self.result["cancelled"].append(f"{whose}: {why}")
        except TransientError as error:
            log.warning("%s is an orphan (%s), and could not be cancelled. %s", whose, why, error)
            self.result["not_cancelled"].append(f"{whose}: {error.what}")

    def _why_orphan(self, owner: Owner) -> str | None:
        """Why nobody will take up the work of this owner; None when somebody may."""
        state = _run_state(owner)
        if state is None:
            return "the run was deleted" if has_own_address() else None
        if state in _RUN_OVER:
            return f"the run is over ({state})"
        groups = self.owning_tasks.get(owner.dag_id, ())
        group = next((tasks for tasks in groups if tasks[0] == owner.task_id), ())
        states = task_states(owner.dag_id, group, owner.run_id) if group else {}
        index = "" if owner.map_index < 0 else f"_{owner.map_index}"
        of_group = {task_id: states.get(task_id + index, _REMOVED) for task_id in group}
        if not group or _REMOVED in of_group.values():
            log.warning(
                "Work of %s is left alone: a task that owns it is not in the DAG any more (an upgrade?), and "
                "its run goes on. To end the work, end the run.",
                owner,
            )
            return None
        if not all(state in OVER for state in of_group.values()):
            return None
        return f"the run goes on, but {', '.join(f'{task} is {state}' for task, state in of_group.items())}"


def _run_state(owner: Owner) -> str | None:
    """State of the owner's run; None when there is none (any more)."""
    try:
        state = RuntimeTaskInstance.get_dagrun_state(owner.dag_id, owner.run_id)
    except AirflowRuntimeError as error:
        if (error.error.detail or {}).get("status_code") != 404:
            raise
        return None
    return str(getattr(state, "value", state))


def _task_instances(dag_id: str, task_id: str) -> dict[str, Owner]:
    """All instances of a task, by hash."""
    found = RuntimeTaskInstance.get_task_states(dag_id=dag_id, task_ids=[task_id])
    owners = [
        Owner(dag_id, run_id, task_id, int(key[len(task_id) + 1 :] or -1))
        for run_id, states in found.items()
        for key in states
    ]
    return {owner.digest: owner for owner in owners}
