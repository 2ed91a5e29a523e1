"""Sensors: wait for a Slurm job, and for a machine to be up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import requests
from airflow.providers.http.hooks.http import HttpHook
from airflow.providers.http.sensors.http import HttpSensor
from airflow.sdk import BaseSensorOperator, XComArg
from airflow.sdk.definitions.xcom_arg import PlainXComArg
from airflow.sdk.exceptions import AirflowSensorTimeout, TaskDeferralTimeout

from facilities.errors import FacilityError, TimeLimitError, UserError
from facilities.killing import task_is_over, timed_out
from facilities.polling import Pace
from facilities.superfacility.connection import TIME_ZONE
from facilities.superfacility.events import read_job_event
from facilities.superfacility.following import cancel_and_say, emergency_hook, end, follow
from facilities.superfacility.hook import OUTAGE_PAGES, MachineStatus, Outage, SuperfacilityHook, read_outages
from facilities.superfacility.judging import JobResult, LogFiles, conclude
from facilities.superfacility.links import SlurmJobLink, job_url
from facilities.superfacility.outages import describe
from facilities.superfacility.source import SlurmJobs
from facilities.superfacility.status_trigger import REQUEST_TIMEOUT, SystemStatusTrigger
from facilities.superfacility.triggers import SlurmJobTrigger
from facilities.superfacility.watching import JobWatch, Limits

if TYPE_CHECKING:
    from airflow.sdk import Context

# The triggers keep the limits themselves; Airflow's own comes later, in case that no triggerer runs.
_DEFER_GRACE = timedelta(minutes=5)


class SlurmJobSensor(BaseSensorOperator):
    """Waits for a Slurm job, cancels it when this task is ended, and returns a `JobResult`.

    :param job_id: the job. Given as a submit operator's `output`, the names of the job's log files are
        taken from that task too.
    :param superfacility_conn_id: connection of type `superfacility`.
    :param machine: such as perlmutter.
    :param stdout: the job's output file, %j its id; None: what the submit task says, else Slurm's default.
    :param stderr: the same for errors; None: as `stdout`.
    :param timeout: longest wait, in seconds. Then the job is cancelled and the task fails.
    :param deferrable: wait in the triggerer; otherwise a worker slot is held.
    :param poll_least: seconds between two looks, at least.
    :param poll_most: seconds between two looks, at most.
    :param confirm: seconds between two looks that see a node failure or a preemption, to believe it.
    :param grace: seconds that a job may be unknown to Slurm.
    :raises InfrastructureError: NODE_FAIL, BOOT_FAIL, PREEMPTED.
    :raises ResourcesError: TIMEOUT, OUT_OF_MEMORY.
    :raises TimeLimitError: the wait took longer than `timeout`.
    :raises UserError: FAILED, CANCELLED, DEADLINE, REVOKED, or a job that Slurm does not know.
    :raises CredentialsError: NERSC refuses the client. The job goes on, and a new try waits for it again.
    """

    template_fields: Sequence[str] = ("job_id", "superfacility_conn_id", "machine", "stdout", "stderr")
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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_id = job_id
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

    @cached_property
    def hook(self) -> SuperfacilityHook:
        """The way to NERSC."""
        return SuperfacilityHook(self.superfacility_conn_id)

    def execute(self, context: Context) -> JobResult:
        """Wait for the job."""
        self._ti = context["ti"]
        job_id = self._checked_job_id()
        with closing(self.hook):
            url = job_url(self.hook, self.machine, job_id)
        SlurmJobLink().persist(context, url)
        self.log.info("Waiting for Slurm job %s on %s. %s", job_id, self.machine, url)
        if self.deferrable:
            self._defer(job_id)
        watch = JobWatch(job_id, self.machine, self._limits, self.timeout, time.monotonic())
        with closing(SlurmJobs(self.superfacility_conn_id, self.machine, attempts=4)) as source:
            verdict = follow(source, watch, self.log)
        return self.execute_complete(context, end(self.hook, self.machine, watch, verdict))

    def execute_complete(self, context: Context, event: object) -> JobResult:
        """Judge the end of the wait."""
        self._ti = context["ti"]
        job = read_job_event(event, self._checked_job_id())
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
            job_id = self._checked_job_id()
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
        if self._ti is None or not (timed_out() or task_is_over(self._ti)):
            return
        hook = emergency_hook(self.superfacility_conn_id)
        self.log.info("The task was ended. %s", cancel_and_say(hook, self.machine, str(self.job_id)))

    @property
    def _limits(self) -> Limits:
        return Limits(
            pace=Pace(least=self.poll_least, most=self.poll_most), confirm=self.confirm, grace=self.grace
        )

    def _defer(self, job_id: str) -> None:
        self.defer(
            trigger=SlurmJobTrigger(
                superfacility_conn_id=self.superfacility_conn_id,
                machine=self.machine,
                job_id=job_id,
                deadline=time.time() + self.timeout,
                poll_least=self.poll_least,
                poll_most=self.poll_most,
                confirm=self.confirm,
                grace=self.grace,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout) + _DEFER_GRACE,
        )

    def _checked_job_id(self) -> str:
        job_id = str(self.job_id or "").strip()
        if not job_id.isdecimal():
            raise UserError(
                f"Not a Slurm job id: {job_id[:80]!r}",
                next_step="give the number that the submit task returns; look at that task's log.",
            )
        return job_id

    def _log_files(self, context: Context) -> LogFiles:
        if self.stdout or self._submit_task is None:
            return LogFiles(self.stdout, self.stderr)
        told = context["ti"].xcom_pull(task_ids=self._submit_task, key="job")
        if not isinstance(told, Mapping) or str(told.get("job_id")) != self._checked_job_id():
            return LogFiles(None, self.stderr)
        return LogFiles(told.get("stdout"), self.stderr or told.get("stderr"))


class SystemStatusSensor(HttpSensor):
    """Waits until NERSC's public status page has a system as active (or degraded). Needs no login.

    The provider's sensor, with an eye for what the page says: HTTP 200 alone does not mean that the
    system is up, and a page that does not answer means that one has to wait.

    :param system: name on the status page.
    :param http_conn_id: HTTP connection to the API, such as https://api.nersc.gov/api/v1.2.
    :param timeout: longest wait, in seconds.
    :param poke_interval: seconds between two looks; grows to five minutes in the triggerer.
    :raises TimeLimitError: the system was not up within `timeout`.
    """

    template_fields: Sequence[str] = (*HttpSensor.template_fields, "system")
    ui_color = "#eef2d9"

    def __init__(
        self,
        *,
        system: str | XComArg = "perlmutter",
        http_conn_id: str | XComArg = "superfacility_status",
        deferrable: bool = True,
        poke_interval: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            endpoint="status",
            http_conn_id=http_conn_id,  # type: ignore[arg-type]  # templated: may come from another task
            deferrable=deferrable,
            poke_interval=poke_interval,
            **kwargs,
        )
        self.system = system
        self._said = ""

    def execute(self, context: Context) -> Any:
        """Look once, and wait if need be."""
        if not str(self.system).replace("_", "").isalnum():
            raise UserError(f"Not a system's name: {self.system!r}", next_step="use perlmutter.")
        if not self.deferrable:
            return self._wait_here(context)
        if not self.poke(context):
            self.defer(
                timeout=timedelta(seconds=self.timeout) + _DEFER_GRACE,
                trigger=SystemStatusTrigger(
                    system=str(self.system),
                    deadline=time.time() + self.timeout,
                    endpoint=self._endpoint,
                    http_conn_id=self.http_conn_id,
                    headers=self.headers,
                    poke_interval=self.poke_interval,
                ),
                method_name="execute_complete",
            )
        return None

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        """End the wait."""
        told = event if isinstance(event, Mapping) else {}
        if told.get("outcome") != "up":
            raise self._not_up(str(told.get("status") or event))
        self.log.info("%s", told.get("status"))

    def poke(self, context: Context) -> bool:  # noqa: ARG002 - Airflow's signature
        """Look once: whether the system is up. No answer means no."""
        try:
            status = MachineStatus.read(self._read(self._endpoint), str(self.system))
        except (requests.RequestException, FacilityError) as error:
            self._said = f"The status page does not answer ({type(error).__name__}: {error})."
        else:
            self._said = describe(status, None) if status.up else self._explain(status)
            if status.up:
                self.log.info("%s", self._said)
                return True
        self.log.warning("Waiting for %s. %s", self.system, self._said)
        return False

    @property
    def _endpoint(self) -> str:
        return f"status/{self.system}"

    def _wait_here(self, context: Context) -> None:
        try:
            super().execute(context)
        except AirflowSensorTimeout as error:
            raise self._not_up(self._said) from error

    def _explain(self, status: MachineStatus) -> str:
        outages: list[Outage] = []
        for page in OUTAGE_PAGES:
            try:
                outages += read_outages(self._read(f"{page}/{self.system}"), ZoneInfo(TIME_ZONE))
            except requests.RequestException as error:
                self.log.info("The page of outages does not answer: %s", error)
        return describe(status, outages[0] if outages else None)

    def _read(self, endpoint: str) -> Any:
        hook = HttpHook(method="GET", http_conn_id=self.http_conn_id)
        response = hook.run(
            endpoint,
            headers=self.headers,
            extra_options={"timeout": REQUEST_TIMEOUT, "check_response": False},
        )
        response.raise_for_status()
        return response.json()

    def _not_up(self, said: str) -> TimeLimitError:
        return TimeLimitError(
            f"{self.system} was not up within {timedelta(seconds=self.timeout)}",
            state=said,
            next_step="look at https://www.nersc.gov/live-status/motd and clear the task when it is up.",
        )
