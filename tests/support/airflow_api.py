"""The part of Airflow's REST API that the beamline's client uses, with faults on request.

Shapes and statuses are those that Airflow 3.3.2 gives (seen with the real one, against which the client's
`live` tests run); this one is for what cannot be provoked there.
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DAG_RUNS = "/api/v2/dags/transfer_auto_recon/dagRuns"
DAGS = re.compile("/api/v2/dags/(transfer_auto_recon|stack_scan)(?=/dagRuns|$)")
RUN_ID = re.compile(r"^[A-Za-z0-9_.~:+-]+$")
BODY_FIELDS = {"dag_run_id", "logical_date", "conf", "note", "run_after", "partition_key"}


@dataclass
class Fault:
    """What happens to the next `times` requests that match.

    `kind`: status, html (a proxy's page), redirect, not_json, drop_before, drop_reply, reset_reply, truncate
    or delay.
    """

    kind: str
    method: str = ""
    path: str = ""
    times: int = 1
    status: int = 503
    detail: Any = "fault"
    retry_after: str = ""
    delay: float = 0.0
    hits: int = 0


@dataclass
class AirflowApi:
    """The server's state, for tests to look at and to change."""

    url: str = ""
    users: dict[str, str] = field(default_factory=lambda: {"beamline": "secret"})
    tokens: set[str] = field(default_factory=set)
    forbidden: set[tuple[str, str]] = field(default_factory=set)  # (method, token kind): role refuses
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    tasks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    xcoms: dict[tuple[str, ...], Any] = field(default_factory=dict)
    logs: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    created: list[str] = field(default_factory=list)  # run ids in the order in which runs were made
    paused: bool = False
    dag_problem: str = ""  # "missing" or "import errors"
    on_request: Callable[[str, str], None] = lambda _method, _path: None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fault(self, kind: str, **spec: Any) -> Fault:
        """Order a fault."""
        self.faults.append(Fault(kind, **spec))
        return self.faults[-1]

    def count(self, method: str, path: str) -> int:
        """Requests so far whose path matches the regular expression."""
        return sum(1 for m, p in self.requests if m == method and re.search(path, p))

    def add_run(
        self,
        run_id: str,
        state: str = "running",
        conf: dict[str, Any] | None = None,
        dag_id: str = "transfer_auto_recon",
    ) -> dict[str, Any]:
        """Make a run as if somebody had started it."""
        run = {
            "dag_run_id": run_id,
            "dag_id": dag_id,
            "logical_date": None,
            "run_after": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "state": state,
            "conf": conf or {},
            "note": None,
        }
        self.runs[run_id] = run
        self.created.append(run_id)
        return run

    def add_task(self, run_id: str, task_id: str, state: str | None, map_index: int = -1) -> dict[str, Any]:
        """Add a task instance to a run."""
        task = {
            "task_id": task_id,
            "dag_run_id": run_id,
            "map_index": map_index,
            "state": state,
            "try_number": 1,
        }
        self.tasks.setdefault(run_id, []).append(task)
        return task


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: AirflowApi

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        """Answer."""
        self._handle()

    do_POST = do_PATCH = do_GET  # noqa: N815 - the base class's names

    def _handle(self) -> None:
        split = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(split.path)
        query = dict(urllib.parse.parse_qsl(split.query))
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.api.lock:
            self.api.requests.append((self.command, path))
            fault = self._fault(path)
        if fault and self._before(fault):
            return
        with self.api.lock:
            status, data = self._answer(path, query, json.loads(raw) if raw else None)
        self.api.on_request(self.command, path)
        self._reply(status, data, fault)

    def _fault(self, path: str) -> Fault | None:
        for fault in self.api.faults:
            if (
                fault.hits < fault.times
                and fault.method in ("", self.command)
                and re.search(fault.path, path)
            ):
                fault.hits += 1
                return fault
        return None

    def _before(self, fault: Fault) -> bool:
        """Do what a fault does before the request is acted on; True when that was all."""
        if fault.kind == "delay":
            threading.Event().wait(fault.delay)
            return False
        if fault.kind == "drop_before":
            self.close_connection = True
        elif fault.kind == "status":
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            self._send(fault.status, json.dumps({"detail": fault.detail}).encode(), headers)
        elif fault.kind == "html":
            self._send(fault.status, b"<html>proxy</html>", {"Content-Type": "text/html"})
        elif fault.kind == "redirect":
            self._send(302, b"", {"Location": "https://elsewhere.example/login"})
        elif fault.kind == "not_json":
            self._send(200, b"<html>welcome</html>", {})
        else:
            return False
        return True

    def _reply(self, status: int, data: Any, fault: Fault | None) -> None:
        body = json.dumps(data).encode()
        if fault and fault.kind == "drop_reply":
            self.close_connection = True
        elif fault and fault.kind == "reset_reply":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif fault and fault.kind == "truncate":
            self._send(status, body[: len(body) // 2], {}, length=len(body))
            self.close_connection = True
        else:
            self._send(status, body, {})

    def _send(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        try:
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client was killed

    def _answer(  # noqa: PLR0911 - a table of answers
        self, path: str, query: dict[str, str], body: Any
    ) -> tuple[int, Any]:
        api = self.api
        if path == "/auth/token":
            if api.users.get(body["username"]) != body["password"]:
                return 401, {"detail": "Invalid credentials"}
            token = secrets.token_urlsafe(8)
            api.tokens.add(token)
            return 201, {"access_token": token}
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            return 401, {"detail": "Not authenticated"}
        if token == "expired":
            return 401, {"detail": "Token Expired"}
        if token not in api.tokens:
            return 403, {"detail": "Invalid JWT token"}
        if (self.command, "any") in api.forbidden:
            return 403, {"detail": "Forbidden"}
        match = DAGS.match(path)
        if match is None or api.dag_problem == "missing":
            return 404, {"detail": "Dag with dag_id: 'transfer_auto_recon' not found"}
        if match.end() == len(path):
            return 200, {"dag_id": match[1], "is_paused": api.paused}
        parts = path[match.end() + len("/dagRuns") :].strip("/").split("/")
        if parts == [""]:
            return self._start(match[1], body) if self.command == "POST" else self._list(match[1], query)
        return self._one(parts, query, body)

    def _start(self, dag_id: str, body: Any) -> tuple[int, Any]:
        api = self.api
        extra = set(body) - BODY_FIELDS
        if "logical_date" not in body or extra:
            where = ["body", *extra] if extra else ["body", "logical_date"]
            return 422, {"detail": [{"type": "missing", "loc": where, "msg": "Field required"}]}
        if api.dag_problem:
            return 400, {
                "detail": "Dag with dag_id: 'transfer_auto_recon' has import errors and cannot be triggered"
            }
        run_id = body["dag_run_id"]
        if not RUN_ID.match(run_id) or ".." in run_id or len(run_id) > 250:
            return 400, {"detail": f"The run_id provided '{run_id}' does not match regex pattern"}
        is_stack = dag_id == "stack_scan"
        if (
            not (is_stack or str(body["conf"].get("file_path", "")).endswith(".cxi"))
            or body["conf"].get("n_gpu") == 3
        ):
            return 400, {"detail": "Invalid input for param n_gpu: 3 is refused by this DAG"}
        if run_id in api.runs:
            return 409, {"detail": f"There is a run {run_id} of transfer_auto_recon already."}
        run = api.add_run(run_id, "queued", body["conf"], dag_id)
        run["note"] = body.get("note")
        return 200, run

    def _list(self, dag_id: str, query: dict[str, str]) -> tuple[int, Any]:
        text = query.get("conf_contains", "")
        of_dag = [run for run in self.api.runs.values() if run["dag_id"] == dag_id]
        found = [run for run in of_dag if text in json.dumps(run["conf"])]
        return 200, _page("dag_runs", found, query)

    def _xcoms(self, parts: list[str], query: dict[str, str]) -> tuple[int, Any]:
        """Entries of a task in all runs; Airflow leaves the prefix's last `_` out of account."""
        beginning = query["run_id_prefix_pattern"].rstrip("_")
        wanted = [
            {"run_id": key[0], "task_id": key[1], "key": key[2], "dag_id": "transfer_auto_recon"}
            for key in self.api.xcoms
            if key[1:] == (parts[2], query["xcom_key"]) and key[0].startswith(beginning)
        ]
        return 200, _page("xcom_entries", wanted, query)

    def _one(  # noqa: PLR0911 - a table of answers
        self, parts: list[str], query: dict[str, str], body: Any
    ) -> tuple[int, Any]:
        api = self.api
        if parts[0] == "~":
            return self._xcoms(parts, query)
        run = api.runs.get(parts[0])
        if run is None:
            return 404, {"detail": f"The DagRun with run_id: `{parts[0]}` was not found"}
        if self.command == "PATCH":
            run["state"] = body["state"]
            return 200, run
        if len(parts) == 1:
            return 200, run
        if len(parts) == 2:
            return 200, _page("task_instances", api.tasks.get(parts[0], []), query)
        if parts[3] == "logs":
            return 200, {"content": api.logs.get((parts[0], parts[2]), []), "continuation_token": None}
        key = (parts[0], parts[2]) if parts[4] == "return_value" else (parts[0], parts[2], parts[4])
        if key not in api.xcoms:
            return 404, {"detail": f"XCom entry with key: `{parts[4]}` not found"}
        return 200, {"key": parts[4], "value": json.dumps(api.xcoms[key])}


def _page(key: str, items: list[Any], query: dict[str, str]) -> dict[str, Any]:
    offset = int(query.get("offset", 0))
    limit = min(int(query.get("limit", 50)), 100)
    return {key: items[offset : offset + limit], "total_entries": len(items)}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error of the server; anything else is, and must be seen."""
        import sys

        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def running_api() -> Iterator[AirflowApi]:
    """Serve on a free port of the loopback interface."""
    api = AirflowApi()
    handler = type("Handler", (_Handler,), {"api": api})
    server = _Server(("127.0.0.1", 0), handler)
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
