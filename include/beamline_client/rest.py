"""HTTP requests to Airflow: log-in, retries, and the calls for runs of the DAG."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import http.client
import json
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from beamline_client.config import Settings, read_secret
from beamline_client.errors import (
    ClientError,
    InputError,
    NoSuchRunError,
    RefusedError,
    RejectedError,
    RetryLaterError,
    ServerFaultError,
    UnexpectedReplyError,
    UnreachableError,
)
from beamline_client.parameters import DAG_ID, VERSION, Conf
from beamline_client.waiting import Wait

MAX_REPLY_BYTES = 20_000_000
MAX_REQUEST_SECONDS = 15.0
_TOKEN = re.compile(r"[!-~]+")


class Reply(NamedTuple):
    """An answer; `data` is None when it is not a JSON object."""

    status: int
    data: Optional[Dict[str, Any]]
    retry_after: float = 0.0
    location: str = ""

    def explanation(self) -> str:
        """The server's `detail` on its refusal, on one line, fit for a terminal."""
        detail = (self.data or {}).get("detail") or "no explanation"
        text = detail if isinstance(detail, str) else json.dumps(detail)
        return "".join(c if c.isprintable() else " " for c in text)[:800]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET, and a token would go to another host."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


class _NoAnswerError(Exception):
    """No usable answer to this attempt."""


