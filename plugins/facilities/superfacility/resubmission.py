"""The sensor that submits a job again which the facility lost, or which ran out of time or memory.

Slurm itself starts a lost job again when its resources say `requeue`; what it does not start again is
submitted here, under the identity of the task that submitted the first one and with the same care
(`facilities.superfacility.submission`). So clearing either task finds the new job.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from facilities.superfacility.job_script import SlurmResources
from facilities.superfacility.sensors import SlurmJobSensor
from facilities.superfacility.slurm import OUT_OF_RESOURCES, SlurmJob
from facilities.superfacility.submission import JOB_KEY, JobIdentity, Submission

if TYPE_CHECKING:
    from airflow.sdk import Context

ORIGIN_KEY = "slurm_origin"


class ResubmittingSlurmJobSensor(SlurmJobSensor):
    """Waits for the job of a submit operator, and for those that take its place.

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
        """Whose job it is: the submit task's."""
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
            resources=SlurmResources.from_mapping(resources),
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
        resources = SlurmResources.from_mapping(submitted["resources"])
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
