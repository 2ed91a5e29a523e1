"""What a user is given when Globus answers what is easily misread: the class of the failure and its words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from facilities.errors import (
    CredentialsError,
    FacilityError,
    InfrastructureError,
    NotFoundError,
    ResourcesError,
    TimeLimitError,
    TransientError,
    UserError,
)
from facilities.globus.errors import SubmissionConflictError
from facilities.globus.hook import GlobusHook
from standin.testing import Facility, until
from support.globus import CONN_ID, Place, Run, deferred, making, transfer_request, use_connection
from support.globus_client import soon

SESSION = {
    "session_message": "Session reauthentication required (Globus Transfer)",
    "session_required_single_domain": ["lbl.gov"],
}
POLICY = {
    "session_message": "Two factors are needed here",
    "session_required_policies": ["83732ff2-9c42-4548-b5ce-17e498c84f6a"],
    "session_required_mfa": True,
}


def calls(hook: GlobusHook, place: Place, collection: str) -> list[Callable[[], Any]]:
    """All ways to reach a collection's files."""
    return [
        lambda: hook.stat(collection, place.path),
        lambda: list(hook.list_folder(collection, "/")),
        lambda: hook.make_folder(collection, "/new"),
        lambda: hook.submit(transfer_request(place), hook.new_submission_id()),
    ]


# Credentials


@pytest.mark.parametrize(
    ("refusal", "requires", "says"),
    [
        ("no_account", None, "the client has no account on collection ALS BL7.0.1.2 (stand-in) (741b96e1-"),
        ("session", SESSION, "it asks for an identity of the domain lbl.gov (Session reauthentication"),
        (
            "policy",
            POLICY,
            "authentication policy 83732ff2-9c42-4548-b5ce-17e498c84f6a and multi-factor authentication "
            "(Two factors are needed here)",
        ),
    ],
)
def test_a_refused_login_is_a_matter_of_credentials(
    hook: GlobusHook, place: Place, refusal: str, requires: Any, says: str
) -> None:
    place.facility.control("globus", "login", collection="data7012", refusal=refusal, requires=requires)
    for call in calls(hook, place, place.source):
        with pytest.raises(CredentialsError) as raised:
            call()
        assert says in raised.value.what
        assert f"{hook.settings.client_id}@clients.auth.globus.org" in raised.value.next_step
        assert "guest collection" in raised.value.next_step
    assert place.books() == []


@pytest.mark.parametrize("collection", ["data7012", "nersc7012"])
def test_a_refused_login_fails_the_task_at_once(run: Run, place: Place, collection: str) -> None:
    place.facility.control("globus", "login", collection=collection, refusal="no_account")
    with pytest.raises(CredentialsError, match="no account"):
        run.start(making(place))
    assert run.deferrals == []
    assert place.books() == []


def test_the_consent_of_each_collection_is_asked_for(
    hook: GlobusHook, standin: Facility, run: Run, place: Place
) -> None:
    for name in ("data7012", "nersc7012"):
        standin.control("globus", "consent", collection=name, required=True)
    hook.submit(transfer_request(place), hook.new_submission_id())
    seen = [(r["path"].rsplit("/", 1)[1], r["status"]) for r in standin.requests("globus")]
    transfers = [status for name, status in seen if name == "transfer"]
    assert transfers == [403, 403, 202]
    assert [task["status"] for task in place.books()] != []


def test_a_consent_that_is_not_given_is_asked_for_once(
    hook: GlobusHook, standin: Facility, place: Place
) -> None:
    access = f"https://auth.globus.org/scopes/{place.source}/data_access"
    scope = f"urn:globus:auth:scope:transfer.api.globus.org:all[*{access}]"
    standin.control("globus", "consent", collection="data7012", required=True)  # or there is no such scope
    body = {"code": "ConsentRequired", "message": "Missing consent", "required_scopes": [scope]}
    standin.fault(kind="status", path="/stat", status=403, body=body)
    with pytest.raises(CredentialsError, match="needs a consent"):
        hook.stat(place.source, place.path)
    assert sum("/stat" in r["path"] for r in standin.requests("globus")) == 2


