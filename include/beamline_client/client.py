"""The client: submits scans, and looks up, waits for and cancels their runs."""

from __future__ import annotations

import datetime
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from beamline_client.config import Settings
from beamline_client.errors import (
    ACCEPTED,
    NO_SUCH_RUN,
    RUN_FAILED,
    SPOOLED,
    UNREACHABLE,
    ClientError,
    InputError,
    NoSuchRunError,
    UnreachableError,
)
from beamline_client.naming import is_run_id, normalize_path, unusual_name
from beamline_client.output import IDLE_STATES, Outcome, local_time, to_stderr
from beamline_client.parameters import Conf, check_parameter
from beamline_client.rest import Airflow
from beamline_client.runs import Runs, scan_of
from beamline_client.scan_names import scan_run_id
from beamline_client.sending import FINAL_STATES, Sender
from beamline_client.spool import Request, Spool
from beamline_client.waiting import Wait

WAITING_STATES = ("scheduled", "queued")  # of tasks that are about to run


class Client:
    """Submits scans, waits for and cancels their runs.

        client = Client(load_settings())
        outcomes = client.submit(["2023/02/230216/NS_230216033_ccdframes_0_0.cxi"], {"do_ptychocam": True})

    :param log: takes each line of progress that a person may want to see.
    """

    poll_pauses = (0.5, 5.0)  # seconds between two reads of a run: after a change, and the longest

    def __init__(self, settings: Settings, log: Callable[[str], None] = to_stderr) -> None:
        self.settings = settings
        self.log = log
        self.spool = Spool(settings.spool)
        self.runs = Runs(Airflow(settings))
        self.sender = Sender(settings, self.spool, self.runs, log)

    def scan_path(self, file: str) -> str:
        """The path below the collection's root, of a path there or of a file below `data_root`.

        :raises InputError: not a path that the DAG takes.
        """
        if self.settings.data_root:
            root = str(self.settings.data_root).rstrip("/") + "/"
            here = os.path.abspath(file)  # noqa: PTH100 - symbolic links stay as they were named
            if file.startswith(root) or (here.startswith(root) and _is_file(here)):
                file = here[len(root) :]
        return normalize_path(file)

    def _checked_path(self, file: str, any_name: Optional[bool]) -> str:
        path = self.scan_path(file)
        reason = unusual_name(path)
        if reason and not (self.settings.any_name if any_name is None else any_name):
            hint = "If it is one, say so: --any-name."
            if file.startswith("/") and not self.settings.data_root:
                hint += " Is its beginning a folder of this computer? Name that: data_root in [client]."
            raise InputError(f"Is {path} a scan? {reason[0].upper()}{reason[1:]}. {hint}")
        if reason:
            self.log(f"Note: {path}: {reason}.")
        here = (self.settings.data_root or Path()) / path
        if self.settings.data_root and not _is_file(str(here)):
            self.log(f"Note: there is no file {here} on this computer now; asking for it all the same.")
        return path

    def requests(
        self,
        kind: str,
        files: Iterable[str],
        parameters: Optional[Conf] = None,
        any_name: Optional[bool] = None,
    ) -> List[Request]:
        """Check everything about some requests, and send nothing.

        :param kind: "submit", or "reprocess" with `parameters` that change.
        :raises InputError: a path or a parameter is wrong.
        """
        given = {name: check_parameter(name, value) for name, value in (parameters or {}).items()}
        created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        requests = []
        for path in dict.fromkeys(self._checked_path(file, any_name) for file in files):
            if kind == "submit":
                conf = {"file_path": path, **self.settings.parameters, **given}
                requests.append(Request(kind, path, conf, created, scan_run_id(path)))
            else:
                requests.append(Request(kind, path, given, created))
        return requests

    def submit(
        self,
        files: Iterable[str],
        parameters: Optional[Conf] = None,
        *,
        any_name: Optional[bool] = None,
        limit: float = math.inf,
    ) -> List[Outcome]:
        """Write a request for each scan to disk, then send what the spool holds, these included.

        :param limit: seconds after which nothing more is sent; what is left stays in the spool.
        :raises InputError: a path or a parameter is wrong; nothing was kept or sent.
        """
        return self.sender.deliver(self.requests("submit", files, parameters, any_name), limit)

    def reprocess(
        self, files: Iterable[str], changes: Optional[Conf] = None, *, any_name: Optional[bool] = None
    ) -> List[Outcome]:
        """Ask for a new run of scans that have run: the parameters of the newest run, with `changes`.

        :raises InputError: a path or a parameter is wrong; nothing was kept or sent.
        """
        return self.sender.deliver(self.requests("reprocess", files, changes, any_name))

    def find_runs(self, name: str) -> List[Dict[str, Any]]:
        """Runs of the scan FILE, or the one with the id RUN; empty when there is none.

        :raises InputError: neither a path nor a run id.
        """
        if name.endswith(".cxi"):
            return self.runs.of_scan(self.scan_path(name))
        if not is_run_id(name):
            raise InputError(f"{name!r} is neither a scan's path (it does not end in .cxi) nor a run id.")
        try:
            return [self.runs.get(name)]
        except NoSuchRunError:
            return []

    def pending(self, name: str) -> List[Request]:
        """Requests in the spool for the scan FILE, or with the id RUN."""
        path = self.scan_path(name) if name.endswith(".cxi") else ""
        return [request for request in self.spool.pending() if name == request.run_id or path == request.path]

    def status(self, name: str) -> List[Outcome]:
        """All that is known about the runs of FILE, or about RUN."""
        outcomes = []
        for request in self.pending(name):
            message = f"Kept here since {local_time(request.created)}; to send it: submit_scan.py flush"
            outcomes.append(Outcome(request.path, request.run_id, "kept", SPOOLED, message=message))
        try:
            runs = self.find_runs(name)
        except UnreachableError as error:
            return [*outcomes, Outcome(name, "", "not known", UNREACHABLE, message=str(error))]
        shown = [self.describe_run(run) for run in runs]
        outcomes += [replace(outcome, exit_code=ACCEPTED) for outcome in shown[:-1]]  # the newest one counts
        outcomes += shown[-1:]
        return outcomes or [_no_such_run(name)]

    def cancel(self, name: str) -> List[Outcome]:
        """Withdraw what is pending in the spool for FILE or RUN, and stop the runs that are going on."""
        outcomes = []
        if self.pending(name):
            with self.spool.lock("sending", self.settings.timeout):
                for request in self.pending(name):
                    self.spool.finish(request, self.spool.rejected_folder, "withdrawn by cancel")
                    outcomes.append(Outcome(request.path, request.run_id, "withdrawn"))
        try:
            for run in self.find_runs(name):
                if run["state"] in FINAL_STATES:
                    outcomes.append(self._of_run(run, "had ended"))
                else:
                    outcomes.append(self._of_run(self.runs.cancel(run["dag_run_id"]), "cancelled"))
        except UnreachableError as error:
            message = f"{error} If a run had started it goes on: cancel again when Airflow can be reached."
            outcomes.append(Outcome(name, "", "not known", UNREACHABLE, message=message))
        return outcomes or [_no_such_run(name)]

    def wait_for(self, run_ids: Sequence[str], limit: float = math.inf) -> Dict[str, Dict[str, Any]]:
        """Poll runs until all have ended or `limit` seconds are over, and log what changes.

        :returns: each run as it was last read, by id. An outage of Airflow is waited for.
        :raises NoSuchRunError: a run was deleted.
        """
        first, longest = self.poll_pauses
        wait = Wait(limit, first=first, longest=longest)
        runs: Dict[str, Dict[str, Any]] = {}
        states: Dict[Tuple[str, str], str] = {}
        unfinished = list(run_ids)
        while True:
            changes = [self._poll(run_id, runs, states) for run_id in unfinished]
            if any(changes):
                wait.reset()
            unfinished = [id_ for id_ in unfinished if runs.get(id_, {}).get("state") not in FINAL_STATES]
            if not unfinished or not wait.pause():
                return runs

    def _poll(self, run_id: str, runs: Dict[str, Dict[str, Any]], known: Dict[Tuple[str, str], str]) -> bool:
        """Read a run and its tasks, log the states that changed, and return whether any did."""
        try:
            run = self.runs.get(run_id)
            states = {"": str(run["state"]), **_task_states(self.runs.tasks(run_id))}
        except UnreachableError:
            states = {"": "not known, Airflow cannot be reached"}
        else:
            runs[run_id] = run
        changed = False
        for task, state in states.items():
            if task and state in IDLE_STATES + WAITING_STATES:
                continue
            before = known.get((run_id, task))
            if state != before:
                changed = True
                arrow = f"{before} -> " if before else ""
                self.log(f"{time.strftime('%H:%M:%S')}  {run_id}  {task or 'run'}: {arrow}{state}")
            known[run_id, task] = state
        return changed

    def describe_run(self, run: Mapping[str, Any]) -> Outcome:
        """A run with its tasks and, once it has ended, their results or errors."""
        tasks = self.runs.tasks(run["dag_run_id"])
        results, errors = {}, {}
        for task in tasks if run["state"] in FINAL_STATES else []:
            name = _task_name(task)
            try:
                if task["state"] == "success":
                    results[name] = self.runs.result(task)
                elif task["state"] == "failed":
                    errors[name] = self.runs.errors(task)
            except ClientError as error:
                errors[name] = [f"its result or log cannot be read: {error}"]
        outcome = self._of_run(run, str(run["state"]))
        found = {name: value for name, value in results.items() if value is not None}
        return replace(outcome, tasks=_task_states(tasks), results=found, errors=errors)

    def _of_run(self, run: Mapping[str, Any], outcome: str) -> Outcome:
        return Outcome(
            scan_of(run),
            run["dag_run_id"],
            outcome,
            RUN_FAILED if outcome == "failed" else ACCEPTED,
            state=str(run["state"]),
            since=local_time(run.get("run_after")),
            url=self.runs.page_url(run["dag_run_id"]),
        )


def _no_such_run(name: str) -> Outcome:
    message = "Airflow has no run of it, and none waits here."
    return Outcome(name, "", "no such run", NO_SUCH_RUN, message=message)


def _task_name(task: Mapping[str, Any]) -> str:
    index = task.get("map_index", -1)
    return str(task["task_id"]) + (f"[{index}]" if index >= 0 else "")


def _task_states(tasks: Iterable[Mapping[str, Any]]) -> Dict[str, str]:
    return {_task_name(task): str(task["state"] or "none") for task in tasks}


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # not ours to look at
        return False
