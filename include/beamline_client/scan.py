"""A whole scan, `NS_<yymmdd><nnn>`: the runs of all its energies and regions, still one run a file."""

from __future__ import annotations

import datetime
import math
import re
import time
from dataclasses import replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from beamline_client.client import Client
from beamline_client.errors import (
    NO_SUCH_RUN,
    RUN_FAILED,
    SPOOLED,
    STILL_RUNNING,
    UNREACHABLE,
    ClientError,
    InputError,
    LockedError,
    RetryLaterError,
    UnreachableError,
)
from beamline_client.naming import normalize_path
from beamline_client.output import DONE, WITH_WARNINGS, Outcome, local_time, of_scan
from beamline_client.parameters import Conf, check_parameter
from beamline_client.runs import scan_of
from beamline_client.scan_names import generation_of, parse_path, parse_scan, scan_run_id
from beamline_client.sending import FINAL_STATES, concerns_all
from beamline_client.spool import Request
from beamline_client.stacks import Stacks
from beamline_client.waiting import Wait

MAX_REASONS = 20  # failed runs of which the reason is read, with three requests each

FileRuns = Dict[str, List[Dict[str, Any]]]  # by path, each file's runs, the oldest first


class Scan:
    """The files of a scan and their runs.

        Scan(client, "NS_230216033").status().outcome    # '7 of 80 done, 2 failed, 71 running'

    Its files are those that have a run, those whose requests wait in the spool and, with `data_root`, those
    in its folder on this computer.
    """

    def __init__(self, client: Client, name: str) -> None:
        scan = parse_scan(name)
        if scan is None:
            raise InputError(f"{name[:100]!r} is not the name of a scan, as NS_230216033 is.")
        self.client = client
        self.name = name
        self._folder = scan.folder
        self.url = client.runs.list_url(f"{name}_")

    def status(self) -> Outcome:
        """How far each file is: its newest run counts, and a request that waits here counts before it."""
        kept = self._kept()
        try:
            runs = self._runs()
        except (UnreachableError, RetryLaterError) as error:
            return Outcome(self.name, "", "not known", UNREACHABLE, message=str(error), files=kept)
        files = [self._of_run(its[-1]) for path, its in runs.items() if path not in self._paths(kept)]
        self._give_reasons(files)
        self._mark_warnings(files)
        files += kept + self._not_submitted(self._paths(files + kept), STILL_RUNNING)
        if not files:
            return self._unknown()
        status = of_scan(self.name, _sorted(files), DONE, self.url)
        hints = {"failed": "What to do about a failure", WITH_WARNINGS: "Warnings in whole"}
        first = {one.outcome: one.run_id for one in reversed(status.files)}
        lines = [f"{hints[kind]}: submit_scan.py status {first[kind]}" for kind in hints if kind in first]
        return replace(status, message=". ".join(lines), stacks=self._stacks())

    def _stacks(self) -> List[Outcome]:
        try:
            return Stacks(self.client, self.name).newest()
        except ClientError as error:
            self.client.log(f"Note: what became of its stacks is not known: {error}")
            return []

    def plan(self, changes: Conf, everything: bool = False) -> Tuple[List[Request], List[Outcome]]:
        """What to ask for so that the scan's failed files, or all of them, run again; sends nothing.

        The run ids are chosen here, so that the same plan, made twice, makes no second runs.

        :param changes: parameters that differ from those of each file's newest run.
        :returns: the requests, and the files for which there is none, with the reason.
        :raises InputError: a parameter is wrong.
        :raises UnreachableError: Airflow cannot be reached.
        """
        given = {name: check_parameter(name, value) for name, value in changes.items()}
        created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        left = self._kept()
        waiting = self._paths(left)
        runs = self._runs()
        requests = []
        for path, its in runs.items():
            active = [run for run in its if run["state"] not in FINAL_STATES]
            if path in waiting:
                continue
            if active:
                code = STILL_RUNNING if everything else 0
                message = "Not run again: it is still going on."
                left.append(replace(self._of_run(active[-1]), exit_code=code, message=message))
            elif its[-1]["state"] == "failed" or everything:
                conf = {**(its[-1].get("conf") or {}), **given, "file_path": path}
                generation = 1 + max(generation_of(run["dag_run_id"], path) for run in its)
                run_id = scan_run_id(path, generation)
                requests.append(Request("reprocess", path, conf, created, run_id))
            else:
                left.append(self._of_run(its[-1]))
        left += self._not_submitted(waiting.union(runs), 0)
        return requests, left

    def reprocessed(self, done: Sequence[Outcome], left: Sequence[Outcome]) -> Outcome:
        """One outcome of what was sent and what was left."""
        files = _sorted([*done, *left])
        return of_scan(self.name, files, "accepted", self.url) if files else self._unknown()

    def cancel(self) -> Outcome:
        """Withdraw the requests that wait here, and stop all runs that are going on.

        :returns: what became of each; what could not be cancelled is among them, with the reason.
        """
        files = self._withdraw()
        try:
            runs = self._runs()
        except ClientError as error:
            again = "Runs that had started go on: cancel it again when Airflow can be reached."
            return Outcome(
                self.name, "", "not known", error.exit_code, message=f"{error} {again}", files=files
            )
        problem: Optional[ClientError] = None
        for its in runs.values():
            active = [run for run in its if run["state"] not in FINAL_STATES]
            files += [] if active else [self._ended(its[-1])]
            for run in active:
                outcome, failure = self._cancel_run(run, problem)
                problem = failure if failure and concerns_all(failure) else problem
                files.append(outcome)
        return of_scan(self.name, _sorted(files), "cancelled", self.url) if files else self._unknown()

    def wait(self, run_ids: Sequence[str], limit: float = math.inf) -> None:
        """Wait for the end of these runs, or `limit` seconds; logs how many have ended when that changes.

        An outage of Airflow is waited for, and a run that somebody deleted has ended.
        """
        first, longest = self.client.poll_pauses
        wait = Wait(limit, first=first, longest=longest)
        logged = ""
        while True:
            try:
                states = {run["dag_run_id"]: run["state"] for its in self._runs().values() for run in its}
            except (UnreachableError, RetryLaterError):
                ended, text = False, "not known, Airflow cannot be reached"
            else:
                left = [run_id for run_id in run_ids if states.get(run_id, "failed") not in FINAL_STATES]
                ended, text = not left, f"{len(run_ids) - len(left)} of {len(run_ids)} runs have ended"
            if text != logged:
                self.client.log(f"{time.strftime('%H:%M:%S')}  {self.name}: {text}")
                wait.reset()
            logged = text
            if ended or not wait.pause():
                return

    def _runs(self) -> FileRuns:
        found: FileRuns = {}
        for run in self.client.runs.of_files(f"{self._folder}/{self.name}_ccdframes_"):
            path = scan_of(run)
            if self._has(path):
                found.setdefault(path, []).append(run)
        return found

    def _has(self, path: str) -> bool:
        file = parse_path(path)
        return file is not None and file.scan.name == self.name

    def _requests(self) -> List[Request]:
        return [request for request in self.client.spool.pending() if self._has(request.path)]

    def _kept(self) -> List[Outcome]:
        """What waits in the spool, each file once."""
        message = "To send what is kept on this computer: submit_scan.py flush"
        kept = {
            request.path: Outcome(
                request.path,
                request.run_id,
                "kept",
                SPOOLED,
                since=local_time(request.created),
                message=message,
            )
            for request in self._requests()
        }
        return list(kept.values())

    def _not_submitted(self, known: Set[str], code: int) -> List[Outcome]:
        """The scan's files on this computer that have neither a run nor a request."""
        root = self.client.settings.data_root
        if root is None:
            return []
        try:
            names = sorted(path.name for path in (root / self._folder).glob(f"{self.name}_ccdframes_*.cxi"))
        except OSError:  # not ours to look at
            return []
        message = "It has no run. To start one: submit_scan.py submit FILE"
        found = []
        for name in names:
            try:
                path = normalize_path(f"{self._folder}/{name}")
            except InputError:  # a result
                continue
            if path not in known:
                found.append(Outcome(path, "", "not submitted", code, message=message))
        return found

    def _of_run(self, run: Mapping[str, Any]) -> Outcome:
        state = str(run["state"])
        code = {"success": 0, "failed": RUN_FAILED}.get(state, STILL_RUNNING)
        return Outcome(
            scan_of(run),
            run["dag_run_id"],
            DONE if state == "success" else state,
            code,
            state=state,
            since=local_time(run.get("run_after")),
            url=self.client.runs.page_url(run["dag_run_id"]),
        )

    def _give_reasons(self, files: List[Outcome]) -> None:
        """Add to the failed ones why they failed; beyond `MAX_REASONS`, how to find out."""
        failed = [index for index, one in enumerate(files) if one.outcome == "failed"]
        unreachable = ""
        for count, index in enumerate(failed):
            if unreachable or count >= MAX_REASONS:
                message = (
                    unreachable or f"why it failed is read of {MAX_REASONS} files: submit_scan.py status RUN"
                )
                files[index] = replace(files[index], message=message)
                continue
            try:
                files[index] = replace(files[index], errors=self.client.runs.reasons(files[index].run_id))
            except UnreachableError as error:
                unreachable = f"why it failed cannot be read: {error}"
                files[index] = replace(files[index], message=unreachable)

    def _mark_warnings(self, files: List[Outcome]) -> None:
        """Set apart those that are done with warnings."""
        done = [index for index, one in enumerate(files) if one.outcome == DONE]
        if not done:
            return
        try:
            warned = self.client.runs.with_warnings(self.name)
            others = [files[n].run_id for n in done if not files[n].run_id.startswith(self.name)]
            for run_id in others[:MAX_REASONS]:
                warned |= self.client.runs.with_warnings(run_id)
        except ClientError as error:
            self.client.log(f"Note: which results have warnings is not known: {error}")
            return
        for index in done:
            if files[index].run_id in warned:
                files[index] = replace(files[index], outcome=WITH_WARNINGS)

    def _withdraw(self) -> List[Outcome]:
        if not self._requests():
            return []
        try:
            with self.client.spool.lock("sending", self.client.settings.timeout):
                requests = self._requests()
                for request in requests:
                    self.client.spool.finish(
                        request, self.client.spool.rejected_folder, "withdrawn by cancel"
                    )
                return [Outcome(request.path, request.run_id, "withdrawn") for request in requests]
        except LockedError as error:
            message = f"{error} Cancel the scan again when it has ended."
            return [replace(one, outcome="not withdrawn", message=message) for one in self._kept()]

    def _cancel_run(
        self, run: Mapping[str, Any], problem: Optional[ClientError]
    ) -> Tuple[Outcome, Optional[ClientError]]:
        """Cancel a run, unless `problem` forbids it, or it has ended by now."""
        try:
            if problem:
                raise problem
            now = self.client.runs.get(run["dag_run_id"])  # with many runs the list is a minute old
            if now["state"] in FINAL_STATES:
                return self._ended(now), None
            cancelled = self.client.runs.cancel(run["dag_run_id"])
        except ClientError as error:
            outcome = replace(self._of_run(run), outcome="not cancelled", exit_code=error.exit_code)
            return replace(outcome, message=str(error)), error
        return replace(self._of_run(cancelled), outcome="cancelled", exit_code=0), None

    def _ended(self, run: Mapping[str, Any]) -> Outcome:
        return replace(self._of_run(run), outcome="had ended", exit_code=0)

    def _unknown(self) -> Outcome:
        message = "Airflow has no run of any file of it, and none waits here."
        return Outcome(self.name, "", "no such scan", NO_SUCH_RUN, message=message)

    @staticmethod
    def _paths(files: Sequence[Outcome]) -> Set[str]:
        return {one.path for one in files}


def _sorted(files: Sequence[Outcome]) -> List[Outcome]:
    """By energy, region and repetition, which are numbers in the names."""
    return sorted(
        files, key=lambda one: [int(part) for part in re.findall(r"\d+", f"{one.path} {one.run_id}")]
    )
