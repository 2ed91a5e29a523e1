"""Runs of the DAG, and what their tasks have left, over Airflow's REST API."""

from __future__ import annotations

import contextlib
import json
import urllib.parse
from typing import Any, Dict, List, Mapping, Sequence, Set, Tuple

from beamline_client.errors import (
    ClientError,
    NoSuchRunError,
    RejectedError,
    RetryLaterError,
    UnexpectedReplyError,
    UnreachableError,
)
from beamline_client.output import NO_REASON
from beamline_client.parameters import DAG_ID, Conf
from beamline_client.rest import Airflow, Reply


class Runs:
    """Runs of a DAG, by default `transfer_auto_recon`, as the REST API shows them (JSON objects)."""

    def __init__(self, airflow: Airflow, dag_id: str = DAG_ID) -> None:
        self.airflow = airflow
        self.dag_id = dag_id
        self._base = ("dags", dag_id, "dagRuns")

    def page_url(self, run_id: str) -> str:
        """Address of the run's page in the UI."""
        return f"{self.airflow.settings.url}/dags/{self.dag_id}/runs/{urllib.parse.quote(run_id, safe='')}"

    def start(self, run_id: str, conf: Conf, note: str) -> Tuple[bool, Dict[str, Any]]:
        """Start a run, or find the one that has this id already: (is new, the run).

        :raises RejectedError: Airflow finds the request wrong.
        :raises RetryLaterError: the DAG is missing or broken there.
        """
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf, "note": note}
        for _ in range(3):
            reply = self.airflow.call("POST", self._base, body=body)
            if reply.status == 200 and reply.data:
                return True, reply.data
            if reply.status != 409:
                raise _refusal(reply, self.dag_id)
            with contextlib.suppress(NoSuchRunError):  # deleted between the two requests: start it again
                return False, self.get(run_id)
        raise RetryLaterError(
            f"Airflow says that run {run_id} exists, and that it does not. Look at it in the UI."
        )

    def get(self, run_id: str) -> Dict[str, Any]:
        """:raises NoSuchRunError: Airflow does not know it."""
        return self._read(self.airflow.call("GET", (*self._base, run_id)), f"run {run_id}")

    def list_url(self, text: str) -> str:
        """Address of the list of the runs in the UI whose ids have this text in them."""
        query = urllib.parse.urlencode({"run_id_pattern": text})
        return f"{self.airflow.settings.url}/dags/{self.dag_id}/runs?{query}"

    def of_scan(self, path: str) -> List[Dict[str, Any]]:
        """All runs of the file at a normalized path, whatever their ids, the oldest first."""
        return [run for run in self.of_files(path) if scan_of(run) == path]

    def of_files(self, beginning: str) -> List[Dict[str, Any]]:
        """All runs of the files whose normalized paths begin so, whatever their ids, the oldest first.

        One request for each 100 runs.
        """
        return [run for run in self.containing(beginning) if scan_of(run).startswith(beginning)]

    def containing(self, text: str) -> List[Dict[str, Any]]:
        """All runs with this text in their parameters, the oldest first. One request for each 100 runs.

        :raises RetryLaterError: the DAG is missing there.
        """
        try:
            return self._pages(self._base, "dag_runs", {"conf_contains": text, "order_by": "id"})
        except NoSuchRunError as error:
            raise RetryLaterError(
                f"Airflow has no DAG {self.dag_id} at the moment. Tell whoever runs it."
            ) from error

    def tasks(self, run_id: str) -> List[Dict[str, Any]]:
        """Task instances of a run."""
        return self._pages((*self._base, run_id, "taskInstances"), "task_instances", {})

    def cancel(self, run_id: str) -> Dict[str, Any]:
        """Set a run failed, which ends its tasks and, through them, the transfer and the job."""
        reply = self.airflow.call("PATCH", (*self._base, run_id), body={"state": "failed"})
        return self._read(reply, f"run {run_id}")

    def is_paused(self) -> bool:
        """Whether the DAG is paused, so that no run goes on; False when that cannot be found out."""
        try:
            data = self._read(self.airflow.call("GET", ("dags", self.dag_id)), f"DAG {self.dag_id}")
        except ClientError:
            return False
        return data.get("is_paused") is True

    def result(self, task: Mapping[str, Any], key: str = "return_value") -> Any:
        """A value that a task has left, by default what it returned; None when there is none."""
        reply = self._of_task(task, "xcomEntries", key)
        if reply.status == 404:
            return None
        value = self._read(reply, f"{key} of {task['task_id']}").get("value")
        with contextlib.suppress(ValueError):  # plain text is a value too
            return json.loads(value) if isinstance(value, str) else value
        return value

    def with_warnings(self, beginning: str) -> Set[str]:
        """Ids of the runs whose results have warnings, of those whose ids begin so; others may be among them.

        One request for each 100 such runs.
        """
        query = {"xcom_key": "warnings", "run_id_prefix_pattern": beginning, "order_by": "run_id"}
        segments = (*self._base, "~", "taskInstances", "report", "xcomEntries")
        return {entry["run_id"] for entry in self._pages(segments, "xcom_entries", query)}

    def errors(self, task: Mapping[str, Any], count: int = 3) -> List[str]:
        """Why a task failed, as it left it; of one that left nothing, the last errors in its log."""
        kept = self.result(task, "error")
        if isinstance(kept, dict) and kept.get("what"):
            return _reason(kept)
        reply = self._of_task(task, "logs", str(task["try_number"]), full_content="true")
        content = self._read(reply, f"log of {task['task_id']}").get("content") or []
        lines: List[str] = []
        for entry in content:
            if isinstance(entry, dict) and str(entry.get("level", "")).lower() in ("error", "critical"):
                details = entry.get("error_detail") or []
                raised = details[0] if details and isinstance(details[0], dict) else {}  # then its causes
                lines.append(
                    f"{raised.get('exc_type')}: {raised.get('exc_value')}"
                    if raised
                    else str(entry.get("event"))
                )
        return list(dict.fromkeys(lines))[-count:]

    def reasons(self, run_id: str) -> Dict[str, List[str]]:
        """The first line of the reason of each failed task of a run; under "" what concerns the whole run.

        :raises UnreachableError: Airflow cannot be reached.
        """
        try:
            tasks = [task for task in self.tasks(run_id) if task["state"] == "failed"]
            errors = {task["task_id"]: self.errors(task)[:1] for task in tasks}
        except UnreachableError:
            raise
        except ClientError as error:
            return {"": [f"why it failed cannot be read: {error}"]}
        found = {name: lines or [NO_REASON] for name, lines in errors.items()}
        return found or {"": ["no task of it failed: it was ended from outside, or reached its time limit"]}

    def _of_task(self, task: Mapping[str, Any], *what: str, **query: str) -> Reply:
        segments = (*self._base, task["dag_run_id"], "taskInstances", task["task_id"], *what)
        return self.airflow.call("GET", segments, query={"map_index": task.get("map_index", -1), **query})

    def _pages(self, segments: Sequence[str], key: str, query: Mapping[str, Any]) -> List[Dict[str, Any]]:
        items: List[Dict[str, Any]] = []
        while True:
            page = {**query, "limit": 100, "offset": len(items)}
            data = self._read(self.airflow.call("GET", segments, query=page), f"list of {key}")
            items += data.get(key) or []
            if len(items) >= (data.get("total_entries") or 0) or not data.get(key):
                return items

    @staticmethod
    def _read(reply: Reply, what: str) -> Dict[str, Any]:
        if reply.status == 200 and reply.data is not None:
            return reply.data
        if reply.status == 404:
            raise NoSuchRunError(f"Airflow does not know the {what} ({reply.explanation()}).")
        raise UnexpectedReplyError(
            f"Airflow answered {reply.status} about the {what}: {reply.explanation()}."
        )