def test_the_connection_test_looks_into_the_collections(
    standin: Facility, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    globus = standin.description["globus"]
    urls = {"auth_base_url": globus["auth_url"], "transfer_base_url": globus["transfer_url"]}
    collections = f"{place.source} {place.destination}:/"
    use_connection(standin, monkeypatch, extra={**urls, "collections": collections})
    worked, message = GlobusHook(CONN_ID).test_connection()
    assert worked, message
    assert message.endswith(f" It may look into {place.source}. It may look into {place.destination}:/.")
    standin.control("globus", "login", collection="nersc7012", refusal="no_account")
    worked, message = GlobusHook(CONN_ID).test_connection()
    assert not worked
    assert f"no account on collection NERSC ALS data mover 7012 (stand-in) ({place.destination})" in message
    for wrong, says in (("data7012", "'data7012' is not a Globus collection's id"), (7, "'7' is not a")):
        use_connection(standin, monkeypatch, extra={**urls, "collections": wrong})
        worked, message = GlobusHook(CONN_ID).test_connection()
        assert (worked, says in message) == (False, True)


# What has to wait


def conflict(place: Place) -> str:
    """A task of somebody else on the same paths, which stays: its file is missing."""
    hook = GlobusHook(CONN_ID)
    place.at_source.unlink()
    task_id = hook.submit(transfer_request(place, label="somebody else's"), hook.new_submission_id())
    place.facility.control("globus", "pause", task_id=task_id)  # or it would copy the file now
    place.write()
    return task_id


def too_many(place: Place) -> None:
    place.facility.control("globus", "pending_limit", limit=0)


def paused(place: Place) -> None:
    place.facility.control("globus", "pause_rule", collection="data7012", message="new disks until noon")


def busy(place: Place) -> None:
    body = {"code": "ServiceUnavailable", "message": "Maintenance"}
    place.facility.fault(kind="status", path="/transfer$", method="POST", status=503, body=body)


def throttled(place: Place) -> None:
    body = {"code": "TooManyRequests", "message": "Slow down"}
    place.facility.fault(kind="status", path="/transfer$", method="POST", status=429, body=body)


def disconnected(place: Place) -> None:
    place.facility.control("globus", "endpoint", collection="data7012", condition="gc_not_connected")


@pytest.mark.parametrize(
    ("prevent", "says", "step"),
    [
        (conflict, "another task works on the same paths", "look for the other task"),
        (too_many, "as many unfinished tasks as Globus allows", "cancel those that are not wanted"),
        (paused, "the collection's manager has paused it", "ask the collection's manager"),
        (busy, "HTTP 503", "https://status.globus.org"),
        (throttled, "HTTP 429", "look for what else sends many requests"),
        (disconnected, "Globus Connect is not connected", "ask the collection's manager"),
    ],
)
def test_the_end_of_a_hold_names_its_last_cause(
    run: Run, place: Place, prevent: Callable[[Place], Any], says: str, step: str
) -> None:
    prevent(place)
    make = making(place, hold=timedelta(seconds=1))
    with pytest.raises(TimeLimitError, match=r"could not be used within 0:00:01") as raised:
        run.finish(make)
    assert says in raised.value.what
    assert step in raised.value.next_step
    assert raised.value.next_step.endswith("Then clear the task.")
    assert "Globus says: " in raised.value.details


def test_a_paused_collection_is_waited_for_and_who_paused_it_is_said(
    run: Run, place: Place, task_log: Callable[[], str]
) -> None:
    paused(place)
    held = deferred(run.start(making(place)))
    assert run.fire(held) == {"outcome": "answers"}
    log = task_log()
    assert "paused by the manager of ALS BL7.0.1.2 (stand-in): new disks until noon" in log
    place.facility.control("globus", "pause_rule", collection="data7012", message=None)
    outcome = run.resume(making(place), held, {"outcome": "answers"})
    assert run.follow(making(place), outcome)["files"] == 1


def test_a_task_that_a_rule_pauses_says_who_and_until_when(
    run: Run, place: Place, task_log: Callable[[], str]
) -> None:
    operations = ["task_transfer_write"]
    place.facility.control(
        "globus", "pause_rule", collection="nersc7012", message="new disks", operations=operations
    )
    make = making(place, give_up_outage_after=timedelta(seconds=2))
    waiting = deferred(run.start(make))
    with pytest.raises(InfrastructureError, match="because of PAUSED: a collection's manager has paused it"):
        run.resume(make, waiting, run.fire(waiting))
    log = task_log()
    assert "paused by the manager of NERSC ALS data mover 7012 (stand-in): new disks" in log
    assert "Unless it goes on, it is cancelled in " in log


def test_a_conflict_is_told_from_an_outage(hook: GlobusHook, place: Place) -> None:
    hook.attempts = 1
    conflict(place)
    with pytest.raises(SubmissionConflictError, match="another task works on the same paths"):
        hook.submit(transfer_request(place), hook.new_submission_id())
    too_many(place)
    with pytest.raises(TransientError, match="as many unfinished tasks"):
        hook.submit(transfer_request(place), hook.new_submission_id())


# Collections that are not there


def test_a_deleted_collection_is_named(run: Run, hook: GlobusHook, place: Place) -> None:
    place.facility.control("globus", "endpoint", collection="data7012", condition="deleted")
    for call in calls(hook, place, place.source):
        with pytest.raises(UserError, match="the collection has been deleted") as raised:
            call()
        assert raised.value.remote_id == place.source
    with pytest.raises(UserError, match="the collection has been deleted") as raised:
        run.start(making(place))
    assert not isinstance(raised.value, NotFoundError)


@pytest.mark.parametrize("side", ["source_collection", "destination_collection"])
def test_an_unknown_collection_is_named(run: Run, place: Place, side: str) -> None:
    unknown = "00000000-0000-0000-0000-000000000001"
    with pytest.raises(UserError, match="the collection does not exist") as raised:
        run.start(making(place, **{side: unknown}))
    assert raised.value.remote_id == unknown
    assert "file has been written" not in str(raised.value)
    assert place.books() == []


# Tasks in trouble


@pytest.mark.parametrize(
    ("switch", "trouble", "kind"),
    [
        (
            ("endpoint", {"condition": "connect_failed"}),
            "CONNECT_FAILED: Globus cannot connect to a collection",
            InfrastructureError,
        ),
        (
            ("endpoint", {"condition": "endpoint_error"}),
            "ENDPOINT_ERROR: a collection reports an error",
            InfrastructureError,
        ),
        (
            ("endpoint", {"condition": "gc_not_connected"}),
            "GC_NOT_CONNECTED: Globus Connect of a collection is not connected",
            InfrastructureError,
        ),
        (
            ("login", {"refusal": "no_account"}),
            "NO_CREDENTIALS: a collection refuses the client's login",
            CredentialsError,
        ),
    ],
)
def test_the_log_says_early_what_is_down_and_when_it_is_given_up(
    place: Place,
    task_log: Callable[[], str],
    switch: tuple[str, Any],
    trouble: str,
    kind: type[FacilityError],
) -> None:
    run, limit = Run(), timedelta(seconds=2)
    verb, body = switch
    place.facility.control("globus", "bandwidth", bytes_per_second=1)
    make = making(place, give_up_after=limit, give_up_outage_after=limit)
    waiting = deferred(run.start(make))
    place.facility.control("globus", verb, collection="nersc7012", **body)
    event = run.fire(waiting)
    log = task_log()
    assert (
        f"({trouble.partition(':')[0]}: NERSC ALS data mover 7012 (stand-in) ({place.destination}): " in log
    )
    ends = r"\. Unless it goes on, it is cancelled in [0-2][.0-9]* s, at 20\d\d-\d\d-\d\d \d\d:\d\d UTC"
    assert re.search(re.escape(trouble) + ends, log)
    with pytest.raises(kind, match=f"because of {trouble}") as raised:
        run.resume(make, waiting, event)
    assert "NERSC ALS data mover 7012" in raised.value.details
    assert [task["canceled_by"] for task in place.books()] == ["user"]


def test_a_task_that_expires_says_what_kept_it(run: Run, hook: GlobusHook, place: Place) -> None:
    place.facility.control("globus", "endpoint", collection="nersc7012", condition="connect_failed")
    waiting = deferred(run.start(making(place)))
    task_id = run.ti.xcoms["globus_task_id"]
    until(lambda: hook.get_task(task_id).trouble == "CONNECT_FAILED")
    deadline = {"DATA_TYPE": "task", "deadline": soon(1.0)}
    hook._call("giving a task a deadline", lambda transfer: transfer.update_task(task_id, deadline))
    with pytest.raises(ResourcesError, match="failed with EXPIRED: it made no progress") as raised:
        run.resume(making(place), waiting, run.fire(waiting))
    assert "CONNECT_FAILED" in raised.value.details
    assert "NERSC ALS data mover 7012 (stand-in)" in raised.value.details
    assert "Could not connect to server" in raised.value.details


# Sources that are no files


@pytest.mark.parametrize(
    ("kind", "says"),
    [("broken", "a broken symbolic link"), ("circle", "a broken symbolic link"), ("pipe", "a pipe")],
)
def test_a_source_that_is_no_file_fails_at_once(run: Run, place: Place, kind: str, says: str) -> None:
    place.at_source.unlink()
    if kind == "pipe":
        os.mkfifo(place.at_source)
    else:
        place.at_source.symlink_to("gone" if kind == "broken" else place.at_source.name)
    with pytest.raises(UserError, match=f"is {says}, not a file or a folder") as raised:
        run.start(making(place))
    assert "Nothing was submitted" in raised.value.next_step
    assert place.books() == []


def test_a_path_through_links_in_a_circle_fails_at_once(run: Run, place: Place) -> None:
    (place.at_source.parent / "circle").symlink_to("circle")
    path = place.path.rpartition("/")[0] + "/circle/scan.cxi"
    with pytest.raises(UserError, match="Globus refuses looking at") as raised:
        run.start(making(place, source_path=path))
    assert "Too many levels of symbolic links" in raised.value.details
