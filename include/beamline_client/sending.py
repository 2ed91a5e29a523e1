"""Sends what the spool holds to Airflow, each request exactly once in effect."""

from __future__ import annotations

import json
import math
import socket
import time
from dataclasses import replace
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from beamline_client.config import Settings
from beamline_client.errors import (
    BAD_INPUT,
    REFUSED,
    SPOOLED,
    UNREACHABLE,
    ClientError,
    LockedError,
    NoSuchRunError,
    RefusedError,
    RejectedError,
    RetryLaterError,
    ServerFaultError,
    SpoolError,
    UnexpectedReplyError,
    UnreachableError,
)
from beamline_client.output import Outcome, describe, local_time
from beamline_client.parameters import DAG_ID, ENGINES, Conf
from beamline_client.runs import Runs
from beamline_client.scan_names import generation_of, scan_run_id
from beamline_client.spool import Request, Spool

FINAL_STATES = ("success", "failed")  # of a run
MAX_SKIPPED = 3  # requests that fail, each for a reason of its own, before the rest is kept


class Sender:
    """Sends pending requests.

    :param log: takes each line of progress that a person may want to see.
    """

    def __init__(self, settings: Settings, spool: Spool, runs: Runs, log: Callable[[str], None]) -> None:
        self.settings = settings
        self.spool = spool
        self.runs = runs
        self.log = log

    def deliver(self, requests: Sequence[Request], limit: float = math.inf) -> List[Outcome]:
        """Write requests to the spool and send them, after those that are pending already.

        :param limit: seconds after which nothing more is sent; what is left stays in the spool.
        """
        end = time.monotonic() + limit
        try:
            written = self.spool.add(requests)
        except (SpoolError, LockedError) as error:
            return [self._send_unwritten(request, error) for request in requests]
        problem: Optional[ClientError] = None
        done: Dict[str, Outcome] = {}
        names = {request.name for request in written}
        try:
            done = self.flush(unless=lambda: not names.intersection(self.spool.names()), own=names, end=end)
        except (LockedError, SpoolError) as error:
            problem = error
        outcomes = [
            self._outcome_for(request, written[i], done, problem) for i, request in enumerate(requests)
        ]
        return self.with_pause(outcomes)

    def with_pause(self, outcomes: List[Outcome]) -> List[Outcome]:
        """The outcomes; while the DAG is paused, those of unfinished runs with a sentence that it is."""
        unfinished = [one for one in outcomes if one.state and one.state not in FINAL_STATES]
        if not unfinished or not self.runs.is_paused():
            return outcomes
        note = f"But {DAG_ID} is paused in Airflow: no run goes on until an administrator unpauses it."
        return [
            replace(one, message=f"{one.message} {note}".strip()) if one in unfinished else one
            for one in outcomes
        ]

    def flush(
        self,
        *,
        unless: Callable[[], bool] = lambda: False,
        own: Iterable[str] = (),
        limit: Optional[float] = None,
        end: float = math.inf,
    ) -> Dict[str, Outcome]:
        """Send what the spool holds, oldest first, until it is empty or nothing more can be sent.

        A request that fails by itself is rejected, or skipped (kept), and the next one is sent. After a
        failure that all of them would meet, the rest is kept.

        :param unless: give up waiting for the lock when this becomes true.
        :param own: file names of requests whose outcome the caller shows; the others' are logged.
        :param limit: seconds to wait for the lock; by default the `timeout` of the settings.
        :param end: after this time, of the monotonic clock, the rest is kept.
        :returns: the outcome of each request that was looked at, by its file name.
        :raises LockedError: another process is sending.
        """
        done: Dict[str, Outcome] = {}
        limit = self.settings.timeout if limit is None else limit
        with self.spool.lock("sending", limit, unless):
            for path in self.spool.clean_up():
                self.log(f"A damaged request was set aside: {path}")
            skipped: List[str] = []
            while True:
                pending = [name for name in self.spool.names() if name not in skipped]
                if not pending:
                    return done
                if done and time.monotonic() > end:
                    late = RetryLaterError("There was no time left to send it.")
                    done.update({name: self._kept(name, late) for name in pending})
                    return done
                outcome, error = self._send(pending[0])
                done[pending[0]] = outcome
                if pending[0] not in own:
                    self.log(describe(outcome))
                skipped += [pending[0]] if error else []
                if error and (concerns_all(error) or len(skipped) >= MAX_SKIPPED):
                    done.update({name: self._kept(name, error) for name in pending[1:]})
                    return done

    def _send(self, name: str) -> Tuple[Outcome, Optional[ClientError]]:
        """Send one pending request: its outcome, and the error because of which it is still pending."""
        _, request = self.spool.find(name)
        if not request:
            raise SpoolError(
                f"The request {self.spool.pending_folder / name} vanished while it was to be sent."
            )
        try:
            request, is_new, run = self._start(request)
        except (RejectedError, NoSuchRunError) as error:
            self.spool.finish(request, self.spool.rejected_folder, str(error))
            message = f"It was moved to {self.spool.rejected_folder / name}. {error}"
            return Outcome(request.path, request.run_id, "rejected", REFUSED, message=message), None
        except (RetryLaterError, UnexpectedReplyError, RefusedError, UnreachableError) as error:
            return self._kept(name, error), error
        outcome = self._started(request, is_new, run)
        self.spool.finish(request, self.spool.sent_folder, outcome.outcome)
        return outcome, None

    def _start(self, request: Request) -> Tuple[Request, bool, Dict[str, Any]]:
        note = f"submit_scan on {socket.gethostname()}, asked for at {request.created}"
        if request.kind == "submit":
            return (request, *self.runs.start(request.run_id, request.conf, note))
        if not request.run_id:
            request = self._numbered(request)
        while True:
            is_new, run = self.runs.start(request.run_id, request.conf, note)
            if is_new or run.get("conf") == request.conf:  # else somebody else took the number
                return request, is_new, run
            request = self._numbered(request)

    def _numbered(self, request: Request) -> Request:
        """Choose the run id of a reprocessing, and write it to disk before it is used."""
        runs = self.runs.of_scan(request.path)
        first = scan_run_id(request.path)
        if not runs:
            if any(other.run_id == first for other in self.spool.pending()):
                raise RetryLaterError(
                    f"{request.path} was not accepted yet, so it cannot be reprocessed yet."
                )
            raise NoSuchRunError(f"Airflow has no run of {request.path} to reprocess. Submit it.")
        newest = runs[-1]
        conf = request.conf if request.run_id else {**(newest.get("conf") or {}), **request.conf}
        conf["file_path"] = request.path
        if newest["state"] not in FINAL_STATES:
            self.log(f"Note: run {newest['dag_run_id']} of the scan is still going on.")
        generation = 1 + max(generation_of(run["dag_run_id"], request.path) for run in runs)
        numbered = replace(request, conf=conf, run_id=scan_run_id(request.path, generation))
        self.spool.update(numbered)
        return numbered

    def _started(self, request: Request, is_new: bool, run: Mapping[str, Any]) -> Outcome:
        copied_only = not any(request.conf.get(f"do_{engine}") for engine in ENGINES)
        note = "No engine is chosen: it is copied, not reconstructed." if copied_only else ""
        return Outcome(
            request.path,
            request.run_id,
            "accepted" if is_new else "already accepted",
            state=str(run.get("state")),
            since=local_time(run.get("run_after")),
            url=self.runs.page_url(request.run_id),
            message=note if is_new else _about_existing(request, run),
        )

    def _kept(self, name: str, error: ClientError) -> Outcome:
        _, request = self.spool.find(name)
        path, run_id = (request.path, request.run_id) if request else ("", "")
        code = REFUSED if isinstance(error, RefusedError) else SPOOLED
        where = f"It waits in {self.spool.folder} for the next submit, or for: submit_scan.py flush."
        return Outcome(path, run_id, "kept", code, message=f"{where} {error}")

    def _outcome_for(
        self, request: Request, written: Request, done: Mapping[str, Outcome], error: Optional[ClientError]
    ) -> Outcome:
        outcome = done.get(written.name) or self._outcome_elsewhere(written, error)
        difference = _difference(request.conf, written.conf) if request.kind == "submit" else ""
        return replace(outcome, message=f"{outcome.message} {difference}".strip()) if difference else outcome

    def _outcome_elsewhere(self, request: Request, error: Optional[ClientError]) -> Outcome:
        """The outcome of a request that another process may have sent."""
        where, found = self.spool.find(request.name)
        if where == "rejected" and found:
            return Outcome(request.path, found.run_id, "rejected", REFUSED, message=found.message)
        if where == "pending" or not found:
            return self._kept(request.name, error or ClientError("It was not sent."))
        try:
            return self._started(found, False, self.runs.get(found.run_id))
        except ClientError:  # its record says that it was accepted; only its state is not known
            return Outcome(found.path, found.run_id, "already accepted", url=self.runs.page_url(found.run_id))

    def _send_unwritten(self, request: Request, problem: ClientError) -> Outcome:
        """Send a submission that could not be written to disk: better once unsafely than not at all."""
        if request.kind != "submit":  # sent twice, for want of a record, it would be two runs
            message = f"Not sent and NOT kept: {problem} Free the disk, then reprocess it again."
            return Outcome(request.path, "", "refused", BAD_INPUT, message=message)
        self.log(f"Warning: {problem} Sending {request.path} without keeping it first.")
        try:
            _, is_new, run = self._start(request)
        except ClientError as error:
            code = UNREACHABLE if error.exit_code == SPOOLED else error.exit_code
            message = f"Not accepted and NOT kept: {error} {problem} Free the disk, then submit it again."
            return Outcome(request.path, request.run_id, "lost", code, message=message)
        return self._started(request, is_new, run)


def concerns_all(error: ClientError) -> bool:
    """Whether the next request would fail in the same way."""
    return isinstance(error, (RefusedError, UnreachableError)) and not isinstance(error, ServerFaultError)


def _about_existing(request: Request, run: Mapping[str, Any]) -> str:
    """What a run that was there before means for who asks for it again."""
    again = f"submit_scan.py reprocess {request.path}"
    difference = _difference(request.conf, run.get("conf") or {})
    if run.get("state") == "failed":
        why = f"That run has failed, and is not started again (why: submit_scan.py status {request.run_id})."
        return f"{why} To run the scan again: {again}. {difference}".strip()
    if run.get("state") == "success":
        return f"That run is done. To run the scan once more: {again}. {difference}".strip()
    return difference


def _difference(requested: Conf, existing: Conf) -> str:
    """A sentence on how the parameters of the run that exists differ; empty when they do not."""
    names = [name for name in {**existing, **requested} if requested.get(name) != existing.get(name)]
    if not names:
        return ""
    listed = ", ".join(f"{name}={json.dumps(existing.get(name))}" for name in names)
    return f"It has other parameters than were asked for now ({listed}); for a run with these: reprocess."
