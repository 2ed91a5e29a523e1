"""The operator that submits a Slurm job, once."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from airflow.sdk import BaseOperatorLink, Context, XComArg

from facilities.cancellation import Cancellation, task_is_over, timed_out
from facilities.deferral import RemoteWorkOperator
from facilities.errors import InfrastructureError, TransientError, UserError
from facilities.links import RemoteWorkLink
from facilities.private_files import write_private
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.job_end import LogFiles
from facilities.superfacility.job_script import SlurmResources, check_body, render_file
from facilities.superfacility.own_jobs import JobIdentity
from facilities.superfacility.slurm import SlurmJob, SlurmState
from facilities.superfacility.submission import NotYet, Submission, Submitted
from facilities.superfacility.triggers import (
    SubmitTrigger,
    cancel_job,
    cancel_jobs_of,
)

_MIN_WAIT = 3.0  # seconds; a trigger that fires while the worker is still leaving can get the task failed


class SlurmJobLink(RemoteWorkLink):
    """NERSC's list of the user's jobs: there is no lasting address of a single one."""

    name = "Slurm jobs at NERSC"


class SlurmOperator(RemoteWorkOperator):
    """Base of operators that submit a Slurm job or wait for one.

    :param superfacility_conn_id: connection of type `superfacility`.
    :param machine: such as perlmutter.
    :param hold: longest wait for NERSC to answer.
    :param deferrable: wait in the triggerer; otherwise a worker slot is held.
    """

    service = SubmitTrigger.service
    status_page = "https://www.nersc.gov/live-status/motd"
    template_fields: Sequence[str] = ("superfacility_conn_id", "machine")
    operator_extra_links: Collection[BaseOperatorLink] = (SlurmJobLink(),)

    def __init__(
        self,
        *,
        superfacility_conn_id: str = SuperfacilityHook.default_conn_name,
        machine: str = "perlmutter",
        hold: timedelta = timedelta(days=7),
        **kwargs: Any,
    ) -> None:
        super().__init__(hold=hold, **kwargs)
        self.superfacility_conn_id = superfacility_conn_id
        self.machine = machine
        self._submitting: JobIdentity | None = None

    @cached_property
    def hook(self) -> SuperfacilityHook:
        """The way to NERSC."""
        return SuperfacilityHook(self.superfacility_conn_id)

    def identity(self, context: Context) -> JobIdentity:
        """Whose job it is."""
        return JobIdentity.of_task(context)

    def find_or_submit(
        self,
        context: Context,
        submission: Submission,
        *,
        hold_until: float | None = None,
        holds: int = 0,
        **kwargs: Any,
    ) -> Submitted:
        """The job of a submission; until there is one the task is deferred, and goes on in `run_try`.

        :param hold_until: see `hold`.
        :param holds: see `hold`.
        :param kwargs: handed to `run_try`.
        """
        self._submitting = submission.identity
        while True:
            try:
                with closing(self.hook):
                    step = submission.step()
            except TransientError as error:
                if self.deferrable:
                    kwargs["doubtful_since"] = submission.doubtful_since
                    self.hold(context, error, hold_until=hold_until, holds=holds, **kwargs)
                step = NotYet(max(self.first_pause, error.retry_after or 0.0), str(error))
            if isinstance(step, Submitted):
                self.announce(context, step.job_id)
                self._submitting = None
                return step
            hold_until = hold_until or time.time() + self.longest_hold.total_seconds()
            if not self.deferrable:
                if time.time() + step.seconds > hold_until:
                    raise self.outage_error(context, TransientError(step.why))
                self.log.info("Waiting for %.0f s: %s.", step.seconds, step.why)
                time.sleep(step.seconds)
                continue
            kwargs |= {"doubtful_since": submission.doubtful_since, "hold_until": hold_until, "holds": holds}
            kwargs["cause"] = TransientError(step.why).to_fields()
            trigger = self.outage_trigger(context, step.why, hold_until, _MIN_WAIT)
            trigger.delay = max(step.seconds, _MIN_WAIT)
            self.defer_to(trigger, hold_until, "resume_after_outage", **kwargs)

    def outage_trigger(
        self, context: Context, reason: str, deadline: float, first_pause: float
    ) -> SubmitTrigger:
        return SubmitTrigger(
            superfacility_conn_id=self.superfacility_conn_id,
            machine=self.machine,
            identity=asdict(self.identity(context)),
            reason=reason,
            deadline=deadline,
            first_pause=first_pause,
        )

    def cancel_known(self, *, urgent: bool) -> Cancellation:
        with closing(SuperfacilityHook.for_emergency(self.superfacility_conn_id, own_tokens=urgent)) as hook:
            return cancel_job(hook, self.machine, self.remote_id)

    def cancel_unknown(self, context: Context) -> str:
        return self._cancel_by_name(self.identity(context)).note

    def _cancel_by_name(self, identity: JobIdentity) -> Cancellation:
        with closing(SuperfacilityHook.for_emergency(self.superfacility_conn_id)) as hook:
            return cancel_jobs_of(hook, self.machine, identity)

    def on_kill(self) -> None:
        """Cancel what was submitted when this task was ended, or has run out of its execution_timeout.

        While a submit is on its way, the job is looked for by its name, too.
        """
        super().on_kill()
        if self._submitting is not None and (timed_out() or task_is_over(self._ti)):
            self.log.info("The task was ended. %s", self._cancel_by_name(self._submitting).note)


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
    resources: dict[str, Any]  # these two for a job that takes this one's place
    body: str


class SfapiSubmitJobOperator(SlurmOperator):
    """Submits one Slurm job through NERSC's Superfacility API, exactly once; returns the job id.

    Example::

        job = SfapiSubmitJobOperator(
            task_id="submit",
            resources=SlurmResources(account="als_g", qos="regular", constraint="gpu", time_limit="01:00:00"),
            template="reconstruct.sh.j2",
            template_context={"scan": "/global/cfs/scan.cxi"},
        )
        wait = SlurmJobSensor(task_id="wait", job_id=job.output)

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
    :param script_copy_dir: local folder that keeps a copy of each script, readable by its owner only.
    :param settle: seconds in which a job that was submitted shows in Slurm's lists, at the latest.
    :param confirm: seconds for which a node failure or preemption must stay, to be believed.
    :raises UserError: the job is refused, or cannot be what was meant.
    :raises CredentialsError: NERSC refuses the client.
    :raises TimeLimitError: NERSC could not be used within `hold`.

    The others are those of `SlurmOperator`.
    """

    template_fields: Sequence[str] = (
        *SlurmOperator.template_fields,
        "slurm_resources",
        "script",
        "template_context",
        "job_name",
        "script_copy_dir",
    )
    template_fields_renderers = {"script": "bash", "slurm_resources": "json", "template_context": "json"}
    ui_color = "#cfe3ef"

    def __init__(
        self,
        *,
        resources: SlurmResources | Mapping[str, Any] | XComArg,
        script: str | None = None,
        template: str | None = None,
        template_context: Mapping[str, Any] | XComArg | None = None,
        job_name: str = "job",
        script_copy_dir: str | None = None,
        settle: float = 60.0,
        confirm: float = 30.0,
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
        self.script_copy_dir = script_copy_dir
        self.settle = settle
        self.confirm = confirm
        self._script_copy: str | None = None

    def identity(self, context: Context) -> JobIdentity:
        return JobIdentity.of_task(context, base=self.job_name)

    def run_try(self, context: Context, **kwargs: Any) -> str:
        """Find or submit the job; returns its id."""
        resources, body = SlurmResources.of(self.slurm_resources), self._body()
        check_body(body)  # before any request
        store = context.get("task_state_store")
        if store is None:
            self.log.warning(
                "Airflow has no task state store: earlier tries are found by the job's name only."
            )
        if "doubtful_since" not in kwargs:
            # What an earlier try did is in the store. Without one, it may have submitted just now.
            doubtful = 0.0 if store is not None else time.time()
            kwargs["doubtful_since"] = doubtful if context["ti"].try_number > 1 else None
        submission = Submission(
            self.hook,
            self.identity(context),
            machine=self.machine,
            resources=resources,
            body=body,
            store=store,
            doubtful_since=kwargs["doubtful_since"],
            cleared=self._cleared(context),
            settle=self.settle,
            confirm=self.confirm,
            before_submit=self._before_submit,
        )
        job = self.find_or_submit(context, submission, **kwargs)
        return self._announce(context, job, resources, body)

    def _cleared(self, context: Context) -> bool:
        """Whether somebody has cleared the task since its last try; that gives it all its tries anew."""
        ti = context["ti"]
        first_try = ti.max_tries - (self.retries or 0) + 1
        return 1 < ti.try_number <= first_try

    def _before_submit(self, name: str, script: str) -> None:
        """Keep the script, and look whether the task and the machine are still there."""
        if self.script_copy_dir:
            try:
                self._script_copy = str(
                    write_private(Path(self.script_copy_dir), f"{name}.sh", script.encode())
                )
            except OSError as error:  # a full disk does not keep the job from being submitted
                self.log.warning("No copy of the job script was kept: %s", error)
        if self._kill_requested and task_is_over(self._ti):
            raise InfrastructureError("The task was ended before its job was submitted")
        try:
            status = self.hook.status(self.machine)
        except TransientError as error:
            self.log.info("The status page does not answer, which need not mean anything: %s", error)
        else:
            status.require_up()

    def _announce(self, context: Context, job: Submitted, resources: SlurmResources, body: str) -> str:
        """Leave the job where people, the next tasks and `on_kill` find it."""
        shown = SlurmJob(job.job_id, "squeue", "", SlurmState.PENDING, name=job.name)
        files = LogFiles(resources.output, resources.error).of(shown)
        with closing(self.hook):
            url = self.hook.job_url(self.machine, job.job_id)
        values = SubmittedJob(
            job_id=job.job_id,
            name=job.name,
            machine=self.machine,
            new=job.new,
            stdout=files.stdout,
            stderr=files.stderr,
            url=url,
            script_copy=self._script_copy,
            resources=resources.to_mapping(),
            body=body,
        )
        context["ti"].xcom_push(key="job", value=dict(values))
        SlurmJobLink().persist(context, url)
        how = "submitted" if job.new else "taken up, as it was there already"
        self.log.info("Slurm job %s (%s) on %s: %s. %s", job.job_id, job.name, self.machine, how, url)
        return job.job_id

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
