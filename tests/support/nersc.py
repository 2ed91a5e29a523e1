"""A client of the stand-in's NERSC half that hides nothing: raw requests, and waits with a deadline."""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import httpx
import jwt

from standin.testing import Facility, running, until

with warnings.catch_warnings():  # authlib warns of httpx when it is imported
    warnings.simplefilter("ignore")
    from sfapi_client import AsyncClient, Client

T = TypeVar("T")
SCHEDULER = "slurm" if "SLURM_TEST_CLUSTER" in os.environ else "builtin"
"""What runs the jobs of these tests: Slurm itself under `make slurm-test`."""
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
FAST = {"time_scale": 0.01, "sacct_lag": 0.0, "cached_lag": 0.0}


def script(*lines: str, directives: str = "", interpreter: str = "/bin/bash") -> str:
    """A batch script that Perlmutter accepts."""
    body = "\n".join(lines)
    return f"#!{interpreter}\n#SBATCH -A als_g -C gpu -q regular -t 1\n#SBATCH {directives}\n{body}\n"


def sync_client(nersc: Nersc, **parameters: Any) -> Client:
    """sfapi_client, pointed at the facility."""
    described = nersc.described
    urls = {"api_base_url": described["api_url"], "token_url": described["token_url"]}
    return Client(described["client_id"], nersc.key, **{**urls, "wait_interval": 0.1, **parameters})


def async_client(nersc: Nersc, **parameters: Any) -> AsyncClient:
    """sfapi_client's other half, pointed at the facility."""
    described = nersc.described
    urls = {"api_base_url": described["api_url"], "token_url": described["token_url"]}
    return AsyncClient(described["client_id"], nersc.key, **{**urls, "wait_interval": 0.1, **parameters})


