#!/usr/bin/env python3
"""Send scans of beamline 7.0.1.2 (COSMIC) to be copied to NERSC and reconstructed.

One file, Python 3.8 or newer, nothing to install: copy it to the beamline computer and run it.

    submit_scan.py FILE... [--engine ptychocam] [--engine cdtools] [--n-gpu 4] [--param name=value]
                           [--wait] [--json] [--dry-run] [--any-name]
    submit_scan.py status [FILE|RUN]...     how far it is; without a name: what is kept on this computer
    submit_scan.py cancel FILE|RUN...       stop the runs that are going on, withdraw what was not sent yet
    submit_scan.py reprocess FILE...        a new run of the scan, with its last parameters and those given
    submit_scan.py flush                    send what was kept while Airflow could not be reached
    submit_scan.py watch FOLDER             submit each scan when it is finished, until stopped

FILE is the scan's path below the beamline's collection, as in
`2023/02/230216/NS_230216033_ccdframes_0_0.cxi`; a leading `/`, or the folder named in `data_root`, may
stand before it. With no engine the scan is copied to NERSC and not reconstructed.

A scan is one run. Its run id follows from its path, so a scan that is sent twice, by whoever, runs once:
the second time is answered "already accepted" (exit code 0). Every request is written to the spool
folder before it is sent and leaves it when Airflow has accepted it. If Airflow cannot be reached, or this
computer stops, it is sent by the next `submit`, `flush` or `watch`, oldest first. Requests that Airflow
finds wrong are moved to `rejected/` in the spool folder, with Airflow's message, and hold up nothing.

Exit codes: 0 accepted, now or before; 2 bad input or settings, nothing was sent; 3 kept in the spool, to be
sent later; 4 refused by Airflow (credentials, role, or the request itself); 5 the run failed (`--wait`,
`status`); 6 no such run; 7 Airflow cannot be reached and nothing was kept; 8 `--wait-limit` is over, the
run goes on; 130 interrupted, the runs go on. With several scans the gravest of them counts.

Settings come from `~/.config/cosmic/client.ini` (or `--config FILE`), and before it from the environment
(COSMIC_AIRFLOW_URL, _USER, _PASSWORD_FILE, _TOKEN_FILE; COSMIC_SPOOL) and from options:

    [airflow]
    url = https://airflow.example.org
    user = beamline
    password_file = ~/.config/cosmic/password      ; or token_file; only its owner may be able to read it
    ca_file = /etc/ssl/our-ca.pem                  ; when the certificate is not publicly trusted
    allow_http = no                                ; yes: credentials may cross a network unencrypted
    [client]
    spool = ~/.local/share/cosmic/spool            ; on a local disk
    data_root = /data/7012                         ; where the collection's root is on this computer
    timeout = 30                                   ; seconds without an answer until requests are kept
    any_name = no                                  ; yes: scans need not be named NS_..._ccdframes_...
    [parameters]                                   ; of every scan, unless options say otherwise
    do_ptychocam = true
    n_gpu = 4

As a module: `Client(load_settings()).submit(["2023/02/..."], {"do_ptychocam": True})`.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import datetime
import difflib
import email.utils
import fcntl
import hashlib
import http.client
import json
import math
import os
import random
import re
import signal
import socket
import ssl
import stat
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

DAG_ID = "transfer_auto_recon"
FINAL_STATES = ("success", "failed")
IDLE_STATES = ("none", "skipped", "upstream_failed")  # of tasks that have no part in it, or not yet
WAITING_STATES = ("scheduled", "queued")  # of tasks that are about to run
ACCEPTED, BAD_INPUT, SPOOLED, REFUSED, RUN_FAILED = 0, 2, 3, 4, 5
NO_SUCH_RUN, UNREACHABLE, STILL_RUNNING, INTERRUPTED = 6, 7, 8, 130
GRAVEST_FIRST = (
    1,
    BAD_INPUT,
    REFUSED,
    UNREACHABLE,
    SPOOLED,
    RUN_FAILED,
    NO_SUCH_RUN,
    STILL_RUNNING,
    ACCEPTED,
)
MAX_REPLY_BYTES = 20_000_000
SENT_KEPT = 1000  # records of accepted requests that stay in the spool folder

Conf = Dict[str, Any]  # parameters of a run, as JSON


class ClientError(Exception):
    """Base of this client's errors; the message says what failed and what to do next."""

    exit_code = 1


class InputError(ClientError):
    """A path, parameter or setting is wrong; nothing was sent."""

    exit_code = BAD_INPUT


class SpoolError(ClientError):
    """The spool folder cannot be written or read."""

    exit_code = BAD_INPUT


class BusyError(ClientError):
    """Another submit_scan holds the lock."""

    exit_code = SPOOLED


class RefusedError(ClientError):
    """Airflow does not let us in (credentials, role, certificate, address): no request would pass."""

    exit_code = REFUSED


class RejectedError(ClientError):
    """Airflow finds this one request wrong."""

    exit_code = REFUSED


class HeldError(ClientError):
    """Airflow cannot take this request as things are there (DAG missing or broken): later it may."""

    exit_code = SPOOLED


class OddReplyError(ClientError):
    """Airflow, or something on the way to it, gave an answer that has no meaning here."""

    exit_code = REFUSED


class NoSuchRunError(ClientError):
    """Airflow does not know the run."""

    exit_code = NO_SUCH_RUN


class UnreachableError(ClientError):
    """No usable answer within the time limit."""

    exit_code = UNREACHABLE


class ServerFaultError(UnreachableError):
    """Airflow answered 500 each time: it is there, but fails on this request."""


# ---------------------------------------------------------------------------------------------------------
# Scans and runs

SAFE_SEGMENT = "[A-Za-z0-9][A-Za-z0-9._-]*"
SAFE_PATH = re.compile(f"/?(?:{SAFE_SEGMENT}/)*{SAFE_SEGMENT}/?")
USUAL_PATH = re.compile(
    r"(?P<year>\d{4})/(?P<month>\d{2})/(?P<day>\d{6})/"
    r"NS_(?P<scan_day>\d{6})\d{3,}_ccdframes_\d+_\d+(?:_[A-Za-z0-9._-]+)?\.cxi",
    re.ASCII,
)
RUN_ID = re.compile(r"[A-Za-z0-9_.~:+-]+")
MAX_PATH = 400
MAX_STEM = 220  # Airflow allows 250 characters; prefix, hash and __r<number> need the rest
EXAMPLE = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"


def normalise_path(path: str) -> str:
    """The scan's path below the collection's root, without the leading `/`: the DAG's own rule.

    :raises InputError: not a relative path of safe characters that ends in `.cxi`.
    """
    if len(path) > MAX_PATH:
        raise InputError(f"The path {path[:60]!r}... is longer than {MAX_PATH} characters.")
    if not SAFE_PATH.fullmatch(path) or not re.search(r"[^/]\.cxi\Z", path):
        raise InputError(
            f"The path {path!r} cannot be a scan: it must end in .cxi, have only letters, digits, '.', '_', "
            f"'-' between single slashes, and no part that starts with '.', '_' or '-', as in {EXAMPLE}."
        )
    return path.lstrip("/")


def unusual_name(path: str) -> Optional[str]:
    """Why a normalised path is not named as the beamline names its scans, or None when it is."""
    match = USUAL_PATH.fullmatch(path)
    if not match:
        return f"it is not named like {EXAMPLE}"
    year, month, day = match["year"], match["month"], match["day"]
    if day != match["scan_day"]:
        return f"the folder's date {day} and the scan's {match['scan_day']} differ"
    if day[:2] != year[2:] or day[2:4] != month:
        return f"the folders {year}/{month} and {day} do not agree"
    try:
        datetime.date(int(year), int(month), int(day[4:]))
    except ValueError:
        return f"{year}-{month}-{day[4:]} is not a date"
    return None


def scan_run_id(path: str, generation: int = 1) -> str:
    """The run id of a normalised path: readable, unique by a hash of the path, valid in Airflow.

    :param generation: 1 is the scan's run; 2 and up its deliberate reprocessings.
    """
    stem = re.sub(r"\.{2,}", ".", path[: -len(".cxi")].replace("/", "__"))[:MAX_STEM].rstrip(".")
    digest = hashlib.sha256(path.encode()).hexdigest()[:8]
    return f"scan__{stem}.{digest}" + (f"__r{generation}" if generation > 1 else "")


def generation_of(run_id: str, path: str) -> int:
    """Which run of the scan at `path` this is; 0 when it is none of them."""
    first = scan_run_id(path)
    if run_id == first:
        return 1
    match = re.fullmatch(re.escape(first) + r"__r([1-9]\d{0,8})", run_id, re.ASCII)
    return int(match[1]) if match and int(match[1]) > 1 else 0


