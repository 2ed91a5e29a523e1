"""The hook of NERSC's Superfacility API v1.2: one method a call, typed replies, classed errors."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from urllib.parse import quote

from airflow.sdk import BaseHook

from facilities.errors import (
    CredentialsError,
    FacilityError,
    LostReplyError,
    NotFoundError,
    TransientError,
    UserError,
)
from facilities.polling import BlockingSource
from facilities.superfacility.connection import SuperfacilityConfig, read_client_key
from facilities.superfacility.errors import expect_ok
from facilities.superfacility.files import FileCalls, check_machine
from facilities.superfacility.session import SfapiSession
from facilities.superfacility.slurm import Origin, SlurmJob, SlurmState, by_id, combine, read_rows
from facilities.superfacility.status import MachineStatus, moment_of, read_status

log = logging.getLogger(__name__)

EMERGENCY_TIMEOUT = 7.0
"""Seconds for a request of `on_kill`, which has 30 s in the triggerer and 5 s in the worker."""

_QUEUE_INTERVAL = 120.0  # seconds
_FORGET_QUEUED = 3600.0  # seconds
_STATUS_INTERVAL = 300.0  # seconds
JOBS_PER_REQUEST = 350  # ids of eight digits in _MAX_IDS
_MAX_IDS = 4000  # characters of a URL that a list of ids may take; servers accept 8000 in all
_JOB_ID = re.compile(r"\d{1,18}(_\d+)?")
_USER = re.compile(r"[A-Za-z0-9._-]{1,64}")


class SuperfacilityHook(FileCalls, BaseHook):
    """Talks to the Superfacility API with the credentials of a connection of type `superfacility`.

    All methods block; in a trigger, call them in a thread. Example::

        with closing(SuperfacilityHook("superfacility_default")) as hook:
            if hook.status("perlmutter").up:
                task_id = hook.submit(script, machine="perlmutter")
                job_id = hook.submitted_job(task_id, within=30)

    :param superfacility_conn_id: the connection.
    :param attempts: how often a read is sent at most when the service does not answer; actions are sent once.
    :param timeout: seconds to wait for each reply.
    :param own_tokens: share no lock with other hooks of the process.
    """

    conn_name_attr = "superfacility_conn_id"
    default_conn_name = "superfacility_default"
    conn_type = "superfacility"
    hook_name = "NERSC Superfacility API"

    def __init__(
        self,
        superfacility_conn_id: str = default_conn_name,
        *,
        attempts: int = 4,
        timeout: float = 20.0,
        own_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.superfacility_conn_id = superfacility_conn_id
        self._attempts = attempts
        self._timeout = timeout
        self._own_tokens = own_tokens

    @classmethod
    def for_emergency(cls, superfacility_conn_id: str, *, own_tokens: bool = True) -> SuperfacilityHook:
        """An impatient hook for `on_kill`.

        :param own_tokens: in a signal handler, since the interrupted code may hold the shared ones' lock.
        """
        return cls(superfacility_conn_id, attempts=2, timeout=EMERGENCY_TIMEOUT, own_tokens=own_tokens)

    @cached_property
    def _connection(self) -> Any:
        return self.get_connection(self.superfacility_conn_id)

    @cached_property
    def config(self) -> SuperfacilityConfig:
        """The connection, read and checked."""
        return SuperfacilityConfig.from_connection(self._connection, self.superfacility_conn_id)

    @cached_property
    def session(self) -> SfapiSession:
        """The HTTP session; the key is read with the first request that needs it."""
        return SfapiSession(
            self.config,
            lambda: read_client_key(self.config, self._connection.password),
            attempts=self._attempts,
            timeout=self._timeout,
            own_tokens=self._own_tokens,
        )

    def close(self) -> None:
        """Release the network connections; the next call opens new ones."""
        if "session" in self.__dict__:
            self.session.close()
            del self.__dict__["session"]

    def forget(self) -> None:
        """Read the connection anew at the next call: somebody may have renewed a key."""
        self.close()
        for name in ("config", "_connection"):
            self.__dict__.pop(name, None)

    # Jobs

    def submit(self, script: str, *, machine: str) -> str:
        """Submit a job script; sent once.

        :return: the id of the API's task, whose result is the job id (`submitted_job`).
        :raises LostReplyError: the job may have been submitted: look for its name.
        :raises UserError: NERSC refuses it.
        """
        what = f"Submitting the job to {machine}"
        path = f"compute/jobs/{check_machine(machine)}"
        reply = self.session.send_once("POST", path, what, data={"job": script, "isPath": "false"})
        task_id = expect_ok(reply, what, sent=True).get("task_id")
        if not task_id:
            raise LostReplyError(f"{what}: the reply names no task", details=json.dumps(reply)[:500])
        return str(task_id)

    def submitted_job(self, task_id: str, *, within: float = 0.0) -> str | None:
        """Job id that a submit led to; None while the API works on it.

        :param within: seconds to wait for it.
        :raises NotFoundError: the task is unknown: results are kept for ten minutes.
        :raises LostReplyError: the task ended without saying what became of the job.
        :raises UserError: sbatch refused the job.
        """
        what = "Submitting the job"
        result = self.task_result(task_id, what, within)
        if result is None:
            return None
        job_id = str(expect_ok(result, f"{what}: Slurm refuses it", sent=True).get("jobid") or "").strip()
        if not _JOB_ID.fullmatch(job_id):
            raise LostReplyError(
                f"{what}: the result holds no job id",
                remote_id=task_id,
                details=json.dumps(dict(result))[:500],
            )
        return job_id

    def jobs(self, machine: str, job_ids: Iterable[str], origin: Origin) -> dict[str, SlurmJob]:
        """Look jobs up by id; those that Slurm does not list are left out.

        :param origin: "sacct" (every job, some seconds late) or "squeue" (those that wait or run).
        :raises TransientError: no answer, or an error that is not about the jobs.
        """
        found: dict[str, SlurmJob] = {}
        for chunk in _lists_of_ids({_job_id(job_id) for job_id in job_ids}):
            try:
                rows = self._job_rows(machine, f"jobid={','.join(chunk)}", origin)
            except NotFoundError as error:
                if "invalid job id" not in error.details.lower():
                    raise
                # squeue, when it knows none of the ids any more
                log.debug("%s lists none of %s: %s", origin, chunk, error)
                continue
            found.update(by_id(rows, chunk))
        return found

    def jobs_of_user(self, machine: str, origin: Origin) -> list[SlurmJob]:
        """All jobs of the client's user: squeue's, or those that sacct has of today."""
        return self._job_rows(machine, f"user={self.user}", origin)

    def _job_rows(self, machine: str, selection: str, origin: Origin) -> list[SlurmJob]:
        what = f"Looking up jobs on {machine} ({origin})"
        params = {"sacct": str(origin == "sacct").lower(), "cached": "false", "kwargs": selection}
        reply = self.session.get(f"compute/jobs/{check_machine(machine)}", what, params=params)
        output = expect_ok(reply, what, otherwise=TransientError).get("output")
        if not isinstance(output, list):
            raise TransientError(f"{what}: the reply holds no list of jobs", details=str(reply)[:300])
        return read_rows(output, origin, self.config.zone)

    def cancel(self, machine: str, job_id: str) -> None:
        """Cancel a job. One that has ended, or that Slurm does not know, is left as it is, without an error.

        :raises FacilityError: it could not be cancelled.
        """
        what = f"Cancelling the job on {machine}"
        path = f"compute/jobs/{check_machine(machine)}/{_job_id(job_id)}"
        try:
            expect_ok(self.session.delete(path, what), what, remote_id=job_id, otherwise=TransientError)
        except NotFoundError:
            log.info("Slurm does not know job %s any more: nothing to cancel.", job_id)

    def job_url(self, machine: str, job_id: str) -> str:
        """Address of a job's page, from the connection's `job_url`; empty when it cannot be made.

        By default the jobs page of the user in Iris: NERSC publishes no address of a single job.
        """
        template = self.config.job_url
        values = {"job_id": quote(job_id, safe=""), "machine": quote(machine, safe="")}
        try:
            if "{uid}" in template:
                values["uid"] = quote(str(self.account["uid"]), safe="")
            return template.format_map(values)
        except (FacilityError, AttributeError, LookupError, ValueError) as error:
            log.warning("There is no link to the job's page: job_url of the connection: %r", error)
            return ""

    # The client and the machine

    @property
    def account(self) -> Mapping[str, Any]:
        """Who the client acts for: `name` and `uid`."""
        return self.session.account

    @property
    def user(self) -> str:
        """NERSC user name that owns the jobs."""
        name = self.config.user or str(self.account.get("name") or "")
        if not _USER.fullmatch(name):
            raise UserError(
                f"The user of connection {self.superfacility_conn_id} is not a user name: {name!r}",
                next_step="set user in the extra of the connection.",
            )
        return name

    def days_left(self) -> float | None:
        """Days until the client expires; None when the API does not say."""
        reply = self.session.get("account/clients", "Looking up when the client expires")
        for client in reply if isinstance(reply, list) else ():
            if client.get("clientId") == self.session.client_id and client.get("expiresAt"):
                left = moment_of(str(client["expiresAt"]), UTC) - datetime.now(UTC)
                return left.total_seconds() / 86400
        return None

    def status(self, machine: str) -> MachineStatus:
        """State of a machine, from the public pages; needs no credentials.

        :raises TransientError: no answer, or one that says nothing about the machine.
        """
        return read_status(self.session, check_machine(machine))

    def test_connection(self) -> tuple[bool, str]:
        """Get a token, ask who the client is and when it expires; for the button in the connection's form."""
        try:
            self.session.forget_token()
            name = self.account.get("name")
            left = self.days_left()
        except FacilityError as error:
            return False, str(error)
        finally:
            self.close()
        expiry = "its expiry is not known" if left is None else f"it expires in {left:.1f} days"
        return True, f"Client {self.config.client_id or 'from file'} acts for {name}; {expiry}."


