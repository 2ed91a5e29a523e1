"""SFAPI's answers as they are on the wire: shapes, errors, limits, outages."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sfapi_client._models.job_status_response_sacct import OutputItem as SacctItem
from sfapi_client._models.job_status_response_squeue import OutputItem as SqueueItem

from standin.nersc.paths import NoSuchPathError, locate
from standin.nersc.schedulers.rows import SACCT_COLUMNS, SQUEUE_COLUMNS
from standin.testing import until
from support.nersc import Nersc, end_jobs, nersc_running, script

RAW = (Path(__file__).parent / "slurm_headings.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def nersc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nersc]:
    """One facility for the module."""
    with nersc_running(tmp_path_factory.mktemp("shapes")) as made:
        yield made


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Nersc]:
    """A facility of the test's own."""
    with nersc_running(tmp_path) as made:
        yield made


def test_columns_are_those_of_slurm() -> None:
    assert list(SACCT_COLUMNS) == RAW[0].lower().split("|")
    assert list(SQUEUE_COLUMNS) == list(dict.fromkeys(RAW[1].lower().split("|")))
    assert set(SacctItem.model_fields) | {"container", "submitline"} == set(SACCT_COLUMNS)
    known = {field.alias or name for name, field in SqueueItem.model_fields.items()}
    assert known - set(SQUEUE_COLUMNS) == {"field_"}


@pytest.mark.both
def test_submit_and_task_on_the_wire(nersc: Nersc) -> None:
    form = {"job": script("sleep 60", directives="-t 10"), "isPath": "false"}
    reply = nersc.call("POST", "compute/jobs/perlmutter", data=form).json()
    assert set(reply) == {"task_id", "status", "error"}
    assert (reply["status"], reply["error"], type(reply["task_id"])) == ("OK", None, str)
    nersc.result(reply["task_id"])
    task = nersc.get(f"tasks/{reply['task_id']}")
    assert set(task) == {"id", "status", "result"}
    assert isinstance(task["result"], str)
    result = json.loads(task["result"])
    assert result == {"status": "ok", "jobid": result["jobid"], "error": None}
    assert type(result["jobid"]) is str
    for view, columns in (("squeue", SQUEUE_COLUMNS), ("sacct", SACCT_COLUMNS)):
        until(partial(nersc.row, view, result["jobid"]))
        answer = nersc.list(view, jobid=result["jobid"])
        assert set(answer) == {"status", "output", "error"}
        assert set(answer["output"][0]) == set(columns)
        assert all(type(value) is str for value in answer["output"][0].values())
    row = nersc.row("squeue", result["jobid"])
    assert (row["group"], row["uid"]) == (str(os.getgid()), str(os.getuid()))
    assert row["priority"].isdigit()
    cancelled = nersc.call("DELETE", f"compute/jobs/perlmutter/{result['jobid']}").json()
    assert set(cancelled) == {"task_id", "status", "error"}
    assert nersc.result(cancelled["task_id"]) == {"status": "ok", "output": "", "error": ""}
    nersc.ended(result["jobid"])


@pytest.mark.parametrize(
    ("executable", "result"),
    [
        ("true", {"status": "ok", "output": "", "error": "", "exit_code": 0}),
        ("bash -c 'echo out; echo err >&2; exit 3'",
         {"status": "error", "output": "out\n", "error": "err\n", "exit_code": 3}),
    ],
)  # fmt: skip
def test_what_a_command_wrote_is_text(nersc: Nersc, executable: str, result: dict[str, Any]) -> None:
    reply = nersc.call("POST", "utilities/command/perlmutter", data={"executable": executable}).json()
    assert nersc.result(reply["task_id"]) == result


