"""HTTP requests to Airflow: log-in, retries, and what an answer means."""

from __future__ import annotations

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
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from beamline_client.config import Settings, read_secret
from beamline_client.errors import (
    InputError,
    RefusedError,
    ServerFaultError,
    UnreachableError,
)
from beamline_client.parameters import VERSION
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
        return "The user needs a role that may stop runs, as `beamline` has: ask an administrator of Airflow."
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