def _reason(kept: Mapping[str, Any]) -> List[str]:
    """The lines for a person of what a failed task has left: what failed, and what to do."""
    facts = [str(kept["what"])]
    facts += [f"id {kept['id']}"] if kept.get("id") else []
    facts += [f"last state {kept['state']}"] if kept.get("state") else []
    lines = ["; ".join(facts) + "."]
    lines += [f"What to do: {kept['next_step']}"] if kept.get("next_step") else []
    lines += [f"To run it again: {kept['run_again']}"] if kept.get("run_again") else []
    lines += [str(kept["details"])] if kept.get("details") else []
    return lines


def scan_of(run: Mapping[str, Any]) -> str:
    """The normalized path of a run's scan."""
    return str((run.get("conf") or {}).get("file_path", "")).strip("/")


def _refusal(reply: Reply, dag_id: str) -> ClientError:
    """What an answer other than "started" or "exists" to a start means for the request."""
    text = reply.explanation()
    is_airflows = reply.data is not None and "detail" in reply.data  # not a proxy's page
    is_about_dag = "import errors" in text or "manual runs" in text
    if reply.status in (400, 422) and is_airflows and not is_about_dag:
        return RejectedError(f"Airflow finds the request wrong ({reply.status}): {text}")
    return RetryLaterError(
        f"Airflow cannot start {dag_id} at the moment ({reply.status}: {text}). Tell whoever runs it."
    )
