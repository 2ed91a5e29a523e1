"""Transfers that meet trouble: missing files, endpoints down, quota, pauses, cancels, deadlines, queues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import globus_sdk
import pytest

from standin.testing import running, until
from support.globus_client import Globus, codes, soon, tree


def test_a_damaged_copy_is_found_and_made_again(globus: Globus) -> None:
    globus.file("a", b"good content")
    globus.facility.control("globus", "corrupt", times=2)
    task = globus.run(("/a", "/a"), verify_checksum=True)
    assert (task["status"], task["faults"], task["files_transferred"]) == ("SUCCEEDED", 2, 1)
    assert (globus.target / "a").read_bytes() == b"good content"
    assert codes(globus, task["task_id"], filter="is_error:1") == ["VERIFY_CHECKSUM"] * 2


def test_without_verification_damage_goes_unnoticed(globus: Globus) -> None:
    globus.file("a", b"good content")
    globus.facility.control("globus", "corrupt", times=1)
    task = globus.run(("/a", "/a"))  # globus-sdk leaves verify_checksum out unless it is asked for
    assert (task["status"], task["faults"]) == ("SUCCEEDED", 0)
    assert (globus.target / "a").read_bytes() != b"good content"


def test_a_lost_reply_is_mended_by_the_submission_id(globus: Globus) -> None:
    globus.file("a")
    globus.facility.fault(method="POST", path="/transfer$", kind="drop_reply", times=1)
    data = globus.data(("/a", "/a"), submission_id=globus.transfer.get_submission_id()["value"])
    with pytest.raises(globus_sdk.GlobusConnectionError):
        globus.transfer.submit_transfer(data)
    assert globus.transfer.submit_transfer(data)["code"] == "Duplicate"
    (line,) = globus.facility.transfers()
    assert globus.wait(line["task_id"])["status"] == "SUCCEEDED"
    assert globus.book(line["task_id"])["files_moved"] == 1


def test_the_sdk_sends_a_transfer_again_by_itself(globus: Globus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("globus_sdk.transport.requests.time.sleep", lambda _: None)
    globus.file("a")
    for kind in ("drop_reply", "status", "truncate"):
        globus.facility.fault(method="POST", path="/transfer$", kind=kind, times=1)
    reply = globus.client(max_retries=5).submit_transfer(globus.data(("/a", "/a")))
    assert reply["code"] == "Duplicate"
    assert len(globus.facility.transfers()) == 1


def test_identical_paths_conflict_until_the_first_has_ended(globus: Globus) -> None:
    first = globus.submit(("/late", "/late"))
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        globus.submit(("/other", "/other"), ("//late", "/./late"))
    assert (caught.value.http_status, caught.value.code) == (409, "Conflict")
    assert caught.value.message == "A transfer with identical paths has not yet completed"
    globus.submit(("/late", "/elsewhere"))
    globus.file("late")
    assert globus.wait(first)["status"] == "SUCCEEDED"
    assert globus.run(("/late", "/late"))["status"] == "SUCCEEDED"


def test_the_pending_limit(tmp_path: Path, connect: Any) -> None:
    with running(tmp_path / "f", pending_limit=3) as facility:
        globus = connect(facility)
        tasks = [globus.submit((f"/{n}", f"/{n}")) for n in range(3)]
        with pytest.raises(globus_sdk.TransferAPIError) as caught:
            globus.submit(("/x", "/x"))
        assert (caught.value.http_status, caught.value.code) == (
            409,
            "ClientError.Conflict.TooManyPendingJobs",
        )
        globus.transfer.cancel_task(tasks[0])
        globus.submit(("/x", "/x"))


def test_a_missing_source_waits_and_goes_on_when_it_comes(globus: Globus) -> None:
    globus.file("there", b"1")
    task_id = globus.submit(("/there", "/there"), ("/late", "/late"))
    task = globus.wait(task_id, "nice_status", "FILE_NOT_FOUND")
    assert (task["status"], task["is_ok"], task["completion_time"]) == ("ACTIVE", False, None)
    assert task["faults"] >= 1
    assert "/late" in task["nice_status_details"]
    assert task["subtasks_retrying"] == 1
    until(lambda: globus.task(task_id)["files_transferred"] == 1)  # the others are not held up
    globus.file("late", b"2")
    done = globus.wait(task_id)
    assert (done["status"], done["files_transferred"]) == ("SUCCEEDED", 2)
    assert tree(globus.target) == {"there": b"1", "late": b"2"}
    line = globus.book(task_id)
    assert (line["files_moved"], line["runs"] >= 2) == (2, True)


def test_a_missing_source_leaves_no_folders(globus: Globus) -> None:
    task_id = globus.submit(("/none/a", "/deep/er/a"))
    globus.wait(task_id, "nice_status", "FILE_NOT_FOUND")
    assert list(globus.target.iterdir()) == []


def test_the_deadline_ends_a_task(globus: Globus) -> None:
    task_id = globus.submit(("/none", "/none"))
    reply = globus.transfer.update_task(task_id, {"DATA_TYPE": "task", "deadline": soon(1.0)})
    assert reply["code"] == "Updated"
    task = globus.wait(task_id)
    assert (task["status"], task["fatal_error"]) == ("FAILED", {"code": "EXPIRED", "description": "expired"})
    assert (task["subtasks_expired"], task["subtasks_pending"], task["subtasks_canceled"]) == (1, 0, 0)
    assert codes(globus, task_id)[0] == "EXPIRED"


def test_the_deadline_interrupts_a_copy(globus: Globus) -> None:
    globus.facility.control("globus", "bandwidth", bytes_per_second=1000)
    globus.file("a", b"x" * 100_000)
    task_id = globus.submit(("/a", "/a"), deadline=soon(1.0))
    globus.wait(task_id, "nice_status", "OK")
    assert globus.wait(task_id)["fatal_error"]["code"] == "EXPIRED"
    assert list(globus.target.iterdir()) == []


def test_cancel_in_the_middle_of_a_file(globus: Globus) -> None:
    globus.facility.control("globus", "bandwidth", bytes_per_second=20_000)
    globus.file("done", b"x")
    globus.file("a", b"x" * 1_000_000)
    task_id = globus.submit(("/done", "/done"), ("/a", "/a"))
    until(lambda: globus.task(task_id)["bytes_transferred"] > 2000)
    assert globus.transfer.cancel_task(task_id)["code"] == "Canceled"
    task = globus.task(task_id)
    assert (task["status"], task["fatal_error"]) == (
        "FAILED",
        {"code": "CANCELED", "description": "canceled"},
    )
    assert task["subtasks_canceled"] >= 1
    assert sorted(p.name for p in globus.target.iterdir()) == ["done"]  # no half file
    line = globus.book(task_id)
    assert (line["canceled_by"], line["files_moved"]) == ("user", 1)
    assert globus.transfer.cancel_task(task_id)["code"] == "TaskComplete"


def test_cancel_of_a_finished_task(globus: Globus) -> None:
    globus.file("a")
    task_id = globus.run(("/a", "/a"))["task_id"]
    assert globus.transfer.cancel_task(task_id)["code"] == "TaskComplete"
    assert globus.task(task_id)["status"] == "SUCCEEDED"
    assert globus.book(task_id)["canceled_by"] is None


def test_cancel_by_the_endpoints_manager(globus: Globus) -> None:
    task_id = globus.submit(("/late", "/late"))
    assert (
        globus.facility.control("globus", "cancel", task_id=task_id, message="enough")["code"] == "Canceled"
    )
    task = globus.task(task_id)
    assert (task["canceled_by_admin"], task["canceled_by_admin_message"]) == ("SOURCE", "enough")


def test_pause_and_resume(globus: Globus) -> None:
    globus.facility.control("globus", "bandwidth", bytes_per_second=20_000)
    globus.file("a", b"x" * 1_000_000)
    task_id = globus.submit(("/a", "/a"))
    assert globus.transfer.task_pause_info(task_id)["source_pause_message"] is None
    until(lambda: globus.task(task_id)["bytes_transferred"] > 0)
    globus.facility.control("globus", "pause", task_id=task_id, message="maintenance")
    task = globus.task(task_id)
    assert (task["status"], task["is_paused"], task["nice_status"]) == ("ACTIVE", True, "PAUSED")
    assert globus.transfer.task_pause_info(task_id)["source_pause_message"] == "maintenance"
    globus.facility.control("globus", "bandwidth", bytes_per_second=None)
    assert globus.task(task_id)["bytes_transferred"] == 0  # it does not go on by itself
    globus.facility.control("globus", "resume", task_id=task_id)
    assert globus.wait(task_id)["status"] == "SUCCEEDED"
    assert codes(globus, task_id) == ["SUCCEEDED", "PROGRESS", "UNPAUSED", "PAUSED", "STARTED"]


def test_pause_by_the_collections_manager_with_the_sdk(globus: Globus) -> None:
    task_id = globus.submit(("/late", "/late"))
    globus.transfer.endpoint_manager_pause_tasks([task_id], "maintenance")
    globus.file("late")
    assert globus.transfer.task_pause_info(task_id)["source_pause_message"] == "maintenance"
    assert globus.task(task_id)["is_paused"] is True
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        globus.transfer.endpoint_manager_resume_tasks([task_id, globus.client_id])
    assert (caught.value.http_status, caught.value.code) == (404, "ClientError.NotFound")
    assert globus.task(task_id)["is_paused"] is True  # nothing happened to the one that is known
    globus.transfer.endpoint_manager_resume_tasks([task_id])
    assert globus.wait(task_id)["status"] == "SUCCEEDED"


def test_a_suspended_task_is_inactive(globus: Globus) -> None:
    task_id = globus.submit(("/late", "/late"))
    globus.facility.control("globus", "suspend", task_id=task_id)
    task = globus.task(task_id)
    assert (task["status"], task["is_ok"], task["nice_status"]) == ("INACTIVE", False, "NO_CREDENTIALS")
    assert globus.transfer.task_wait(task_id, timeout=1, polling_interval=1)  # the SDK takes it for an end
    globus.file("late")
    globus.facility.control("globus", "resume", task_id=task_id)
    assert globus.wait(task_id)["status"] == "SUCCEEDED"


@pytest.mark.parametrize("condition", ["gc_not_connected", "endpoint_error"])
def test_an_endpoint_that_is_down_holds_a_task(globus: Globus, condition: str) -> None:
    globus.file("a")
    globus.facility.control("globus", "endpoint", collection="nersc7012", condition=condition)
    task_id = globus.submit(("/a", "/a"))
    assert globus.wait(task_id, "nice_status", condition.upper())["status"] == "ACTIVE"
    globus.facility.control("globus", "endpoint", collection="nersc7012", condition="up")
    assert globus.wait(task_id)["status"] == "SUCCEEDED"


def test_an_endpoint_that_goes_down_in_mid_copy(globus: Globus) -> None:
    globus.facility.control("globus", "bandwidth", bytes_per_second=20_000)
    globus.file("a", b"x" * 1_000_000)
    task_id = globus.submit(("/a", "/a"))
    until(lambda: globus.task(task_id)["bytes_transferred"] > 0)
    globus.facility.control("globus", "endpoint", collection="data7012", condition="gc_not_connected")
    globus.wait(task_id, "nice_status", "GC_NOT_CONNECTED")
    globus.facility.control("globus", "bandwidth", bytes_per_second=None)
    globus.facility.control("globus", "endpoint", collection="data7012", condition="up")
    assert globus.wait(task_id)["files_transferred"] == 1


def test_an_endpoint_that_refuses_submissions(globus: Globus) -> None:
    globus.facility.control(
        "globus", "endpoint", collection="data7012", condition="gc_not_connected", refuse_submissions=True
    )
    with pytest.raises(globus_sdk.TransferAPIError) as caught:
        globus.submit(("/a", "/a"))
    assert (caught.value.http_status, caught.value.code) == (409, "GCDisconnectedException")


def test_quota(globus: Globus) -> None:
    globus.file("big", b"x" * 100)
    globus.file("small", b"x" * 10)
    globus.facility.control("globus", "quota", collection="nersc7012", bytes_left=50)
    task_id = globus.submit(("/big", "/big"), ("/small", "/small"))
    assert globus.wait(task_id, "nice_status", "QUOTA_EXCEEDED")["status"] == "ACTIVE"
    until(lambda: sorted(tree(globus.target)) == ["small"])
    with_failure = globus.run(("/big", "/other"), fail_on_quota_errors=True)
    assert (with_failure["status"], with_failure["fatal_error"]["code"]) == ("FAILED", "QUOTA_EXCEEDED")
    globus.facility.control("globus", "quota", collection="nersc7012", bytes_left=None)
    assert globus.wait(task_id)["status"] == "SUCCEEDED"


def test_permissions(globus: Globus) -> None:
    globus.file("secret/a", b"1")
    globus.file("open/b", b"2")
    globus.facility.control("globus", "deny", collection="data7012", path="/secret", rights=["read"])
    globus.facility.control("globus", "deny", collection="nersc7012", path="/locked", rights=["write"])
    reading = globus.submit(("/secret/a", "/a"))
    writing = globus.submit(("/open/b", "/locked/b"))
    for task_id in (reading, writing):
        assert globus.wait(task_id, "nice_status", "PERMISSION_DENIED")["status"] == "ACTIVE"
    assert tree(globus.target) == {}
    for collection in ("data7012", "nersc7012"):
        globus.facility.control("globus", "allow", collection=collection)
    for task_id in (reading, writing):
        assert globus.wait(task_id)["status"] == "SUCCEEDED"


def test_skipped_source_errors(globus: Globus) -> None:
    globus.file("t/a", b"1")
    globus.file("t/secret/b", b"2")
    globus.facility.control("globus", "deny", collection="data7012", path="/t/secret", rights=["read"])
    data = globus.data(("/none", "/none"), skip_source_errors=True)
    data.add_item("/t", "/t", recursive=True)
    task = globus.wait(globus.transfer.submit_transfer(data)["task_id"])
    assert (task["status"], task["subtasks_skipped_errors"], task["files_transferred"]) == ("SUCCEEDED", 2, 1)
    skipped = {e["source_path"]: e for e in globus.transfer.task_skipped_errors(task["task_id"])}
    assert {path: e["error_code"] for path, e in skipped.items()} == {
        "/none": "FILE_NOT_FOUND",
        "/t/secret": "PERMISSION_DENIED",
    }
    assert skipped["/t/secret"]["is_directory"] is True
    assert [d["source_path"] for d in globus.transfer.task_successful_transfers(task["task_id"])] == ["/t/a"]


def test_a_symlink_does_not_lead_a_transfer_out(globus: Globus, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (globus.source / "out").symlink_to(tmp_path / "outside")
    (globus.target / "out").symlink_to(tmp_path / "outside")
    globus.file("a")
    for pair in (("/out/secret", "/got"), ("/a", "/out/planted"), ("/out", "/got")):
        task_id = globus.submit(pair)
        globus.wait(task_id, "nice_status", "PERMISSION_DENIED")
        globus.transfer.cancel_task(task_id)
    assert sorted(p.name for p in (tmp_path / "outside").iterdir()) == ["secret"]
    assert sorted(p.name for p in globus.target.iterdir()) == ["out"]


def test_files_taken_for_folders_and_folders_for_files(globus: Globus) -> None:
    globus.file("file")
    globus.file("folder/a")
    (globus.target / "folder").mkdir()
    (globus.target / "plain").write_text("x")

    def trouble(source: str, target: str, **options: Any) -> str:
        data = globus.data()
        data.add_item(source, target, **options)
        task_id = globus.transfer.submit_transfer(data)["task_id"]
        code = globus.wait(task_id, "is_ok", False)["nice_status"]
        globus.transfer.cancel_task(task_id)
        return str(code)

    assert trouble("/file", "/x", recursive=True) == "NOT_A_DIRECTORY"
    assert trouble("/file/", "/x") == "NOT_A_DIRECTORY"
    assert trouble("/folder", "/x", recursive=False) == "IS_A_DIRECTORY"
    assert trouble("/file", "/folder") == "IS_A_DIRECTORY"
    assert trouble("/file", "/new/") == "IS_A_DIRECTORY"
    assert trouble("/folder", "/plain") == "NOT_A_DIRECTORY"
    assert trouble("/file", "/plain/x") == "NOT_A_DIRECTORY"


def test_three_run_and_the_rest_is_queued(globus: Globus) -> None:
    globus.facility.control("globus", "bandwidth", bytes_per_second=1000)
    tasks = []
    for number in range(5):
        globus.file(str(number), b"x" * 10_000)
        tasks.append(globus.submit((f"/{number}", f"/{number}")))
    until(lambda: [globus.task(t)["nice_status"] for t in tasks] == ["OK", "OK", "OK", "Queued", "Queued"])
    assert globus.task(tasks[4])["is_ok"] is True
    globus.transfer.cancel_task(tasks[0])
    globus.wait(tasks[3], "nice_status", "OK")
    globus.facility.control("globus", "bandwidth", bytes_per_second=None)
    assert [globus.wait(t)["status"] for t in tasks[1:]] == ["SUCCEEDED"] * 4


def test_tasks_in_trouble_do_not_hold_up_others(globus: Globus) -> None:
    stuck = [globus.submit((f"/none{n}", f"/none{n}")) for n in range(4)]
    for task_id in stuck:
        globus.wait(task_id, "nice_status", "FILE_NOT_FOUND")
    globus.file("a")
    assert globus.run(("/a", "/a"))["status"] == "SUCCEEDED"


def test_a_source_that_changes_while_it_is_copied(globus: Globus) -> None:
    globus.facility.control("globus", "bandwidth", bytes_per_second=10_000)
    local = globus.file("a", b"x" * 40_000)
    task_id = globus.submit(("/a", "/a"))
    until(lambda: globus.task(task_id)["bytes_transferred"] > 0)
    with local.open("ab") as file:
        file.write(b"more")
    globus.facility.control("globus", "bandwidth", bytes_per_second=None)
    assert globus.wait(task_id)["bytes_transferred"] == 40_004
    assert codes(globus, task_id, filter="is_error:1") == ["FILE_SIZE_CHANGED"]
    assert (globus.target / "a").read_bytes() == local.read_bytes()


def overwritten_while_it_is_copied(globus: Globus, **options: Any) -> tuple[dict[str, Any], Path]:
    """A file whose first bytes are written anew after they were copied; its size stays."""
    globus.facility.control("globus", "bandwidth", bytes_per_second=10_000)
    local = globus.file("a", b"x" * 40_000)
    task_id = globus.submit(("/a", "/a"), **options)
    until(lambda: globus.task(task_id)["bytes_transferred"] > 0)
    with local.open("r+b") as file:
        file.write(b"new")
    globus.facility.control("globus", "bandwidth", bytes_per_second=None)
    return globus.wait(task_id), local


def test_verification_reads_the_source_again(globus: Globus) -> None:
    task, local = overwritten_while_it_is_copied(globus, verify_checksum=True)
    assert (task["status"], task["faults"], task["files_transferred"]) == ("SUCCEEDED", 1, 1)
    assert codes(globus, task["task_id"], filter="is_error:1") == ["VERIFY_CHECKSUM"]
    assert local.read_bytes().startswith(b"new")
    assert (globus.target / "a").read_bytes() == local.read_bytes()


def test_without_verification_a_file_that_is_overwritten_arrives_in_part(globus: Globus) -> None:
    task, local = overwritten_while_it_is_copied(globus)
    assert (task["status"], task["faults"]) == ("SUCCEEDED", 0)
    assert (globus.target / "a").read_bytes() != local.read_bytes()
