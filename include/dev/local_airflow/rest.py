"""Calls Airflow's REST API, for the demonstration, the tests and the benchmark (standard library only)."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from dev.local_airflow.stack import wait_until

FINISHED = ("success", "failed")


class RestError(RuntimeError):
    """The API refused a request: with its `status` and `detail`."""

    def __init__(self, method: str, path: str, status: int, detail: str) -> None:
        self.status = status
        self.detail = detail
        super().__init__(f"{method} {path}: {status} {detail}")


class Rest:
    """A logged-in user of one Airflow.

    :param url: address of the API server, without a path.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self.token = ""
        self.token = self.call("POST", "/auth/token", {"username": user, "password": password})[
            "access_token"
        ]

    def call(self, method: str, path: str, body: object = None, *, timeout: float = 60.0) -> Any:
        """Send one request and return the JSON reply (None when there is no body).

        :raises RestError: the API answered with an error.
        """
        request = urllib.request.Request(  # noqa: S310 - the address is given by our own code
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:  # noqa: S310
                text = reply.read()
        except urllib.error.HTTPError as error:
            raise RestError(method, path, error.code, error.read().decode(errors="replace")) from None
        return json.loads(text) if text else None

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, run_id: str | None = None) -> str:
        """Start a run and return its id."""
        body: dict[str, Any] = {"logical_date": None, "conf": conf or {}}
        if run_id is not None:
            body["dag_run_id"] = run_id
        started: dict[str, Any] = self.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)
        return str(started["dag_run_id"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """One run."""
        found: dict[str, Any] = self.call("GET", _run_path(dag_id, run_id))
        return found

    def task_instances(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """Task instances of a run by task id (mapped ones: the last)."""
        found = self.call("GET", _run_path(dag_id, run_id) + "/taskInstances?limit=200")
        return {task["task_id"]: task for task in found["task_instances"]}

    def tries(self, dag_id: str, run_id: str, task_id: str) -> list[dict[str, Any]]:
        """All tries of a task instance, the oldest first."""
        found = self.call("GET", _run_path(dag_id, run_id) + f"/taskInstances/{task_id}/tries")
        return sorted(found["task_instances"], key=lambda one: int(one["try_number"]))

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """One XCom value."""
        path = _run_path(dag_id, run_id) + f"/taskInstances/{task_id}/xcomEntries/{key}?deserialize=true"
        return self.call("GET", path)["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> str:
        """The text of a task's log, a line per event."""
        path = _run_path(dag_id, run_id) + f"/taskInstances/{task_id}/logs/{try_number}?full_content=true"
        content = self.call("GET", path)["content"]
        return "\n".join(line if isinstance(line, str) else _log_line(line) for line in content)

    def wait_for_dag(self, dag_id: str, timeout: float = 60.0) -> None:
        """Wait until the DAG processor has brought in a DAG."""

        def there() -> bool:
            try:
                self.call("GET", f"/api/v2/dags/{dag_id}")
            except RestError as error:
                if error.status == 404:
                    return False
                raise
            return True

        if not wait_until(there, timeout):
            errors = self.call("GET", "/api/v2/importErrors")
            raise TimeoutError(f"DAG {dag_id} did not appear within {timeout:.0f} s; import errors: {errors}")

    def wait_for_run(self, dag_id: str, run_id: str, timeout: float = 120.0) -> dict[str, Any]:
        """Wait until a run has ended and return it.

        :raises TimeoutError: it has not; the message has the state of its tasks.
        """
        if not wait_until(lambda: self.run(dag_id, run_id)["state"] in FINISHED, timeout, every=0.5):
            states = {name: task["state"] for name, task in self.task_instances(dag_id, run_id).items()}
            raise TimeoutError(f"Run {run_id} has not ended after {timeout:.0f} s: {states}")
        return self.run(dag_id, run_id)

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Mark a task instance as success, failed or skipped, as a person does in the UI."""
        self.call("PATCH", _run_path(dag_id, run_id) + f"/taskInstances/{task_id}", {"new_state": state})

    def clear(self, dag_id: str, run_id: str, task_ids: list[str], *, downstream: bool = True) -> None:
        """Clear task instances, as a person does in the UI."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": task_ids,
            "include_downstream": downstream,
            "only_failed": False,
            "reset_dag_runs": True,
        }
        self.call("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", body)


def _run_path(dag_id: str, run_id: str) -> str:
    return f"/api/v2/dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id, safe='')}"


def _log_line(event: dict[str, Any]) -> str:
    line = " ".join(str(event[key]) for key in ("timestamp", "level", "event") if event.get(key))
    for detail in event.get("error_detail") or []:
        line += f"\n{detail.get('exc_type')}: {detail.get('exc_value')}"
    return line
