"""Answers of Globus that are easily misread, through globus-sdk: logins, sessions, pauses, outages."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

import globus_sdk
import pytest

from standin.globus import times
from standin.testing import SpawnedFacility, spawn, until
from support.globus_client import Globus, codes, soon

SESSION = {
    "session_message": "Session reauthentication required (Globus Transfer)",
    "session_required_single_domain": ["lbl.gov"],
}
POLICY = {
    "session_message": "The collection needs a login with two factors",
    "session_required_identities": ["7d4657a1-0422-409a-a0ee-077f4a6a99a1"],
    "session_required_policies": ["83732ff2-9c42-4548-b5ce-17e498c84f6a"],
    "session_required_mfa": True,
}


def refusal(call: Callable[[], Any]) -> globus_sdk.TransferAPIError:
    """What Globus raises."""
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        call()
    return caught.value


def operations(globus: Globus, collection: str) -> list[Callable[[], Any]]:
    """All operations in the foreground on a collection."""
    client = globus.transfer
    return [
        lambda: client.operation_ls(collection, "/"),
        lambda: client.operation_stat(collection, "/"),
        lambda: client.operation_mkdir(collection, "/new"),
        lambda: client.operation_rename(collection, "/old", "/new"),
    ]


def test_a_client_without_an_account_cannot_log_in(globus: Globus) -> None:
    globus.file("a")
    globus.facility.control("globus", "login", collection="nersc7012", refusal="no_account")
    for call in operations(globus, globus.nersc7012):
        error = refusal(call)
        assert (error.http_status, error.code) == (502, "ExternalError.DirListingFailed.LoginFailed")
        assert error.message is not None
        assert "c=LOGIN_DENIED" in error.message
        assert globus.nersc7012 in error.message
        assert not error.info.authorization_parameters
    submit = refusal(lambda: globus.submit(("/a", "/a")))
    assert (submit.http_status, submit.code) == (403, "PermissionDenied")
    assert (submit.message or "").startswith("Error validating login to endpoint 'NERSC ALS data mover 7012")
    globus.transfer.operation_ls(globus.data7012)  # the other collection knows the client
    assert globus.transfer.get_endpoint(globus.nersc7012)["id"] == globus.nersc7012
    globus.facility.control("globus", "login", collection="nersc7012", refusal=None)
    assert globus.run(("/a", "/a"))["status"] == "SUCCEEDED"


def test_a_session_that_does_not_do_is_refused_with_what_it_needs(globus: Globus) -> None:
    globus.facility.control("globus", "login", collection="data7012", refusal="session", requires=SESSION)
    for call in operations(globus, globus.data7012):
        error = refusal(call)
        assert (error.http_status, error.code) == (502, "ExternalError.DirListingFailed.LoginFailed")
        needed = error.info.authorization_parameters
        assert needed.session_message == SESSION["session_message"]
        assert needed.session_required_single_domain == ["lbl.gov"]
    submit = refusal(lambda: globus.submit(("/a", "/a")))
    assert (submit.http_status, submit.code) == (403, "PermissionDenied")
    assert submit.info.authorization_parameters.session_required_single_domain == ["lbl.gov"]


def test_an_authentication_policy_is_a_403_with_authorization_parameters(globus: Globus) -> None:
    globus.facility.control("globus", "login", collection="data7012", refusal="policy", requires=POLICY)
    for call in [*operations(globus, globus.data7012), lambda: globus.submit(("/a", "/a"))]:
        error = refusal(call)
        needed = error.info.authorization_parameters
        assert (error.http_status, error.message) == (403, POLICY["session_message"])
        assert not error.info.consent_required
        assert {key: getattr(needed, key) for key in POLICY} == POLICY


def test_each_collection_asks_for_its_own_consent(globus: Globus) -> None:
    globus.file("a")
    for name in ("data7012", "nersc7012"):
        globus.facility.control("globus", "consent", collection=name, required=True)
    asked = []
    for collection in (globus.data7012, globus.nersc7012):
        error = refusal(lambda: globus.submit(("/a", "/a")))
        assert (error.http_status, error.code) == (403, "ConsentRequired")
        assert error.info.consent_required.required_scopes == [
            "urn:globus:auth:scope:transfer.api.globus.org:all"
            f"[*https://auth.globus.org/scopes/{collection}/data_access]"
        ]
        asked += error.info.consent_required.required_scopes
        globus.auth().oauth2_client_credentials_tokens(requested_scopes=asked)
    assert globus.run(("/a", "/a"))["status"] == "SUCCEEDED"
    globus.facility.control("globus", "consent", collection="data7012", required=True)  # is asked for anew
    assert refusal(lambda: globus.transfer.operation_ls(globus.data7012)).code == "ConsentRequired"
    globus.transfer.operation_ls(globus.nersc7012)


def test_a_pause_rule_refuses_operations_and_pauses_tasks(globus: Globus) -> None:
    globus.file("a")
    held = globus.submit(("/late", "/late"))
    globus.wait(held, "nice_status", "FILE_NOT_FOUND")
    globus.facility.control("globus", "pause_rule", collection="nersc7012", message="moving to new disks")
    for call in operations(globus, globus.nersc7012):
        error = refusal(call)
        assert (error.http_status, error.code) == (409, "OperationPaused")
        assert (error.message or "").endswith("moving to new disks")
        assert "NERSC ALS data mover 7012" in (error.message or "")
    (rule,) = globus.transfer.my_effective_pause_rule_list(globus.nersc7012)["DATA"]
    assert (rule["message"], rule["endpoint_id"]) == ("moving to new disks", globus.nersc7012)
    assert globus.transfer.my_effective_pause_rule_list(globus.data7012)["DATA"] == []
    new = globus.submit(("/a", "/a"))  # is accepted, and waits
    for task_id in (held, new):
        task = globus.task(task_id)
        assert (task["status"], task["is_paused"], task["nice_status"]) == ("ACTIVE", True, "PAUSED")
        told = globus.transfer.task_pause_info(task_id)
        assert [r["id"] for r in told["pause_rules"]] == [rule["id"]]
        assert told["source_pause_message"] is None
    globus.facility.control("globus", "pause_rule", collection="nersc7012", message=None)
    assert globus.wait(new)["status"] == "SUCCEEDED"
    globus.file("late")
    assert globus.wait(held)["status"] == "SUCCEEDED"
    assert globus.transfer.task_pause_info(held)["pause_rules"] == []


def test_a_pause_rule_for_some_operations_leaves_the_others(globus: Globus) -> None:
    globus.file("a")
    globus.facility.control(
        "globus", "pause_rule", collection="nersc7012", message="read only", operations=["mkdir"]
    )
    globus.transfer.operation_ls(globus.nersc7012)
    assert refusal(lambda: globus.transfer.operation_mkdir(globus.nersc7012, "/b")).code == "OperationPaused"
    assert globus.run(("/a", "/a"))["status"] == "SUCCEEDED"


def test_the_pending_limit_can_be_set_while_it_runs(globus: Globus) -> None:
    first = globus.submit(("/late", "/late"))
    globus.facility.control("globus", "pending_limit", limit=1)
    error = refusal(lambda: globus.submit(("/x", "/x")))
    assert (error.http_status, error.code) == (409, "ClientError.Conflict.TooManyPendingJobs")
    globus.transfer.cancel_task(first)
    globus.submit(("/x", "/x"))


@pytest.mark.parametrize(("status", "code"), [(503, "ServiceUnavailable"), (429, "TooManyRequests")])
def test_a_service_that_stays_busy(globus: Globus, status: int, code: str) -> None:
    body = {"code": code, "message": "Try again later", "request_id": "abcdefghi", "resource": "/transfer"}
    globus.facility.fault(
        service="globus", path="/transfer/v0.10", kind="status", status=status, body=body, retry_after=1
    )
    for _ in range(3):
        error = refusal(lambda: globus.submit(("/a", "/a")))
        assert (error.http_status, error.code, error.headers["Retry-After"]) == (status, code, "1")
    globus.facility.clear_faults()
    globus.submit(("/a", "/a"))


def test_a_deleted_endpoint(globus: Globus) -> None:
    held = globus.submit(("/late", "/late"))
    globus.facility.control("globus", "endpoint", collection="data7012", condition="deleted")
    calls = [
        *operations(globus, globus.data7012),
        lambda: globus.transfer.get_endpoint(globus.data7012),
        lambda: globus.submit(("/a", "/a")),
    ]
    for call in calls:
        error = refusal(call)
        assert (error.http_status, error.code) == (404, "EndpointDeleted")
        assert globus.data7012 in (error.message or "")
    assert globus.wait(held, "nice_status", "ENDPOINT_ERROR")["status"] == "ACTIVE"


def test_an_unknown_endpoint(globus: Globus) -> None:
    unknown = "00000000-0000-0000-0000-000000000000"
    data = globus_sdk.TransferData(globus.data7012, unknown)
    data.add_item("/a", "/a")
    for call in [*operations(globus, unknown), lambda: globus.transfer.submit_transfer(data)]:
        error = refusal(call)
        assert (error.http_status, error.code) == (404, "EndpointNotFound")
        assert unknown in (error.message or "")


@pytest.mark.parametrize(
    ("condition", "listing"),
    [
        ("connect_failed", "ExternalError.DirListingFailed.ConnectFailed"),
        ("gc_not_connected", "ExternalError.DirListingFailed.GCDisconnected"),
        ("endpoint_error", "EndpointError"),
    ],
)
def test_an_endpoint_that_stays_down(globus: Globus, condition: str, listing: str) -> None:
    globus.file("a")
    globus.facility.control("globus", "endpoint", collection="nersc7012", condition=condition)
    assert [refusal(call).code for call in operations(globus, globus.nersc7012)] == [
        listing,
        *["EndpointError"] * 3,
    ]
    task_id = globus.submit(("/a", "/a"))
    task = globus.wait(task_id, "nice_status", condition.upper())
    assert (task["status"], task["is_ok"], task["fatal_error"]) == ("ACTIVE", False, None)
    assert "NERSC ALS data mover 7012" in task["nice_status_details"]
    globus.transfer.update_task(task_id, {"DATA_TYPE": "task", "deadline": soon(1.0)})
    ended = globus.wait(task_id)
    assert (ended["status"], ended["fatal_error"]["code"]) == ("FAILED", "EXPIRED")
    assert codes(globus, task_id)[0] == "EXPIRED"
    assert set(codes(globus, task_id, filter="is_error:1")) == {"EXPIRED", condition.upper()}


def test_a_login_that_is_refused_in_mid_copy(globus: Globus) -> None:
    globus.facility.control("globus", "bandwidth", bytes_per_second=20_000)
    globus.file("a", b"x" * 1_000_000)
    task_id = globus.submit(("/a", "/a"))
    until(lambda: globus.task(task_id)["bytes_transferred"] > 0)
    globus.facility.control("globus", "login", collection="nersc7012", refusal="no_account")
    task = globus.wait(task_id, "nice_status", "NO_CREDENTIALS")
    assert (task["status"], task["is_ok"]) == ("ACTIVE", False)
    globus.transfer.update_task(task_id, {"DATA_TYPE": "task", "deadline": soon(1.0)})
    assert globus.wait(task_id)["fatal_error"]["code"] == "EXPIRED"


def test_tasks_that_live_for_a_short_time_only(globus: Globus) -> None:
    globus.facility.control("globus", "task_seconds", seconds=1)
    assert globus.run(("/none", "/none"))["fatal_error"]["code"] == "EXPIRED"
    globus.facility.control("globus", "task_seconds", seconds=None)
    task_id = globus.submit(("/none", "/none"))
    lived = globus.task(task_id)
    seconds = times.parse(lived["deadline"]) - times.parse(lived["request_time"])
    assert seconds == 86_400


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("broken link", "invalid_symlink"),
        ("link in a circle", "invalid_symlink"),
        ("pipe", "pipe"),
        pytest.param("device", "chr", marks=pytest.mark.needs("root")),
    ],
)
def test_what_is_neither_a_file_nor_a_folder(globus: Globus, kind: str, shown: str) -> None:
    path = globus.source / "odd"
    if kind == "broken link":
        path.symlink_to("gone")
    elif kind == "link in a circle":
        path.symlink_to("odd")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert globus.transfer.operation_stat(globus.data7012, "/odd")["type"] == shown
    (entry,) = globus.transfer.operation_ls(globus.data7012, "/")
    assert (entry["name"], entry["type"]) == ("odd", shown)
    task_id = globus.submit(("/odd", "/odd"))
    fault = "FILE_NOT_FOUND" if kind == "broken link" else "ENDPOINT_ERROR"
    task = globus.wait(task_id, "nice_status", fault)
    assert (task["status"], "/odd" in task["nice_status_details"]) == ("ACTIVE", True)
    globus.transfer.cancel_task(task_id)
    globus.file("folder/a")
    path.rename(globus.source / "folder" / "odd")
    assert globus.run(("/folder", "/folder"))["files_transferred"] == 1  # left out inside a folder
    assert [p.name for p in (globus.target / "folder").iterdir()] == ["a"]


def test_paths_below_a_link_in_a_circle_are_refused(globus: Globus) -> None:
    for folder in (globus.source, globus.target):
        (folder / "circle").symlink_to("circle")
    client = globus.transfer
    calls = {
        "ExternalError.DirListingFailed": lambda: client.operation_ls(globus.data7012, "/circle"),
        "EndpointError": lambda: client.operation_stat(globus.data7012, "/circle/a"),
        "ExternalError.MkdirFailed": lambda: client.operation_mkdir(globus.data7012, "/circle/a"),
        "ExternalError.RenameFailed": lambda: client.operation_rename(globus.data7012, "/circle/a", "/b"),
    }
    for code, call in calls.items():
        error = refusal(call)
        assert (error.http_status, error.code) == (502, code)
        assert "Too many levels of symbolic links" in (error.message or "")
    globus.file("a")
    task_id = globus.submit(("/a", "/circle/a"))
    assert globus.wait(task_id, "nice_status", "ENDPOINT_ERROR")["status"] == "ACTIVE"


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("login", {"collection": "data7012", "refusal": "mood"}),
        ("login", {"collection": "data7012", "refusal": "policy"}),
        ("login", {"collection": "data7012", "refusal": "no_account", "requires": SESSION}),
        ("login", {"collection": "data7012", "refusal": "policy", "requires": {"session_required_mfa": "x"}}),
        ("login", {"collection": "data7012", "refusal": "policy", "requires": {"color": "red"}}),
        ("pause_rule", {"collection": "data7012", "message": ""}),
        ("pause_rule", {"collection": "data7012", "message": "x", "operations": ["dance"]}),
        ("pending_limit", {"limit": "many"}),
        ("task_seconds", {"seconds": -1}),
        ("endpoint", {"collection": "data7012", "condition": "tired"}),
    ],
)
def test_switches_that_do_not_exist_are_refused(globus: Globus, verb: str, body: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="400"):
        globus.facility.control("globus", verb, **body)
    globus.transfer.operation_ls(globus.data7012)


def test_the_switches_outlive_a_restart(tmp_path: Any, connect: Callable[[SpawnedFacility], Globus]) -> None:
    with spawn(tmp_path / "standin") as facility:
        globus = connect(facility)
        facility.control("globus", "login", collection="data7012", refusal="policy", requires=POLICY)
        facility.control("globus", "pause_rule", collection="nersc7012", message="moving to new disks")
        facility.control("globus", "pending_limit", limit=0)
        facility.kill()
        facility.restart()
        globus = connect(facility)
        error = refusal(lambda: globus.transfer.operation_ls(globus.data7012))
        assert error.info.authorization_parameters.session_required_mfa is True
        assert refusal(lambda: globus.transfer.operation_ls(globus.nersc7012)).code == "OperationPaused"
        facility.control("globus", "login", collection="data7012", refusal=None)
        error = refusal(lambda: globus.submit(("/a", "/a")))
        assert error.code == "ClientError.Conflict.TooManyPendingJobs"