def test_finished_tasks_vanish(own: Nersc) -> None:
    reply = own.call("POST", "utilities/command/perlmutter", data={"executable": "true"}).json()
    own.result(reply["task_id"])
    own.control("set", task_keep=0.0)
    until(lambda: own.call("GET", f"tasks/{reply['task_id']}").status_code == 404)
    assert own.call("GET", f"tasks/{reply['task_id']}").json()["detail"].endswith("not found")
    assert own.call("GET", "tasks/nonsense").status_code == 404
    assert own.call("DELETE", "tasks/nonsense").status_code == 404
    assert own.get("tasks") == {"tasks": []}


def test_a_task_can_be_cancelled(nersc: Nersc) -> None:
    reply = nersc.call("POST", "utilities/command/perlmutter", data={"executable": "sleep 60"}).json()
    assert nersc.get(f"tasks/{reply['task_id']}")["status"] == "new"
    nersc.call("DELETE", f"tasks/{reply['task_id']}")
    assert nersc.get(f"tasks/{reply['task_id']}") == {
        "id": reply["task_id"],
        "status": "cancelled",
        "result": None,
    }


def test_a_task_that_waits(own: Nersc) -> None:
    own.control("set", task_delay=0.3)
    form = {"job": script("true"), "isPath": "false"}
    reply = own.call("POST", "compute/jobs/perlmutter", data=form).json()
    assert own.get(f"tasks/{reply['task_id']}") == {"id": reply["task_id"], "status": "new", "result": None}
    assert own.facility.jobs() == []
    assert own.result(reply["task_id"])["status"] == "ok"


@pytest.mark.parametrize(
    ("method", "path", "parameters", "loc"),
    [
        ("POST", "compute/jobs/perlmutter", {"data": {"isPath": "false"}}, ["body", "job"]),
        ("POST", "compute/jobs/perlmutter", {"data": {"job": "x"}}, ["body", "isPath"]),
        ("POST", "compute/jobs/perlmutter", {"data": {"job": "x", "isPath": "maybe"}}, ["body", "isPath"]),
        ("POST", "compute/jobs/cori", {"data": {"job": "x", "isPath": "false"}}, ["path", "machine"]),
        ("GET", "compute/jobs/cori", {}, ["path", "machine"]),
        ("GET", "compute/jobs/perlmutter", {"params": {"sacct": "perhaps"}}, ["query", "sacct"]),
        ("GET", "compute/jobs/perlmutter", {"params": {"limit": "-1"}}, ["query", "limit"]),
        ("GET", "compute/jobs/perlmutter", {"params": {"index": "x"}}, ["query", "index"]),
        ("POST", "utilities/command/perlmutter", {"data": {}}, ["body", "executable"]),
        ("PUT", "utilities/upload/perlmutter//x", {"files": {"other": b""}}, ["body", "file"]),
        ("POST", "storage/globus/transfer", {"data": {"source_uuid": "dtn"}}, ["body", "target_uuid"]),
    ],
)
def test_invalid_requests(
    nersc: Nersc, method: str, path: str, parameters: dict[str, Any], loc: list[str]
) -> None:
    reply = nersc.call(method, path, **parameters)
    assert reply.status_code == 422
    (detail,) = reply.json()["detail"]
    assert (detail["loc"], set(detail)) == (loc, {"loc", "msg", "type"})


def test_machines_without_a_batch_system(nersc: Nersc) -> None:
    form = {"job": script(), "isPath": "false"}
    for reply in (
        nersc.call("POST", "compute/jobs/dtns", data=form),
        nersc.call("DELETE", "compute/jobs/dtns/1"),
        nersc.call("GET", "compute/jobs/dtns"),
    ):
        assert (reply.status_code, reply.json()["status"]) == (200, "ERROR")
    assert nersc.call("GET", "status/nosuch").status_code == 404
    assert nersc.list("squeue", jobid="x")["status"] == "ERROR"
    bad = nersc.get("compute/jobs/perlmutter", params={"kwargs": "nonsense"})
    assert bad == {"status": "ERROR", "output": [], "error": "Invalid argument: nonsense"}


