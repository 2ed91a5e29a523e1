"""The operator that submits a Slurm job, once."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import TaskDeferralTimeout

from facilities.cancellation import task_is_over, timed_out
from facilities.errors import InfrastructureError, TimeLimitError, TransientError, UserError
from facilities.superfacility.claims import Claim
from facilities.superfacility.following import cancel_and_say, cancel_by_name, emergency_hook
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.identity import JobIdentity, NotYet, Submitted
from facilities.superfacility.job import JobSnapshot
from facilities.superfacility.job_script import SlurmResources, job_script, render_file
from facilities.superfacility.judging import LogFiles
from facilities.superfacility.links import SlurmJobLink, job_url
from facilities.superfacility.outages import describe
from facilities.superfacility.states import SlurmState
from facilities.superfacility.submission import Submission
from facilities.superfacility.triggers import SubmitHoldTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

_DEFER_GRACE = timedelta(minutes=5)
_LEAST_WAIT = 3.0  # a trigger that fires while the worker is still leaving can get the task failed


class SubmittedJob(TypedDict):
    """What the task leaves under the XCom key "job"."""

    job_id: str
    name: str
    machine: str
    new: bool
    stdout: str | None
    stderr: str | None
    url: str
    script_copy: str | None
    script: str  # as submitted, for a job that takes this one's place
    claim: str  # hash of the task, under which the job claims its work (`facilities.superfacility.claims`)


class SfapiSubmitJobOperator(BaseOperator):
    """Submits one Slurm job through NERSC's Superfacility API, exactly once; returns the job id.

    A try that comes after another takes up the task's living job, returns a completed one, and submits a
    new one only after a failed one (`facilities.superfacility.submission`). When NERSC does not answer,
    the task is deferred until it does.

    :param resources: what the job asks for: `SlurmResources`, or a mapping with its fields.
    :param script: the commands of the job. A template of Airflow's, which quotes nothing: give values
        through `template` instead.
    :param template: file of the commands, a Jinja template that quotes everything it prints; looked for
        in the DAG's `template_searchpath` and folder. Either this or `script`.
    :param template_context: values of the template's names.
    :param job_name: readable beginning of the job's name; a hash of the task instance and a number follow.
    :param superfacility_conn_id: connection of type `superfacility`.
    :param machine: such as perlmutter.
    :param script_copy_dir: local folder that keeps a copy of each script, readable by its owner only.
    :param settle: seconds in which a job that was submitted shows in Slurm's lists, at the latest.
    :param confirm: seconds for which a node failure or preemption must stay, to be believed.
    :param hold: longest wait for NERSC to answer.
    :param deferrable: wait for NERSC in the triggerer; otherwise a worker slot is held.
    :raises UserError: the job is refused, or cannot be what was meant.
    :raises CredentialsError: NERSC refuses the client.
    :raises TimeLimitError: NERSC could not be used within `hold`.
    """

    template_fields: Sequence[str] = (
        "slurm_resources",
        "script",
        "template_context",
        "job_name",
        "superfacility_conn_id",
        "machine",
        "script_copy_dir",
    )
    template_fields_renderers = {"script": "bash", "slurm_resources": "json", "template_context": "json"}
    operator_extra_links = (SlurmJobLink(),)
    ui_color = "#cfe3ef"

    def __init__(
        self,
        *,
        resources: SlurmResources | Mapping[str, Any] | XComArg,
        script: str | None = None,
        template: str | None = None,
        template_context: Mapping[str, Any] | XComArg | None = None,
        job_name: str = "job",
        superfacility_conn_id: str = SuperfacilityHook.default_conn_name,
        machine: str = "perlmutter",
        script_copy_dir: str | None = None,
        settle: float = 60.0,
        confirm: float = 30.0,
        hold: timedelta = timedelta(days=7),
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (script is None) == (template is None):
            raise ValueError(f"Task {self.task_id}: give either script or template")
        self.slurm_resources = resources  # `resources` is Airflow's own
        self.script = script
        self.template = template
        self.template_context = template_context
        self.job_name = job_name
        self.superfacility_conn_id = superfacility_conn_id
        self.machine = machine
        self.script_copy_dir = script_copy_dir
        self.settle = settle
        self.confirm = confirm
        self.hold = hold
        self.deferrable = deferrable
        self._ti: Any = None
        self._identity: JobIdentity
        self._job_id = ""
        self._stop_asked = False
        self._script_copy: str | None = None

    @cached_property
    def hook(self) -> SuperfacilityHook:
        """The way to NERSC."""
        return SuperfacilityHook(self.superfacility_conn_id)

    def execute(self, context: Context) -> str:
        """Find or submit the job; returns its id."""
        earlier = context["ti"].try_number > 1
        # What an earlier try did is in the store. Without one, it may have submitted just now.
        kept = context.get("task_state_store") is not None
        doubtful_since = None if not earlier else 0.0 if kept else time.time()
        return self._go(context, doubtful_since, time.time() + self.hold.total_seconds(), 0)

    def resume(
        self, context: Context, event: object, doubtful_since: float | None, hold_until: float, holds: int
    ) -> str:
        """Go on after a wait."""
        self._begin(context)
        if not isinstance(event, Mapping) or event.get("outcome") != "again":
            self._give_up(str(event))
        return self._go(context, doubtful_since, hold_until, holds)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Cancel what may have been submitted when Airflow itself has ended the wait."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self._begin(context)
            self._give_up("No triggerer looked at the task.")

    def on_kill(self) -> None:
        """Cancel what was submitted when this task was ended, or has run out of its execution_timeout.

        Runs inside a signal handler or an exception's. While the submit is on its way nothing is known
        yet: the interrupted code sees the flag and cancels as soon as it has the job id.
        """
        self._stop_asked = True
        if self._ti is None:
            return
        if timed_out() and not self._job_id:
            cancel_by_name(emergency_hook(self.superfacility_conn_id), self.machine, self._identity)
        elif self._job_id and (timed_out() or task_is_over(self._ti)):
            note = cancel_and_say(emergency_hook(self.superfacility_conn_id), self.machine, self._job_id)
            self.log.info("The task was ended. %s", note)

    # The way through

    def _begin(self, context: Context) -> None:
        self._identity = JobIdentity.of(context, base=self.job_name)
        self._ti = context["ti"]

    def _go(self, context: Context, doubtful_since: float | None, hold_until: float, holds: int) -> str:
        self._begin(context)
        try:
            return self._bring_to_job(context, doubtful_since, hold_until, holds)
        finally:
            self.hook.close()

    def _bring_to_job(
        self, context: Context, doubtful_since: float | None, hold_until: float, holds: int
    ) -> str:
        submission = self._submission(context, doubtful_since)
        while True:
            try:
                step = submission.step()
            except TransientError as error:
                wait = max(min(10.0 * 2.0**holds, 300.0), error.retry_after or 0.0)
                why, until_up = str(error), True
            else:
                if isinstance(step, Submitted):
                    return self._announce(context, step)
                wait, why, until_up = step.seconds, step.why, False
            holds += until_up
            if time.time() + wait > hold_until:
                self._give_up(why)
            if not self.deferrable:
                self.log.info("Waiting for %.0f s. %s", wait, why)
                time.sleep(wait)
                continue
            self._defer(submission, NotYet(wait, why), until_up, hold_until, holds)

    def _defer(
        self, submission: Submission, wait: NotYet, until_up: bool, hold_until: float, holds: int
    ) -> None:
        self.defer(
            trigger=SubmitHoldTrigger(
                superfacility_conn_id=self.superfacility_conn_id,
                machine=self.machine,
                identity=asdict(submission.identity),
                reason=wait.why,
                wait=max(wait.seconds, _LEAST_WAIT),
                until_up=until_up,
                deadline=hold_until,
            ),
            method_name="resume",
            kwargs={
                "doubtful_since": submission.doubtful_since,
                "hold_until": hold_until,
                "holds": min(holds, 10),
            },
            timeout=timedelta(seconds=max(hold_until - time.time(), 0.0)) + _DEFER_GRACE,
        )

    def _submission(self, context: Context, doubtful_since: float | None) -> Submission:
        body = self._body()
        self._script(self._identity.name(0), body, [])  # raises what is wrong with it before any request
        store = context.get("task_state_store")
        if store is None:
            self.log.warning(
                "Airflow has no task state store: earlier tries are found by the job's name only."
            )
        return Submission(
            self.hook,
            self._identity,
            machine=self.machine,
            script_for=lambda name, failed: self._keep_copy(name, self._script(name, body, failed)),
            store=store,
            doubtful_since=doubtful_since,
            cleared=self._cleared(context),
            settle=self.settle,
            confirm=self.confirm,
            proceed=self._proceed,
        )

    def _cleared(self, context: Context) -> bool:
        """Whether somebody has cleared the task since its last try; that gives it all its tries anew."""
        ti = context["ti"]
        first_try = ti.max_tries - (self.retries or 0) + 1
        return 1 < ti.try_number <= first_try

    def _proceed(self) -> None:
        """Last look around before the submit is sent."""
        if self._stop_asked and task_is_over(self._ti):
            raise InfrastructureError("The task was ended before its job was submitted")
        try:
            status = self.hook.status(self.machine)
        except TransientError as error:
            self.log.info("The status page does not answer, which need not mean anything: %s", error)
            return
        if not status.up:
            outages = self.hook.outages(self.machine)
            raise TransientError(
                f"{self.machine} is not up, so nothing was submitted",
                state=status.status,
                next_step="wait; it is tried again.",
                details=describe(status, outages[0] if outages else None),
            )

    def _announce(self, context: Context, job: Submitted) -> str:
        """Leave the job where people, the next tasks and `on_kill` find it."""
        self._job_id = job.job_id
        if self._stop_asked and task_is_over(self._ti):
            note = cancel_and_say(self.hook, self.machine, job.job_id)
            raise InfrastructureError(
                "The task was ended during its submit", remote_id=job.job_id, details=note
            )
        resources = self._checked_resources()
        shown = JobSnapshot(job.job_id, "squeue", "", SlurmState.PENDING, name=job.name)
        files = LogFiles(resources.output, resources.error).of(shown)
        url = job_url(self.hook, self.machine, job.job_id)
        values = SubmittedJob(
            job_id=job.job_id,
            name=job.name,
            machine=self.machine,
            new=job.new,
            stdout=files.stdout,
            stderr=files.stderr,
            url=url,
            script_copy=self._script_copy,
            script=self._script(job.name, self._body(), []),
            claim=self._identity.digest,
        )
        context["ti"].xcom_push(key="job", value=dict(values))
        url = job_url(self.hook, self.machine, job.job_id)
        SlurmJobLink().persist(context, url)
        how = "submitted" if job.new else "taken up, as it was there already"
        self.log.info("Slurm job %s (%s) on %s: %s. %s", job.job_id, job.name, self.machine, how, url)
        return job.job_id

    def _give_up(self, why: str) -> NoReturn:
        cancelled = cancel_by_name(emergency_hook(self.superfacility_conn_id), self.machine, self._identity)
        raise TimeLimitError(
            f"The job could not be submitted within {self.hold}, the limit of the wait",
            remote_id=self._identity.name(0),
            next_step="look at https://www.nersc.gov/live-status/motd; clear the task when NERSC answers.",
            details=f"{why}\n{f'Cancelled: {cancelled}.' if cancelled else ''}".strip(),
        )

    # The script

    def _script(self, name: str, body: str, failed: Sequence[str]) -> str:
        identity = self._identity
        claim = Claim(identity.digest, tuple(failed))
        return job_script(self._checked_resources(), name, body, owner=identity.owner, claim=claim)

    def _checked_resources(self) -> SlurmResources:
        resources = self.slurm_resources
        if isinstance(resources, SlurmResources):
            return resources
        if not isinstance(resources, Mapping):
            raise UserError(
                f"The resources of the job are not a mapping: {str(resources)[:200]!r}",
                next_step="give SlurmResources or a mapping with its fields.",
            )
        return SlurmResources.from_mapping(resources)

    def _body(self) -> str:
        if self.template is None:
            return str(self.script)
        values = self.template_context or {}
        if not isinstance(values, Mapping):
            raise UserError(
                f"The template context is not a mapping: {str(values)[:200]!r}",
                next_step="give a mapping from the template's names to values.",
            )
        return render_file(self._template_path(), values)

    def _template_path(self) -> Path:
        name = Path(str(self.template))
        if name.is_absolute():
            return name
        dag = self.dag
        searched = dag.template_searchpath or ()
        folders = [searched] if isinstance(searched, str) else list(searched)
        folders.append(str(Path(dag.fileloc).parent))
        found = next((path for folder in folders if (path := Path(folder) / name).is_file()), None)
        if found is None:
            raise UserError(
                f"There is no job script template {name}",
                next_step=f"put it into one of {', '.join(folders)}.",
            )
        return found

    def _keep_copy(self, name: str, script: str) -> str:
        """Write the script's copy; a full disk does not keep the job from being submitted."""
        if self.script_copy_dir:
            try:
                self._script_copy = str(write_private(Path(self.script_copy_dir), f"{name}.sh", script))
            except OSError as error:
                self.log.warning("No copy of the job script was kept: %s", error)
        return script


def write_private(folder: Path, name: str, text: str) -> Path:
    """Write a file that only its owner can read, whole or not at all.

    :raises OSError: it cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        target = folder / name
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target