class Airflow:
    """The REST API (v2) of one Airflow. Retries until there is an answer or the time is over.

    The token is kept in memory only. 401, or 403 with a token from earlier, renews it once.
    """

    max_faults = 4  # of status 500 for one request: more is a defect there, not an outage
    first_pause = 0.25  # seconds before a request is sent again; doubles up to 10

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        handlers: List[Any] = [_NoRedirect]
        if settings.url.startswith("https:"):
            handlers.append(urllib.request.HTTPSHandler(context=_tls(settings.ca_file)))
        self._opener = urllib.request.build_opener(*handlers)
        self._token: Optional[str] = None

    def call(
        self,
        method: str,
        path: Sequence[str],
        *,
        body: Any = None,
        query: Optional[Mapping[str, Any]] = None,
    ) -> Reply:
        """Send a request below `/api/v2/` until there is an answer other than 429 and 5xx.

        All attempts together take at most the `timeout` of the settings.

        :param path: its segments, unquoted.
        :raises UnreachableError: none came in time. The request may have been acted on.
        :raises RefusedError: Airflow refuses access.
        """
        airflow = f"Airflow at {self.settings.url}"
        limit = self.settings.timeout
        wait = Wait(limit, first=self.first_pause, longest=10.0, jitter=True)
        faults = 0
        while True:
            try:
                reply = self._send_authorized(method, path, body, query, wait)
                if reply.status != 429 and reply.status < 500:
                    return reply
                problem, retry_after = f"it answered {reply.status}", reply.retry_after
                faults += reply.status == 500
            except _NoAnswerError as error:
                problem, retry_after = str(error), 0.0
            if faults >= self.max_faults:
                raise ServerFaultError(f"{airflow} failed on the request {faults} times ({problem}).")
            if not wait.pause(retry_after, whole=True):
                raise UnreachableError(f"{airflow} gave no usable answer in {limit:g} s (last: {problem}).")

    def _send_authorized(
        self, method: str, path: Sequence[str], body: Any, query: Optional[Mapping[str, Any]], wait: Wait
    ) -> Reply:
        address = "/".join(
            [self.settings.url, "api/v2", *(urllib.parse.quote(part, safe="") for part in path)]
        )
        if query:
            address += "?" + urllib.parse.urlencode(query)
        used = self._token
        token = used or self._new_token(wait)
        reply = self._send(method, address, body, token, wait)
        if reply.status in (401, 403) and used:
            token = self._new_token(wait)
            if token != used:
                reply = self._send(method, address, body, token, wait)
        if reply.status == 401:
            self._token = None
            raise RefusedError(
                f"Airflow does not accept the token: {reply.explanation()}. {self._how_to_renew()}"
            )
        if reply.status == 403:
            raise RefusedError(
                f"Airflow does not let us do this ({method} {'/'.join(path)}: {reply.explanation()}). "
                f"{_needed_right(method)} {self._how_to_renew()}"
            )
        return reply

    def _new_token(self, wait: Wait) -> str:
        settings = self.settings
        self._token = None
        if settings.token_file:
            token = read_secret(settings.token_file)
            if not _TOKEN.fullmatch(token):
                raise RefusedError(
                    f"{settings.token_file} does not hold a token: it has spaces or odd characters in it."
                )
            self._token = token
            return token
        if not settings.user or not settings.password_file:
            raise RefusedError("No credentials are set: user and password_file, or token_file, in [airflow].")
        login = {"username": settings.user, "password": read_secret(settings.password_file)}
        reply = self._send("POST", settings.url + "/auth/token", login, None, wait)
        if reply.status >= 500 or reply.status == 429:
            raise _NoAnswerError(f"the log-in answered {reply.status}")
        if reply.status == 404:
            raise RefusedError(
                f"There is no Airflow 3 at {settings.url} (its /auth/token answers 404). Check url."
            )
        token = str((reply.data or {}).get("access_token", ""))
        if reply.status not in (200, 201) or not _TOKEN.fullmatch(token):
            why = f"{reply.status}: {reply.explanation()}"
            raise RefusedError(f"Airflow refuses to log in {settings.user!r} ({why}). {self._how_to_renew()}")
        self._token = token
        return token

    def _how_to_renew(self) -> str:
        source = self.settings.token_file or self.settings.password_file
        return f"Renew {source} with whoever runs {self.settings.url}."

    def _send(self, method: str, address: str, body: Any, token: Optional[str], wait: Wait) -> Reply:
        headers = {"Accept": "application/json", "User-Agent": f"cosmic-submit-scan/{VERSION}"}
        headers.update({"Authorization": f"Bearer {token}"} if token else {})
        headers.update({"Content-Type": "application/json"} if body is not None else {})
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        request = urllib.request.Request(address, data=data, headers=headers, method=method)  # noqa: S310 - checked
        timeout = min(max(wait.remaining(), 0.1), MAX_REQUEST_SECONDS)
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                return _read_reply(answer, wait)
        except urllib.error.HTTPError as answer:
            with answer:
                reply = _read_reply(answer, wait)
            if 300 <= reply.status < 400:
                raise RefusedError(
                    f"{self.settings.url} sends us on to {reply.location!r}. Set url to where Airflow is."
                ) from None
            return reply
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise RefusedError(
                    f"The certificate of {self.settings.url} is not trusted ({error.reason.verify_message}). "
                    "If it is the right one, set ca_file in [airflow]."
                ) from error
            raise _NoAnswerError(str(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _NoAnswerError(str(error) or type(error).__name__) from error


def _needed_right(method: str) -> str:
    if method == "PATCH":
        return "Only an administrator of this Airflow may cancel runs: ask one, with the run's id."
    return "The user needs a role that may start and read runs."


def _tls(ca_file: Optional[Path]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context()
        if ca_file:
            context.load_verify_locations(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"ca_file {ca_file} cannot be used: {error}.") from error
    return context


def _read_reply(answer: Any, wait: Wait) -> Reply:
    """Read an answer whole; one that is cut off, too slow, or a success without JSON counts as lost."""
    status, headers = answer.getcode(), answer.headers
    content = bytearray()
    try:
        while True:
            chunk = answer.read1(65536)
            if not chunk:
                break
            content += chunk
            if wait.remaining() < 0 or len(content) > MAX_REPLY_BYTES:
                raise _NoAnswerError("its answer was too long or too slow")
    except (OSError, http.client.HTTPException) as error:
        raise _NoAnswerError(f"its answer broke off: {error}") from error
    expected = headers.get("Content-Length", "")
    if expected.isdigit() and len(content) < int(expected):
        raise _NoAnswerError("its answer broke off")
    try:
        data = json.loads(content.decode("utf-8"))
    except ValueError:
        data = None
    data = data if isinstance(data, dict) else None
    if 200 <= status < 300 and data is None:
        raise _NoAnswerError(f"it answered {status} with something that is not a JSON object")
    retry_after = _retry_after(headers.get("Retry-After", ""))
    return Reply(status, data, retry_after, str(headers.get("Location", ""))[:200])


def _retry_after(text: str) -> float:
    """Seconds of a Retry-After header, which is a number or a date; 0 without one."""
    if text.isdigit():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return max((moment - datetime.datetime.now(datetime.timezone.utc)).total_seconds(), 0.0)
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0


class Runs:
    """Runs of the DAG `transfer_auto_recon`, as the REST API shows them (JSON objects)."""

    def __init__(self, airflow: Airflow) -> None:
        self.airflow = airflow
        self._base = ("dags", DAG_ID, "dagRuns")

    def page_url(self, run_id: str) -> str:
        """Address of the run's page in the UI."""
        return f"{self.airflow.settings.url}/dags/{DAG_ID}/runs/{urllib.parse.quote(run_id, safe='')}"

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
                raise _refusal(reply)
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
        return f"{self.airflow.settings.url}/dags/{DAG_ID}/runs?{query}"

    def of_scan(self, path: str) -> List[Dict[str, Any]]:
        """All runs of the file at a normalized path, whatever their ids, the oldest first."""
        return [run for run in self.of_files(path) if scan_of(run) == path]

    def of_files(self, beginning: str) -> List[Dict[str, Any]]:
        """All runs of the files whose normalized paths begin so, whatever their ids, the oldest first.

        One request for each 100 runs.
        """
        query = {"conf_contains": beginning, "order_by": "id"}
        try:
            found = self._pages(self._base, "dag_runs", query)
        except NoSuchRunError as error:
            raise RetryLaterError(
                f"Airflow has no DAG {DAG_ID} at the moment. Tell whoever runs it."
            ) from error
        return [run for run in found if scan_of(run).startswith(beginning)]

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
            data = self._read(self.airflow.call("GET", ("dags", DAG_ID)), f"DAG {DAG_ID}")
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


def _refusal(reply: Reply) -> ClientError:
    """What an answer other than "started" or "exists" to a start means for the request."""
    text = reply.explanation()
    is_airflows = reply.data is not None and "detail" in reply.data  # not a proxy's page
    is_about_dag = "import errors" in text or "manual runs" in text
    if reply.status in (400, 422) and is_airflows and not is_about_dag:
        return RejectedError(f"Airflow finds the request wrong ({reply.status}): {text}")
    return RetryLaterError(
        f"Airflow cannot start {DAG_ID} at the moment ({reply.status}: {text}). Tell whoever runs it."
    )
