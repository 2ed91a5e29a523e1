"""Sensors: wait for a Slurm job, and for a machine to be up."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, XComArg
from airflow.sdk.definitions.xcom_arg import PlainXComArg
from airflow.sdk.exceptions import AirflowSensorTimeout, TaskDeferralTimeout

from facilities.cancellation import task_is_over, timed_out
from facilities.errors import InfrastructureError, TimeLimitError, TransientError, UserError
from facilities.polling import PollInterval
from facilities.superfacility import claims
from facilities.superfacility.events import read_job_event
from facilities.superfacility.following import cancel_and_say, cancel_by_name, emergency_hook, end, follow
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.identity import JobIdentity, NotYet, Submitted
from facilities.superfacility.job import JobSnapshot
from facilities.superfacility.judging import JobResult, LogFiles, conclude
from facilities.superfacility.links import SlurmJobLink, job_url
from facilities.superfacility.resubmission import Successors
from facilities.superfacility.source import SlurmJobs
from facilities.superfacility.states import CONFIRM
from facilities.superfacility.triggers import SlurmJobTrigger, SubmitHoldTrigger
from facilities.superfacility.watching import JobWatch, Limits

if TYPE_CHECKING:
    from airflow.sdk import Context

# The triggers keep the limits themselves; Airflow's own comes later, in case that no triggerer runs.
_DEFER_GRACE = timedelta(minutes=5)

WAIT_KEY = "slurm_wait"


class SlurmJobSensor(BaseSensorOperator):
    """Waits for a Slurm job, cancels it when this task is ended, and returns a `JobResult`.

    :param job_id: the job. Given as a submit operator's `output`, the names of the job's log files are
        taken from that task too.
    :param superfacility_conn_id: connection of type `superfacility`.
    :param machine: such as perlmutter.
    :param stdout: the job's output file, %j its id; None: what the submit task says, else Slurm's default.
    :param stderr: the same for errors; None: as `stdout`.
    :param timeout: longest wait for one job, over all tries, in seconds. Then the job is cancelled and the
        task fails.
    :param deferrable: wait in the triggerer; otherwise a worker slot is held.
    :param poll_least: seconds between two looks, at least.
    :param poll_most: seconds between two looks, at most.
    :param confirm: seconds between two looks that see a node failure or a preemption, to believe it.
    :param grace: seconds that a job may be unknown to Slurm.
    :param settle: seconds in which a job that was submitted shows in Slurm's lists, at the latest.
    :param resubmit: how often a job that the facility lost (NODE_FAIL, BOOT_FAIL, PREEMPTED) is submitted
        again by this task; for a `job_id` that is a submit operator's `output`.
    :param more_resources: whether a job that ended with TIMEOUT or OUT_OF_MEMORY is submitted once more with
        twice the time or memory, up to the queue's limit. Templated: true or false.
    :raises InfrastructureError: NODE_FAIL, BOOT_FAIL, PREEMPTED.
    :raises ResourcesError: TIMEOUT, OUT_OF_MEMORY.
    :raises TimeLimitError: the wait took longer than `timeout`.
    :raises UserError: FAILED, CANCELLED, DEADLINE, REVOKED, or a job that Slurm does not know.
    :raises CredentialsError: NERSC refuses the client. The job goes on, and a new try waits for it again.
    """

    template_fields: Sequence[str] = (
        "job_id",
        "superfacility_conn_id",
        "machine",
        "stdout",
        "stderr",
        "more_resources",
    )
    operator_extra_links = (SlurmJobLink(),)
    valid_modes = ("poke",)
    ui_color = "#dcecd9"

    def __init__(
        self,
        *,
        job_id: str | XComArg,
        superfacility_conn_id: str = SuperfacilityHook.default_conn_name,
        machine: str = "perlmutter",
        stdout: str | None = None,
        stderr: str | None = None,
        deferrable: bool = True,
        poll_least: float = 5.0,
        poll_most: float = 60.0,
        confirm: float = 30.0,
        grace: float = 600.0,
        settle: float = 60.0,
        resubmit: int = 0,
        more_resources: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_id = job_id
        self.settle = settle
        self.resubmit = resubmit
        self.more_resources = more_resources
        self.superfacility_conn_id = superfacility_conn_id
        self.machine = machine
        self.stdout = stdout
        self.stderr = stderr
        self.deferrable = deferrable
        self.poll_least = poll_least
        self.poll_most = poll_most
        self.confirm = confirm
        self.grace = grace
        self._submit_task = job_id.operator.task_id if isinstance(job_id, PlainXComArg) else None
        self._ti: Any = None
        self._resubmitting: JobIdentity | None = None
        self._stop_asked = False

    @cached_property
    def hook(self) -> SuperfacilityHook:
        """The way to NERSC."""
        return SuperfacilityHook(self.superfacility_conn_id)

    def execute(self, context: Context) -> JobResult:
        """Wait for the job."""
        self._ti = context["ti"]
        self._successors(context)
        return self._wait_for(context, self._checked_job_id())

    def _wait_for(self, context: Context, job_id: str) -> JobResult:
        told = self._told(context)
        url = str(told.get("url") or "") if told.get("job_id") == job_id else ""
        if not url:
            with closing(self.hook):
                url = job_url(self.hook, self.machine, job_id)
        SlurmJobLink().persist(context, url)
        self.log.info("Waiting for Slurm job %s on %s. %s", job_id, self.machine, url)
        if self.deferrable:
            self._defer(job_id, self._deadline(context, job_id))
        watch = JobWatch(job_id, self.machine, self._limits, self.timeout, time.monotonic())
        with closing(SlurmJobs(self.superfacility_conn_id, self.machine, attempts=4)) as source:
            verdict = follow(source, watch, self.log)
        return self.execute_complete(context, end(self.hook, self.machine, watch, verdict), job_id)

    def execute_complete(self, context: Context, event: object, job_id: str | None = None) -> JobResult:
        """Judge the end of the wait.

        :param job_id: the job that was waited for; None for the one that the task was given.
        """
        self._ti = context["ti"]
        successors = self._successors(context)
        self.job_id = job_id or self.job_id
        if (store := context.get("task_state_store")) is not None:
            store.delete(WAIT_KEY)  # another wait, for the same job too, counts from its own beginning
        job = read_job_event(event, self._checked_job_id())
        if job.refused and (owner := self._owner_instead_of(context, job)):
            self.log.warning("Job %s did nothing, as job %s does this task's work.", job.job_id, owner)
            self.job_id = owner
            return self._wait_for(context, owner)
        if successors is not None and (script := self._script_after(successors, job)):
            return self._succeed(context, successors, job, script)
        with closing(self.hook):
            result = conclude(self.hook, job, self.machine, self._log_files(context))
        self.log.info(
            "Job %s has completed: %s s in the queue, %s s run, %.4f node-hours.",
            *(result["job_id"], result["queue_seconds"], result["run_seconds"], result["node_hours"]),
        )
        return result

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Cancel the job when Airflow itself has ended the wait: it calls nothing else then."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSensorTimeout as error:
            if not isinstance(error.__cause__, TaskDeferralTimeout):
                raise
            successors = self._successors(context)  # makes the newest the job to cancel
            if successors is not None:
                cancel_by_name(self.hook, self.machine, successors.identity)
            job_id = str((next_kwargs or {}).get("job_id") or self._checked_job_id())
            raise TimeLimitError(
                "The wait for the Slurm job reached its limit while no triggerer looked at it",
                remote_id=job_id,
                next_step="check that a triggerer runs, then clear the submit task.",
                details=cancel_and_say(self.hook, self.machine, job_id),
            ) from error

    def on_kill(self) -> None:
        """Cancel the job when this task was ended, or has run out of its execution_timeout.

        Runs inside a signal handler or an exception's: shares no lock with what it interrupts.
        """
        self._stop_asked = True
        if self._ti is None or not (timed_out() or task_is_over(self._ti)):
            return
        hook = emergency_hook(self.superfacility_conn_id)
        if self._resubmitting is not None:
            cancel_by_name(hook, self.machine, self._resubmitting)
            return
        self.log.info("The task was ended. %s", cancel_and_say(hook, self.machine, str(self.job_id)))

    def _owner_instead_of(self, context: Context, job: JobSnapshot) -> str | None:
        """Id of the job that does the work which `job` found claimed; None when `job` has the claim."""
        claim = self._told(context).get("claim")
        if not claim:
            return None
        with closing(self.hook):
            owner = claims.owner(self.hook, self.machine, str(claim))
        return owner if owner != job.job_id else None

    @property
    def _limits(self) -> Limits:
        return Limits(
            pace=PollInterval(self.poll_least, self.poll_most), confirm=self.confirm, grace=self.grace
        )

    def _deadline(self, context: Context, job_id: str) -> float:
        """End of the wait, in seconds since 1970: counted from the first try that waits for this job."""
        store = context.get("task_state_store")
        kept: Any = store.get(WAIT_KEY) if store is not None else None
        if isinstance(kept, Mapping) and kept.get("job_id") == job_id:
            return float(kept["deadline"])
        deadline = time.time() + self.timeout
        if store is not None:
            store.set(WAIT_KEY, {"job_id": job_id, "deadline": deadline})
        return deadline

    def _defer(self, job_id: str, deadline: float) -> None:
        self.defer(
            trigger=SlurmJobTrigger(
                superfacility_conn_id=self.superfacility_conn_id,
                machine=self.machine,
                job_id=job_id,
                deadline=deadline,
                poll_least=self.poll_least,
                poll_most=self.poll_most,
                confirm=self.confirm,
                grace=self.grace,
            ),
            method_name="execute_complete",
            kwargs={"job_id": job_id},
            timeout=timedelta(seconds=max(deadline - time.time(), 0.0)) + _DEFER_GRACE,
        )

    # A job that takes the place of a lost one

    def _successors(self, context: Context) -> Successors | None:
        """The jobs of the submit task, the newest as `job_id`; None when this sensor must not submit."""
        if self._submit_task is None or not (self.resubmit or self._more_resources):
            return None
        told = self._told(context)
        if not told.get("script"):
            return None
        base = re.sub(r"-[0-9a-f]{16}-g\d+$", "", str(told.get("name")))
        identity = JobIdentity.of(context, base=base, task_id=self._submit_task)
        store = context.get("task_state_store")
        successors = Successors(
            self.hook, told, identity, machine=self.machine, store=store, settle=self.settle
        )
        self.job_id = successors.current
        return successors

    @property
    def _more_resources(self) -> bool:
        return str(self.more_resources).strip().lower() == "true"

    def _script_after(self, successors: Successors, job: JobSnapshot) -> str | None:
        if job.state in CONFIRM and successors.count >= self.resubmit:
            return None
        return successors.script_after(job, more=self._more_resources)

    def _succeed(self, context: Context, successors: Successors, job: JobSnapshot, script: str) -> JobResult:
        """Submit the successor and wait for it; when NERSC does not answer, wait for that first."""
        self.log.warning("Job %s ended as %s: it is submitted again.", job.job_id, job.state_text)
        self._resubmitting = successors.identity
        while True:
            try:
                with closing(self.hook):
                    step, until_up = successors.step(script), False
            except TransientError as error:
                step, until_up = NotYet(max(10.0, error.retry_after or 0.0), str(error)), True
            if isinstance(step, Submitted):
                self._resubmitting, self.job_id = None, step.job_id
                if self._stop_asked and task_is_over(self._ti):
                    note = cancel_and_say(self.hook, self.machine, step.job_id)
                    what = "The task was ended while its job was submitted again"
                    raise InfrastructureError(what, remote_id=step.job_id, details=note)
                return self._wait_for(context, step.job_id)
            if self.deferrable:
                self._defer_resubmission(successors.identity, step, until_up, job, script)
            time.sleep(step.seconds)

    def _defer_resubmission(
        self, identity: JobIdentity, wait: NotYet, until_up: bool, lost: JobSnapshot, script: str
    ) -> None:
        self.defer(
            trigger=SubmitHoldTrigger(
                superfacility_conn_id=self.superfacility_conn_id,
                machine=self.machine,
                identity=asdict(identity),
                reason=wait.why,
                wait=max(wait.seconds, 3.0),
                until_up=until_up,
                deadline=time.time() + self.timeout,
            ),
            method_name="resume_resubmission",
            kwargs={"lost": lost.to_dict(), "script": script},
            timeout=timedelta(seconds=self.timeout) + _DEFER_GRACE,
        )

    def resume_resubmission(
        self, context: Context, event: object, lost: dict[str, Any], script: str
    ) -> JobResult:
        """Go on with a resubmission after a wait."""
        self._ti = context["ti"]
        successors = self._successors(context)
        if successors is None or not isinstance(event, Mapping) or event.get("outcome") != "again":
            if successors is not None:  # a reply may have been lost
                cancel_by_name(self.hook, self.machine, successors.identity)
            raise TimeLimitError(
                f"The job could not be submitted again within {timedelta(seconds=self.timeout)}",
                remote_id=str(lost.get("job_id")),
                next_step="clear the submit task when NERSC answers.",
                details=str(event)[:200],
            )
        return self._succeed(context, successors, JobSnapshot.from_dict(lost), script)

    def _checked_job_id(self) -> str:
        job_id = str(self.job_id or "").strip()
        if not job_id.isdecimal():
            raise UserError(
                f"Not a Slurm job id: {job_id[:80]!r}",
                next_step="give the number that the submit task returns; look at that task's log.",
            )
        return job_id

    def _told(self, context: Context) -> Mapping[str, Any]:
        """What the submit task left under "job"; empty when there is no such task."""
        if self._submit_task is None:
            return {}
        told = context["ti"].xcom_pull(task_ids=self._submit_task, key="job")
        return told if isinstance(told, Mapping) else {}

    def _log_files(self, context: Context) -> LogFiles:
        if self.stdout or self._submit_task is None:
            return LogFiles(self.stdout, self.stderr)
        told = self._told(context)
        if not told:
            return LogFiles(None, self.stderr)
        # A successor writes where the submitted job would have: the names differ in the id.
        first, job_id = str(told.get("job_id")), self._checked_job_id()
        paths = [str(told.get(key) or "").replace(first, job_id) or None for key in ("stdout", "stderr")]
        return LogFiles(paths[0], self.stderr or paths[1])
