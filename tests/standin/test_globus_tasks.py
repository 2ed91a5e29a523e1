"""Task submission and management: what is refused, lists, events, updates, deletes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import globus_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from standin.globus.collections import DATA7012, Collections
from standin.globus.errors import TransferError
from standin.globus.model import Task
from standin.globus.submission import read_submission
from standin.settings import Settings
from standin.testing import Facility, until
from support.globus_client import Globus, codes, tree


def test_the_same_submission_twice_is_one_task(globus: Globus) -> None:
    globus.file("a")
    data = globus.data(("/a", "/a"), submission_id=globus.transfer.get_submission_id()["value"])
    first = globus.transfer.submit_transfer(data)
    second = globus.transfer.submit_transfer(data)
    globus.wait(first["task_id"])
    third = globus.transfer.submit_transfer(data)
    assert [r["code"] for r in (first, second, third)] == ["Accepted", "Duplicate", "Duplicate"]
    assert (second.http_status, third.http_status) == (200, 200)
    assert first["task_id"] == second["task_id"] == third["task_id"]
    assert len(globus.facility.transfers()) == 1


def test_update_of_label_and_deadline(globus: Globus) -> None:
    task_id = globus.submit(("/late", "/late"), label="one")
    globus.transfer.update_task(task_id, {"label": "two", "deadline": "2030-01-01 00:00:00"})
    task = globus.task(task_id)
    assert (task["label"], task["deadline"]) == ("two", "2030-01-01T00:00:00+00:00")
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        globus.transfer.update_task(task_id, {"deadline": "1987-01-22"})
    assert (caught.value.http_status, caught.value.code) == (400, "ClientError.BadRequest")
    globus.file("late")
    globus.wait(task_id)
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        globus.transfer.update_task(task_id, {"label": "three"})
    assert (caught.value.http_status, caught.value.code) == (409, "Conflict")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"DATA": []}, "ClientError.BadRequest.NoTransferItems"),
        ({"DATA": [{"DATA_TYPE": "delete_item", "path": "/a"}]}, "ClientError.BadRequest"),
        ({"DATA": ["a"]}, "ClientError.BadRequest"),
        ({"DATA_TYPE": "delete"}, "ClientError.BadRequest"),
        ({"label": "x" * 129}, "ClientError.BadRequest"),
        ({"label": "two\nlines"}, "ClientError.BadRequest"),
        ({"label": " x"}, "ClientError.BadRequest"),
        ({"sync_level": 4}, "ClientError.BadRequest"),
        ({"sync_level": True}, "ClientError.BadRequest"),
        ({"verify_checksum": "yes"}, "ClientError.BadRequest"),
        ({"deadline": "tomorrow"}, "ClientError.BadRequest"),
        ({"deadline": "2001-01-01"}, "ClientError.BadRequest"),
        ({"deadline": "9999-12-31T23:59:59-14:00"}, "ClientError.BadRequest"),
        ({"submission_id": "x"}, "ClientError.BadRequest"),
        ({"filter_rules": [{"method": "maybe", "name": "x"}]}, "ClientError.BadRequest"),
        ({"source_endpoint": 7}, "ClientError.BadRequest"),
        ({"source_endpoint": "00000000-0000-0000-0000-000000000000"}, "EndpointNotFound"),
    ],
)
def test_documents_that_are_refused(globus: Globus, change: dict[str, Any], code: str) -> None:
    globus.file("a")
    document = {**globus.data(("/a", "/a"), submission_id=globus.client_id), **change}
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        globus.transfer.post("/v0.10/transfer", data=document)
    assert (caught.value.http_status, caught.value.code) == (404 if code == "EndpointNotFound" else 400, code)
    assert globus.facility.transfers() == []


def test_delete(globus: Globus) -> None:
    for name in ("keep", "gone", "day/a", "day/b", "glob1", "glob2"):
        globus.file(name)
    (globus.source / "link").symlink_to("keep")

    def delete(*paths: str, **options: Any) -> dict[str, Any]:
        data = globus_sdk.DeleteData(globus.data7012, **options)
        for path in paths:
            data.add_item(path)
        reply = globus.transfer.submit_delete(data)
        assert reply["DATA_TYPE"] == "delete_result"
        return globus.wait(reply["task_id"])

    globs = {"additional_fields": {"interpret_globs": True}}
    task = delete("/gone", "/link")
    assert (task["type"], task["status"], task["destination_endpoint_id"]) == ("DELETE", "SUCCEEDED", None)
    assert delete("/day")["fatal_error"]["code"] == "IS_A_DIRECTORY"
    assert delete("/day", recursive=True)["status"] == "SUCCEEDED"
    assert delete("/none")["fatal_error"]["code"] == "FILE_NOT_FOUND"
    assert delete("/none", additional_fields={"ignore_missing": True})["status"] == "SUCCEEDED"
    assert delete("/glob*", **globs)["status"] == "SUCCEEDED"
    assert delete("/glob*", **globs)["fatal_error"]["code"] == "FILE_NOT_FOUND"
    assert delete("/", recursive=True)["fatal_error"]["code"] == "PERMISSION_DENIED"
    assert sorted(tree(globus.source)) == ["keep"]


def test_a_delete_does_not_follow_links_out(globus: Globus, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").touch()
    (globus.source / "out").symlink_to(tmp_path / "outside")
    for path in ("/out/secret", "/out/*"):
        data = globus_sdk.DeleteData(globus.data7012, additional_fields={"interpret_globs": True})
        data.add_item(path)
        task = globus.wait(globus.transfer.submit_delete(data)["task_id"])
        assert task["fatal_error"]["code"] == "PERMISSION_DENIED"
    data = globus_sdk.DeleteData(globus.data7012, recursive=True)
    data.add_item("/out")
    assert globus.wait(globus.transfer.submit_delete(data)["task_id"])["status"] == "SUCCEEDED"
    assert (tmp_path / "outside/secret").exists()


def test_a_task_of_nobody(globus: Globus) -> None:
    nobody = "00000000-0000-0000-0000-000000000000"
    client = globus.transfer
    for call in (
        client.get_task,
        client.cancel_task,
        client.task_event_list,
        client.task_successful_transfers,
    ):
        with pytest.raises(globus_sdk.TransferAPIError) as caught:
            call(nobody)
        assert (caught.value.http_status, caught.value.code) == (404, "ClientError.NotFound")


def test_successful_transfers_are_for_ended_transfers(globus: Globus) -> None:
    task_id = globus.submit(("/none", "/none"))
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        globus.transfer.task_successful_transfers(task_id)
    assert (caught.value.http_status, caught.value.code) == (400, "ClientError.BadRequest")


def test_events_are_paged_and_filtered(globus: Globus) -> None:
    task_id = globus.submit(("/none", "/none"))
    until(lambda: len(codes(globus, task_id)) >= 3)
    globus.transfer.cancel_task(task_id)
    every = codes(globus, task_id)
    assert (every[0], every[-1]) == ("CANCELED", "STARTED")
    assert [e["code"] for e in globus.transfer.task_event_list(task_id, limit=1, offset=1)] == [every[1]]
    errors = codes(globus, task_id, filter="is_error:1")
    assert set(errors) == {"FILE_NOT_FOUND", "CANCELED"}
    assert [e["code"] for e in globus.transfer.paginated.task_event_list(task_id).items()] == every


def test_task_list(globus: Globus) -> None:
    globus.file("a")
    done = globus.run(("/a", "/a"), label="NS_230216033")["task_id"]
    waiting = globus.submit(("/none", "/none"), label="ns_other")
    data = globus_sdk.DeleteData(globus.data7012, label="tidy")
    data.add_item("/a")
    deleted = globus.transfer.submit_delete(data)["task_id"]
    globus.wait(deleted)

    def found(wanted: Any = globus_sdk.MISSING, **options: Any) -> list[str]:
        return [task["task_id"] for task in globus.transfer.task_list(filter=wanted, **options)]

    assert found() == [waiting, done]  # transfers only, newest first
    assert found("type:TRANSFER,DELETE") == [deleted, waiting, done]
    assert found({"task_id": [done, deleted], "type": ["TRANSFER", "DELETE"]}) == [deleted, done]
    assert found(f"task_id:{done},{deleted}") == [done]
    assert found("status:ACTIVE") == [waiting]
    assert found("label:~NS_*") == [waiting, done]
    assert found("label:=NS_230216033") == [done]
    assert found("label:!~*other") == [done]
    assert found("completion_time:2001-01-01,2100-01-01") == [done]
    assert found("request_time:2100-01-01") == []
    assert found(orderby="label") == [done, waiting]
    assert found(limit=1, offset=1) == [done]
    page = globus.transfer.task_list(limit=1, query_params={"fields": "task_id,status"})
    assert (page["total"], page["limit"], page["length"]) == (2, 1, 1)
    assert page["DATA"] == [{"DATA_TYPE": "task", "task_id": waiting, "status": "ACTIVE"}]
    assert [t["task_id"] for t in globus.transfer.paginated.task_list().items()] == [waiting, done]
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        found("color:red")
    assert (caught.value.http_status, caught.value.code) == (400, "ClientError.BadRequest")


def test_many_ids_in_one_request(globus: Globus) -> None:
    globus.file("a")
    ids = [globus.submit(("/a", f"/{n}")) for n in range(60)]
    for task_id in ids:
        globus.wait(task_id)
    page = globus.transfer.task_list(filter={"task_id": ids}, limit=1000)
    assert sorted(t["task_id"] for t in page) == sorted(ids)
    assert all(t["status"] == "SUCCEEDED" for t in page)


def test_bad_switches_are_refused(facility: Facility) -> None:
    for verb, body, message in (
        ("endpoint", {"collection": "x"}, "it must be one of data7012, nersc7012"),
        ("endpoint", {"collection": "data7012", "condition": "sleepy"}, "condition must be one of up,"),
        ("quota", {"collection": "data7012", "bytes_left": -1}, "bytes_left must be a number"),
        ("deny", {"collection": "data7012", "path": "/.."}, "contains '..'"),
        ("deny", {"collection": "data7012", "rights": ["fly"]}, "rights must be"),
        ("bandwidth", {"bytes_per_second": 0}, "bytes_per_second must be a number above 0"),
        ("token_seconds", {"seconds": 0}, "seconds must be a whole number"),
        ("corrupt", {"times": -1}, "times must be a number"),
        ("pause", {"task_id": "x"}, "There is no task 'x'"),
    ):
        with pytest.raises(RuntimeError, match="400") as caught:
            facility.control("globus", verb, **body)
        assert message in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
TRANSFER: dict[str, Any] = {
    "DATA_TYPE": "transfer",
    "submission_id": "00000000-0000-0000-0000-000000000000",
    "source_endpoint": DATA7012,
    "destination_endpoint": DATA7012,
    "DATA": [{"DATA_TYPE": "transfer_item", "source_path": "/a", "destination_path": "/b"}],
}
ITEM_KEYS = ["source_path", "destination_path", "recursive", "external_checksum", "checksum_algorithm"]
KEYS = [*TRANSFER, "label", "deadline", "sync_level", "verify_checksum", "filter_rules", "source_local_user"]


@given(
    st.dictionaries(st.sampled_from(KEYS), json_values, max_size=2),
    st.dictionaries(st.sampled_from(ITEM_KEYS), json_values, max_size=2),
)
def test_any_document_is_taken_or_refused(changes: dict[str, Any], item: dict[str, Any]) -> None:
    document = {**TRANSFER, "DATA": [{**TRANSFER["DATA"][0], **item}], **changes}
    collections = Collections(Settings(root=Path("unused")), "owner")
    status = 0
    try:
        task = read_submission(document, "TRANSFER", "owner", collections)
    except TransferError as error:
        status = error.status
    else:
        assert Task.from_record(task.to_record()).document == task.document
    assert status in (0, 400, 404)
