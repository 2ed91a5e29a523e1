"""Finds remote work of ours that nobody waits for any more, and cancels it.

Triggers' and operators' `on_kill` and the listener in `facilities.sweeping` cancel what a person ends, within
seconds. What they cannot see is found here, from the other side: a worker that was killed in the middle of a
submit, so that no record of its job exists, and its run ended by a person; an API server that died between a
mark and its looks; an outage of the facility that lasted longer than those.

Work is cancelled only when nothing will take it up again: its run is over (or was deleted), or the run goes
on and all tasks that look after the work are over. Between two tries, cleared, or waiting is not over. What
has no owner in this Airflow is left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypedDict

from airflow.sdk.exceptions import AirflowRuntimeError

from facilities.errors import TransientError
from facilities.globus.hook import GlobusHook
from facilities.killing import OVER
from facilities.owners import Owner, has_own_address, owner_digest
from facilities.superfacility.hook import SuperfacilityHook
from facilities.sweeping import RemoteWork, cancel_living

log = logging.getLogger(__name__)

Carers = Mapping[str, Sequence[tuple[str, ...]]]
"""By DAG id: groups of tasks that look after one job or transfer, the one that submits it first."""

_RUN_OVER = frozenset({"success", "failed"})


class Reaped(TypedDict):
    """What became of one look; for people and for programs."""

    jobs: int  # living ones of ours
    transfers: int
    cancelled: list[str]
    not_cancelled: list[str]  # abandoned, but the service refused
    not_looked_at: list[str]  # services that did not answer


@dataclass(frozen=True)
class _Living:
    """A living job or transfer, with words for it."""

    name: str
    owner: Owner
    work: RemoteWork


class Runs:
    """What Airflow says about runs and tasks at the moment."""

    def state(self, dag_id: str, run_id: str) -> str | None:
        """State of a run; None when there is none (any more)."""
        try:
            state = _runtime().get_dagrun_state(dag_id, run_id)
        except AirflowRuntimeError as error:
            if (error.error.detail or {}).get("status_code") != 404:
                raise
            return None
        return str(getattr(state, "value", state))

    def task_states(self, dag_id: str, task_ids: Sequence[str], run_id: str) -> dict[str, str | None]:
        """States of some tasks of a run; mapped ones are called `task_index`."""
        found = _runtime().get_task_states(dag_id=dag_id, task_ids=list(task_ids), run_ids=[run_id])
        return {
            key: None if state is None else str(getattr(state, "value", state))
            for key, state in found.get(run_id, {}).items()
        }

    def owners(self, dag_id: str, task_id: str) -> dict[str, Owner]:
        """All instances of a task, by digest."""
        found = _runtime().get_task_states(dag_id=dag_id, task_ids=[task_id])
        owners = [
            Owner(dag_id, run_id, task_id, int(key[len(task_id) + 1 :] or -1))
            for run_id, states in found.items()
            for key in states
        ]
        return {owner.digest: owner for owner in owners}


@dataclass
class Reaper:
    """Looks once at all that lives.

    :param carers: tasks that look after remote work.
    """

    carers: Carers
    runs: Runs = field(default_factory=Runs)

    def __post_init__(self) -> None:
        self.result = Reaped(jobs=0, transfers=0, cancelled=[], not_cancelled=[], not_looked_at=[])

    def reap_jobs(self, superfacility_conn_id: str, machine: str) -> None:
        """Cancel abandoned jobs.

        :raises FacilityError: NERSC refuses us.
        """
        with closing(SuperfacilityHook(superfacility_conn_id)) as hook:
            found = self._ask("NERSC", lambda: list(_jobs(hook, machine)))
        self.result["jobs"] += len(found)
        for living in found:
            self._reap(living)

    def reap_transfers(self, globus_conn_id: str) -> None:
        """Cancel abandoned transfers and deletes.

        :raises FacilityError: Globus refuses us.
        """
        with closing(GlobusHook(globus_conn_id)) as hook:
            found = self._ask("Globus", lambda: list(self._transfers(hook)))
        self.result["transfers"] += len(found)
        for living in found:
            self._reap(living)

    def _ask(self, service: str, ask: Callable[[], list[_Living]]) -> list[_Living]:
        try:
            return ask()
        except TransientError as error:
            log.warning("%s does not answer; the next run of this task looks again. %s", service, error)
            self.result["not_looked_at"].append(f"{service}: {error.what}")
            return []

    def _transfers(self, hook: GlobusHook) -> Iterator[_Living]:
        digests = {task.task_id: (task, owner_digest(task.label)) for task in hook.living_tasks()}
        if not any(digest for _, digest in digests.values()):
            return
        owners: dict[str, Owner] = {}
        for dag_id, groups in self.carers.items():
            for group in groups:
                owners |= self.runs.owners(dag_id, group[0])
        for task_id, (task, digest) in digests.items():
            if owner := owners.get(digest or ""):
                work = RemoteWork(kind="globus", remote_id=task_id, conn_id=hook.globus_conn_id)
                yield _Living(f"Globus task {task_id} ({task.state})", owner, work)

    def _reap(self, living: _Living) -> None:
        why = self.abandoned(living.owner)
        if why is None:
            log.info("%s is of %s, which goes on.", living.name, living.owner)
            return
        whose = f"{living.name} of {living.owner}"
        try:
            # Asked again at the last moment: somebody may be clearing the task just now.
            if cancel_living(living.work, lambda: self.abandoned(living.owner) is not None):
                log.warning("Cancelled %s: %s.", whose, why)
                self.result["cancelled"].append(f"{whose}: {why}")
        except TransientError as error:
            log.warning("%s is abandoned (%s), and could not be cancelled. %s", whose, why, error)
            self.result["not_cancelled"].append(f"{whose}: {error.what}")

    def abandoned(self, owner: Owner) -> str | None:
        """Why nobody will take up the work of this owner; None when somebody may."""
        state = self.runs.state(owner.dag_id, owner.run_id)
        if state is None:
            return "the run was deleted" if has_own_address() else None
        if state in _RUN_OVER:
            return f"the run is over ({state})"
        groups = self.carers.get(owner.dag_id, ())
        group = next((tasks for tasks in groups if tasks[0] == owner.task_id), None)
        if group is None:
            return None
        states = self.runs.task_states(owner.dag_id, group, owner.run_id)
        index = "" if owner.map_index < 0 else f"_{owner.map_index}"
        of_group = {task_id: states.get(task_id + index) for task_id in group}
        if not all(state in OVER for state in of_group.values()):
            return None
        return f"the run goes on, but {', '.join(f'{task} is {state}' for task, state in of_group.items())}"


def _jobs(hook: SuperfacilityHook, machine: str) -> Iterator[_Living]:
    for job in hook.jobs_of_user(machine, "squeue"):
        owner = Owner.read(job.comment)
        if owner is not None and not job.final:
            work = RemoteWork(
                kind="slurm", remote_id=job.job_id, conn_id=hook.superfacility_conn_id, machine=machine
            )
            yield _Living(f"Slurm job {job.job_id} ({job.state_text})", owner, work)


def _runtime() -> Any:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance  # noqa: PLC0415 - not for parsing

    return RuntimeTaskInstance
