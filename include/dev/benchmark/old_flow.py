"""Runs the transfer of the old flow (als-computing/splash_flows) with Prefect's server and a worker."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from dev.benchmark.cpu import cpu_of
from dev.benchmark.servers import START, spawned
from dev.local_airflow.settings import REPOSITORY
from dev.local_airflow.stack import free_port, tail, wait_until

PROGRAMS = REPOSITORY / ".venv-old" / "bin"
PAUSE = 1.0  # seconds before a request is sent again
FLOW = Path("orchestration", "flows", "bl7012", "move.py")
# The names of its create_deployments_7012.sh.
_FLOW_NAME, _DEPLOYMENT = "process_newfile_7012_ptycho4", "bl7012-process-new-file"
_POOL, _QUEUE = "process_newdata7012_ptycho4", "bl7012_ptycho4"
_UNENDED = ("SCHEDULED", "PENDING", "RUNNING")  # types of Prefect's states


class OldFlow:
    """A Prefect server with SQLite and a worker with their own defaults, as processes.

    :param stack: ends the processes.
    :param refused: how often the server answered 503; the request was then sent again.
    """

    def __init__(
        self, checkout: Path, folder: Path, globus: dict[str, str], stack: contextlib.ExitStack
    ) -> None:
        self.refused = 0
        self._count_refused = threading.Lock()
        self._checkout = checkout
        self._folder = folder
        self._stack = stack
        self._port = free_port()
        self._api = f"http://127.0.0.1:{self._port}/api"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._deployment = ""
        # All that its configuration needs. The last two are globus-sdk's own way to another address: the old
        # code is as it is in the checkout, and so are the collections' ids, which are the stand-in's, too.
        self._environment = {
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "PYTHONPATH": str(checkout),
            "PREFECT_API_URL": self._api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "GLOBUS_CLIENT_ID": globus["client_id"],
            "GLOBUS_CLIENT_SECRET": globus["client_secret"],
            "GLOBUS_SDK_SERVICE_URL_AUTH": globus["auth_url"],
            "GLOBUS_SDK_SERVICE_URL_TRANSFER": globus["transfer_url"],
        }

    def start(self) -> None:
        """Start the server, deploy the flow as create_deployments_7012.sh does, and start the worker.

        :raises RuntimeError: one of them did not work; the message has its output.
        """
        self._spawn("server", "server", "start", "--host", "127.0.0.1", "--port", str(self._port))
        if not wait_until(self._is_up, START):
            raise RuntimeError(f"Prefect's server does not answer.\n{tail(self._folder / 'server.log')}")
        self._run("work-pool", "create", _POOL, "--type", "process")
        entrypoint = f"{FLOW}:process_new_file"
        self._run(
            "--no-prompt",
            "deploy",
            "--name",
            _DEPLOYMENT,
            "--pool",
            _POOL,
            "--work-queue",
            _QUEUE,
            entrypoint,
        )
        self._deployment = self._call("GET", f"/deployments/name/{_FLOW_NAME}/{_DEPLOYMENT}")["id"]
        self._spawn("worker", "worker", "start", "--pool", _POOL, "--work-queue", _QUEUE)

    def post(self, run_id: str, file_path: str) -> None:
        """Start the run for a scan."""
        body = {"name": run_id, "idempotency_key": run_id, "parameters": {"file_path": file_path}}
        self._call("POST", f"/deployments/{self._deployment}/create_flow_run", body)

    def unfinished(self, prefix: str) -> int:
        """How many of the runs whose names begin with `prefix` have not ended."""
        state = {"type": {"any_": list(_UNENDED)}}
        body = {"flow_runs": {"name": {"like_": prefix}, "state": state}}
        return int(self._call("POST", "/flow_runs/count", body))

    def last_end(self, prefix: str) -> float:
        """When the last of these runs ended that have, by Prefect's records (seconds of the epoch).

        :raises RuntimeError: one has failed, or none has ended.
        """
        runs = self._call("POST", "/flow_runs/filter", {"flow_runs": {"name": {"like_": prefix}}})
        for run in runs:
            if run["state_type"] not in ("COMPLETED", *_UNENDED):
                raise RuntimeError(f"Run {run['name']} of the old flow: {run['state']}")
        ended = [run["end_time"] for run in runs if run["state_type"] == "COMPLETED"]
        if not ended:
            raise RuntimeError("No run of the old flow has ended.")
        return max(datetime.fromisoformat(end).timestamp() for end in ended)

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far of the server, and of the worker with the runs that it starts."""
        return {name: cpu_of(process.pid).all for name, process in self._processes.items()}

    def _is_up(self) -> bool:
        try:
            return bool(self._call("GET", "/health"))
        except urllib.error.URLError:
            return False

    def _call(self, method: str, path: str, body: object = None) -> Any:
        """Send one request, again while the server says 503 (its database is locked)."""
        while True:
            request = urllib.request.Request(  # noqa: S310 - our own server
                self._api + path,
                data=None if body is None else json.dumps(body).encode(),
                headers={"Content-Type": "application/json"},
                method=method,
            )
            try:
                with urllib.request.urlopen(request, timeout=START) as reply:  # noqa: S310
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
            with self._count_refused:
                self.refused += 1
            time.sleep(PAUSE)

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(  # noqa: S603 - Prefect's own program
            [PROGRAMS / "prefect", *arguments],
            cwd=self._checkout,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"prefect {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}")

    def _spawn(self, name: str, *arguments: str) -> None:
        command, log = [str(PROGRAMS / "prefect"), *arguments], self._folder / f"{name}.log"
        server = spawned(command, log, cwd=self._folder, environment=self._environment)
        self._processes[name] = self._stack.enter_context(server)


@contextlib.contextmanager
def running_old_flow(checkout: Path, folder: Path, globus: dict[str, str]) -> Iterator[OldFlow]:
    """The old flow for the length of a `with` block.

    :param folder: where its database and logs go.
    :param globus: the stand-in's description of its Globus.
    """
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        flow = OldFlow(checkout, folder, globus, stack)
        flow.start()
        yield flow
