"""The hook of NERSC's Superfacility API v1.2: one method a call, typed replies, classed errors."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import cached_property
from typing import Any
from urllib.parse import quote

from airflow.sdk import BaseHook

from facilities.errors import FacilityError, LostReplyError, NotFoundError, TransientError, UserError
from facilities.superfacility.connection import SuperfacilityConfig
from facilities.superfacility.credentials import read_client_key
from facilities.superfacility.files import FileCalls
from facilities.superfacility.job import JobSnapshot, Origin, by_id, read_rows
from facilities.superfacility.replies import expect_ok
from facilities.superfacility.session import SfapiSession

log = logging.getLogger(__name__)

OUTAGE_PAGES = ("status/outages", "status/outages/planned")
"""Where outages are listed: those that have begun, and those to come."""

_IDS_A_REQUEST = 4000  # characters of a URL that a list of ids may take; servers accept 8000 in all
_MACHINE = re.compile(r"[a-z0-9_-]{1,40}")
_JOB_ID = re.compile(r"\d{1,18}(_\d+)?")
_USER = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class MachineStatus:
    """What the public status page says: `status` is active, degraded, unavailable or other."""

    name: str
    status: str
    description: str
    notes: tuple[str, ...]
    updated_at: str

    @property
    def up(self) -> bool:
        """Whether jobs can be submitted."""
        return self.status in ("active", "degraded")

    @classmethod
    def read(cls, reply: Any, machine: str) -> MachineStatus:
        """Read the status page's reply.

        :raises TransientError: it says no status.
        """
        if not isinstance(reply, Mapping) or not reply.get("status"):
            raise TransientError(f"The status page says nothing about {machine}", details=str(reply)[:300])
        return cls(
            name=str(reply.get("name") or machine),
            status=str(reply["status"]).lower(),
            description=str(reply.get("description") or ""),
            notes=tuple(str(note) for note in reply.get("notes") or ()),
            updated_at=str(reply.get("updated_at") or ""),
        )


@dataclass(frozen=True)
class Outage:
    """A planned outage; times are ISO 8601 with an offset."""

    start_at: str
    end_at: str
    description: str


class SuperfacilityHook(FileCalls, BaseHook):
    """Talks to the Superfacility API with the credentials of a connection of type `superfacility`.

    All methods block; in a trigger, call them in a thread.

    :param superfacility_conn_id: the connection.
    :param attempts: how often a read is sent at most when the service does not answer; actions are sent once.
    :param timeout: seconds to wait for each reply.
    :param own_tokens: share no token, and no lock, with other hooks of the process.
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
        """Release the connections."""
        if "session" in self.__dict__:
            self.session.close()
            del self.__dict__["session"]

    # Jobs

    def submit(self, script: str, *, machine: str) -> str:
        """Submit a job script; sent once.

        :return: the id of the API's task, whose result is the job id (`submitted_job`).
        :raises LostReplyError: the job may have been submitted: look for its name.
        :raises UserError: NERSC refuses it.
        """
        what = f"Submitting the job to {machine}"
        path = f"compute/jobs/{_machine(machine)}"
        reply = self.session.send_once("POST", path, what, data={"job": script, "isPath": "false"})
        task_id = expect_ok(reply, what, sent=True).get("task_id")
        if not task_id:
            raise LostReplyError(f"{what}: the reply names no task", details=json.dumps(reply)[:500])
        return str(task_id)

    def submitted_job(self, task_id: str) -> str | None:
        """Job id that a submit led to; None while the API works on it.

        :raises NotFoundError: the task is unknown: results are kept for ten minutes.
        :raises LostReplyError: the task ended without saying what became of the job.
        :raises UserError: sbatch refused the job.
        """
        what = "Submitting the job"
        reply = self.task(task_id, what)
        if not reply.done:
            return None
        result = expect_ok(reply.result, f"{what}: Slurm refuses it", sent=True)
        job_id = str(result.get("jobid") or "").strip()
        if not _JOB_ID.fullmatch(job_id):
            raise LostReplyError(
                f"{what}: the result holds no job id",
                remote_id=task_id,
                details=json.dumps(dict(result))[:500],
            )
        return job_id

    def jobs(self, machine: str, job_ids: Iterable[str], origin: Origin) -> dict[str, JobSnapshot]:
        """Look jobs up by id; those that Slurm does not list are left out.

        :param origin: "sacct" (every job, some seconds late) or "squeue" (those that wait or run).
        :raises TransientError: no answer, or an error that is not about the jobs.
        """
        found: dict[str, JobSnapshot] = {}
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

    def jobs_of_user(self, machine: str, origin: Origin) -> list[JobSnapshot]:
        """All jobs of the client's user: squeue's, or those that sacct has of today."""
        return self._job_rows(machine, f"user={self.user}", origin)

    def _job_rows(self, machine: str, selection: str, origin: Origin) -> list[JobSnapshot]:
        what = f"Looking up jobs on {machine} ({origin})"
        params = {"sacct": str(origin == "sacct").lower(), "cached": "false", "kwargs": selection}
        reply = self.session.get(f"compute/jobs/{_machine(machine)}", what, params=params)
        output = expect_ok(reply, what, otherwise=TransientError).get("output")
        if not isinstance(output, list):
            raise TransientError(f"{what}: the reply holds no list of jobs", details=str(reply)[:300])
        return read_rows(output, origin, self.config.zone)

    def cancel(self, machine: str, job_id: str) -> None:
        """Cancel a job. One that has ended, or that Slurm does not know, is left as it is, without an error.

        :raises FacilityError: it could not be cancelled.
        """
        what = f"Cancelling the job on {machine}"
        path = f"compute/jobs/{_machine(machine)}/{_job_id(job_id)}"
        try:
            expect_ok(self.session.delete(path, what), what, remote_id=job_id, otherwise=TransientError)
        except NotFoundError:
            log.info("Slurm does not know job %s any more: nothing to cancel.", job_id)

    # The client and the machine

    @cached_property
    def account(self) -> Mapping[str, Any]:
        """Who the client acts for: name, uid and so on."""
        what = "Looking up the user of the client"
        return expect_ok(self.session.get("account/", what), what, otherwise=TransientError)

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
        """Days until the client expires; None when the API does not tell."""
        reply = self.session.get("account/clients", "Looking up when the client expires")
        for client in reply if isinstance(reply, list) else ():
            if client.get("clientId") == self.session.client_id and client.get("expiresAt"):
                left = _moment(str(client["expiresAt"]), UTC) - datetime.now(UTC)
                return left.total_seconds() / 86400
        return None

    def status(self, machine: str) -> MachineStatus:
        """State of a machine, from the public page; needs no credentials."""
        what = f"Looking up the status of {machine}"
        reply = self.session.get(f"status/{_machine(machine)}", what, public=True)
        return MachineStatus.read(reply, machine)

    def outages(self, machine: str) -> list[Outage]:
        """Outages that go on, or else those to come, soonest first; needs no credentials."""
        what = f"Looking up outages of {machine}"
        for page in OUTAGE_PAGES:
            reply = self.session.get(f"{page}/{_machine(machine)}", what, public=True)
            if found := read_outages(reply, self.config.zone):
                return found
        return []

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


