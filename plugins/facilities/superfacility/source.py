"""Where the shared poller of jobs gets its answers from.

Requests: one to sacct an interval, for as many jobs as a URL holds (more than 350). squeue is asked too,
for all jobs that wait, every two minutes (only it tells reasons and start estimates), and at once for jobs
that sacct does not know yet or shows in a state that a requeue may undo.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from facilities.errors import CredentialsError, FacilityError, TransientError
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.job import JobSnapshot
from facilities.superfacility.outages import explain_outage
from facilities.superfacility.states import CONFIRM, SlurmState
from facilities.superfacility.watching import JobView

log = logging.getLogger(__name__)

POLL_TIMEOUT = 20.0
_QUEUE_EVERY = 120.0
_OUTAGE_EVERY = 300.0


class SlurmJobs:
    """Source of the shared poller: all jobs of a connection on a machine.

    :param attempts: how often a look is sent at most. The poller looks again by itself.
    """

    def __init__(self, superfacility_conn_id: str, machine: str, *, attempts: int = 1) -> None:
        self._conn_id = superfacility_conn_id
        self._machine = machine
        self._attempts = attempts
        self._hook = self._new_hook()
        self._waiting: dict[str, JobSnapshot] = {}
        self._queue_asked_at = float("-inf")
        self._outage = ""
        self._outage_asked_at = float("-inf")

    async def fetch(self, ids: frozenset[str]) -> Mapping[str, JobView]:
        """Look at all jobs, in a thread."""
        return await asyncio.to_thread(self.look, ids)

    async def aclose(self) -> None:
        """Release the connections."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Release the connections."""
        self._hook.close()

    def look(self, ids: frozenset[str]) -> Mapping[str, JobView]:
        """Look at all jobs.

        :raises TransientError: no answer; its details say what the status page says.
        """
        try:
            accounted = self._hook.jobs(self._machine, ids, "sacct")
        except CredentialsError:
            self._hook.close()
            self._hook = self._new_hook()  # the key may be renewed in the connection while we wait
            raise
        except TransientError as error:
            details = "\n".join(part for part in (self._explain_outage(), error.details) if part)
            raise TransientError(
                error.what,
                state=error.state,
                next_step=error.next_step,
                details=details,
                retry_after=error.retry_after,
            ) from error
        queued = self._look_into_queue(ids, accounted)
        return {i: JobView(accounted.get(i), queued.get(i)) for i in ids if i in accounted or i in queued}

    def _look_into_queue(
        self, ids: frozenset[str], accounted: Mapping[str, JobSnapshot]
    ) -> Mapping[str, JobSnapshot]:
        doubtful = {i for i in ids if i not in accounted or accounted[i].state in CONFIRM}
        waiting = {i for i in ids if i in accounted and accounted[i].state is SlurmState.PENDING}
        now = time.monotonic()
        due = now - self._queue_asked_at >= _QUEUE_EVERY or not waiting <= self._waiting.keys()
        self._waiting = {i: job for i, job in self._waiting.items() if i in waiting}
        if not doubtful and not (waiting and due):
            return self._waiting
        try:
            queued = self._hook.jobs(self._machine, doubtful | waiting, "squeue")
        except FacilityError as error:
            log.info("squeue is left out of this look: %s", error)
            return self._waiting
        self._queue_asked_at = now
        self._waiting = {i: job for i, job in queued.items() if i in waiting}
        return queued

    def _explain_outage(self) -> str:
        now = time.monotonic()
        if now - self._outage_asked_at >= _OUTAGE_EVERY:
            self._outage_asked_at = now
            self._outage = explain_outage(self._hook, self._machine)
        return self._outage

    def _new_hook(self) -> SuperfacilityHook:
        return SuperfacilityHook(self._conn_id, attempts=self._attempts, timeout=POLL_TIMEOUT)
