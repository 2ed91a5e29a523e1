"""Sensors: one waits for a Slurm job, the other one also submits a lost job again."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from typing import Any

import tenacity
from airflow.sdk import BaseSensorOperator, Context, XComArg
from airflow.sdk.definitions.xcom_arg import PlainXComArg

from facilities.deferral import STATE_KEY, Wait, end_wait
from facilities.errors import FacilityError, NotFoundError, TransientError, UserError
from facilities.superfacility import claims
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.job_end import LogFiles, failure_of_job, job_result
from facilities.superfacility.job_script import SlurmResources
from facilities.superfacility.operators import SlurmJobLink, SlurmOperator
from facilities.superfacility.own_jobs import JobIdentity
from facilities.superfacility.slurm import OUT_OF_RESOURCES, SUCCEEDED, SlurmJob, SlurmState
from facilities.superfacility.submission import JOB_KEY, Submission
from facilities.superfacility.triggers import SlurmJobTrigger
from facilities.waiting import read_event

ORIGIN_KEY = "slurm_origin"

_TAIL_LINES = 30
_TAIL_PATIENCE = 60.0  # seconds for which reading the output of a failed job is tried again
_TAIL_PAUSE = 5.0
_REASON = 400  # characters of the last line


class SlurmJobSensor(SlurmOperator, BaseSensorOperator):
    """Waits for a Slurm job, cancels it when this task is ended, and returns a `JobResult`.

    Example::

        SlurmJobSensor(task_id="wait", job_id=job.output, timeout=86_400)

    :param job_id: the job. Given as a submit operator's `output`, the names of the job's log files are
        taken from that task too.
    :param stdout: the job's output file, %j its id; None: what the submit task says, else Slurm's default.
    :param stderr: the same for errors; None: as `stdout`.
    :param timeout: longest wait for one job, over all tries, in seconds. Then the job is cancelled and the
        task fails.
    :param min_poll_interval: seconds between two polls, at least.
    :param max_poll_interval: seconds between two polls, at most.
    :param confirm: seconds for which a node failure or preemption must stay, to be believed.
    :param grace: seconds that a job may be unknown to Slurm.
    :raises InfrastructureError: NODE_FAIL, BOOT_FAIL, PREEMPTED.
    :raises ResourcesError: TIMEOUT, OUT_OF_MEMORY.
    :raises TimeLimitError: the wait took longer than `timeout`.
    :raises UserError: FAILED, CANCELLED, DEADLINE, REVOKED, or a job that Slurm does not know.
    :raises CredentialsError: NERSC refuses the client. The job goes on, and a new try waits for it again.

    The others are those of `SlurmOperator`.
    """

    template_fields: Sequence[str] = (*SlurmOperator.template_fields, "job_id", "stdout", "stderr")
    valid_modes = ("poke",)
    ui_color = "#dcecd9"

    def __init__(
        self,
        *,
        job_id: str | XComArg,
        stdout: str | None = None,
        stderr: str | None = None,
        min_poll_interval: float = 5.0,
        max_poll_interval: float = 60.0,
        confirm: float = 30.0,
        grace: float = 600.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.longest_hold = timedelta(seconds=self.timeout)
        self.job_id = job_id
        self.stdout = stdout
        self.stderr = stderr
        self.min_poll_interval = min_poll_interval
        self.max_poll_interval = max_poll_interval
        self.confirm = confirm
        self.grace = grace
        self._submit_task = job_id.operator.task_id if isinstance(job_id, PlainXComArg) else None
        self._submitted: Mapping[str, Any] = {}

    def run_try(self, context: Context, **kwargs: Any) -> Any:  # noqa: ARG002 - of holds
        return self.wait_for_job(context, self.checked_job_id())

    def wait_for_job(self, context: Context, job_id: str) -> Any:
        """Wait for a job, and go on in `execute_complete`."""
        self.announce(context, job_id)
        submitted = self.submitted(context)
        url = str(submitted.get("url") or "") if submitted.get("job_id") == job_id else ""
        if not url:
            with closing(self.hook):
                url = self.hook.job_url(self.machine, job_id)
        SlurmJobLink().persist(context, url)
        self.log.info("Waiting for Slurm job %s on %s. %s", job_id, self.machine, url)
        store = context.get("task_state_store")
        wait = Wait.load(store, job_id) or Wait(job_id, time.time() + self.timeout).save(store)
        trigger = SlurmJobTrigger(
            superfacility_conn_id=self.superfacility_conn_id,
            machine=self.machine,
            remote_id=job_id,
            deadline=wait.deadline,
            min_poll_interval=self.min_poll_interval,
            max_poll_interval=self.max_poll_interval,
            confirm=self.confirm,
            grace=self.grace,
        )
        return self.wait_for(context, trigger)

    def execute_complete(self, context: Context, event: object) -> Any:
        self._ti = context["ti"]
        end = read_event(event)
        end_wait(context.get("task_state_store"))
        self.remote_id = end["remote_id"]
        if end["error"] is not None:
            raise FacilityError.from_fields(end["error"])
        job = SlurmJob.from_dict(end["result"] or {})
        if job.refused and self._submit_task:
            task = self.identity(context).digest
            with closing(self.hook):
                owner = claims.other_owner(self.hook, self.machine, task, job.job_id)
            if owner:
                self.log.warning("Job %s did nothing, as job %s does this task's work.", job.job_id, owner)
                return self.wait_for_job(context, owner)
        if job.state not in SUCCEEDED:
            return self.handle_failure(context, job)
        result = job_result(job, self.machine, self._log_files(context).of(job))
        self.log.info(
            "Job %s has completed: %s s in the queue, %s s run, %.4f node-hours.",
            *(result["job_id"], result["queue_seconds"], result["run_seconds"], result["node_hours"]),
        )
        return result

    def handle_failure(self, context: Context, job: SlurmJob) -> Any:
        """Raise what a job's end without success means, with the last lines of its output."""
        error = failure_of_job(job, self.machine)
        with closing(self.hook):
            tails = _tails(self.hook, self.machine, self._log_files(context).of(job))
        if job.state is SlurmState.FAILED and (reason := _last_line(tails[0])):
            error.what = f"{reason}. {error.what}"  # what it is about comes before ids
        error.add_details(*tails)
        raise error

    def identity(self, context: Context) -> JobIdentity:
        """Whose job it is: the submit task's, when that is known."""
        return JobIdentity.of_task(context, task_id=self._submit_task or "")

    def cancel_unknown(self, context: Context) -> str:
        store = context.get("task_state_store")
        wait: Any = store.get(STATE_KEY) if store is not None else None
        self.remote_id = str(wait["remote_id"]) if wait else self.checked_job_id()
        return self.cancel_known(urgent=False).note

    def checked_job_id(self) -> str:
        """The job's id.

        :raises UserError: it is none.
        """
        job_id = str(self.job_id or "").strip()
        if not job_id.isdecimal():
            raise UserError(
                f"Not a Slurm job id: {job_id[:80]!r}",
                next_step="give the number that the submit task returns; look at that task's log.",
            )
        return job_id

    def submitted(self, context: Context) -> Mapping[str, Any]:
        """What the submit task left under "job"; empty when there is no such task."""
        if not self._submitted and self._submit_task is not None:
            found = context["ti"].xcom_pull(task_ids=self._submit_task, key="job")
            self._submitted = found if isinstance(found, Mapping) else {}
        return self._submitted

    def _log_files(self, context: Context) -> LogFiles:
        if self.stdout:
            return LogFiles(self.stdout, self.stderr)
        resources = self.submitted(context).get("resources") or {}
        return LogFiles(resources.get("output"), self.stderr or resources.get("error"))