def read_outages(reply: Any, zone: tzinfo) -> list[Outage]:
    """Read a reply about planned outages; what has ended or was called off is left out."""
    now = datetime.now(UTC)
    outages = []
    for entry in reply if isinstance(reply, list) else ():
        try:
            start, end = (_moment(str(entry[key]), zone) for key in ("start_at", "end_at"))
        except (KeyError, TypeError, ValueError):
            log.warning("Skipping a planned outage that cannot be read: %.200r", entry)
            continue
        if end > now and str(entry.get("status") or "").lower() not in ("cancelled", "completed"):
            outages.append(Outage(start.isoformat(), end.isoformat(), str(entry.get("description") or "")))
    return sorted(outages, key=lambda outage: outage.start_at)


def _moment(text: str, zone: tzinfo) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=zone)


def _machine(name: str) -> str:
    if not _MACHINE.fullmatch(name):
        raise UserError(f"Not a machine's name: {name!r}", next_step="use perlmutter.")
    return name


def _lists_of_ids(job_ids: Iterable[str]) -> list[list[str]]:
    """Ids in order, in as few lists as URLs of their length need: more than 350 of eight digits in one."""
    lists: list[list[str]] = []
    room = 0
    for job_id in sorted(job_ids):
        length = len(quote(f",{job_id}", safe=""))
        if length > room:
            lists.append([])
            room = _IDS_A_REQUEST
        lists[-1].append(job_id)
        room -= length
    return lists


def _job_id(job_id: str) -> str:
    if not _JOB_ID.fullmatch(job_id):
        raise UserError(
            f"Not a Slurm job id: {job_id[:80]!r}", next_step="give the number that sbatch printed."
        )
    return job_id