# ---------------------------------------------------------------------------------------------------------
# Parameters of a run


class Parameter(NamedTuple):
    """What a parameter of the DAG may be."""

    kind: str  # flag, integer, number, path or choice
    least: float = -math.inf
    most: float = math.inf
    optional: bool = False  # may be "none"
    choices: Tuple[str, ...] = ()


PARAMETERS: Dict[str, Parameter] = {
    "do_ptychocam": Parameter("flag"),
    "do_cdtools": Parameter("flag"),
    "n_iter": Parameter("integer", 1, 100_000),
    "period_illu_refine": Parameter("integer", 0, 100_000),
    "period_bg_refine": Parameter("integer", 0, 100_000),
    "use_illu_mask": Parameter("flag"),
    "run_split_reconstructions": Parameter("flag"),
    "n_modes": Parameter("integer", 1, 32),
    "oversampling_factor": Parameter("integer", 1, 8),
    "propagation_distance": Parameter("number", -1, 1),
    "simulate_probe_translation": Parameter("flag"),
    "n_init_rounds": Parameter("integer", 0, 1000),
    "n_init_iter": Parameter("integer", 0, 100_000),
    "n_final_iter": Parameter("integer", 0, 100_000),
    "translation_randomization": Parameter("number", 0, 1000),
    "probe_initialization": Parameter("path", optional=True),
    "init_background": Parameter("flag"),
    "probe_support_radius": Parameter("number", 1, 100_000, optional=True),
    "n_gpu": Parameter("integer", 1, 4),
    "qos": Parameter("choice", optional=True, choices=("regular", "realtime", "debug", "premium", "shared")),
    "time_limit_minutes": Parameter("integer", 1, 48 * 60, optional=True),
    "more_resources": Parameter("flag"),
}
WANTED = {
    "flag": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "path": "a path below the beamline's folder at NERSC (letters, digits, '.', '_', '-', '/')",
    "choice": "text",
}
ENGINES = ("ptychocam", "cdtools")
FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)


def parameter_rule(name: str) -> Parameter:
    """:raises InputError: there is no such parameter."""
    if name not in PARAMETERS:
        near = difflib.get_close_matches(name, PARAMETERS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(PARAMETERS)}."
        raise InputError(f"There is no parameter {name!r}. {hint}")
    return PARAMETERS[name]


def parse_parameter(name: str, text: str) -> Any:
    """A parameter's value from what was typed.

    :raises InputError: unknown name, or not a value that the DAG takes.
    """
    rule = parameter_rule(name)
    value: Any = text
    if rule.optional and text.lower() == "none":
        return None
    if rule.kind == "flag":
        value = FLAGS.get(text.lower(), text)
    elif rule.kind == "integer" and re.fullmatch(r"[+-]?\d{1,12}", text, re.ASCII):
        value = int(text)
    elif rule.kind == "number" and NUMBER.fullmatch(text):
        value = float(text)
    return check_parameter(name, value)


def check_parameter(name: str, value: Any) -> Any:
    """Check type and bounds of one parameter and give it back.

    :raises InputError: unknown name, wrong type or out of bounds.
    """
    rule = parameter_rule(name)
    if value is None and rule.optional:
        return value
    types: Dict[str, Any] = {"flag": bool, "integer": int, "number": (int, float), "path": str, "choice": str}
    fits = isinstance(value, types[rule.kind]) and isinstance(value, bool) == (rule.kind == "flag")
    if fits and rule.kind == "path":
        fits = len(value) <= MAX_PATH and SAFE_PATH.fullmatch(value) is not None
    if not fits:
        raise InputError(f"{name} must be {WANTED[rule.kind]}, not {value!r}.")
    if rule.kind == "choice" and value not in rule.choices:
        raise InputError(f"{name} must be one of {', '.join(rule.choices)}, not {value!r}.")
    inside = rule.kind not in ("integer", "number") or rule.least <= value <= rule.most  # nan is not
    if not inside:
        raise InputError(f"{name} must be from {rule.least:g} to {rule.most:g}, not {value!r}.")
    return value