def test_paths_need_their_slash_and_stay_inside(nersc: Nersc) -> None:
    home = nersc.described["home"]
    (Path(home) / "a b%2Fc").write_text("odd")
    (Path(home) / "out").symlink_to("/etc")
    assert nersc.get(f"utilities/ls/perlmutter/{home}")["status"] == "OK"
    assert "//" in f"utilities/ls/perlmutter/{home}"
    one_slash = nersc.get(f"utilities/ls/perlmutter{home}")
    assert (one_slash["status"], one_slash["entries"]) == ("ERROR", [])
    assert one_slash["error"].endswith("No such file or directory")
    quoted = f"{home}/a%20b%252Fc"
    assert nersc.get(f"utilities/download/perlmutter/{quoted}")["file"] == "odd"
    for outside in (
        "/etc/passwd",
        f"{home}/out/passwd",
        f"{home}/%2e%2e/%2e%2e/%2e%2e/state/nersc.sqlite",
        "/",
    ):
        assert nersc.get(f"utilities/download/perlmutter/{outside}")["status"] == "ERROR"
        assert nersc.get(f"utilities/ls/perlmutter/{outside}")["status"] == "ERROR"
        reply = nersc.call("PUT", f"utilities/upload/perlmutter/{outside}", files={"file": b"x"})
        assert reply.json()["status"] == "ERROR"


def test_listing_of_folders_files_and_links(nersc: Nersc) -> None:
    folder = Path(nersc.described["home"]) / "listed"
    folder.mkdir()
    (folder / "file").write_text("12345")
    (folder / "link").symlink_to("file")
    entries = nersc.get(f"utilities/ls/perlmutter/{folder}")["entries"]
    assert [entry["name"] for entry in entries] == [".", "..", "file", "link -> file"]
    assert [entry["perms"][0] for entry in entries] == ["d", "d", "-", "l"]
    assert set(entries[2]) == {"perms", "hardlinks", "user", "group", "size", "date", "name"}
    assert entries[2]["size"] == 5.0
    (file,) = nersc.get(f"utilities/ls/perlmutter/{folder}/file")["entries"]
    assert file["name"] == f"{folder}/file"
    (link,) = nersc.get(f"utilities/ls/perlmutter/{folder}/link")["entries"]
    assert link["name"] == f"{folder}/link -> file"


def test_cap_on_downloads_and_uploads(nersc: Nersc) -> None:
    path = Path(nersc.described["home"]) / "big"
    most = 5_242_880
    for size, status in ((most, "OK"), (most + 1, "ERROR")):
        reply = nersc.call("PUT", f"utilities/upload/perlmutter/{path}", files={"file": bytes(size)}).json()
        assert reply["status"] == status
        assert path.stat().st_size == most
    answer = nersc.get(f"utilities/download/perlmutter/{path}", params={"binary": "true"})
    assert len(base64.b64decode(answer["file"])) == most
    path.write_bytes(bytes(most + 1))
    answer = nersc.get(f"utilities/download/perlmutter/{path}", params={"binary": "true"})
    assert answer["status"] == "ERROR"
    assert "the limit is 5242880" in answer["error"]
    path.write_bytes(b"\xff")
    assert nersc.get(f"utilities/download/perlmutter/{path}")["status"] == "ERROR"


def test_uploads_that_cannot_be(nersc: Nersc) -> None:
    home = nersc.described["home"]

    def error(path: str) -> str:
        reply = nersc.call("PUT", f"utilities/upload/perlmutter/{path}", files={"file": b"12345"}).json()
        assert reply["status"] == "ERROR"
        return str(reply["error"])

    assert error(home).endswith("Is a directory")
    assert error(f"{home}/missing/x").endswith("No such file or directory")
    nersc.control("set", quota_bytes=4)
    assert error(f"{home}/quota").endswith("Disk quota exceeded")
    nersc.control("set", quota_bytes=None)
    assert not (Path(home) / "quota").exists()