class ResubmittingSlurmJobSensor(SlurmJobSensor):
    """Waits for the job of a submit operator, and for those that take its place.

    Slurm itself starts a lost job again when its resources say `requeue`. What it does not start again is
    submitted here, under the identity of the task that submitted the first one and with the same care
    (`facilities.superfacility.submission`), so that clearing either task finds the new job.

    Example::

        ResubmittingSlurmJobSensor(task_id="wait", job_id=job.output, resubmit=3)

    :param job_id: a submit operator's `output`.
    :param resubmit: how often a job that the facility lost (NODE_FAIL, BOOT_FAIL, PREEMPTED) is submitted
        again.
    :param more_resources: whether a job that ended with TIMEOUT or OUT_OF_MEMORY is submitted once more with
        twice the time or memory, up to the queue's limit. Templated: true or false.
    :param settle: seconds in which a job that was submitted shows in Slurm's lists, at the latest.

    The others are those of `SlurmJobSensor`.
    """

    template_fields: Sequence[str] = (*SlurmJobSensor.template_fields, "more_resources")

    def __init__(
        self,
        *,
        resubmit: int = 3,
        more_resources: bool | str = False,
        settle: float = 60.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.resubmit = resubmit
        self.more_resources = more_resources
        self.settle = settle

    def identity(self, context: Context) -> JobIdentity:
        base = re.sub(r"-[0-9a-f]{16}-g\d+$", "", str(self.submitted(context).get("name") or "job"))
        return JobIdentity.of_task(context, base=base, task_id=self._submit_task or "")

    def run_try(self, context: Context, resources: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        """Wait for the newest job; or submit another one, with these `resources`, and wait for it."""
        newest = self._kept(context) or self._first(context)
        if resources is None:
            return self.wait_for_job(context, str(newest["job_id"]))
        self.remote_id = ""
        store = context.get("task_state_store")
        if store is not None and self._kept(context) is None:
            store.set(JOB_KEY, {**newest, "submitted_at": time.time()})
            store.set(ORIGIN_KEY, newest["job_id"])
        kwargs.setdefault("doubtful_since", None if store is not None else time.time())
        submission = Submission(
            self.hook,
            self.identity(context),
            machine=self.machine,
            resources=SlurmResources.of(resources),
            body=str(self.submitted(context)["body"]),
            store=store,
            doubtful_since=kwargs["doubtful_since"],
            settle=self.settle,
            confirm=0.0,  # the wait for the lost job has seen to that
        )
        job = self.find_or_submit(context, submission, resources=dict(resources), **kwargs)
        return self.wait_for_job(context, job.job_id)

    def handle_failure(self, context: Context, job: SlurmJob) -> Any:
        """Submit the job again if that may help, and wait for it."""
        resources = self._resources_after(context, job)
        if resources is None:
            return super().handle_failure(context, job)
        self.log.warning("Job %s ended as %s: it is submitted again.", job.job_id, job.state_text)
        return self.run_try(context, resources=resources.to_mapping())

    def cancel_unknown(self, context: Context) -> str:
        """Cancel the job that was waited for, and any other of its name."""
        by_name = self._cancel_by_name(self.identity(context)).note
        return "\n".join(note for note in (by_name, super().cancel_unknown(context)) if note)

    def _resources_after(self, context: Context, job: SlurmJob) -> SlurmResources | None:
        """Resources of the job that takes a failed one's place; None when it would fail in the same way."""
        submitted = self.submitted(context)
        if not submitted.get("body"):
            return None
        resources = SlurmResources.of(submitted["resources"])
        first = self._first(context)
        count = int((self._kept(context) or first)["generation"]) - int(first["generation"])
        if job.lost and count < self.resubmit:
            return resources
        more = str(self.more_resources).strip().lower() == "true"
        if more and job.state in OUT_OF_RESOURCES and job.state is not None and count == 0:
            return resources.with_more(job.state)
        return None

    def _first(self, context: Context) -> dict[str, Any]:
        """Id, name and generation of the submit task's job."""
        identity = self.identity(context)
        name = str(self.submitted(context).get("name") or identity.name(0))
        generation = identity.generation_of(name) or 0
        return {"job_id": self.checked_job_id(), "name": name, "generation": generation}

    def _kept(self, context: Context) -> Mapping[str, Any] | None:
        """The same of the newest job that followed it; None when there is none, or it followed another."""
        store = context.get("task_state_store")
        if store is None or store.get(ORIGIN_KEY) != self.checked_job_id():
            return None
        kept: Any = store.get(JOB_KEY)
        return kept if isinstance(kept, Mapping) and kept.get("job_id") else None


def _last_line(tail: str) -> str:
    """The last line that a program wrote: most end with why they failed."""
    lines = [line.strip() for line in tail.splitlines()[1:] if line.strip()]
    return lines[-1][:_REASON].rstrip(".") if lines and lines != ["(empty)"] else ""


def _tails(hook: SuperfacilityHook, machine: str, files: LogFiles) -> list[str]:
    """The ends of a job's files; an API that does not answer is asked again: nobody looks for them later."""
    paths = {"stderr": files.stderr, "stdout": files.stdout}
    if files.stdout == files.stderr:
        paths = {"stdout and stderr": files.stdout}
    reading = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        stop=tenacity.stop_after_delay(_TAIL_PATIENCE),
        wait=tenacity.wait_fixed(_TAIL_PAUSE),
        reraise=True,
    )
    tails = []
    for what, path in paths.items():
        if path is None:
            tails.append(f"--- {what}: where it is written is not known.")
            continue
        try:
            text = reading(hook.tail, machine, path, lines=_TAIL_LINES)
            tails.append(f"--- last lines of {what}, in full at {path}:\n{text or '(empty)'}")
        except NotFoundError:
            tails.append(f"--- {what} ({path}): the job has not written this file.")
        except FacilityError as error:
            tails.append(f"--- {what} ({path}) could not be read: {error.what}.")
    return tails
