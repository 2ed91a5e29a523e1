"""Stacks of a scan's energies: starts one, and says what became of the newest of each engine."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Dict, List, Mapping

from beamline_client.client import Client
from beamline_client.errors import ACCEPTED, RUN_FAILED, SPOOLED, UNREACHABLE, ClientError
from beamline_client.output import DONE, Outcome, local_time
from beamline_client.parameters import STACK_DAG_ID, STACK_PARAMETERS, Conf, check_parameter
from beamline_client.runs import Runs
from beamline_client.scan_names import parse_path, parse_scan


class Stacks:
    """The runs of the DAG `stack_scan` for a scan.

        Stacks(client, "NS_230216033").start({"engine": "cdtools"})

    Nothing is kept while Airflow cannot be reached.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self.runs = Runs(client.runs.airflow, STACK_DAG_ID)

    def start(self, parameters: Conf) -> Outcome:
        """Start a run that makes the scan's stacks.

        :raises InputError: a parameter is wrong.
        """
        given = {name: check_parameter(name, value, STACK_PARAMETERS) for name, value in parameters.items()}
        conf = {**given, "scan": self.name}
        run_id = f"{self.name}_{_engine(conf)}_{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        try:
            _, run = self.runs.start(run_id, conf, "submit_scan stack")
        except ClientError as error:
            code = UNREACHABLE if error.exit_code == SPOOLED else error.exit_code
            message = f"Nothing was started or kept. {error}"
            return Outcome(self._title(conf), run_id, "not started", code, message=message)
        note = f"{STACK_DAG_ID} is paused in Airflow: no run goes on until an administrator unpauses it."
        return replace(self._of_run(run), outcome="accepted", message=note if self.runs.is_paused() else "")

    def newest(self) -> List[Outcome]:
        """The newest run of each engine's stacks; none when there is none.

        :raises ClientError: they cannot be read.
        """
        runs: Dict[str, Mapping[str, Any]] = {}
        for run in self.runs.containing(self.name):
            conf = run.get("conf") or {}
            if self._is_meant(str(conf.get("scan", ""))):
                runs[_engine(conf)] = run
        return [self._ended(run) for run in runs.values()]

    def _is_meant(self, text: str) -> bool:
        scan, file = parse_scan(text), parse_path(text.strip("/"))
        return self.name in (scan and scan.name, file and file.scan.name)

    def _ended(self, run: Mapping[str, Any]) -> Outcome:
        """A run with what it has made, or why there is nothing."""
        outcome, run_id = self._of_run(run), run["dag_run_id"]
        if run["state"] == "failed":
            return replace(outcome, errors=self.runs.reasons(run_id))
        if run["state"] != "success":
            return outcome
        made = self.runs.result({"dag_run_id": run_id, "task_id": "collect"})
        if isinstance(made, dict):
            return replace(outcome, outcome=DONE, message=str(made.get("message")))
        why = self.runs.result({"dag_run_id": run_id, "task_id": "check"}, "no_stack")
        return replace(outcome, outcome="no stack", message=str(why or "See the page."))

    def _of_run(self, run: Mapping[str, Any]) -> Outcome:
        state = str(run["state"])
        return Outcome(
            self._title(run.get("conf") or {}),
            run["dag_run_id"],
            state,
            RUN_FAILED if state == "failed" else ACCEPTED,
            state=state,
            since=local_time(run.get("run_after")),
            url=self.runs.page_url(run["dag_run_id"]),
        )

    def _title(self, conf: Mapping[str, Any]) -> str:
        return f"stack of {self.name}, {_engine(conf)}"


def _engine(conf: Mapping[str, Any]) -> str:
    return str(conf.get("engine", STACK_PARAMETERS["engine"].default))
