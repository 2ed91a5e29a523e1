"""What the transfer and the delete operator have in common: submit once, wait, judge."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import TaskDeferralTimeout

from facilities.errors import BY_CLASS, InfrastructureError, TimeLimitError, TransientError, UserError
from facilities.globus.documents import TaskSnapshot
from facilities.globus.events import TaskEvent, error_of, read_event
from facilities.globus.following import cancel, cancel_by_label, follow, report_about
from facilities.globus.hook import GlobusHook
from facilities.globus.links import GlobusTaskLink
from facilities.globus.requests import Request, make_label
from facilities.globus.states import TaskStatus, failure_class_of, next_step_for
from facilities.globus.submission import Record, StateStore, Submission
from facilities.globus.triggers import GlobusAnswersTrigger, GlobusTaskTrigger
from facilities.globus.waits import Wait, forget
from facilities.globus.watching import Limits, TaskWatch
from facilities.killing import task_is_over, timed_out
from facilities.owners import Owner
from facilities.polling import Pace, Seen
from facilities.sweeping import WORK_KEY, RemoteWork

if TYPE_CHECKING:
    from airflow.sdk import Context

# The trigger keeps the limit itself; Airflow's own comes later, in case that no triggerer runs.
_DEFER_GRACE = timedelta(minutes=5)


class GlobusTaskOperator(BaseOperator):
    """Submits one Globus task and waits for it.

    :param globus_conn_id: connection of type `globus`.
    :param label: text for Globus's own lists; characters that it might misread are replaced and a
        fingerprint of the run and the work is added. None: DAG, task and run.
    :param timeout: longest wait for one Globus task, over all tries. Then it is cancelled and the task fails.
    :param give_up_after: a Globus task that makes no progress for that long for a reason that does not
        pass by itself (missing file, permission, quota, credentials) is cancelled and the task fails.
    :param give_up_outage_after: the same for a collection that does not answer or is paused.
    :param hold: longest wait for Globus itself to answer when it cannot be reached.
    :param deferrable: wait in the triggerer; otherwise a worker slot is held.
    :param poll_least: seconds between two looks, at least.
    :param poll_most: seconds between two looks, at most.
    """

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
        deferrable: bool = True,
        poll_least: float = 2.0,
        poll_most: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.globus_conn_id = globus_conn_id
        self.task_label = label  # `label` is Airflow's own
        self.timeout = timeout
        self.give_up_after = give_up_after
        self.give_up_outage_after = give_up_outage_after
        self.hold = hold
        self.deferrable = deferrable
        self.poll_least = poll_least
        self.poll_most = poll_most
        self._globus_task_id = ""
        self._stop_asked = False
        self._ti: Any = None

    @cached_property
    def hook(self) -> GlobusHook:
        """The way to Globus."""
        return GlobusHook(self.globus_conn_id)

    # What the two operators say differently

    @abstractmethod
    def make_request(self, context: Context) -> Request:
        """Check the arguments and put the request together.

        :raises UserError: naming the argument that cannot be.
        """

    def prepare(self, request: Request) -> tuple[Request, int | None]:
        """Complete a request that is about to be submitted; with the bytes to be moved, if known."""
        return request, None

    @abstractmethod
    def conclude(self, request: Request, task: TaskSnapshot) -> Any:
        """Check what a successful task left behind, and return the task's result."""

    def make_label(self, context: Context, fingerprint: str) -> str:
        """Label that leads to this task's work even when nothing else is left."""
        ti = context["ti"]
        owner = Owner(ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index)
        return make_label(self.task_label or f"{ti.dag_id}.{ti.task_id}.{ti.run_id}", owner, fingerprint)

    # Airflow's entries

    def execute(self, context: Context) -> Any:
        """Take up or submit the Globus task, and wait for it."""
        return self._go(context)

    def execute_complete(self, context: Context, event: object) -> Any:
        """Go on when the trigger has ended its wait."""
        self._ti = context["ti"]
        told = read_event(event)
        self._globus_task_id = told["task_id"]
        store = context.get("task_state_store")
        if told["outcome"] == "in trouble":
            self._wait_on(store, told)  # defers
        forget(store)
        if told["outcome"] != "finished":
            raise error_of(told, self.hook.task_url(told["task_id"]))
        request = self.make_request(context)
        try:
            return self._finish(request, self.hook.get_task(told["task_id"]))
        except TransientError as error:
            return self._hold(request, error)

    def resume_held(self, context: Context, event: object, hold_until: float, holds: int) -> Any:
        """Go on when Globus answers again."""
        if isinstance(event, dict) and event.get("outcome") == "answers":
            return self._go(context, hold_until, holds)
        return self._end_hold(self.make_request(context))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Cancel the Globus task when Airflow itself has ended the wait: it calls nothing else then."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout as error:
            request = self.make_request(context)
            cancel_by_label(self.hook, request.label, request.kind)
            raise TimeLimitError(
                "The wait for Globus reached its limit while no triggerer looked at it",
                remote_id=self._known_task_id(context),
                next_step="check that a triggerer runs, then clear the task.",
            ) from error

    def on_kill(self) -> None:
        """Cancel the Globus task when this task was ended, or has run out of its execution_timeout.

        Runs inside a signal handler or an exception's: shares no lock with what it interrupts.
        """
        self._stop_asked = True
        if not self._globus_task_id or not (timed_out() or task_is_over(self._ti)):
            return
        cancelled, _ = cancel(self.hook.for_emergency(), self._globus_task_id, within=0.0)
        self.log.info("The task was ended; Globus task %s cancelled: %s.", self._globus_task_id, cancelled)

    # The way through

    def _go(self, context: Context, hold_until: float | None = None, holds: int = 0) -> Any:
        self._ti = context["ti"]
        request = self.make_request(context)
        try:
            submission = self._submission(context, request)
            task, expected = submission.take_up(), None
            if task is not None and task.status is TaskStatus.SUCCEEDED:
                result = self._result_of_earlier(submission, task)
                if result is not None:
                    self._announce(context, task)
                    return result
                task = None
            if task is None:
                submission.request, expected = self.prepare(request)
                task = submission.submit()
            self._announce(context, task)
            self._wait_for(context.get("task_state_store"), task, expected)  # defers
        except TransientError as error:
            return self._hold(request, error, hold_until, holds)
        return self.execute_complete(context, self._follow(task, expected))

    def _submission(self, context: Context, request: Request) -> Submission:
        store = context.get("task_state_store")
        if store is None:
            self.log.warning("Airflow has no task state store: earlier tries are found by their label only.")
        return Submission(self.hook, store, request, retried=context["ti"].try_number > 1)

    def _result_of_earlier(self, submission: Submission, task: TaskSnapshot) -> Any:
        """The result of a task that an earlier try has finished; None when it is not there any more."""
        try:
            return self.conclude(submission.request, task)
        except (InfrastructureError, UserError) as error:
            self.log.warning("Submitting anew, the result of Globus task %s is gone. %s", task.task_id, error)
            submission.forget()
            return None

    def _announce(self, context: Context, task: TaskSnapshot) -> None:
        """Leave the task's id and link where people and `on_kill` find them."""
        self._globus_task_id = task.task_id
        if self._stop_asked and task_is_over(context["ti"]):
            cancel(self.hook, task.task_id, within=0.0)
            raise InfrastructureError("The task was ended during its submit", remote_id=task.task_id)
        url = self.hook.task_url(task.task_id)
        context["ti"].xcom_push(key="globus_task_id", value=task.task_id)
        work = RemoteWork(kind="globus", remote_id=task.task_id, conn_id=self.globus_conn_id)
        context["ti"].xcom_push(key=WORK_KEY, value=dict(work))
        GlobusTaskLink().persist(context, url)
        self.log.info("Globus task %s: %s", task.task_id, url)

    def _wait_for(self, store: StateStore | None, task: TaskSnapshot, expected: int | None) -> None:
        if not self.deferrable or task.is_final:
            return
        wait = Wait.read(store, task.task_id)
        if wait is None:
            deadline = time.time() + self.timeout.total_seconds()
            wait = Wait(task.task_id, deadline, expected).keep(store)
        self._defer_wait(wait)

    def _wait_on(self, store: StateStore | None, told: TaskEvent) -> NoReturn:
        """Write down since when the task makes no progress, and wait on."""
        wait = Wait.read(store, told["task_id"])
        if wait is None:
            wait = Wait(told["task_id"], time.time() + self.timeout.total_seconds())
        self.log.warning("No progress for %.0f s: %s.", told["stuck_seconds"], told["reason"])
        moved = (told["moved"][0], told["moved"][1])
        self._defer_wait(wait.stand_still(time.time() - told["stuck_seconds"], moved).keep(store))

    def _defer_wait(self, wait: Wait) -> NoReturn:
        self.defer(
            trigger=GlobusTaskTrigger(
                globus_conn_id=self.globus_conn_id,
                task_id=wait.task_id,
                deadline=wait.deadline,
                pace_least=self.poll_least,
                pace_most=self.poll_most,
                give_up_after=self.give_up_after.total_seconds(),
                give_up_outage_after=self.give_up_outage_after.total_seconds(),
                expected_bytes=wait.expected,
                standstill=asdict(wait.standstill) if wait.standstill else None,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=max(wait.deadline - time.time(), 0.0)) + _DEFER_GRACE,
        )
        raise AssertionError("defer raises")

    def _finish(self, request: Request, task: TaskSnapshot) -> Any:
        if task.status is TaskStatus.SUCCEEDED:
            return self.conclude(request, task)
        if task.is_living:
            raise InfrastructureError(
                "The wait ended, but the Globus task has not",
                remote_id=task.task_id,
                state=task.state,
                next_step="clear the task: it takes the transfer up again.",
            )
        code = task.fatal_code or task.nice_status or "no reason"
        raise BY_CLASS[failure_class_of(code)](
            f"The {request.kind.lower()} of {request} failed with {code}",
            remote_id=task.task_id,
            state=task.state,
            next_step=next_step_for(code),
            details="\n".join(
                part
                for part in (
                    task.fatal_description,
                    report_about(self.hook, task.task_id),
                    self.hook.task_url(task.task_id),
                )
                if part
            ),
        )

    def _follow(self, task: TaskSnapshot, expected: int | None) -> TaskEvent:
        """Wait here, in the worker, as the trigger would."""
        limits = Limits(
            pace=Pace(least=self.poll_least, most=self.poll_most),
            give_up_after=self.give_up_after.total_seconds(),
            give_up_outage_after=self.give_up_outage_after.total_seconds(),
            expected_bytes=expected,
        )
        watch = TaskWatch(task.task_id, limits, self.timeout.total_seconds(), time.monotonic())
        return follow(self.hook, watch, Seen(task) if task.is_final else None, self.log)

    # Holding

    def _hold(
        self, request: Request, error: TransientError, hold_until: float | None = None, holds: int = 0
    ) -> Any:
        """Wait, deferred, until Globus answers again. Worker-bound tasks leave it to their retries."""
        if not self.deferrable:
            raise error
        now = time.time()
        hold_until = hold_until or now + self.hold.total_seconds()
        if now >= hold_until:
            self._end_hold(request, error)
        self.defer(
            trigger=GlobusAnswersTrigger(
                globus_conn_id=self.globus_conn_id,
                reason=str(error),
                label=request.label,
                kind=request.kind,
                deadline=hold_until,
                first_wait=max(min(self.poll_least * 5 * 2.0**holds, 300.0), error.retry_after or 0.0),
            ),
            method_name="resume_held",
            kwargs={"hold_until": hold_until, "holds": min(holds + 1, 10)},
            timeout=timedelta(seconds=hold_until - now) + _DEFER_GRACE,
        )
        raise AssertionError("defer raises")

    def _end_hold(self, request: Request, error: TransientError | None = None) -> NoReturn:
        cancel_by_label(self.hook, request.label, request.kind)
        raise TimeLimitError(
            f"Globus could not be used within {self.hold}, the limit of the wait",
            remote_id=request.label,
            next_step="look at https://status.globus.org; clear the task when Globus answers.",
            details=str(error) if error else "",
        ) from error

    def _known_task_id(self, context: Context) -> str | None:
        store = context.get("task_state_store")
        record = Record.read(store) if store is not None else None
        return record.task_id if record and record.task_id else None
