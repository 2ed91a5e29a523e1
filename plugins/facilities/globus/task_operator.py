"""The base of the operators that have Globus do one task, exactly once for each Airflow task.

A task that is retried or cleared takes its Globus task up again; a failed one is submitted anew. A
task that is ended in Airflow (marked failed, success or skipped) has its Globus task cancelled.
While Globus cannot be reached the task waits, deferred; it does not fail.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from typing import Any

from airflow.sdk import Context

from facilities.cancellation import Cancellation
from facilities.deferral import RemoteWorkOperator, Wait, end_wait
from facilities.errors import (
    BY_CLASS,
    FacilityError,
    InfrastructureError,
    TransientError,
    UserError,
)
from facilities.globus.hook import GlobusHook
from facilities.globus.model import (
    Fault,
    TaskSnapshot,
    TaskStatus,
)
from facilities.globus.submission import (
    Request,
    Submission,
    make_label,
)
from facilities.globus.trigger import (
    GlobusOutageTrigger,
    GlobusTaskTrigger,
    cancel_labelled,
    cancel_task,
    read_report,
)
from facilities.links import RemoteWorkLink
from facilities.ownership import Owner
from facilities.waiting import read_event


class GlobusTaskLink(RemoteWorkLink):
    """The activity page of the task's transfer or delete.

    Example: `operator_extra_links = (GlobusTaskLink(),)` in an operator's class.
    """

    name = "Globus task"


class GlobusTaskOperator(RemoteWorkOperator):
    """Submits one Globus task and waits for it; what the transfer and the delete operator have in common.

    :param globus_conn_id: connection of type `globus`.
    :param label: text for Globus's own lists; characters that it might misread are replaced and a
        fingerprint of the run and the work is added. None: DAG, task and run.
    :param timeout: longest wait for one Globus task, over all tries. Then it is cancelled and the task fails.
    :param give_up_after: a Globus task that makes no progress for that long for a reason that does not
        pass by itself (missing file, permission, quota, credentials) is cancelled and the task fails.
    :param give_up_outage_after: the same for a collection that does not answer or is paused.
    :param hold: longest wait for Globus itself to answer when it cannot be reached.
    :param deferrable: wait in the triggerer; otherwise a worker slot is held.
    :param min_poll_interval: seconds between two polls, at least.
    :param max_poll_interval: seconds between two polls, at most.
    """

    service = GlobusTaskTrigger.service
    status_page = "https://status.globus.org"
    template_fields: Sequence[str] = ("globus_conn_id", "task_label")
    operator_extra_links = (GlobusTaskLink(),)
    ui_color = "#d9e8f6"

    def __init__(
        self,
        *,
        globus_conn_id: str = GlobusHook.default_conn_name,
        label: str | None = None,
        timeout: timedelta = timedelta(hours=24),
        give_up_after: timedelta = timedelta(minutes=30),
        give_up_outage_after: timedelta = timedelta(hours=12),
        hold: timedelta = timedelta(hours=24),
        min_poll_interval: float = 2.0,
        max_poll_interval: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(hold=hold, **kwargs)
        self.globus_conn_id = globus_conn_id
        self.task_label = label  # `label` is Airflow's own
        self.timeout = timeout
        self.give_up_after = give_up_after
        self.give_up_outage_after = give_up_outage_after
        self.min_poll_interval = min_poll_interval
        self.max_poll_interval = max_poll_interval
        self.first_pause = min_poll_interval * 5

    @cached_property
    def hook(self) -> GlobusHook:
        """The way to Globus."""
        return GlobusHook(self.globus_conn_id)

    @abstractmethod
    def make_request(self) -> Request:
        """Check the arguments and put the request together, but for its label.

        :raises UserError: naming the argument that cannot be.
        """

    def prepare(self, request: Request) -> tuple[Request, int | None]:
        """Complete a request that is about to be submitted; with the bytes to be moved, if known."""
        return request, None

    @abstractmethod
    def conclude(self, request: Request, task: TaskSnapshot) -> Any:
        """Check what a successful task left behind, and return the task's result."""

    def _labelled(self, context: Context) -> Request:
        """The request, with a label that leads to this task's work even when nothing else is left."""
        request, ti = self.make_request(), context["ti"]
        text = self.task_label or f"{ti.dag_id}.{ti.task_id}.{ti.run_id}"
        return replace(request, label=make_label(text, Owner.of(ti), request.fingerprint))

    def run_try(self, context: Context, **holds: Any) -> Any:
        request, store = self._labelled(context), context.get("task_state_store")
        if store is None:
            self.log.warning("Airflow has no task state store: earlier tries are found by their label only.")
        try:
            submission = Submission(self.hook, store, request, retried=context["ti"].try_number > 1)
            task, expected_bytes = submission.take_up(), None
            if task is not None and task.status is TaskStatus.SUCCEEDED:
                try:
                    result = self.conclude(request, task)
                except (InfrastructureError, UserError) as error:
                    self.log.warning("Submitting anew, the result of an earlier task is gone. %s", error)
                    submission.forget()
                    task = None
                else:
                    self._announce(context, task)
                    return result
            if task is None:
                submission.request, expected_bytes = self.prepare(request)
                task = submission.submit()
            self._announce(context, task)
            if task.is_final:
                return self._finish(request, task)
        except TransientError as error:
            self.hold(context, error, **holds)
        wait = Wait.load(store, task.task_id)
        if wait is None:
            deadline = time.time() + self.timeout.total_seconds()
            wait = Wait(task.task_id, deadline, {"expected_bytes": expected_bytes}).save(store)
        return self.wait_for(context, self._trigger(wait))

    def execute_complete(self, context: Context, event: object) -> Any:
        self._ti = context["ti"]
        ended = read_event(event)
        self.remote_id = ended["remote_id"]
        store = context.get("task_state_store")
        if ended["outcome"] == "stalled" and (stalled := ended["result"]):
            # Write down since when it makes no progress, and wait on.
            self.log.warning("No progress for %.0f s: %s.", stalled["seconds"], stalled["trouble"])
            wait = Wait.load(store, self.remote_id)
            wait = wait or Wait(self.remote_id, time.time() + self.timeout.total_seconds())
            stall = {"since": time.time() - stalled["seconds"], "moved": stalled["moved"]}
            wait = replace(wait, details={**wait.details, "stall": stall}).save(store)
            return self.wait_for(context, self._trigger(wait))
        end_wait(store)
        if ended["error"] is not None:
            raise FacilityError.from_fields(ended["error"])
        seen = ended["result"]
        try:
            task = TaskSnapshot.from_dict(seen) if seen else self.hook.get_task(self.remote_id)
            return self._finish(self.make_request(), task)
        except TransientError as error:
            self.hold(context, error)

    def _announce(self, context: Context, task: TaskSnapshot) -> None:
        """Leave the task's id and link where people and `on_kill` find them."""
        self.announce(context, task.task_id)
        url = self.hook.task_url(task.task_id)
        context["ti"].xcom_push(key="globus_task_id", value=task.task_id)
        GlobusTaskLink().persist(context, url)
        self.log.info("Globus task %s: %s", task.task_id, url)

    def _trigger(self, wait: Wait) -> GlobusTaskTrigger:
        return GlobusTaskTrigger(
            globus_conn_id=self.globus_conn_id,
            remote_id=wait.remote_id,
            deadline=wait.deadline,
            min_poll_interval=self.min_poll_interval,
            max_poll_interval=self.max_poll_interval,
            give_up_after=self.give_up_after.total_seconds(),
            give_up_outage_after=self.give_up_outage_after.total_seconds(),
            expected_bytes=wait.details.get("expected_bytes"),
            stall=wait.details.get("stall"),
        )

    def _finish(self, request: Request, task: TaskSnapshot) -> Any:
        if task.status is TaskStatus.SUCCEEDED:
            return self.conclude(request, task)
        if not task.is_final:
            raise InfrastructureError(
                "The wait ended, but the Globus task has not",
                remote_id=task.task_id,
                state=task.state,
                next_step="clear the task: it takes the transfer up again.",
            )
        code = task.fatal_code or task.nice_status or "no reason"
        fault = Fault.of(code)
        error = BY_CLASS[fault.failure_class](
            f"The {request.kind.lower()} of {request} failed with {code}: {fault.meaning}",
            remote_id=task.task_id,
            state=task.state,
            next_step=fault.next_step,
        )
        report = read_report(self.hook, task.task_id)
        error.add_details(task.fatal_description, report, self.hook.task_url(task.task_id))
        raise error

    def outage_trigger(
        self, context: Context, reason: str, deadline: float, first_pause: float
    ) -> GlobusOutageTrigger:
        request = self._labelled(context)
        return GlobusOutageTrigger(
            globus_conn_id=self.globus_conn_id,
            reason=reason,
            label=request.label,
            kind=request.kind,
            deadline=deadline,
            first_pause=first_pause,
        )

    def cancel_known(self, *, urgent: bool) -> Cancellation:
        hook = self.hook.for_emergency() if urgent else self.hook
        return cancel_task(hook, self.remote_id, within=0.0)

    def cancel_unknown(self, context: Context) -> str:
        request = self._labelled(context)
        return cancel_labelled(self.hook, request.label, request.kind).note