def test_maintenance(own: Nersc) -> None:
    job_id = own.submit(script("sleep 60", directives="-t 40"))
    until(lambda: own.state(job_id) == "RUNNING")
    own.control("maintenance", start_in=20, seconds=60, description="monthly")  # 20 s are 33 min of limit
    held = own.submit(script("true", directives="-t 45"))
    fits = own.submit(script("true", directives="-t 5"))
    own.wait_for(fits, "COMPLETED")
    assert own.row("squeue", held)["reason"] == "ReqNodeNotAvail, Reserved for maintenance"
    own.control("end_maintenance")
    own.wait_for(held, "COMPLETED")
    own.control("maintenance", seconds=60, description="monthly", announced=False)
    for method, path in (
        ("GET", "compute/jobs/perlmutter"),
        ("POST", "compute/jobs/perlmutter"),
        ("DELETE", f"compute/jobs/perlmutter/{job_id}"),
        ("GET", f"utilities/ls/perlmutter/{own.described['home']}"),
        ("POST", "utilities/command/perlmutter"),
        ("GET", "tasks/1"),
    ):
        reply = own.call(
            method, path, data={"job": script(), "isPath": "false"} if method == "POST" else None
        )
        assert (reply.status_code, reply.json()["detail"]) == (503, "perlmutter is unavailable: monthly")
    status = own.get("status/perlmutter")
    assert (status["status"], status["notes"][0].endswith("monthly")) == ("unavailable", True)
    assert own.get("account/clients")
    assert own.get(f"utilities/ls/dtns/{own.described['home']}")["status"] == "OK"
    own.control("end_maintenance")
    assert own.state(job_id) == "RUNNING"  # it went on
    end_jobs(own)


def test_api_down_takes_everything_but_the_token_endpoint(nersc: Nersc) -> None:
    nersc.control("api_down", status=500)
    for path in ("status/perlmutter", "account/", "compute/jobs/perlmutter"):
        assert nersc.call("GET", path).status_code == 500
    assert nersc.ask_token().status_code == 200
    nersc.control("api_up")
    assert nersc.get("status/perlmutter")["status"] == "active"
    nersc.control("api_down", seconds=2.0)
    assert nersc.call("GET", "status").status_code == 503
    until(lambda: nersc.call("GET", "status").status_code == 200)


@pytest.mark.both
def test_a_lost_reply_leaves_one_job(nersc: Nersc) -> None:
    token = nersc.token
    nersc.facility.fault(service="nersc", method="POST", path="compute/jobs", kind="drop_reply", times=1)
    form = {"job": script("true", directives="-J lost"), "isPath": "false"}
    with pytest.raises(httpx.TransportError):
        nersc.http.post(
            f"{nersc.described['api_url']}/compute/jobs/perlmutter",
            data=form,
            headers={"Authorization": f"Bearer {token}"},
        )
    until(lambda: nersc.list("sacct", user=nersc.described["user"], name="lost")["output"])
    assert [job["name"] for job in nersc.facility.jobs()].count("lost") == 1


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["..", ".", "a", "in", "out", "", "x\n", "$(x)", "'", "\0"]), max_size=8),
    st.booleans(),
)
def test_no_path_leads_out(tmp_path_factory: pytest.TempPathFactory, parts: list[str], follow: bool) -> None:
    root = tmp_path_factory.getbasetemp() / "confined"
    (root / "in").mkdir(parents=True, exist_ok=True)
    if not (root / "out").is_symlink():
        (root / "out").symlink_to("/")
    for start in (f"{root}/", "/", ""):
        try:
            found = locate(root.resolve(), start + "/".join(parts), follow=follow)
        except NoSuchPathError:
            continue
        assert found.resolve().is_relative_to(root.resolve()) or (found == root / "out" and not follow)