class Nersc:
    """Calls of SFAPI for tests."""

    def __init__(self, facility: Facility) -> None:
        self.facility = facility
        self.described: dict[str, Any] = facility.description["nersc"]
        self.http = httpx.Client(timeout=20)
        self._token = ""

    def close(self) -> None:
        """Close connections."""
        self.http.close()

    def control(self, verb: str, **body: Any) -> dict[str, Any]:
        """A control verb of the NERSC half."""
        return self.facility.control("nersc", verb, **body)

    @property
    def key(self) -> str:
        """The client's private key, PEM."""
        return Path(self.described["key_path"]).read_text()

    def assertion(self, **changes: Any) -> str:
        """A client assertion; a change to None leaves the claim out."""
        client_id, now = self.described["client_id"], int(time.time())
        key = changes.pop("key", self.key)
        claims = {"iss": client_id, "sub": client_id, "aud": self.described["token_url"], "iat": now,
                  "exp": now + 3600, "jti": uuid.uuid4().hex, **changes}  # fmt: skip
        return jwt.encode(
            {name: value for name, value in claims.items() if value is not None}, key, algorithm="RS256"
        )

    def ask_token(self, assertion: str | None = None, **form: str) -> httpx.Response:
        """A request to the token endpoint."""
        fields = {
            "grant_type": "client_credentials",
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": assertion or self.assertion(),
            **form,
        }
        return self.http.post(self.described["token_url"], data=fields)

    @property
    def token(self) -> str:
        """An access token, asked for once."""
        if not self._token:
            self._token = self.ask_token().json()["access_token"]
        return self._token

    def call(self, method: str, path: str, **parameters: Any) -> httpx.Response:
        """A request to SFAPI with a token."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return self.http.request(method, f"{self.described['api_url']}/{path}", headers=headers, **parameters)

    def get(self, path: str, **parameters: Any) -> dict[str, Any]:
        """The JSON answer of a GET that must work."""
        reply = self.call("GET", path, **parameters)
        assert reply.status_code == 200, reply.text
        return cast("dict[str, Any]", reply.json())

    def get_list(self, path: str) -> list[dict[str, Any]]:
        """The same of a GET that answers with a list."""
        return cast("list[dict[str, Any]]", self.get(path))

    def result(self, task_id: str) -> dict[str, Any]:
        """The result of a task, when it is completed."""
        document = until(
            lambda: (d := self.get(f"tasks/{task_id}"))["status"] != "new" and d, what=f"task {task_id}"
        )
        assert document["status"] == "completed", document
        return cast("dict[str, Any]", httpx.Response(200, text=document["result"]).json())

    def try_submit(self, text: str, path: bool = False, args: list[str] | None = None) -> dict[str, Any]:
        """The result of a submit, refused or not."""
        form = {"job": text, "isPath": str(path).lower(), "args": args or []}
        reply = self.call("POST", "compute/jobs/perlmutter", data=form)
        assert reply.status_code == 200, reply.text
        return self.result(reply.json()["task_id"])

    def submit(self, text: str, path: bool = False, args: list[str] | None = None) -> str:
        """The id of a job that was accepted."""
        result = self.try_submit(text, path, args)
        assert result["status"] == "ok", result
        return str(result["jobid"])

    def refusal(self, text: str) -> str:
        """The error of a submit that was refused."""
        result = self.try_submit(text)
        assert result["status"] == "error", result
        return str(result["error"])

    def list(self, view: str, cached: bool = False, **kwargs: str) -> dict[str, Any]:
        """The answer to a listing by squeue or sacct."""
        parameters = [("sacct", str(view == "sacct").lower()), ("cached", str(cached).lower())]
        parameters += [("kwargs", f"{name}={value}") for name, value in kwargs.items()]
        return self.get("compute/jobs/perlmutter", params=parameters)

    def row(self, view: str, job_id: str) -> dict[str, str]:
        """The one row of a job; empty when it is not listed."""
        rows = self.list(view, jobid=job_id)["output"]
        assert len(rows) < 2
        return rows[0] if rows else {}

    def state(self, job_id: str) -> str:
        """State according to sacct."""
        return self.row("sacct", job_id).get("state", "")

    def wait_for(self, job_id: str, *states: str, seconds: float = 60.0) -> dict[str, str]:
        """sacct's row, when the job is in one of the states and has its name there."""

        def accounted() -> dict[str, str] | Literal[False]:
            row = self.row("sacct", job_id)
            return row.get("state", "") in states and row["jobname"] != "allocation" and row

        return until(accounted, seconds, f"job {job_id} in {states}; it was {self.state(job_id)} before")

    def ended(self, job_id: str) -> dict[str, str]:
        """sacct's row of a job of which nothing is left."""
        until(lambda: not self.book(job_id)["active"], what=f"end of job {job_id}")
        return self.row("sacct", job_id)

    def book(self, job_id: str) -> dict[str, Any]:
        """What the books say of a job."""
        return next(job for job in self.facility.jobs() if job["job_id"] == job_id)

    def output(self, job_id: str, name: str = "slurm-%j.out") -> str:
        """A file that the job wrote in its home; empty while there is none."""
        path = Path(self.described["home"]) / name.replace("%j", job_id)
        return path.read_text() if path.exists() else ""


def cancel(nersc: Nersc, job_id: str) -> None:
    """Cancel a job, and wait until nothing is left."""
    nersc.call("DELETE", f"compute/jobs/perlmutter/{job_id}")
    nersc.ended(job_id)
    until(lambda: nersc.row("squeue", job_id) == {}, what=f"end of job {job_id} in squeue")


def processes_of(nersc: Nersc, job_id: str) -> list[int]:
    """Living processes of a job's script."""
    marks = {f"SLURM_JOB_ID={job_id}".encode(), f"HOME={nersc.described['home']}".encode()}
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and marks <= set((folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
    return found


@contextmanager
def nersc_running(root: Path, settings: dict[str, Any] | None = None, **options: Any) -> Iterator[Nersc]:
    """A facility in a thread whose time limits and waits are short. Its jobs are ended with it."""
    with running(root, **{"scheduler": SCHEDULER, **(settings or {})}) as facility:
        nersc = Nersc(facility)
        nersc.control("set", **{**FAST, **options})
        try:
            yield nersc
        finally:
            end_jobs(nersc)
            nersc.close()


def end_jobs(nersc: Nersc) -> None:
    """Leave no process behind."""
    nersc.control("end_all")
    until(lambda: not any(job["active"] for job in nersc.facility.jobs()), what="end of all jobs")
