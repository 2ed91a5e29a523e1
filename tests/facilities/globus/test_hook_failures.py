"""The hook when Globus refuses, breaks off or stays away: the class of the error and its words."""

from __future__ import annotations

from typing import Any

import pytest

from facilities.errors import (
    FacilityError,
    LostReplyError,
    TransientError,
    UserError,
)
from facilities.globus.hook import GlobusHook
from standin.testing import Facility
from support.globus import CONN_ID, Place, transfer_request, use_connection


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ({"status": 400, "body": {"code": "ClientError.BadRequest", "message": "No."}}, UserError, "refuses"),
        ({"status": 403, "body": {"code": "PermissionDenied", "message": "No."}}, UserError, "permission"),
        (
            {"status": 404, "body": {"code": "EndpointDeleted", "message": "No."}},
            UserError,
            "has been deleted",
        ),
        ({"status": 409, "body": {"code": "Odd", "message": "No."}}, UserError, "refuses"),
        ({"status": 422, "body": {"code": "X", "message": "No."}}, UserError, "HTTP 422"),
        ({"status": 429, "retry_after": 7}, TransientError, "HTTP 429"),
        ({"status": 500}, TransientError, "HTTP 500"),
        ({"status": 502}, TransientError, "HTTP 502"),
        ({"status": 503}, TransientError, "HTTP 503"),
        ({"status": 504}, TransientError, "HTTP 504"),
        ({"status": 200, "body": "<html>Welcome</html>"}, TransientError, "cannot be read"),
        ({"status": 200, "body": [1, 2]}, TransientError, "cannot be read"),
        ({"status": 200, "body": {"type": 3}}, TransientError, "instead|something else"),
        (
            {
                "status": 502,
                "body": {"code": "ExternalError.DirListingFailed.GCDisconnected", "message": "Offline."},
            },
            TransientError,
            "the collection cannot be used for looking at .*: Offline",
        ),
        (
            {
                "status": 502,
                "body": {"code": "ExternalError.DirListingFailed.PermissionDenied", "message": "No."},
            },
            UserError,
            "permission denied",
        ),
    ],
)
def test_refusals_have_their_class_and_say_what_globus_says(
    standin: Facility, place: Place, fault: dict[str, Any], kind: type[FacilityError], says: str
) -> None:
    standin.fault(kind="status", path="/stat", **fault)
    hook = GlobusHook(CONN_ID, attempts=1)
    with pytest.raises(kind, match=says) as raised:
        hook.stat(place.source, place.path)
    assert type(raised.value) is kind
    body = fault.get("body")
    if isinstance(body, dict) and "code" in body:
        assert f"Globus says: {body['code']}: {body['message']}" in str(raised.value)
    if isinstance(raised.value, TransientError):
        assert raised.value.retry_after == fault.get("retry_after")


@pytest.mark.parametrize("kind", ["drop_before", "drop_reply", "reset", "truncate"])
def test_broken_connections_are_passing_failures(standin: Facility, place: Place, kind: str) -> None:
    standin.fault(kind=kind, path="/stat")
    with pytest.raises(TransientError, match="looking at") as raised:
        GlobusHook(CONN_ID, attempts=1).stat(place.source, place.path)
    assert not isinstance(raised.value, LostReplyError)


@pytest.mark.parametrize("kind", ["drop_before", "drop_reply", "reset", "truncate"])
def test_a_lost_reply_to_a_change_is_told_as_such(standin: Facility, place: Place, kind: str) -> None:
    hook = GlobusHook(CONN_ID, attempts=1)
    submission_id = hook.new_submission_id()
    standin.fault(kind=kind, method="POST", path="/transfer$")
    with pytest.raises(LostReplyError, match=f"submitting the transfer of {place.path}"):
        hook.submit(transfer_request(place), submission_id)


def test_a_slow_answer_is_given_up(standin: Facility, place: Place) -> None:
    standin.fault(kind="delay", path="/stat", delay=0.6)
    with pytest.raises(TransientError, match="got no answer"):
        GlobusHook(CONN_ID, attempts=1, http_timeout=0.2).stat(place.source, place.path)


def test_a_hiccup_is_not_noticed(hook: GlobusHook, standin: Facility, place: Place) -> None:
    standin.fault(kind="status", path="/stat", status=503, times=2)
    standin.fault(kind="reset", path="/stat", times=1)
    assert hook.stat(place.source, place.path).size == 600


def test_a_service_that_stays_away_is_asked_as_often_as_was_said(
    hook: GlobusHook, standin: Facility, place: Place
) -> None:
    standin.fault(kind="status", path="/stat", status=503)
    with pytest.raises(TransientError):
        hook.stat(place.source, place.path)
    assert sum("/stat" in entry["path"] for entry in standin.requests("globus")) == hook.attempts == 4


def test_a_long_retry_after_is_left_to_the_caller(hook: GlobusHook, standin: Facility, place: Place) -> None:
    standin.fault(kind="status", path="/stat", status=429, retry_after=300)
    with pytest.raises(TransientError) as raised:
        hook.stat(place.source, place.path)
    assert raised.value.retry_after == 300.0
    assert sum("/stat" in entry["path"] for entry in standin.requests("globus")) == 1


def test_a_dead_auth_service_is_a_passing_failure(standin: Facility) -> None:
    standin.fault(kind="status", path="token", status=503)
    with pytest.raises(TransientError, match="HTTP 503"):
        GlobusHook(CONN_ID, attempts=1).ping()


@pytest.mark.parametrize("body", ["<html>", {}, {"access_token": 7}, []])
def test_a_malformed_token_is_a_passing_failure(standin: Facility, body: Any) -> None:
    standin.fault(kind="status", path="token", status=200, body=body)
    with pytest.raises(TransientError):
        GlobusHook(CONN_ID, attempts=1).ping()


def test_nobody_listens(standin: Facility, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = {"auth_base_url": "http://127.0.0.1:9/", "transfer_base_url": "http://127.0.0.1:9/"}
    use_connection(standin, monkeypatch, extra=urls)
    with pytest.raises(TransientError, match="check the network"):
        GlobusHook(CONN_ID, attempts=1).ping()
