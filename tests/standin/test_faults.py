"""Faults on request, each seen on the wire."""

from __future__ import annotations

import http.client
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from standin.faults import BadFaultError, Fault, Faults
from standin.testing import Facility, spawn, until

LS = "/globus/transfer/v0.10/operation/endpoint/d40248e6-d874-4f7b-badd-2c06c16f1a58"

IMPATIENT = httpx.Timeout(10, read=0.05)


class Raw:
    """A plain HTTP client with a token, that retries nothing."""

    def __init__(self, facility: Facility) -> None:
        globus = facility.description["globus"]
        self.facility = facility
        self.address = (facility.settings.host, int(facility.base_url.rsplit(":", 1)[1]))
        reply = httpx.post(
            f"{globus['auth_url']}v2/oauth2/token",
            data={
                "grant_type": "client_credentials",
                "scope": "urn:globus:auth:scope:transfer.api.globus.org:all",
            },
            auth=(globus["client_id"], globus["client_secret"]),
        )
        self.headers = {"Authorization": f"Bearer {reply.json()['access_token']}"}

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.facility.base_url + path, headers=self.headers, **options)

    def mkdir(self, name: str) -> httpx.Response:
        body = {"DATA_TYPE": "mkdir", "path": name}
        return httpx.post(f"{self.facility.base_url}{LS}/mkdir", json=body, headers=self.headers)

    def on_the_wire(self, path: str) -> bytes:
        """All bytes that come back for a GET; a reset raises."""
        lines = [f"GET {path} HTTP/1.1", "Host: facility", *(f"{k}: {v}" for k, v in self.headers.items())]
        with socket.create_connection(self.address, timeout=10) as connection:
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            received = b""
            while piece := connection.recv(65536):
                received += piece
        return received


@pytest.fixture
def raw(facility: Facility) -> Raw:
    return Raw(facility)


def made(facility: Facility, name: str) -> bool:
    return (facility.collection("nersc7012") / name).is_dir()


def test_status_does_not_act(facility: Facility, raw: Raw) -> None:
    facility.fault(service="globus", method="POST", path="/mkdir$", kind="status", status=502, times=1)
    reply = raw.mkdir("a")
    assert reply.status_code == 502
    assert "<h1>502 Bad Gateway</h1>" in reply.text
    assert not made(facility, "a")
    assert raw.mkdir("a").status_code == 200  # one time only
    assert [(f["hits"], f["seen"]) for f in facility.faults()] == [(1, 2)]


def test_status_with_a_body_and_retry_after(facility: Facility, raw: Raw) -> None:
    body = {"code": "ServiceUnavailable", "message": "down for maintenance"}
    facility.fault(kind="status", status=503, body=body, retry_after=7)
    reply = raw.get(f"{LS}/ls")
    assert (reply.status_code, reply.json(), reply.headers["Retry-After"]) == (503, body, "7")
    facility.clear_faults()
    facility.fault(kind="status", status=429, body="slow down")
    assert raw.get(f"{LS}/ls").text == "slow down"


def test_drop_before_closes_without_acting(facility: Facility, raw: Raw) -> None:
    facility.fault(path="/mkdir$", kind="drop_before", times=1)
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        raw.mkdir("a")
    assert not made(facility, "a")


def test_drop_before_is_an_orderly_close(facility: Facility, raw: Raw) -> None:
    facility.fault(kind="drop_before", times=1)
    assert raw.on_the_wire(f"{LS}/ls") == b""


def test_drop_reply_acts_first(facility: Facility, raw: Raw) -> None:
    facility.fault(path="/mkdir$", kind="drop_reply", times=1)
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        raw.mkdir("a")
    assert made(facility, "a")
    again = raw.mkdir("a")
    assert (again.status_code, again.json()["code"]) == (502, "ExternalError.MkdirFailed.Exists")


def test_drop_reply_of_a_refusal(facility: Facility, raw: Raw) -> None:
    facility.fault(kind="drop_reply", times=1)
    assert raw.on_the_wire("/globus/transfer/v0.10/task/none") == b""


@pytest.mark.parametrize("act", [False, True])
def test_reset(facility: Facility, raw: Raw, act: bool) -> None:
    facility.fault(path="/mkdir$", kind="reset", act=act, times=1)
    with pytest.raises((httpx.ReadError, httpx.WriteError)):
        raw.mkdir("a")
    assert made(facility, "a") is act


def test_reset_is_a_tcp_reset(facility: Facility, raw: Raw) -> None:
    facility.fault(kind="reset", times=1)
    with pytest.raises(ConnectionResetError):
        raw.on_the_wire(f"{LS}/ls")


def test_truncate_announces_all_and_sends_half(facility: Facility, raw: Raw) -> None:
    (facility.collection("nersc7012") / "a").mkdir()
    whole = len(raw.get(f"{LS}/ls").content)
    facility.fault(path="/ls$", kind="truncate", times=1)
    connection = http.client.HTTPConnection(*raw.address, timeout=10)
    connection.request("GET", f"{LS}/ls", headers=raw.headers)
    reply = connection.getresponse()
    with pytest.raises(http.client.IncompleteRead) as cut:
        reply.read()
    connection.close()
    assert (reply.status, int(reply.headers["Content-Length"])) == (200, whole)
    assert len(cut.value.partial) == whole // 2
    assert cut.value.partial.startswith(b'{"DATA_TYPE": "file_list"')


def test_truncate_acts(facility: Facility, raw: Raw) -> None:
    facility.fault(path="/mkdir$", kind="truncate", times=1)
    with pytest.raises(httpx.RemoteProtocolError):
        raw.mkdir("a")
    assert made(facility, "a")