def parameters_from_options(
    pairs: Iterable[str], engines: Optional[Sequence[str]], n_gpu: Optional[str]
) -> Conf:
    """Parameters from `--param name=value`, `--engine` and `--n-gpu`.

    :raises InputError: a malformed pair, a parameter given twice or a bad value.
    """
    given = [pair.partition("=") for pair in pairs]
    texts = [(name.strip(), value.strip()) for name, equals, value in given if equals]
    if len(texts) != len(given):
        bad = next(name for name, equals, _ in given if not equals)
        raise InputError(f"--param {bad!r} is not of the form name=value.")
    texts += [("n_gpu", n_gpu)] if n_gpu is not None else []
    texts += [(f"do_{engine}", str(engine in engines)) for engine in ENGINES] if engines else []
    names = [name for name, _ in texts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{', '.join(twice)}: given more than once.")
    return {name: parse_parameter(name, text) for name, text in texts}


# ---------------------------------------------------------------------------------------------------------
# Settings

SETTINGS_KEYS = {
    "airflow": ("url", "user", "password_file", "token_file", "ca_file", "allow_http"),
    "client": ("spool", "data_root", "timeout", "any_name"),
}
ENVIRONMENT = {
    "COSMIC_AIRFLOW_URL": "url",
    "COSMIC_AIRFLOW_USER": "user",
    "COSMIC_AIRFLOW_PASSWORD_FILE": "password_file",
    "COSMIC_AIRFLOW_TOKEN_FILE": "token_file",
    "COSMIC_SPOOL": "spool",
}
DEFAULT_CONFIG = "~/.config/cosmic/client.ini"


@dataclass(frozen=True)
class Settings:
    """Where Airflow is, who we are there, and how this computer is set up. `timeout` is in seconds."""

    url: str
    user: str = ""
    password_file: Optional[Path] = None
    token_file: Optional[Path] = None
    ca_file: Optional[Path] = None
    spool: Path = field(default_factory=lambda: Path("~/.local/share/cosmic/spool").expanduser())
    data_root: Optional[Path] = None
    timeout: float = 30.0
    any_name: bool = False
    allow_http: bool = False
    parameters: Conf = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_url(self.url, self.allow_http)


def check_url(url: str, allow_http: bool) -> None:
    """:raises InputError: not an http(s) address, or one that would show the credentials to others."""
    wrong = InputError(f"url must be the address of Airflow, as in https://airflow.example.org, not {url!r}.")
    try:
        parts = urllib.parse.urlsplit(url)
        bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError as error:
        raise wrong from error
    if bad or not re.fullmatch(r"[!-~]+", url):
        raise wrong
    if parts.username is not None or parts.query or parts.fragment:
        raise InputError("url must have no user, password, query or fragment in it: use user, password_file.")
    local = re.fullmatch(r"localhost|127\.[\d.]+|::1", parts.hostname or "")
    if parts.scheme == "http" and not local and not allow_http:
        raise InputError(
            f"url is http://{parts.hostname}: the password would cross the network in the clear. Use https, "
            "or set allow_http = yes in [airflow] if that network is trusted."
        )


def read_config(path: Path) -> Tuple[Dict[str, str], Conf]:
    """Settings and parameters of an INI file, by name.

    :raises InputError: unreadable, or an unknown section or key.
    """
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=(";",))
    try:
        parser.read_string(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise InputError(f"The settings in {path} cannot be read: {error}.") from error
    values: Dict[str, str] = {}
    parameters: Conf = {}
    for section in parser.sections():
        for key, text in parser.items(section):
            if section == "parameters":
                parameters[key] = parse_parameter(key, text)
            elif key in SETTINGS_KEYS.get(section, ()):
                values[key] = text
            else:
                hint = " Put the password in a file of its own: password_file." if key == "password" else ""
                raise InputError(f"{path}: there is no setting {key!r} in section [{section}].{hint}")
    return values, parameters


def load_settings(
    config: Optional[str] = None,
    overrides: Optional[Mapping[str, str]] = None,
    environ: Optional[Mapping[str, str]] = None,
) -> Settings:
    """Settings from the configuration file, the environment and `overrides`; the later ones win.

    :param config: path of the file; without it `~/.config/cosmic/client.ini`, if there is one.
    :raises InputError: a setting is missing or wrong.
    """
    environ = os.environ if environ is None else environ
    path = Path(config or DEFAULT_CONFIG).expanduser()
    values, parameters = read_config(path) if config or path.exists() else ({}, {})
    values.update({key: environ[name] for name, key in ENVIRONMENT.items() if environ.get(name)})
    values.update(overrides or {})
    if "url" not in values:
        raise InputError(f"Where is Airflow? Set url in [airflow] of {path}, or COSMIC_AIRFLOW_URL.")
    typed: Dict[str, Any] = {"url": values["url"].rstrip("/"), "parameters": parameters}
    typed.update({key: values[key] for key in ("user",) if key in values})
    for key in ("password_file", "token_file", "ca_file", "spool", "data_root"):
        if values.get(key):
            typed[key] = Path(values[key]).expanduser()
    for key in ("any_name", "allow_http"):
        if key in values:
            typed[key] = FLAGS.get(values[key].lower())
            if typed[key] is None:
                raise InputError(f"{key} must be yes or no, not {values[key]!r}.")
    if "timeout" in values:
        typed["timeout"] = seconds(values["timeout"])
    return Settings(**typed)


def seconds(text: str) -> float:
    """:raises InputError: not a positive number of seconds."""
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    if not 0 < value < 1e9:
        raise InputError(f"{text!r} is not a positive number of seconds.")
    return value


def read_secret(path: Path) -> str:
    """The one line of a password or token file.

    :raises RefusedError: missing, or readable by others, or not one printable line.
    """
    try:
        descriptor = os.open(str(path), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & 0o077:
                raise RefusedError(f"{path} can be read by others. Close it: chmod 600 {path}")
            secret = file.read(100_000).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"The credentials in {path} cannot be read: {error}.") from error
    if not secret or not secret.isprintable():
        raise RefusedError(f"{path} must hold one line, the password or the token, and nothing else.")
    return secret


# ---------------------------------------------------------------------------------------------------------
# Talking to Airflow


class Reply(NamedTuple):
    """An answer; `data` is None when it is not a JSON object."""

    status: int
    data: Optional[Dict[str, Any]]
    retry_after: float = 0.0
    location: str = ""

    def explanation(self) -> str:
        """What the server said about its refusal, on one line, fit for a terminal."""
        detail = (self.data or {}).get("detail") or "no explanation"
        text = detail if isinstance(detail, str) else json.dumps(detail)
        return "".join(c if c.isprintable() else " " for c in text)[:800]


TOKEN = re.compile(r"[!-~]+")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET, and a token would go to another host."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


class _TroubleError(Exception):
    """No usable answer this time."""


class Airflow:
    """The REST API (v2) of one Airflow. Sends until it has an answer or the time is over.

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
        self._who = f"Airflow at {settings.url}"

    def call(
        self,
        method: str,
        path: Sequence[str],
        *,
        body: Any = None,
        query: Optional[Mapping[str, Any]] = None,
        limit: Optional[float] = None,
    ) -> Reply:
        """Send a request below `/api/v2/` until there is an answer that is not about momentary trouble.

        :param path: its segments, unquoted.
        :param limit: seconds, all attempts together; by default the `timeout` of the settings.
        :raises UnreachableError: none came in time. The request may have been acted on.
        :raises RefusedError: Airflow does not let us in.
        """
        limit = self.settings.timeout if limit is None else limit
        deadline = time.monotonic() + limit
        faults = 0
        pause = self.first_pause
        while True:
            try:
                reply = self._authorised(method, path, body, query, deadline)
                if reply.status != 429 and reply.status < 500:
                    return reply
                trouble, asked_for = f"it answered {reply.status}", reply.retry_after
                faults += reply.status == 500
            except _TroubleError as error:
                trouble, asked_for = str(error), 0.0
            if faults >= self.max_faults:
                raise ServerFaultError(f"{self._who} failed on the request {faults} times ({trouble}).")
            wait = max(asked_for, pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            if time.monotonic() + wait >= deadline:
                raise UnreachableError(f"{self._who} gave no usable answer in {limit:g} s (last: {trouble}).")
            time.sleep(wait)
            pause = min(pause * 2, 10.0)

    def _authorised(
        self, method: str, path: Sequence[str], body: Any, query: Optional[Mapping[str, Any]], deadline: float
    ) -> Reply:
        address = "/".join(
            [self.settings.url, "api/v2", *(urllib.parse.quote(part, safe="") for part in path)]
        )
        if query:
            address += "?" + urllib.parse.urlencode(query)
        used = self._token
        token = used or self._new_token(deadline)
        reply = self._send(method, address, body, token, deadline)
        if reply.status in (401, 403) and used:
            token = self._new_token(deadline)
            if token != used:
                reply = self._send(method, address, body, token, deadline)
        if reply.status == 401:
            self._token = None
            raise RefusedError(
                f"Airflow does not accept the token: {reply.explanation()}. {self._whom_to_ask()}"
            )
        if reply.status == 403:
            raise RefusedError(
                f"Airflow does not let us do this ({method} {'/'.join(path)}: {reply.explanation()}). "
                f"The user needs a role that may start and read runs. {self._whom_to_ask()}"
            )
        return reply

    def _new_token(self, deadline: float) -> str:
        settings = self.settings
        self._token = None
        if settings.token_file:
            token = read_secret(settings.token_file)
            if not TOKEN.fullmatch(token):
                raise RefusedError(
                    f"{settings.token_file} does not hold a token: it has spaces or odd characters in it."
                )
            self._token = token
            return token
        if not settings.user or not settings.password_file:
            raise RefusedError("No credentials are set: user and password_file, or token_file, in [airflow].")
        login = {"username": settings.user, "password": read_secret(settings.password_file)}
        reply = self._send("POST", settings.url + "/auth/token", login, None, deadline)
        if reply.status >= 500 or reply.status == 429:
            raise _TroubleError(f"the log-in answered {reply.status}")
        if reply.status == 404:
            raise RefusedError(
                f"There is no Airflow 3 at {settings.url} (its /auth/token answers 404). Check url."
            )
        token = str((reply.data or {}).get("access_token", ""))
        if reply.status not in (200, 201) or not TOKEN.fullmatch(token):
            why = f"{reply.status}: {reply.explanation()}"
            raise RefusedError(f"Airflow refuses to log in {settings.user!r} ({why}). {self._whom_to_ask()}")
        self._token = token
        return token

    def _whom_to_ask(self) -> str:
        source = self.settings.token_file or self.settings.password_file
        return f"Renew {source} with whoever runs {self.settings.url}."

    def _send(self, method: str, address: str, body: Any, token: Optional[str], deadline: float) -> Reply:
        headers = {"Accept": "application/json", "User-Agent": "cosmic-submit-scan"}
        headers.update({"Authorization": f"Bearer {token}"} if token else {})
        headers.update({"Content-Type": "application/json"} if body is not None else {})
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        request = urllib.request.Request(address, data=data, headers=headers, method=method)  # noqa: S310 - checked
        timeout = min(max(deadline - time.monotonic(), 0.1), 15.0)
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                return _read_reply(answer, deadline)
        except urllib.error.HTTPError as answer:
            with answer:
                reply = _read_reply(answer, deadline)
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
            raise _TroubleError(str(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _TroubleError(str(error) or type(error).__name__) from error


def _tls(ca_file: Optional[Path]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context()
        if ca_file:
            context.load_verify_locations(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"ca_file {ca_file} cannot be used: {error}.") from error
    return context


def _read_reply(answer: Any, deadline: float) -> Reply:
    """Read an answer whole; one that stops early, drips, or is a success without JSON counts as lost."""
    status, headers = answer.getcode(), answer.headers
    content = bytearray()
    try:
        while True:
            chunk = answer.read1(65536)
            if not chunk:
                break
            content += chunk
            if time.monotonic() > deadline or len(content) > MAX_REPLY_BYTES:
                raise _TroubleError("its answer was too long or too slow")
    except (OSError, http.client.HTTPException) as error:
        raise _TroubleError(f"its answer broke off: {error}") from error
    expected = headers.get("Content-Length", "")
    if expected.isdigit() and len(content) < int(expected):
        raise _TroubleError("its answer broke off")
    try:
        data = json.loads(content.decode("utf-8"))
    except ValueError:
        data = None
    data = data if isinstance(data, dict) else None
    if 200 <= status < 300 and data is None:
        raise _TroubleError(f"it answered {status} with something that is not a JSON object")
    retry_after = _retry_after(headers.get("Retry-After", ""))
    return Reply(status, data, retry_after, str(headers.get("Location", ""))[:200])


def _retry_after(text: str) -> float:
    """Seconds that a server asks us to wait: a number or a date; 0 when it does not say."""
    if text.isdigit():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return max((moment - datetime.datetime.now(datetime.timezone.utc)).total_seconds(), 0.0)
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0


# ---------------------------------------------------------------------------------------------------------
# What this client asks of Airflow


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
        :raises HeldError: the DAG is missing or broken there.
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
        raise HeldError(f"Airflow says that run {run_id} exists, and that it does not. Look at it in the UI.")

    def get(self, run_id: str) -> Dict[str, Any]:
        """:raises NoSuchRunError: Airflow does not know it."""
        return self._read(self.airflow.call("GET", (*self._base, run_id)), f"run {run_id}")

    def of_scan(self, path: str) -> List[Dict[str, Any]]:
        """All runs of a scan, the first one first, then its reprocessings."""
        try:
            found = self._pages(self._base, "dag_runs", {"run_id_prefix_pattern": scan_run_id(path)})
        except NoSuchRunError as error:
            raise HeldError(f"Airflow has no DAG {DAG_ID} at the moment. Tell whoever runs it.") from error
        runs = [(generation_of(run["dag_run_id"], path), run) for run in found]
        return [run for generation, run in sorted(runs, key=lambda pair: pair[0]) if generation]

    def tasks(self, run_id: str) -> List[Dict[str, Any]]:
        """Task instances of a run."""
        return self._pages((*self._base, run_id, "taskInstances"), "task_instances", {})

    def cancel(self, run_id: str) -> Dict[str, Any]:
        """Set a run failed, which ends its tasks and, through them, the transfer and the job."""
        reply = self.airflow.call("PATCH", (*self._base, run_id), body={"state": "failed"})
        return self._read(reply, f"run {run_id}")

    def result(self, task: Mapping[str, Any]) -> Any:
        """A task's return value, or None when it has none."""
        reply = self._of_task(task, "xcomEntries", "return_value")
        if reply.status == 404:
            return None
        value = self._read(reply, f"result of {task['task_id']}").get("value")
        with contextlib.suppress(ValueError):  # plain text is a value too
            return json.loads(value) if isinstance(value, str) else value
        return value

    def errors(self, task: Mapping[str, Any], most: int = 3) -> List[str]:
        """The last errors in a task's log."""
        reply = self._of_task(task, "logs", str(task["try_number"]), full_content="true")
        content = self._read(reply, f"log of {task['task_id']}").get("content") or []
        lines: List[str] = []
        for entry in content:
            if isinstance(entry, dict) and str(entry.get("level", "")).lower() in ("error", "critical"):
                details = entry.get("error_detail") or []
                raised = details[0] if details and isinstance(details[0], dict) else {}  # then its causes
                said = (
                    f"{raised.get('exc_type')}: {raised.get('exc_value')}" if raised else entry.get("event")
                )
                lines.append(str(said))
        return list(dict.fromkeys(lines))[-most:]

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
        raise OddReplyError(f"Airflow answered {reply.status} about the {what}: {reply.explanation()}.")


def _refusal(reply: Reply) -> ClientError:
    """What an answer other than "started" or "exists" to a start means for the request."""
    said = reply.explanation()
    ours = reply.data is not None and "detail" in reply.data  # not a proxy's page
    if reply.status in (400, 422) and ours and "import errors" not in said and "manual runs" not in said:
        return RejectedError(f"Airflow finds the request wrong ({reply.status}): {said}")
    return HeldError(
        f"Airflow cannot start {DAG_ID} at the moment ({reply.status}: {said}). Tell whoever runs it."
    )


# ---------------------------------------------------------------------------------------------------------
# The spool: requests on disk


@dataclass(frozen=True)
class Request:
    """One request to start a run. `run_id` of a reprocessing is chosen when it is sent."""

    kind: str  # submit or reprocess
    path: str
    conf: Conf  # of a reprocessing: the changes
    created: str
    run_id: str = ""
    message: str = ""  # why it was rejected, or what became of it
    name: str = ""  # of its file


class Spool:
    """Requests that wait, one file each, oldest first; then, for the record, the rejected and the sent ones.

    A file appears whole or not at all (written aside, synced, renamed, folder synced), so a crash or a
    power cut at any point leaves every request that was added, and nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pending_folder = folder / "pending"
        self.rejected_folder = folder / "rejected"
        self.sent_folder = folder / "sent"

    def add(self, requests: Iterable[Request]) -> List[Request]:
        """Keep requests on disk and return them as kept. A submission that waits already is not doubled.

        :raises SpoolError: the disk is full or not writable.
        """
        with self.lock("writing", 30.0), self._named_errors():
            for leftover in self.pending_folder.glob("*.tmp"):
                leftover.unlink()
            waiting = self.pending()
            known = {request.run_id: request for request in waiting if request.kind == "submit"}
            number = max([time.time_ns()] + [int(name[:20]) + 1 for name in self.names()])
            kept = []
            for request in requests:
                if request.kind == "submit" and request.run_id in known:
                    kept.append(known[request.run_id])
                    continue
                added = replace(request, name=f"{number:020d}-{os.urandom(4).hex()}.json")
                _write_durably(self.pending_folder / added.name, asdict(added))
                known[added.run_id] = added
                kept.append(added)
                number += 1
            return kept

    def names(self) -> List[str]:
        """File names of the requests that wait, oldest first."""
        return self._names(self.pending_folder)

    def pending(self) -> List[Request]:
        """Requests that wait, oldest first."""
        return self._read_all(self.pending_folder)

    def rejected(self) -> List[Request]:
        """Requests that Airflow found wrong, or that were withdrawn, oldest first."""
        return self._read_all(self.rejected_folder)

    def find(self, name: str) -> Tuple[str, Optional[Request]]:
        """Where a request is now ("pending", "rejected", "sent" or "gone"), and what it says there."""
        for folder in (self.rejected_folder, self.sent_folder, self.pending_folder):
            request = self._read(folder / name)
            if request:
                return folder.name, request
        return "gone", None

    def update(self, request: Request) -> None:
        """Write a waiting request anew."""
        with self.lock("writing", 30.0), self._named_errors():
            _write_durably(self.pending_folder / request.name, asdict(request))

    def finish(self, request: Request, folder: Path, message: str) -> None:
        """Take a request out of the waiting ones and record what became of it. Hold the lock "sending"."""
        # Of an accepted request a full disk may cost the record, but not hold up the request.
        optional = contextlib.suppress(OSError) if folder == self.sent_folder else contextlib.nullcontext()
        with self._named_errors():
            with optional:
                _write_durably(folder / request.name, asdict(replace(request, message=message)))
            with contextlib.suppress(FileNotFoundError):
                (self.pending_folder / request.name).unlink()
            _sync_folder(self.pending_folder)

    def tidy(self) -> List[Path]:
        """Forget old records; set damaged files aside and return where they are. Hold the lock "sending"."""
        with self._named_errors():
            for folder in (self.sent_folder, self.rejected_folder):
                for leftover in folder.glob("*.tmp"):
                    leftover.unlink()
            for name in self._names(self.sent_folder)[:-SENT_KEPT]:
                (self.sent_folder / name).unlink()
            aside = []
            for name in self.names():
                if not self._read(self.pending_folder / name):
                    aside.append(self.rejected_folder / (name + ".damaged"))
                    (self.pending_folder / name).replace(aside[-1])
            return aside

    @contextlib.contextmanager
    def lock(self, name: str, limit: float, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Hold one of the spool's locks; it ends with its process.

        :raises BusyError: another process has it for `limit` seconds, or `unless()` has become true.
        """
        with self._named_errors():
            for folder in (self.pending_folder, self.rejected_folder, self.sent_folder):
                _make_folder(folder)
            descriptor = os.open(str(self.folder / f"{name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + limit
        try:
            while not _locked(descriptor):
                if unless() or time.monotonic() > deadline:
                    raise BusyError("Another submit_scan is sending what is kept in the spool.")
                time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)

    def _names(self, folder: Path) -> List[str]:
        with self._named_errors():
            try:
                return sorted(path.name for path in folder.iterdir() if REQUEST_FILE.fullmatch(path.name))
            except FileNotFoundError:
                return []

    def _read_all(self, folder: Path) -> List[Request]:
        found = (self._read(folder / name) for name in self._names(folder))
        return [request for request in found if request]

    def _read(self, path: Path) -> Optional[Request]:
        """None when the file is gone or damaged; `tidy` sets the damaged ones aside."""
        with self._named_errors(), contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            data = json.loads(path.read_text(encoding="utf-8"))
            return Request(**{**data, "name": path.name})
        return None

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SpoolError(f"The spool folder {self.folder} cannot be used: {error}.") from error


REQUEST_FILE = re.compile(r"\d{20}-[0-9a-f]{8}\.json", re.ASCII)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_durably(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a file so that a power cut leaves the old one or the new one."""
    aside = path.with_name(path.name + ".tmp")
    descriptor = os.open(str(aside), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # not ours to look at
        return False


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync_folder(folder.parent)


# ---------------------------------------------------------------------------------------------------------
# The client


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Outcome:
    """What became of one request. `exit_code` is what it would end the command with."""

    path: str
    run_id: str
    outcome: str
    exit_code: int = ACCEPTED
    state: str = ""
    since: str = ""
    url: str = ""
    message: str = ""
    tasks: Dict[str, str] = field(default_factory=dict)  # state by task
    results: Dict[str, Any] = field(default_factory=dict)  # return value by task, of a run that has ended
    errors: Dict[str, List[str]] = field(default_factory=dict)  # last errors by failed task


class Sender:
    """Sends what the spool holds, each request exactly once in effect."""

    def __init__(self, settings: Settings, spool: Spool, runs: Runs, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.spool = spool
        self.runs = runs
        self.say = say

    def deliver(self, requests: Sequence[Request]) -> List[Outcome]:
        """Keep requests in the spool and send them, after those that wait there already."""
        try:
            kept = self.spool.add(requests)
        except (SpoolError, BusyError) as error:
            return [self._send_unkept(request, error) for request in requests]
        why: Optional[ClientError] = None
        done: Dict[str, Outcome] = {}
        names = {request.name for request in kept}
        try:
            done = self.flush(unless=lambda: not names.intersection(self.spool.names()), mine=names)
        except (BusyError, SpoolError) as error:
            why = error
        return [self._told(asked, kept[i], done, why) for i, asked in enumerate(requests)]

    def flush(
        self,
        *,
        unless: Callable[[], bool] = lambda: False,
        mine: Iterable[str] = (),
        limit: Optional[float] = None,
    ) -> Dict[str, Outcome]:
        """Send what the spool holds, oldest first, until it is empty or nothing more can be sent.

        After trouble with one request it is set aside (rejected) or passed over (kept), and the next one is
        sent; after trouble that would hit all of them, the rest is kept.

        :param mine: file names of requests whose outcome the caller will tell; the others' are said.
        :returns: the outcome of each request that was looked at, by its file name.
        :raises BusyError: another process is sending.
        """
        done: Dict[str, Outcome] = {}
        limit = self.settings.timeout if limit is None else limit
        with self.spool.lock("sending", limit, unless):
            for path in self.spool.tidy():
                self.say(f"A damaged request was set aside: {path}")
            passed_over: List[str] = []
            while True:
                waiting = [name for name in self.spool.names() if name not in passed_over]
                if not waiting:
                    return done
                outcome, trouble = self._send(waiting[0])
                done[waiting[0]] = outcome
                if waiting[0] not in mine:
                    self.say(describe(outcome))
                passed_over += [waiting[0]] if trouble else []
                if trouble and (_hits_all(trouble) or len(passed_over) >= 3):
                    done.update({name: self._kept(name, trouble) for name in waiting[1:]})
                    return done

    def _send(self, name: str) -> Tuple[Outcome, Optional[ClientError]]:
        """Send one waiting request: its outcome, and the trouble because of which it still waits."""
        _, request = self.spool.find(name)
        if not request:
            raise SpoolError(
                f"The request {self.spool.pending_folder / name} vanished while it was to be sent."
            )
        try:
            request, is_new, run = self._start(request)
        except (RejectedError, NoSuchRunError) as error:
            self.spool.finish(request, self.spool.rejected_folder, str(error))
            why = f"It was moved to {self.spool.rejected_folder / name}. {error}"
            return Outcome(request.path, request.run_id, "rejected", REFUSED, message=why), None
        except (HeldError, OddReplyError, RefusedError, UnreachableError) as error:
            return self._kept(name, error), error
        outcome = self._started(request, is_new, run)
        self.spool.finish(request, self.spool.sent_folder, outcome.outcome)
        return outcome, None

    def _start(self, request: Request) -> Tuple[Request, bool, Dict[str, Any]]:
        note = f"submit_scan on {socket.gethostname()}, asked for at {request.created}"
        if request.kind == "submit":
            return (request, *self.runs.start(request.run_id, request.conf, note))
        if not request.run_id:
            request = self._numbered(request)
        while True:
            is_new, run = self.runs.start(request.run_id, request.conf, note)
            if is_new or run.get("conf") == request.conf:  # else the number was somebody else's
                return request, is_new, run
            request = self._numbered(request)

    def _numbered(self, request: Request) -> Request:
        """Choose the run id of a reprocessing, and write it down before it is used."""
        runs = self.runs.of_scan(request.path)
        first = scan_run_id(request.path)
        if not runs:
            if any(other.run_id == first for other in self.spool.pending()):
                raise HeldError(f"{request.path} was not accepted yet, so it cannot be reprocessed yet.")
            raise NoSuchRunError(f"Airflow has no run of {request.path} to reprocess. Submit it.")
        newest = runs[-1]
        conf = request.conf if request.run_id else {**(newest.get("conf") or {}), **request.conf}
        conf["file_path"] = request.path
        if newest["state"] not in FINAL_STATES:
            self.say(f"Note: run {newest['dag_run_id']} of the scan is still going on.")
        generation = generation_of(newest["dag_run_id"], request.path) + 1
        numbered = replace(request, conf=conf, run_id=scan_run_id(request.path, generation))
        self.spool.update(numbered)
        return numbered

    def _started(self, request: Request, is_new: bool, run: Mapping[str, Any]) -> Outcome:
        copied_only = not any(request.conf.get(f"do_{engine}") for engine in ENGINES)
        note = "No engine is chosen: it is copied, not reconstructed." if copied_only else ""
        return Outcome(
            request.path,
            request.run_id,
            "accepted" if is_new else "already accepted",
            state=str(run.get("state")),
            since=_local_time(run.get("run_after")),
            url=self.runs.page_url(request.run_id),
            message=note if is_new else _other_conf(request.conf, run.get("conf") or {}),
        )

    def _kept(self, name: str, trouble: ClientError) -> Outcome:
        _, request = self.spool.find(name)
        path, run_id = (request.path, request.run_id) if request else ("", "")
        code = REFUSED if isinstance(trouble, RefusedError) else SPOOLED
        where = f"It waits in {self.spool.folder} for the next submit, or for: submit_scan.py flush."
        return Outcome(path, run_id, "kept", code, message=f"{where} {trouble}")

    def _told(
        self, asked: Request, kept: Request, done: Mapping[str, Outcome], why: Optional[ClientError]
    ) -> Outcome:
        outcome = done.get(kept.name) or self._found(kept, why)
        differs = _other_conf(asked.conf, kept.conf) if asked.kind == "submit" else ""
        return replace(outcome, message=f"{outcome.message} {differs}".strip()) if differs else outcome

    def _found(self, request: Request, why: Optional[ClientError]) -> Outcome:
        """The outcome of a request that another process may have sent."""
        where, found = self.spool.find(request.name)
        if where == "rejected" and found:
            return Outcome(request.path, found.run_id, "rejected", REFUSED, message=found.message)
        if where == "pending" or not found:
            return self._kept(request.name, why or ClientError("It was not sent."))
        try:
            return self._started(found, False, self.runs.get(found.run_id))
        except ClientError:  # it was accepted, which its record says; only its state is not known
            return Outcome(found.path, found.run_id, "already accepted", url=self.runs.page_url(found.run_id))

    def _send_unkept(self, request: Request, why: ClientError) -> Outcome:
        """Send a submission that could not be written to disk: better once unsafely than not at all."""
        if request.kind != "submit":  # sent twice, for want of a record, it would be two runs
            message = f"Not sent and NOT kept: {why} Free the disk, then reprocess it again."
            return Outcome(request.path, "", "refused", BAD_INPUT, message=message)
        self.say(f"Warning: {why} Sending {request.path} without keeping it first.")
        try:
            _, is_new, run = self._start(request)
        except ClientError as error:
            code = UNREACHABLE if error.exit_code == SPOOLED else error.exit_code
            message = f"Not accepted and NOT kept: {error} {why} Free the disk, then submit it again."
            return Outcome(request.path, request.run_id, "lost", code, message=message)
        return self._started(request, is_new, run)


class Client:
    """Submits scans, follows and cancels their runs.

    :param say: takes each line of progress that a person may want to see.
    """

    follow_pauses = (0.5, 5.0)  # seconds between looks at runs: after a change, and at most

    def __init__(self, settings: Settings, say: Callable[[str], None] = _to_stderr) -> None:
        self.settings = settings
        self.say = say
        self.spool = Spool(settings.spool)
        self.runs = Runs(Airflow(settings))
        self.sender = Sender(settings, self.spool, self.runs, say)

    def scan_path(self, file: str) -> str:
        """The path below the collection's root, of a path there or of a file below `data_root`.

        :raises InputError: not a path that the DAG takes.
        """
        if self.settings.data_root:
            root = str(self.settings.data_root).rstrip("/") + "/"
            here = os.path.abspath(file)  # noqa: PTH100 - symbolic links stay as they were named
            if file.startswith(root) or (here.startswith(root) and _is_file(here)):
                file = here[len(root) :]
        return normalise_path(file)

    def _checked_path(self, file: str, any_name: Optional[bool]) -> str:
        path = self.scan_path(file)
        why = unusual_name(path)
        if why and not (self.settings.any_name if any_name is None else any_name):
            hint = "If it is one, say so: --any-name."
            if file.startswith("/") and not self.settings.data_root:
                hint += " Is its beginning a folder of this computer? Name that: data_root in [client]."
            raise InputError(f"Is {path} a scan? {why[0].upper()}{why[1:]}. {hint}")
        if why:
            self.say(f"Note: {path}: {why}.")
        here = (self.settings.data_root or Path()) / path
        if self.settings.data_root and not _is_file(str(here)):
            self.say(f"Note: there is no file {here} on this computer now; asking for it all the same.")
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
        self, files: Iterable[str], parameters: Optional[Conf] = None, *, any_name: Optional[bool] = None
    ) -> List[Outcome]:
        """Keep a request for each scan on disk, then send what the spool holds, these included.

        :raises InputError: a path or a parameter is wrong; nothing was kept or sent.
        """
        return self.sender.deliver(self.requests("submit", files, parameters, any_name))

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
        if not RUN_ID.fullmatch(name) or ".." in name or name == ".":
            raise InputError(f"{name!r} is neither a scan's path (it does not end in .cxi) nor a run id.")
        try:
            return [self.runs.get(name)]
        except NoSuchRunError:
            return []

    def waiting(self, name: str) -> List[Request]:
        """Requests in the spool for the scan FILE, or with the id RUN."""
        path = self.scan_path(name) if name.endswith(".cxi") else ""
        return [request for request in self.spool.pending() if name == request.run_id or path == request.path]

    def status(self, name: str) -> List[Outcome]:
        """All that is known about the runs of FILE, or about RUN."""
        outcomes = []
        for request in self.waiting(name):
            message = f"Kept here since {_local_time(request.created)}; to send it: submit_scan.py flush"
            outcomes.append(Outcome(request.path, request.run_id, "kept", SPOOLED, message=message))
        try:
            runs = self.find_runs(name)
        except UnreachableError as error:
            return [*outcomes, Outcome(name, "", "not known", UNREACHABLE, message=str(error))]
        shown = [self.ended(run) for run in runs]
        outcomes += [replace(outcome, exit_code=ACCEPTED) for outcome in shown[:-1]]  # the newest one counts
        outcomes += shown[-1:]
        return outcomes or [self._unknown(name)]

    def cancel(self, name: str) -> List[Outcome]:
        """Withdraw what waits in the spool for FILE or RUN, and stop the runs that are going on."""
        outcomes = []
        if self.waiting(name):
            with self.spool.lock("sending", self.settings.timeout):
                for request in self.waiting(name):
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
        return outcomes or [self._unknown(name)]

    def follow(self, run_ids: Sequence[str], limit: float = math.inf) -> Dict[str, Dict[str, Any]]:
        """Watch runs until all have ended or `limit` seconds are over, and say what changes.

        :returns: the last that was seen of each run, by id. An outage of Airflow is waited for.
        :raises NoSuchRunError: a run was deleted.
        """
        deadline = time.monotonic() + limit
        last: Dict[str, Dict[str, Any]] = {}
        seen: Dict[Tuple[str, str], str] = {}
        pause = self.follow_pauses[0]
        while True:
            changed = False
            for run_id in run_ids:
                if last.get(run_id, {}).get("state") not in FINAL_STATES:
                    changed |= self._look(run_id, last, seen)
            going_on = [run_id for run_id in run_ids if last.get(run_id, {}).get("state") not in FINAL_STATES]
            remaining = deadline - time.monotonic()
            if not going_on or remaining <= 0:
                return last
            pause = self.follow_pauses[0] if changed else min(pause * 1.5, self.follow_pauses[1])
            time.sleep(min(pause, remaining))

    def _look(self, run_id: str, last: Dict[str, Dict[str, Any]], seen: Dict[Tuple[str, str], str]) -> bool:
        try:
            run = self.runs.get(run_id)
            states = {"": str(run["state"]), **_task_states(self.runs.tasks(run_id))}
        except UnreachableError:
            states = {"": "not known, Airflow cannot be reached"}
        else:
            last[run_id] = run
        changed = False
        for task, state in states.items():
            if task and state in IDLE_STATES + WAITING_STATES:
                continue
            before = seen.get((run_id, task))
            if state != before:
                changed = True
                arrow = f"{before} -> " if before else ""
                self.say(f"{time.strftime('%H:%M:%S')}  {run_id}  {task or 'run'}: {arrow}{state}")
            seen[run_id, task] = state
        return changed

    def ended(self, run: Mapping[str, Any]) -> Outcome:
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
            (run.get("conf") or {}).get("file_path", ""),
            run["dag_run_id"],
            outcome,
            RUN_FAILED if outcome == "failed" else ACCEPTED,
            state=str(run["state"]),
            since=_local_time(run.get("run_after")),
            url=self.runs.page_url(run["dag_run_id"]),
        )

    @staticmethod
    def _unknown(name: str) -> Outcome:
        message = "Airflow has no run of it, and none waits here."
        return Outcome(name, "", "no such run", NO_SUCH_RUN, message=message)


def _hits_all(trouble: ClientError) -> bool:
    """Whether the next request would meet the same trouble."""
    return isinstance(trouble, (RefusedError, UnreachableError)) and not isinstance(trouble, ServerFaultError)


def _task_name(task: Mapping[str, Any]) -> str:
    index = task.get("map_index", -1)
    return str(task["task_id"]) + (f"[{index}]" if index >= 0 else "")


def _task_states(tasks: Iterable[Mapping[str, Any]]) -> Dict[str, str]:
    return {_task_name(task): str(task["state"] or "none") for task in tasks}


def _other_conf(asked: Conf, theirs: Conf) -> str:
    """Says in what the run that exists differs from what was asked for; empty when in nothing."""
    names = [name for name in {**theirs, **asked} if asked.get(name) != theirs.get(name)]
    if not names:
        return ""
    listed = ", ".join(f"{name}={json.dumps(theirs.get(name))}" for name in names)
    return f"It has other parameters than were asked for now ({listed}); for a run with these: reprocess."


def _local_time(text: Optional[str]) -> str:
    """An ISO time as local time to the second; the text itself when it is something else."""
    try:
        moment = datetime.datetime.fromisoformat((text or "").replace("Z", "+00:00"))
    except ValueError:
        return text or ""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def describe(outcome: Outcome) -> str:
    """An outcome for a person: what matters of it; `--json` has all."""
    head = outcome.path or outcome.run_id
    facts = [outcome.since if outcome.outcome == "accepted" else f"accepted {outcome.since}"]
    facts += [f"state {outcome.state}"] if outcome.state != outcome.outcome else []
    state = f" ({', '.join(facts)})" if outcome.since else ""
    message = f". {outcome.message}" if outcome.message else ""
    lines = [f"{head}: {outcome.outcome}{state}{message}"]
    lines += [f"  run    {outcome.run_id}"] if outcome.run_id else []
    lines += [f"  page   {outcome.url}"] if outcome.url else []
    tasks = {name: state for name, state in outcome.tasks.items() if state not in IDLE_STATES}
    width = max([len(name) for name in tasks] + [4])
    lines += [f"  task   {name:{width}}  {state}" for name, state in tasks.items()]
    results = {} if outcome.errors else outcome.results
    if "report" in outcome.results:  # of the whole run, with what matters of the other tasks' results
        results = {"report": outcome.results["report"]}
    for name, value in results.items():
        lines += [f"  {name}  {key} = {_shown(item)}" for key, item in _rows("", value)]
    for name, errors in outcome.errors.items():
        lines += [f"  {name}: {_printable(error)}" for error in errors or ["see its log on the page"]]
    return "\n".join(lines)


def _rows(key: str, value: Any) -> Iterator[Tuple[str, Any]]:
    """A result as (dotted name, plain value) pairs; long lists, such as errors by iteration, stay whole."""
    items: Iterable[Tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = enumerate(value)
    for name, item in items:
        yield from _rows(f"{key}.{name}" if key else str(name), item)
    if not items and value not in ({}, []):
        yield key or "result", value


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, float):
        text = f"{value:.6g}"
    most = 600 if isinstance(value, str) else 200  # a sentence is read to its end, a list of numbers is not
    return _printable(text if len(text) <= most else text[:most] + "...")


def _printable(text: str) -> str:
    """Text of a server without what would steer a terminal; further lines indented."""
    lines = ("".join(c if c.isprintable() else " " for c in line) for line in text.splitlines())
    return "\n      ".join(lines)


# ---------------------------------------------------------------------------------------------------------
# Watching a folder


class FileSeen(NamedTuple):
    """What a file looked like: its size in bytes and its modification time in ns."""

    size: int
    mtime_ns: int


class WatchMemory:
    """What a watch has dealt with, in a file that only grows, a line for each scan: it survives a power cut.

    `old` are the files that were there before the first watch of the folder, `submitted` the others.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.old: Dict[str, FileSeen] = {}
        self.submitted: Dict[str, FileSeen] = {}
        self.is_new = not path.exists()
        if not self.is_new:
            content = path.read_text(encoding="utf-8", errors="replace")
            for line in content.splitlines():
                self._read(line)
            if content and not content.endswith("\n"):  # cut off in the middle of a line
                self._append("\n")

    def begin(self, old: Mapping[str, FileSeen]) -> None:
        """Start the file, whole or not at all, with what is old."""
        aside = self.path.with_suffix(".tmp")
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(self._line("old", name, seen) for name, seen in old.items())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path)
        _sync_folder(self.path.parent)
        self.old = dict(old)

    def add(self, name: str, seen: FileSeen) -> None:
        """Remember that a scan was submitted."""
        self._append(self._line("submitted", name, seen))
        self.submitted[name] = seen

    @staticmethod
    def _line(kind: str, name: str, seen: FileSeen) -> str:
        return json.dumps([kind, name, *seen]) + "\n"

    def _append(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _read(self, line: str) -> None:
        # A torn line is skipped: that scan is submitted again, which Airflow answers with "already accepted".
        with contextlib.suppress(ValueError, TypeError, KeyError):
            kind, name, size, mtime_ns = json.loads(line)
            {"old": self.old, "submitted": self.submitted}[kind][name] = FileSeen(int(size), int(mtime_ns))


class Watch:
    """Looks at a folder again and again and tells which scans in it are finished.

    A scan is finished when its size and time have not changed for `settle` seconds, or when the file
    `<scan><done_suffix>` is there, and it is an HDF5 file that is all there. Symbolic links, hidden files and
    names that no scan can have are left alone.

    :param prefix: the folder's path below the collection's root, "" or ending in "/".
    """

    def __init__(
        self,
        folder: Path,
        memory: WatchMemory,
        *,
        prefix: str,
        settle: float,
        done_suffix: str,
        any_name: bool,
        say: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.memory = memory
        self.prefix = prefix
        self.settle = settle
        self.done_suffix = done_suffix
        self.any_name = any_name
        self.say = say
        self._unchanged_since: Dict[str, Tuple[FileSeen, float]] = {}
        self._said: Dict[str, str] = {}

    def finished(self) -> Dict[str, FileSeen]:
        """Scans that are finished and not submitted yet, oldest first, by path below the root."""
        now = time.monotonic()
        found = {}
        there = self.files()
        for name, seen in sorted(there.items(), key=lambda item: (item[1].mtime_ns, item[0])):
            if self._is_settled(name, seen, now) and not self._is_known(name, seen) and self._is_scan(name):
                found[name] = seen
        gone = set(self._unchanged_since).difference(there)
        for name in gone:
            del self._unchanged_since[name]
        return found

    def files(self) -> Dict[str, FileSeen]:
        """Every file that might be a scan, or, with a done suffix, every such file that has its marker."""
        found = {}
        for folder, subfolders, names in os.walk(str(self.folder), onerror=self._cannot_look):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            relative = os.path.relpath(folder, str(self.folder))
            start = self.prefix if relative == "." else f"{self.prefix}{relative}/"
            present = set(names)
            for name in names:
                wanted = name.endswith(".cxi") and not name.startswith(".")
                if wanted and (not self.done_suffix or name + self.done_suffix in present):
                    status = _regular_file(Path(folder, name))
                    if status:
                        found[start + name] = FileSeen(status.st_size, status.st_mtime_ns)
        return found

    def _is_settled(self, name: str, seen: FileSeen, now: float) -> bool:
        if self.done_suffix:
            return True
        before, since = self._unchanged_since.get(name, (None, now))
        if before != seen:
            self._unchanged_since[name] = (seen, now)
            return False
        return now - since >= self.settle

    def _is_known(self, name: str, seen: FileSeen) -> bool:
        submitted = self.memory.submitted.get(name)
        if submitted and submitted != seen:
            self._say_once(name, "it changed after it was submitted (to run it again: reprocess)")
        return submitted is not None or self.memory.old.get(name) == seen

    def _is_scan(self, name: str) -> bool:
        try:
            why = unusual_name(normalise_path(name))
        except InputError as error:
            self._say_once(name, str(error))
            return False
        if why and not self.any_name:
            self._say_once(name, f"{why}; to submit such files too: --any-name")
            return False
        missing = _missing_of_hdf5(self.folder / name[len(self.prefix) :])
        if missing:
            self._say_once(name, missing)
        return not missing

    def _cannot_look(self, error: OSError) -> None:
        self._say_once(str(error.filename), f"cannot be looked into: {error.strerror}")

    def _say_once(self, name: str, why: str) -> None:
        if self._said.get(name) != why:
            self._said[name] = why
            self.say(f"Left alone: {_printable(name)}: {why}")


def _regular_file(path: Path) -> Optional[os.stat_result]:
    try:
        status = path.lstat()
    except OSError:  # gone between listing and looking
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _missing_of_hdf5(path: Path) -> str:
    """Why a file is not a whole HDF5 file, by its superblock; empty when nothing is missing.

    Source: HDF5 File Format Specification 3.0, section II.A.
    """
    try:
        descriptor = os.open(str(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            offset = 0
            block = file.read(128)
            while block[:8] != b"\x89HDF\r\n\x1a\n":
                offset = max(512, offset * 2)  # a user block may come first
                if offset >= size:
                    return "not an HDF5 file, or only a part of one"
                file.seek(offset)
                block = file.read(128)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if len(block) < 48:
        return "only a part of an HDF5 file"
    version = block[8]
    if version > 3:
        return ""  # a later format than this knows
    width = block[13] if version < 2 else block[9]
    start = {0: 24, 1: 28}.get(version, 12) + 2 * width
    end = int.from_bytes(block[start : start + width], "little")
    return f"only {size} of {end} bytes are there" if size < end else ""


class WatchLoop:
    """Submits what a `Watch` finds, and sends what the spool holds, until it is stopped."""

    def __init__(self, client: Client, watch: Watch, parameters: Conf) -> None:
        self.client = client
        self.watch = watch
        self.parameters = parameters
        self._trouble = ""
        self._pause = 1.0
        self._not_before = 0.0

    def look(self) -> None:
        """Look once: keep a request for each finished scan, remember it, then send what is kept."""
        found = self.watch.finished()
        try:
            if found:
                requests = self.client.requests("submit", found, self.parameters, any_name=True)
                self.client.spool.add(requests)
            for name, seen in found.items():
                self.watch.memory.add(name, seen)
            if self.client.spool.names() and time.monotonic() >= self._not_before:
                done = self.client.sender.flush(limit=1.0)
                kept = [outcome for outcome in done.values() if outcome.outcome == "kept"]
                self._report(kept[0].message if kept else "", len(kept))
        except (SpoolError, BusyError, OSError) as error:  # what was not remembered is found again
            self._report(str(error), len(found))

    def _report(self, trouble: str, count: int) -> None:
        """Say trouble when it begins, changes its nature or is over, not at each look."""
        nature = re.sub(r"\(.*", "", trouble, flags=re.DOTALL)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        if nature and nature != self._trouble:
            self.client.say(f"{now}  {count} waiting: {trouble}")
        if self._trouble and not nature:
            self.client.say(f"{now}  All that waited was sent.")
        self._trouble = nature
        self._pause = min(self._pause * 2, 60.0) if nature else 1.0
        self._not_before = time.monotonic() + (self._pause if nature else 0.0)


# ---------------------------------------------------------------------------------------------------------
# The command


def _common_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add = options.add_argument
    add("--config", metavar="FILE", help=f"settings (default {DEFAULT_CONFIG})")
    add("--url", help="address of Airflow")
    add("--spool", metavar="FOLDER", help="where requests are kept until Airflow has them")
    add("--timeout", metavar="SECONDS", help="without an answer, until requests are kept (30)")
    add("--json", action="store_true", help="print one JSON object; messages go to stderr")
    return options


def _run_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add = options.add_argument
    add("--engine", action="append", choices=ENGINES, help="reconstruct with it; may be repeated")
    add("--n-gpu", metavar="N", help="GPUs of the job, 1 to 4")
    add("--param", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    add("--any-name", action="store_true", default=None, help="take scans with unusual names too")
    return options


def _wait_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add = options.add_argument
    add("--wait", action="store_true", help="follow the runs to their end")
    add("--wait-limit", metavar="SECONDS", help="stop following after that; the runs go on")
    add("--dry-run", action="store_true", help="check and show what would be sent, send nothing")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="submit_scan.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common, run, wait = _common_options(), _run_options(), _wait_options()

    def command(name: str, *more: argparse.ArgumentParser, about: str) -> argparse.ArgumentParser:
        parents = [common, *more]
        return commands.add_parser(name, parents=parents, help=about, description=about, allow_abbrev=False)

    submit = command("submit", run, wait, about="start a run for each scan")
    submit.add_argument("names", nargs="+", metavar="FILE")
    reprocess = command("reprocess", run, wait, about="start a new run of scans that have run")
    reprocess.add_argument("names", nargs="+", metavar="FILE")
    command("status", about="how far it is").add_argument("names", nargs="*", metavar="FILE|RUN")
    cancel = command("cancel", about="stop runs, withdraw requests")
    cancel.add_argument("names", nargs="+", metavar="FILE|RUN")
    command("flush", about="send what was kept")
    add = command("watch", run, about="submit each scan in a folder when it is finished").add_argument
    add("folder", metavar="FOLDER", help="data_root or a folder below it; or the collection's root")
    add("--settle", default="30", metavar="SECONDS", help="unchanged for that long is finished (30)")
    add("--done-suffix", default="", metavar="SUFFIX", help="finished when <scan>SUFFIX is there")
    add("--interval", default="5", metavar="SECONDS", help="between looks (5)")
    add("--existing", action="store_true", help="also submit what was there before the first watch")
    return parser


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] not in (*COMMANDS, "-h", "--help"):
        arguments.insert(0, "submit")
    options = _parser().parse_args(arguments)
    try:
        _check_for_mistyped_command(arguments)
        overrides = {key: getattr(options, key) or "" for key in ("url", "spool", "timeout")}
        settings = load_settings(options.config, {key: text for key, text in overrides.items() if text})
        client = Client(settings, say=_to_stderr if options.json else _to_stdout)
        outcomes = COMMANDS[options.command](options, client)
    except ClientError as error:
        outcomes = [Outcome("", "", "error", error.exit_code, message=str(error))]
    except KeyboardInterrupt:
        _to_stderr("Interrupted. What was kept or accepted goes on; see: submit_scan.py status")
        return INTERRUPTED
    code = min((outcome.exit_code for outcome in outcomes), key=GRAVEST_FIRST.index, default=ACCEPTED)
    _print_outcomes(outcomes, code, options.json)
    return code


def _check_for_mistyped_command(arguments: Sequence[str]) -> None:
    if arguments[0] != "submit" or not re.fullmatch("[a-z]+", arguments[1]):
        return
    near = difflib.get_close_matches(arguments[1], COMMANDS, n=1)
    if near:
        raise InputError(f"There is no command {arguments[1]!r}. Did you mean {near[0]}?")


def _to_stdout(message: str) -> None:
    print(message, flush=True)


def _print_outcomes(outcomes: Sequence[Outcome], code: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"exit_code": code, "results": [asdict(outcome) for outcome in outcomes]}, indent=1))
        return
    for outcome in outcomes:
        if outcome.outcome == "error":
            _to_stderr(f"submit_scan: {outcome.message}")
        else:
            print(describe(outcome))


def _submit(options: argparse.Namespace, client: Client) -> List[Outcome]:
    given = parameters_from_options(options.param, options.engine, options.n_gpu)
    limit = seconds(options.wait_limit) if options.wait_limit else math.inf
    requests = client.requests(options.command, options.names, given, options.any_name)
    if options.dry_run:
        return [_would_send(request, client) for request in requests]
    outcomes = client.sender.deliver(requests)
    if not options.wait:
        return outcomes
    for outcome in outcomes:
        client.say(describe(outcome))
    started = [outcome for outcome in outcomes if outcome.exit_code == ACCEPTED]
    last = client.follow([outcome.run_id for outcome in started], limit) if started else {}
    return [_after_wait(outcome, last.get(outcome.run_id), client) for outcome in outcomes]


def _would_send(request: Request, client: Client) -> Outcome:
    address = f"{client.settings.url}/api/v2/dags/{DAG_ID}/dagRuns"
    if request.kind == "reprocess":
        message = f"would POST to {address} the newest run's parameters with {json.dumps(request.conf)}"
    else:
        body = {"dag_run_id": request.run_id, "logical_date": None, "conf": request.conf}
        message = f"would POST to {address} {json.dumps(body)}"
    return Outcome(request.path, request.run_id, "dry run", message=message)


def _after_wait(outcome: Outcome, run: Optional[Mapping[str, Any]], client: Client) -> Outcome:
    if outcome.exit_code != ACCEPTED:
        return outcome
    if run is None or run["state"] not in FINAL_STATES:
        return replace(outcome, exit_code=STILL_RUNNING, message="The wait is over; the run goes on.")
    return client.ended(run)


def _status(options: argparse.Namespace, client: Client) -> List[Outcome]:
    if options.names:
        return [outcome for name in options.names for outcome in client.status(name)]
    outcomes = []
    for request in client.spool.pending():
        message = f"Since {_local_time(request.created)}; to send it: submit_scan.py flush"
        outcomes.append(Outcome(request.path, request.run_id, "kept", SPOOLED, message=message))
    for request in client.spool.rejected():
        record = client.spool.rejected_folder / request.name
        message = f"{request.message} (until you remove {record})"
        outcomes.append(Outcome(request.path, request.run_id, "rejected", message=message))
    if not outcomes:
        client.say(f"Nothing waits in {client.spool.folder}.")
    return outcomes


def _cancel(options: argparse.Namespace, client: Client) -> List[Outcome]:
    return [outcome for name in options.names for outcome in client.cancel(name)]


def _flush(_options: argparse.Namespace, client: Client) -> List[Outcome]:
    names = client.spool.names()
    if not names:
        client.say(f"Nothing waits in {client.spool.folder}.")
    return list(client.sender.flush(mine=names).values())


def _watch(options: argparse.Namespace, client: Client) -> List[Outcome]:
    given = parameters_from_options(options.param, options.engine, options.n_gpu)
    client.requests("submit", [], given)
    interval = seconds(options.interval)
    folder = Path(options.folder).resolve()
    name = "watch-" + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    signal.signal(signal.SIGTERM, _stop)
    try:
        with client.spool.lock(name, 1.0):
            watch = _open_watch(options, client, folder, client.spool.folder / f"{name}.jsonl")
            known = f"{len(watch.memory.old)} old files, {len(watch.memory.submitted)} submitted"
            client.say(f"Watching {folder} ({known}).")
            loop = WatchLoop(client, watch, given)
            while True:
                loop.look()
                time.sleep(interval)
    except KeyboardInterrupt:
        client.say("Stopped watching. What was found is kept or sent.")
        return []
    except BusyError as error:
        raise InputError(f"{folder} is being watched already, by another submit_scan.") from error


def _open_watch(options: argparse.Namespace, client: Client, folder: Path, memory_file: Path) -> Watch:
    root = (client.settings.data_root or folder).resolve()
    if not folder.is_dir():
        raise InputError(f"There is no folder {options.folder}.")
    if root != folder and root not in folder.parents:
        raise InputError(f"{folder} is not below data_root, {root}.")
    if "/" in options.done_suffix:
        raise InputError("--done-suffix is what comes after the scan's file name, as in .done.")
    try:
        watch = Watch(
            folder,
            WatchMemory(memory_file),
            prefix="" if root == folder else f"{folder.relative_to(root)}/",
            settle=seconds(options.settle),
            done_suffix=options.done_suffix,
            any_name=client.settings.any_name if options.any_name is None else options.any_name,
            say=client.say,
        )
        if watch.memory.is_new:
            watch.memory.begin({} if options.existing else watch.files())
    except OSError as error:
        raise SpoolError(
            f"{memory_file}, where the watch keeps what it did, cannot be used: {error}."
        ) from error
    return watch


def _stop(_number: int, _frame: Optional[FrameType]) -> None:
    raise KeyboardInterrupt


COMMANDS: Dict[str, Callable[[argparse.Namespace, Client], List[Outcome]]] = {
    "submit": _submit,
    "reprocess": _submit,
    "status": _status,
    "cancel": _cancel,
    "flush": _flush,
    "watch": _watch,
}

if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of our output left; what was kept or accepted stays so
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