class SlurmJobSource(BlockingSource[SlurmJob]):
    """What the shared poller of jobs asks: all jobs of a connection that are waited for on a machine.

    Requests: one to sacct for as many jobs as a URL holds (350). squeue is asked too, for those of them that
    wait in the queue, every two minutes (only it has reasons and start estimates), and at once for jobs that
    sacct does not know yet or shows in a state that a requeue may undo.
    """

    def __init__(self, superfacility_conn_id: str, machine: str) -> None:
        self._machine = machine
        self._hook = SuperfacilityHook(superfacility_conn_id, attempts=1)  # the poller asks again by itself
        self._queued: dict[str, tuple[float, SlurmJob]] = {}  # of jobs that wait, with when it was asked
        self._tidied_at = float("-inf")
        self._status = ""
        self._status_asked_at = float("-inf")
        super().__init__(self._find, self._hook.close, per_request=JOBS_PER_REQUEST)

    def _find(self, ids: frozenset[str]) -> Mapping[str, SlurmJob]:
        try:
            accounted = self._hook.jobs(self._machine, ids, "sacct")
        except CredentialsError:
            self._hook.forget()
            raise
        except TransientError as error:
            error.add_details(self._machine_status())
            raise
        queued = self._look_into_queue(ids, accounted)
        found = {job_id: combine(accounted.get(job_id), queued.get(job_id)) for job_id in ids}
        return {job_id: job for job_id, job in found.items() if job is not None}

    def _look_into_queue(
        self, ids: frozenset[str], accounted: Mapping[str, SlurmJob]
    ) -> Mapping[str, SlurmJob]:
        doubtful = {i for i in ids if i not in accounted or accounted[i].lost}
        waiting = {i for i in ids if i in accounted and accounted[i].state is SlurmState.PENDING}
        now = time.monotonic()
        for job_id in ids - waiting:
            self._queued.pop(job_id, None)
        known = {i: self._queued[i] for i in waiting if i in self._queued}
        earlier = {i: job for i, (_, job) in known.items()}
        due = len(known) < len(waiting) or any(now - at >= _QUEUE_INTERVAL for at, _ in known.values())
        if not doubtful and not (waiting and due):
            return earlier
        try:
            queued = self._hook.jobs(self._machine, doubtful | waiting, "squeue")
        except FacilityError as error:
            log.info("squeue is left out this time: %s", error)
            return earlier
        self._queued |= {i: (now, job) for i, job in queued.items() if i in waiting}
        if now - self._tidied_at >= _FORGET_QUEUED:  # of jobs that nobody waits for any more
            self._tidied_at = now
            self._queued = {i: seen for i, seen in self._queued.items() if now - seen[0] < _FORGET_QUEUED}
        return queued

    def _machine_status(self) -> str:
        """What the status page says of an outage, asked every five minutes."""
        now = time.monotonic()
        if now - self._status_asked_at >= _STATUS_INTERVAL:
            self._status_asked_at = now
            try:
                self._status = str(self._hook.status(self._machine))
            except FacilityError:
                self._status = "Its status page does not answer either."
        return self._status


def _job_id(job_id: str) -> str:
    if not _JOB_ID.fullmatch(job_id):
        raise UserError(
            f"Not a Slurm job id: {job_id[:80]!r}", next_step="give the number that sbatch printed."
        )
    return job_id


def _lists_of_ids(job_ids: Iterable[str]) -> list[list[str]]:
    """Ids in order, in as few lists as URLs of their length need: more than 350 of eight digits in one."""
    lists: list[list[str]] = []
    left = 0
    for job_id in sorted(job_ids):
        length = len(quote(f",{job_id}", safe=""))
        if length > left:
            lists.append([])
            left = _MAX_IDS
        lists[-1].append(job_id)
        left -= length
    return lists