def test_delay_goes_on_to_the_service(facility: Facility, raw: Raw) -> None:
    facility.fault(path="/ls$", kind="delay", delay=0.2, times=1)
    started = time.monotonic()
    assert raw.get(f"{LS}/ls").status_code == 200
    assert time.monotonic() - started >= 0.2


def test_a_client_that_gives_up_does_not_undo(facility: Facility, raw: Raw) -> None:
    facility.fault(path="/mkdir$", kind="delay", delay=0.3, times=1)
    body = {"DATA_TYPE": "mkdir", "path": "a"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{facility.base_url}{LS}/mkdir", json=body, headers=raw.headers, timeout=IMPATIENT)
    until(lambda: made(facility, "a"))


def test_delay_and_another_kind_add_up(facility: Facility, raw: Raw) -> None:
    facility.fault(kind="delay", delay=0.1)
    facility.fault(kind="status", status=500, delay=0.1)
    started = time.monotonic()
    assert raw.get(f"{LS}/ls").status_code == 500
    assert time.monotonic() - started >= 0.2
    assert facility.requests()[-1]["fault"] == "delay+status"


def test_a_delayed_request_holds_up_nobody(facility: Facility, raw: Raw) -> None:
    facility.fault(path="/ls$", kind="delay", delay=30)
    with pytest.raises(httpx.ReadTimeout):
        raw.get(f"{LS}/ls", timeout=IMPATIENT)
    assert raw.get(f"{LS}/stat?path=/").status_code == 200


def test_only_matching_requests(facility: Facility, raw: Raw) -> None:
    facility.fault(service="nersc", kind="status")
    facility.fault(method="put", kind="status")
    facility.fault(path="^/globus/auth/", kind="status")
    facility.fault(path="/ls$", query="limit=1(&|$)", kind="status", status=500)
    assert raw.get(f"{LS}/ls").status_code == 200
    assert raw.get(f"{LS}/ls?limit=10").status_code == 200
    assert raw.get(f"{LS}/ls?limit=1").status_code == 500


def test_control_and_health_are_spared(facility: Facility) -> None:
    facility.fault(kind="status", status=500)
    assert httpx.get(f"{facility.base_url}/healthz").status_code == 200
    assert len(facility.faults()) == 1
    assert [fault["kind"] for fault in facility.clear_faults()] == ["status"]
    assert facility.faults() == []


def test_log_shows_faults_and_no_status_for_lost_replies(facility: Facility, raw: Raw) -> None:
    facility.clear_requests()
    facility.fault(kind="drop_reply", times=1)
    facility.fault(kind="status", status=504, times=1)
    raw.on_the_wire(f"{LS}/ls")
    raw.get(f"{LS}/ls")
    raw.get(f"{LS}/ls")
    assert [(e["status"], e["fault"]) for e in facility.requests()] == [
        (None, "drop_reply"),
        (504, "status"),
        (200, None),
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "kind is None; it must be one of"),
        ({"kind": "explode"}, "kind is 'explode'; it must be one of"),
        ({"kind": "delay", "color": 1}, r"Unknown keys \['color'\]"),
        ({"kind": "delay", "times": 0}, "times is 0; it must be from 1"),
        ({"kind": "delay", "times": True}, "times is True, of the wrong type"),
        ({"kind": "delay", "delay": "1"}, "delay is '1', of the wrong type"),
        ({"kind": "delay", "fraction": 1.5}, "fraction is 1.5; it must be from 0 to 1"),
        ({"kind": "status", "status": 99}, "status is 99; it must be from 200 to 599"),
        ({"kind": "status", "path": "("}, "path is not a regular expression"),
    ],
)
def test_bad_faults_are_refused(facility: Facility, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"400.*{message}"):
        facility.fault(**spec)
    assert facility.faults() == []


def test_a_fraction_is_repeatable_and_about_right() -> None:
    def drawn(seed: int) -> list[bool]:
        fault = Fault.from_json(1, {"kind": "status", "fraction": 0.3, "seed": seed})
        return [fault.fires() for _ in range(1000)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert 240 < sum(drawn(1)) < 360


def test_times_limits_a_fraction() -> None:
    fault = Fault.from_json(1, {"kind": "status", "fraction": 0.5, "seed": 1, "times": 3})
    assert sum(fault.fires() for _ in range(100)) == 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
KEYS = sorted(Fault(kind="delay").to_json().keys() - {"id", "hits", "seen"})


@given(st.dictionaries(st.sampled_from([*KEYS, "other"]), json_values | st.sampled_from(["delay", "status"])))
def test_any_spec_is_taken_or_refused_with_reason(spec: dict[str, Any]) -> None:
    faults = Faults()
    refusal = ""
    try:
        shown = faults.add(spec).to_json()
    except BadFaultError as error:
        refusal = str(error)
    if refusal:
        assert refusal.endswith(".")
        assert faults.to_json() == []
    else:
        assert all(shown[key] == value or value != value for key, value in spec.items())  # noqa: PLR0124 - NaN


def test_a_spawned_facility_takes_faults(tmp_path: Path) -> None:
    with spawn(tmp_path) as facility:
        facility.fault(kind="reset", times=1)
        address = (facility.settings.host, int(facility.base_url.rsplit(":", 1)[1]))
        with socket.create_connection(address) as connection:
            connection.sendall(b"GET /globus/transfer/x HTTP/1.1\r\nHost: x\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                connection.recv(10)


def test_hold_acts_when_the_faults_are_cleared(facility: Facility, raw: Raw) -> None:
    facility.fault(path="/mkdir$", kind="hold", times=1)
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        raw.mkdir("a")
    assert not made(facility, "a")
    facility.clear_faults()
    until(lambda: made(facility, "a"))
