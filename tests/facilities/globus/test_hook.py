"""The hook against the stand-in: every call, every refusal, and what a user reads then."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from facilities.errors import (
    CredentialsError,
    FacilityError,
    NotFoundError,
    TransientError,
    UserError,
)
from facilities.globus.connection import CONNECTION_TYPE, GlobusSettings
from facilities.globus.errors import SubmissionConflictError
from facilities.globus.hook import GlobusHook
from facilities.globus.submission import DeleteRequest
from standin.testing import Facility, until
from support.globus import CONN_ID, Place, transfer_request, use_connection

REPOSITORY = Path(__file__).resolve().parents[3]


def wait_for_end(hook: GlobusHook, task_id: str) -> Any:
    end = time.monotonic() + 60
    while not (task := hook.get_task(task_id)).is_final:
        assert time.monotonic() < end, f"still {task}"
        threading.Event().wait(0.02)
    return task


def test_a_transfer_and_a_delete(hook: GlobusHook, place: Place) -> None:
    task_id = hook.submit(transfer_request(place), hook.new_submission_id())
    task = wait_for_end(hook, task_id)
    assert (task.state, task.bytes_transferred, task.files_transferred) == ("SUCCEEDED", 600, 1)
    assert place.at_destination.read_bytes() == place.at_source.read_bytes()
    delete = DeleteRequest(place.destination, place.path, "test")
    task = wait_for_end(hook, hook.submit(delete, hook.new_submission_id()))
    assert task.state == "SUCCEEDED"
    assert not place.at_destination.exists()


def test_the_same_submission_id_is_the_same_task(hook: GlobusHook, place: Place) -> None:
    submission_id = hook.new_submission_id()
    task_ids = {hook.submit(transfer_request(place), submission_id) for _ in range(3)}
    assert len(task_ids) == 1
    assert len(place.books()) == 1


def test_identical_paths_are_a_conflict(hook: GlobusHook, standin: Facility, place: Place) -> None:
    standin.control("globus", "bandwidth", bytes_per_second=1)
    hook.submit(transfer_request(place), hook.new_submission_id())
    with pytest.raises(SubmissionConflictError, match="identical paths has not yet completed"):
        hook.submit(transfer_request(place), hook.new_submission_id())


def test_tasks_are_listed_with_one_request(hook: GlobusHook, standin: Facility, place: Place) -> None:
    ids = {hook.submit(transfer_request(place), hook.new_submission_id())}
    wait_for_end(hook, next(iter(ids)))
    delete = DeleteRequest(place.destination, place.path, "test")
    ids.add(hook.submit(delete, hook.new_submission_id()))
    standin.clear_requests()
    found = hook.get_tasks([*ids, str(uuid.uuid4())])
    assert set(found) == ids
    assert [entry["method"] for entry in standin.requests("globus")] == ["GET"]


def test_many_ids_are_asked_for_in_portions(hook: GlobusHook, standin: Facility) -> None:
    hook.ping()
    standin.clear_requests()
    assert hook.get_tasks(str(uuid.uuid4()) for _ in range(250)) == {}
    assert [len(unquote(one["query"]).split(",")) > 50 for one in standin.requests("globus")] == [True] * 3
    assert max(len(one["path"] + one["query"]) for one in standin.requests("globus")) < 4200
    assert hook.get_tasks([]) == {}


def test_tasks_are_found_by_exact_label(hook: GlobusHook, place: Place) -> None:
    label = f"scan__{uuid.uuid4().hex}-0123456789ab"
    task_id = hook.submit(transfer_request(place, label=label), hook.new_submission_id())
    assert [task.task_id for task in hook.find_tasks(label, "TRANSFER")] == [task_id]
    assert hook.find_tasks(label, "DELETE") == []
    assert hook.find_tasks(label[:-1], "TRANSFER") == []
    assert hook.find_tasks(label.upper(), "TRANSFER") == []


def test_cancelling(hook: GlobusHook, standin: Facility, place: Place) -> None:
    standin.control("globus", "bandwidth", bytes_per_second=10)
    task_id = hook.submit(transfer_request(place), hook.new_submission_id())
    task = hook.cancel(task_id)
    assert task.was_cancelled
    assert hook.cancel(task_id).was_cancelled


def test_cancelling_what_has_succeeded_changes_nothing(hook: GlobusHook, place: Place) -> None:
    task_id = hook.submit(transfer_request(place), hook.new_submission_id())
    wait_for_end(hook, task_id)
    assert hook.cancel(task_id).state == "SUCCEEDED"


def test_the_report_about_a_missing_file(hook: GlobusHook, standin: Facility, place: Place) -> None:
    place.at_source.unlink()
    task_id = hook.submit(transfer_request(place), hook.new_submission_id())
    until(lambda: hook.get_task(task_id).trouble)
    assert hook.get_task(task_id).trouble == "FILE_NOT_FOUND"
    assert "FILE_NOT_FOUND" in (report := hook.trouble_report(task_id))
    assert place.path in report


def test_the_report_about_a_paused_task(hook: GlobusHook, standin: Facility, place: Place) -> None:
    standin.control("globus", "bandwidth", bytes_per_second=10)
    task_id = hook.submit(transfer_request(place), hook.new_submission_id())
    standin.control("globus", "pause", task_id=task_id, message="maintenance until noon")
    assert hook.get_task(task_id).trouble == "PAUSED"
    assert "maintenance until noon" in hook.trouble_report(task_id)


def test_stat_tells_files_from_folders(hook: GlobusHook, place: Place) -> None:
    file = hook.stat(place.source, place.path)
    assert (file.type, file.size, file.name) == ("file", 600, "NS_230216033_ccdframes_0_0.cxi")
    assert file.last_modified is not None
    assert hook.stat(place.source, "/2023").type == "dir"
    with pytest.raises(NotFoundError, match=r"id .*:/2023/nothing"):
        hook.stat(place.source, "/2023/nothing")


def test_an_unknown_collection(hook: GlobusHook) -> None:
    with pytest.raises(UserError, match="the collection does not exist"):
        hook.stat(str(uuid.uuid4()), "/a")


def test_a_folder_is_listed_page_by_page(hook: GlobusHook, standin: Facility, place: Place) -> None:
    folder = place.at_source.parent
    for number in range(25):
        (folder / f"f{number:02}.cxi").touch()
    (folder / ".hidden").touch()
    path = str(place.path.rsplit("/", 1)[0])
    standin.clear_requests()
    names = [entry.name for entry in hook.list_folder(place.source, path, page_size=10)]
    assert names == sorted([*(f"f{number:02}.cxi" for number in range(25)), place.at_source.name])
    assert sum(entry["path"].endswith("/ls") for entry in standin.requests("globus")) == 3
    some = hook.list_folder(place.source, path, name_filter="~f1*.cxi")
    assert [entry.name for entry in some] == [f"f1{number}.cxi" for number in range(10)]


def test_folders_are_made_with_those_above(hook: GlobusHook, standin: Facility) -> None:
    collection = standin.description["collections"]["nersc7012"]["id"]
    path = f"/made/{uuid.uuid4().hex}/a b/c"
    hook.make_folder(collection, path)
    hook.make_folder(collection, path)
    assert (standin.collection("nersc7012") / path[1:]).is_dir()
    standin.control("globus", "deny", collection="nersc7012", path="/closed", rights=["write"])
    with pytest.raises(UserError, match=r"permission denied for making folder /closed/x"):
        hook.make_folder(collection, "/closed/x")


def test_permission_names_the_identity_to_be_let_in(
    hook: GlobusHook, standin: Facility, place: Place
) -> None:
    standin.control("globus", "deny", collection="data7012", path=place.path)
    client = standin.description["globus"]["client_id"]
    with pytest.raises(UserError, match=f"give {client}@clients.auth.globus.org access"):
        hook.stat(place.source, place.path)


def test_a_consent_is_asked_for_and_the_call_repeated(
    hook: GlobusHook, standin: Facility, place: Place
) -> None:
    standin.control("globus", "consent", collection="data7012", required=True)
    assert hook.stat(place.source, place.path).size == 600
    tokens = [entry for entry in standin.requests("globus") if "token" in entry["path"]]
    assert len(tokens) == 2
    hook.submit(transfer_request(place), hook.new_submission_id())
    assert len([entry for entry in standin.requests("globus") if "token" in entry["path"]]) == 2


@pytest.mark.parametrize("process", ["another", "the same"])
def test_a_consent_that_has_ended_is_asked_for_again(
    hook: GlobusHook, standin: Facility, place: Place, process: str
) -> None:
    standin.control("globus", "consent", collection="data7012", required=True)
    assert hook.stat(place.source, place.path).size == 600
    standin.control("globus", "consent", collection="data7012", required=True)
    if process == "the same":
        with pytest.raises(CredentialsError, match="needs a consent"):
            hook.stat(place.source, place.path)
        assert hook.stat(place.source, place.path).size == 600
    else:
        with closing(GlobusHook(CONN_ID, attempts=1, own_tokens=True)) as other:
            assert other.stat(place.source, place.path).size == 600


def test_a_consent_that_cannot_be_had(hook: GlobusHook, standin: Facility, place: Place) -> None:
    body = {"code": "ConsentRequired", "message": "Missing required data_access consent"}
    standin.fault(kind="status", path="/stat", status=403, body={**body, "required_scopes": ["s"]})
    with pytest.raises(CredentialsError, match=r"needs a consent \(data_access\)") as raised:
        hook.stat(place.source, place.path)
    assert "@clients.auth.globus.org on the collection" in str(raised.value)
    standin.clear_faults()
    assert hook.stat(place.source, place.path).size == 600


@pytest.mark.parametrize("verb", ["revoke_tokens", "expire_tokens"])
def test_a_token_that_ended_is_renewed(hook: GlobusHook, standin: Facility, verb: str) -> None:
    hook.ping()
    standin.control("globus", verb)
    hook.ping()
    assert [entry["status"] for entry in standin.requests("globus")] == [200, 200, 401, 200, 200]


def test_a_wrong_secret(standin: Facility, monkeypatch: pytest.MonkeyPatch) -> None:
    use_connection(standin, monkeypatch, password="wrong-secret-1234")
    with pytest.raises(CredentialsError) as raised:
        GlobusHook(CONN_ID).ping()
    client = standin.description["globus"]["client_id"]
    assert f"refuses the client of connection '{CONN_ID}'" in str(raised.value)
    assert client in str(raised.value)
    assert "https://app.globus.org/settings/developers" in str(raised.value)
    assert "wrong-secret-1234" not in str(raised.value)
    assert len(standin.requests("globus")) == 1


def test_a_secret_that_is_taken_back_and_renewed(hook: GlobusHook, standin: Facility) -> None:
    hook.ping()
    standin.control("globus", "client", enabled=False)
    standin.control("globus", "revoke_tokens")
    with pytest.raises(CredentialsError):
        hook.ping()
    standin.control("globus", "client", enabled=True)
    hook.forget()
    hook.ping()


def test_the_connection_test_is_of_the_client_not_of_a_token(hook: GlobusHook, standin: Facility) -> None:
    hook.ping()
    standin.control("globus", "client", enabled=False)
    hook.ping()  # a token stays valid
    assert not GlobusHook(CONN_ID).test_connection()[0]


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"login": ""}, CredentialsError, "has no client id"),
        ({"password": None}, CredentialsError, "has no client secret"),
        ({"conn_type": "http"}, UserError, "is of type 'http', not 'globus'"),
        ({"extra": {"auth_base_url": "ftp://x"}}, UserError, "auth_base_url is not an http"),
        ({"extra": {"transfer_base_url": "https://"}}, UserError, "transfer_base_url is not an http"),
        ({"extra": {"web_app_url": "http://u:p@host/"}}, UserError, "web_app_url is not an http"),
        ({"extra": {"web_app_url": 7}}, UserError, "web_app_url is not an http"),
    ],
)
def test_a_connection_that_cannot_be(
    standin: Facility,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    kind: type[FacilityError],
    says: str,
) -> None:
    use_connection(standin, monkeypatch, **changes)
    with pytest.raises(kind, match=says) as raised:
        GlobusHook(CONN_ID).ping()
    assert CONN_ID in str(raised.value)


def test_the_real_globus_is_the_default(standin: Facility, monkeypatch: pytest.MonkeyPatch) -> None:
    use_connection(standin, monkeypatch, extra={"auth_base_url": "", "transfer_base_url": None})
    monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_TRANSFER", "http://127.0.0.1:1/")
    monkeypatch.setenv("GLOBUS_SDK_ENVIRONMENT", "preview")
    settings = GlobusHook(CONN_ID).settings
    assert settings.transfer_url == "https://transfer.api.globus.org/"
    assert settings.auth_url == "https://auth.globus.org/"
    task_id = str(uuid.uuid4())
    assert GlobusHook(CONN_ID).task_url(task_id) == f"https://app.globus.org/activity/{task_id}"


def test_the_sdks_environment_changes_nothing(standin: Facility, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRANSFER", "AUTH"):
        monkeypatch.setenv(f"GLOBUS_SDK_SERVICE_URL_{name}", "http://127.0.0.1:1/")
    monkeypatch.setenv("GLOBUS_SDK_ENVIRONMENT", "preview")
    GlobusHook(CONN_ID).ping()
    assert len(standin.requests("globus")) == 2


def test_the_connection_test(standin: Facility, monkeypatch: pytest.MonkeyPatch) -> None:
    client = standin.description["globus"]["client_id"]
    ok, message = GlobusHook(CONN_ID).test_connection()
    assert ok
    assert message == f"Globus accepts {client}@clients.auth.globus.org, and Transfer answers."
    use_connection(standin, monkeypatch, password="wrong")
    ok, message = GlobusHook(CONN_ID).test_connection()
    assert not ok
    assert "put a valid client id and secret into the connection" in message


def test_the_first_request_of_a_process_is_answered(standin: Facility) -> None:
    """As in a worker, in which nothing has used globus_sdk before."""
    ping = f"from facilities.globus.hook import GlobusHook; GlobusHook({CONN_ID!r}, attempts=1).ping()"
    path = os.pathsep.join(str(REPOSITORY / folder) for folder in ("plugins", "include"))
    done = subprocess.run(
        [sys.executable, "-c", ping],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [entry["status"] for entry in standin.requests("globus")] == [200, 200]


def test_secrets_are_in_no_log_and_no_text(
    standin: Facility, place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    hook = GlobusHook(CONN_ID, attempts=1)
    hook.stat(place.source, place.path)
    token = hook._token_source().get().text
    secret = hook.settings.client_secret
    standin.fault(kind="status", path="/stat", status=500)
    with pytest.raises(TransientError) as raised:
        hook.stat(place.source, place.path)
    texts = caplog.text + str(raised.value) + repr(raised.value) + repr(hook.settings) + repr(vars(hook))
    assert secret not in texts
    assert token not in texts


def test_one_hook_for_many_threads(hook: GlobusHook, standin: Facility, place: Place) -> None:
    failures: list[Exception] = []

    def work() -> None:
        try:
            assert hook.stat(place.source, place.path).size == 600
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sum("token" in entry["path"] for entry in standin.requests("globus")) == 1


def test_the_form_describes_the_connection() -> None:
    assert CONNECTION_TYPE["connection-type"] == GlobusHook.conn_type
    assert CONNECTION_TYPE["hook-class-name"] == f"{GlobusHook.__module__}.{GlobusHook.__qualname__}"
    assert set(CONNECTION_TYPE["conn-fields"]) == {
        "transfer_base_url",
        "auth_base_url",
        "collections",
        "web_app_url",
    }
    assert "client_secret" not in repr(GlobusSettings("c", "id", "hidden-value")).replace("client_id", "")
