"""Requests to Airflow: log-in, retries, and what is not retried."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from beamline_client.client import Client
from beamline_client.config import Settings, load_settings
from beamline_client.errors import InputError, RefusedError, ServerFaultError, UnreachableError
from beamline_client.rest import Airflow
from beamline_client.runs import Runs
from support.airflow_api import DAG_RUNS, AirflowApi

SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
CONF = {"file_path": SCAN}


def with_(settings: Settings, **changes: object) -> Settings:
    return Settings(**{**settings.__dict__, **changes})


@pytest.fixture
def runs(settings: Settings) -> Runs:
    return Runs(Airflow(settings))


@pytest.mark.parametrize("kind", ["drop_before", "drop_reply", "reset_reply", "truncate", "not_json"])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_lost_request_or_reply_is_sent_again_and_makes_one_run(
    api: AirflowApi, runs: Runs, kind: str, method: str
) -> None:
    api.fault(kind, method="POST", path=DAG_RUNS)
    api.fault(kind, method=method, path=DAG_RUNS)
    is_new, run = runs.start("scan__x", CONF, "note")
    assert api.created == ["scan__x"]
    assert run["conf"] == CONF
    assert is_new == (kind in ("drop_before", "not_json"))


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_momentary_trouble_is_waited_for(api: AirflowApi, runs: Runs, status: int) -> None:
    api.fault("status", path=DAG_RUNS, status=status, times=2)
    assert runs.start("scan__x", CONF, "")[0]


def test_trouble_of_the_login_is_waited_for(api: AirflowApi, runs: Runs) -> None:
    api.fault("status", path="/auth/token", status=503)
    api.fault("html", path="/auth/token", status=502)
    assert runs.start("scan__x", CONF, "")[0]


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(api: AirflowApi, runs: Runs, as_date: bool) -> None:
    started = time.monotonic()
    wait = 2 if as_date else 1  # dates have whole seconds
    asked = formatdate(time.time() + wait, usegmt=True) if as_date else str(wait)
    api.fault("status", path=DAG_RUNS, status=503, retry_after=asked)
    runs.start("scan__x", CONF, "")
    assert time.monotonic() - started >= 0.9


def test_a_wait_beyond_the_limit_ends_at_once(api: AirflowApi, runs: Runs) -> None:
    api.fault("status", path=DAG_RUNS, status=503, retry_after="3600")
    started = time.monotonic()
    with pytest.raises(UnreachableError, match=r"no usable answer in 5 s \(last: it answered 503\)"):
        runs.start("scan__x", CONF, "")
    assert time.monotonic() - started < 4


def test_nobody_listens(settings: Settings) -> None:
    runs = Runs(Airflow(with_(settings, url="http://127.0.0.1:1", timeout=0.6)))
    with pytest.raises(UnreachableError, match=r"http://127.0.0.1:1 gave no usable answer .*refused"):
        runs.get("x")


def test_a_server_that_accepts_and_says_nothing(api: AirflowApi, settings: Settings) -> None:
    api.fault("delay", path="/auth/token", delay=3.0, times=9)
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="timed out"):
        Runs(Airflow(with_(settings, timeout=0.5))).get("x")
    assert time.monotonic() - started < 4


def test_a_defect_of_the_server_is_distinguished_from_an_outage(api: AirflowApi, runs: Runs) -> None:
    api.fault("status", path=DAG_RUNS, status=500, times=99)
    with pytest.raises(ServerFaultError, match="failed on the request 4 times"):
        runs.start("scan__x", CONF, "")


def test_an_expired_token_is_renewed_once(api: AirflowApi, runs: Runs) -> None:
    runs.airflow._token = "expired"
    assert runs.start("scan__x", CONF, "")[0]
    assert api.count("POST", "/auth/token") == 1


def test_a_token_of_before_a_change_of_keys_is_renewed(api: AirflowApi, runs: Runs) -> None:
    runs.start("scan__x", CONF, "")
    api.tokens.clear()  # Airflow answers 403 then, not 401
    assert runs.start("scan__y", CONF, "")[0]
    assert api.count("POST", "/auth/token") == 2


def test_one_token_serves_many_requests(api: AirflowApi, runs: Runs) -> None:
    for i in range(5):
        runs.start(f"scan__{i}", CONF, "")
    assert api.count("POST", "/auth/token") == 1


def test_a_wrong_password_is_reported_plainly_and_not_repeated(api: AirflowApi, runs: Runs) -> None:
    api.users["beamline"] = "changed"
    with pytest.raises(
        RefusedError, match=r"refuses to log in 'beamline' \(401: Invalid credentials\)\. Renew"
    ):
        runs.start("scan__x", CONF, "")
    assert api.count("POST", "/auth/token") == 1


def test_a_role_that_may_not(api: AirflowApi, runs: Runs) -> None:
    api.forbidden.add(("POST", "any"))
    with pytest.raises(RefusedError, match=r"does not let us do this \(POST dags/transfer_auto_recon.*role"):
        runs.start("scan__x", CONF, "")
    assert api.created == []


def test_a_redirect_is_not_followed(api: AirflowApi, runs: Runs) -> None:
    api.fault("redirect", path=DAG_RUNS)
    with pytest.raises(RefusedError, match=r"sends us on to 'https://elsewhere.example/login'\. Set url"):
        runs.start("scan__x", CONF, "")


def test_something_else_than_airflow_is_there(api: AirflowApi, runs: Runs) -> None:
    api.fault("html", path="/auth/token", status=404)
    with pytest.raises(RefusedError, match="There is no Airflow 3 at"):
        runs.start("scan__x", CONF, "")


def test_a_token_file(api: AirflowApi, settings: Settings, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("expired")
    runs = Runs(Airflow(with_(settings, token_file=token, password_file=None, user="")))
    with pytest.raises(RefusedError, match=r"does not accept the token: Token Expired\. Renew .*token with"):
        runs.get("x")
    api.tokens.add("fresh")
    token.write_text("fresh\n")
    assert runs.start("scan__x", CONF, "")[0]
    token.write_text("two words")
    with pytest.raises(RefusedError, match="does not hold a token"):
        Runs(runs.airflow.__class__(runs.airflow.settings)).get("x")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o610])
def test_a_password_that_others_can_read_is_refused(runs: Runs, password_file: Path, mode: int) -> None:
    password_file.chmod(mode)
    with pytest.raises(RefusedError, match=rf"can be read by others\. Close it: chmod 600 {password_file}"):
        runs.get("x")


@pytest.mark.parametrize("content", [b"", b"\n", b"one\ntwo\n", b"\xff\xfe", b"a\x00b"])
def test_a_password_file_that_is_none(runs: Runs, password_file: Path, content: bytes) -> None:
    password_file.write_bytes(content)
    with pytest.raises(RefusedError, match=re.escape(str(password_file))):
        runs.get("x")


def test_a_missing_or_odd_password_file(settings: Settings, tmp_path: Path) -> None:
    for path in (tmp_path / "no such", tmp_path):
        with pytest.raises(RefusedError, match=re.escape(str(path))):
            Runs(Airflow(with_(settings, password_file=path))).get("x")
    with pytest.raises(RefusedError, match="No credentials are set"):
        Runs(Airflow(with_(settings, password_file=None))).get("x")


def test_an_unknown_certificate_is_refused_until_it_is_named(settings: Settings, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    subprocess.run(
        [*make.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    class Server(HTTPServer):
        def handle_error(self, *_: object) -> None:
            """The client hangs up on a certificate that it does not trust."""

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        url = f"https://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(RefusedError, match=r"certificate of .* is not trusted .*set ca_file"):
            Runs(Airflow(with_(settings, url=url))).get("x")
        with pytest.raises(RefusedError, match="refuses to log in"):  # trusted now; it answers 401
            Runs(Airflow(with_(settings, url=url, ca_file=certificate))).get("x")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    with pytest.raises(InputError, match=r"ca_file .* cannot be used"):
        Airflow(with_(settings, url="https://127.0.0.1", ca_file=tmp_path / "none"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://x", "must be the address"),
        ("airflow.example.org", "must be the address"),
        ("https://", "must be the address"),
        ("https://a:99999", "must be the address"),
        ("https://[::1", "must be the address"),
        ("https://a b", "must be the address"),
        ("https://é.org", "must be the address"),
        ("https://user:pw@x.org", "no user, password"),
        ("https://x.org/?a=b", "no user, password, query"),
        ("http://airflow.example.org", "in the clear"),
        ("http://127.0.0.1.evil.org", "in the clear"),
        ("http://localhost.evil.org", "in the clear"),
    ],
)
def test_an_address_that_is_wrong_or_unsafe(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(url=url)


def test_settings_of_file_environment_and_options(tmp_path: Path) -> None:
    file = tmp_path / "client.ini"
    file.write_text(
        "[airflow]\nurl = https://one.example/airflow/ ; a comment\nuser = u\npassword_file = ~/pw\n"
        "[client]\ntimeout = 12\nany_name = yes\ndata_root = /data/7012\n"
        "[parameters]\nn_gpu = 4\ndo_ptychocam = yes\n"
    )
    read = load_settings(str(file), environ={})
    assert (read.url, read.user, read.timeout, read.any_name) == (
        "https://one.example/airflow",
        "u",
        12.0,
        True,
    )
    assert read.password_file == Path("~/pw").expanduser()
    assert read.parameters == {"n_gpu": 4, "do_ptychocam": True}
    environ = {"COSMIC_AIRFLOW_URL": "https://two.example", "COSMIC_SPOOL": "/spool"}
    assert load_settings(str(file), environ=environ).url == "https://two.example"
    both = load_settings(str(file), {"url": "https://three.example"}, environ)
    assert (both.url, both.spool) == ("https://three.example", Path("/spool"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[airflow]\nurll = x", r"there is no setting 'urll' in section \[airflow\]"),
        ("[airflow]\npassword = x", "a file of its own: password_file"),
        ("[other]\na = b", r"no setting 'a' in section \[other\]"),
        ("[parameters]\nn_gpu = 9", "n_gpu must be from 1 to 4"),
        ("[client]\ntimeout = soon\n[airflow]\nurl=https://x.org", "'soon' is not a positive number"),
        ("[client]\ntimeout = -1\n[airflow]\nurl=https://x.org", "not a positive number"),
        ("[client]\nany_name = perhaps\n[airflow]\nurl=https://x.org", "any_name must be yes or no"),
        ("no section", "cannot be read"),
        ("[client]\n", "Where is Airflow"),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "client.ini"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        load_settings(str(file), environ={})


def test_a_settings_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_settings(str(tmp_path / "none.ini"), environ={})


def test_secrets_are_nowhere_but_in_their_requests(
    api: AirflowApi, client: Client, messages: list[str]
) -> None:
    client.submit([SCAN])
    api.users["beamline"] = "changed"
    api.tokens.clear()
    client.submit(["2023/02/230216/NS_230216034_ccdframes_0_0.cxi"])
    kept = "".join(path.read_text() for path in client.spool.folder.rglob("*") if path.is_file())
    everything = "\n".join(messages) + kept + "".join(path for _, path in api.requests)
    assert "secret" not in everything
    assert not any(token in everything for token in api.tokens)
    modes = {oct(os.stat(path).st_mode & 0o077) for path in client.spool.folder.rglob("*")}  # noqa: PTH116
    assert modes == {"0o0"}
