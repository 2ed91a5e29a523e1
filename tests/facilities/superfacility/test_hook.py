"""The hook against the stand-in: typed replies, and an error of the right class for everything else."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facilities.errors import (
    CredentialsError,
    FacilityError,
    LostReplyError,
    NotFoundError,
    TransientError,
    UserError,
)
from facilities.superfacility.errors import MEANINGS, expect_ok, failure_of_text
from facilities.superfacility.files import SIZE_LIMIT, FileEntry
from facilities.superfacility.hook import SuperfacilityHook
from facilities.superfacility.job_script import SlurmResources, job_script
from standin.testing import Facility, until
from support.superfacility import CONN_ID, RESOURCES, connection_to, use_connection

READ = {"service": "nersc", "method": "GET"}
JOBS = {**READ, "path": "/compute/jobs/"}


def _script(name: str, command: str = "true") -> str:
    return job_script(SlurmResources(**RESOURCES), name, command + "\n")


def _submit(hook: SuperfacilityHook, name: str, command: str = "true") -> str:
    task_id = hook.submit(_script(name, command), machine="perlmutter")
    return str(until(lambda: hook.submitted_job(task_id)))


def test_jobs_by_id_and_by_user(hook: SuperfacilityHook) -> None:
    done, running = _submit(hook, "done"), _submit(hook, "running", "sleep 60")
    until(lambda: hook.jobs("perlmutter", [done], "sacct")[done].final)
    until(lambda: hook.jobs("perlmutter", [running], "sacct")[running].state_text == "RUNNING")
    both = hook.jobs("perlmutter", [done, running, "999999"], "sacct")
    assert {job_id: job.name for job_id, job in both.items()} == {done: "done", running: "running"}
    assert set(hook.jobs("perlmutter", [done, running], "squeue")) == {running}
    assert hook.jobs("perlmutter", ["999999"], "squeue") == {}
    assert running in [job.job_id for job in hook.jobs_of_user("perlmutter", "squeue")]
    assert {done, running} <= {job.job_id for job in hook.jobs_of_user("perlmutter", "sacct")}


def test_cancelling_twice_and_cancelling_the_unknown_are_no_errors(
    nersc: Facility, hook: SuperfacilityHook
) -> None:
    job_id = _submit(hook, "long", "sleep 60")
    for cancelled in (job_id, job_id, "999999"):
        hook.cancel("perlmutter", cancelled)
    until(lambda: hook.jobs("perlmutter", [job_id], "sacct")[job_id].final)
    assert hook.jobs("perlmutter", [job_id], "sacct")[job_id].state_text.startswith("CANCELLED")


def test_a_cancel_whose_reply_is_lost_is_sent_again(nersc: Facility, hook: SuperfacilityHook) -> None:
    job_id = _submit(hook, "long", "sleep 60")
    nersc.fault(kind="drop_reply", service="nersc", method="DELETE", times=1)
    hook.cancel("perlmutter", job_id)


def test_files(nersc: Facility, hook: SuperfacilityHook) -> None:
    folder = nersc.nersc / "a folder with 'quotes' & $(x)"
    folder.mkdir(exist_ok=True)
    path = str(folder / "é #?.bin")
    content = bytes(range(256)) * 10
    hook.upload("perlmutter", path, content)
    assert hook.download("perlmutter", path) == content
    assert hook.stat("perlmutter", path) == FileEntry("é #?.bin", len(content), folder=False)
    assert hook.stat("perlmutter", str(folder)).folder
    with pytest.raises(NotFoundError, match="gone"):
        hook.download("perlmutter", str(folder / "gone"))
    with pytest.raises(NotFoundError):
        hook.stat("perlmutter", str(folder / "gone"))


@pytest.mark.parametrize("path", ["relative", "", "/a/../b", "/a\nb", "/a\0b", "a;b"])
def test_paths_that_are_not_plain_are_refused_before_anything_is_sent(
    nersc: Facility, hook: SuperfacilityHook, path: str
) -> None:
    nersc.clear_requests()
    for call in (hook.stat, hook.download, hook.tail):
        with pytest.raises(UserError, match="Not an absolute path"):
            call("perlmutter", path)
    assert nersc.requests("nersc") == []


@pytest.mark.parametrize("machine", ["", "../dtns", "perlmutter/1", "a b", "p?x=1"])
def test_machines_and_job_ids_cannot_reach_another_address(hook: SuperfacilityHook, machine: str) -> None:
    with pytest.raises(UserError, match="Not a machine"):
        hook.status(machine)
    with pytest.raises(UserError, match="Not a Slurm job id"):
        hook.jobs("perlmutter", ["1,2&user=x"], "sacct")


def test_the_tail_of_a_large_file_is_read_with_a_command(nersc: Facility, hook: SuperfacilityHook) -> None:
    path = nersc.nersc / "large.out"
    path.write_text("a line of some length\n" * (SIZE_LIMIT // 20) + "last\n")
    assert hook.tail("perlmutter", str(path), lines=2) == "a line of some length\nlast"
    path.unlink()


def test_what_is_too_large_is_refused(hook: SuperfacilityHook) -> None:
    with pytest.raises(UserError, match="use Globus"):
        hook.upload("perlmutter", "/x", bytes(SIZE_LIMIT + 1))


def test_commands(hook: SuperfacilityHook) -> None:
    assert hook.command("perlmutter", ["echo", "a  'b' $(c)"]).output == "a  'b' $(c)\n"
    assert hook.command("perlmutter", ["false"]).exit_code == 1


def test_status_outages_and_expiry(nersc: Facility, hook: SuperfacilityHook) -> None:
    assert hook.status("perlmutter").up
    nersc.control("nersc", "maintenance", seconds=3600, description="Slurm upgrade")
    assert hook.status("perlmutter").status == "unavailable"
    assert "Outage (Slurm upgrade): from 20" in hook.status("perlmutter").outage
    nersc.control("nersc", "end_maintenance")
    nersc.control("nersc", "degrade", note="slow scratch")
    assert hook.status("perlmutter").up
    nersc.control("nersc", "client_expiry", days=2)
    assert hook.days_left() == pytest.approx(2, abs=0.01)


def test_the_connection_can_be_tested(nersc: Facility, hook: SuperfacilityHook) -> None:
    assert hook.test_connection() == (
        True,
        f"Client from file acts for {hook.user}; it expires in 30.0 days.",
    )
    nersc.control("nersc", "expire_client")
    worked, said = SuperfacilityHook(CONN_ID).test_connection()
    assert not worked
    assert "Iris" in said


def test_tokens_are_renewed_when_they_are_revoked_or_expire(nersc: Facility, hook: SuperfacilityHook) -> None:
    assert hook.user
    nersc.control("nersc", "revoke_tokens")
    hook.jobs_of_user("perlmutter", "squeue")
    nersc.control("nersc", "set", token_seconds=1.0)
    nersc.control("nersc", "revoke_tokens")
    for _ in range(3):
        hook.jobs_of_user("perlmutter", "squeue")


def test_an_expired_client_is_named_with_how_to_renew_it(nersc: Facility, hook: SuperfacilityHook) -> None:
    nersc.control("nersc", "expire_client")
    with pytest.raises(CredentialsError) as caught:
        hook.jobs_of_user("perlmutter", "squeue")
    error = caught.value
    assert error.remote_id == nersc.description["nersc"]["client_id"]
    assert error.state == "invalid_client"
    assert "level red" in error.next_step
    assert CONN_ID in str(error)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_after_a_new_token_is_about_the_client(
    nersc: Facility, hook: SuperfacilityHook, status: int
) -> None:
    nersc.fault(kind="status", status=status, body={"detail": "Not permitted"}, **JOBS)
    with pytest.raises(CredentialsError, match="Not permitted"):
        hook.jobs_of_user("perlmutter", "squeue")


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ({"kind": "status", "status": 400, "body": {"detail": "no"}}, UserError, "no"),
        ({"kind": "status", "status": 404, "body": {"detail": "Unknown"}}, NotFoundError, "Unknown"),
        (
            {"kind": "status", "status": 422, "body": {"detail": [{"loc": ["query", "x"], "msg": "bad"}]}},
            UserError,
            "query.x: bad",
        ),
        ({"kind": "status", "status": 429, "retry_after": 30}, TransientError, "HTTP 429"),
        ({"kind": "status", "status": 500, "body": "<html>"}, TransientError, "HTTP 500"),
        ({"kind": "status", "status": 503}, TransientError, "HTTP 503"),
        ({"kind": "drop_before"}, TransientError, "Protocol"),
        ({"kind": "reset"}, TransientError, "Error"),
        ({"kind": "truncate"}, TransientError, "Error"),
        ({"kind": "status", "status": 200, "body": "not json"}, TransientError, "not JSON|not an object"),
        ({"kind": "status", "status": 200, "body": {"status": "Error", "error": "?"}}, TransientError, "[?]"),
        ({"kind": "status", "status": 200, "body": {"status": "OK"}}, TransientError, "no list of jobs"),
    ],
)
def test_failures_of_a_read(
    nersc: Facility, hook: SuperfacilityHook, fault: dict[str, Any], kind: type[FacilityError], said: str
) -> None:
    assert hook.user
    nersc.fault(**fault, **JOBS)
    with pytest.raises(kind, match=said) as caught:
        hook.jobs("perlmutter", ["1"], "sacct")
    assert caught.type in (kind, *([NotFoundError] if kind is NotFoundError else []))


def test_a_read_is_tried_again_and_a_long_retry_after_is_left_to_the_caller(
    nersc: Facility, hook: SuperfacilityHook
) -> None:
    nersc.fault(kind="status", status=503, times=1, **JOBS)
    assert hook.jobs("perlmutter", ["1"], "sacct") == {}
    nersc.fault(kind="status", status=429, retry_after=120, **JOBS)
    with pytest.raises(TransientError) as caught:
        hook.jobs("perlmutter", ["1"], "sacct")
    assert caught.value.retry_after == 120


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"kind": "status", "status": 500}, LostReplyError),
        ({"kind": "status", "status": 504}, LostReplyError),
        ({"kind": "drop_reply"}, LostReplyError),
        ({"kind": "reset", "act": True}, LostReplyError),
        ({"kind": "truncate"}, LostReplyError),
        ({"kind": "status", "status": 200, "body": "not json"}, LostReplyError),
        ({"kind": "status", "status": 200, "body": []}, LostReplyError),
        ({"kind": "status", "status": 200, "body": {"status": "OK", "task_id": None}}, LostReplyError),
        (
            {"kind": "status", "status": 200, "body": {"status": "ERROR", "error": "timed out"}},
            LostReplyError,
        ),
        ({"kind": "status", "status": 429}, TransientError),
        ({"kind": "status", "status": 422, "body": {"detail": "no"}}, UserError),
        (
            {"kind": "status", "status": 200, "body": {"status": "error", "error": "Invalid account"}},
            UserError,
        ),
    ],
)
def test_a_submit_is_sent_once_whatever_comes_back(
    nersc: Facility, hook: SuperfacilityHook, fault: dict[str, Any], kind: type[FacilityError]
) -> None:
    rule = nersc.fault(service="nersc", method="POST", path="/compute/jobs/", **fault)
    with pytest.raises(kind) as caught:
        hook.submit(_script("once"), machine="perlmutter")
    assert caught.type is kind
    [kept] = nersc.faults()
    assert kept["hits"] == 1, rule


def test_a_service_that_is_not_there_was_surely_not_reached(
    nersc: Facility, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connection_to(nersc)
    connection["host"] = "http://127.0.0.1:1/api"
    use_connection(monkeypatch, CONN_ID, connection)
    hook = SuperfacilityHook(CONN_ID, attempts=1)
    with pytest.raises(TransientError, match="ConnectError") as caught:
        hook.submit(_script("never"), machine="perlmutter")
    assert not isinstance(caught.value, LostReplyError)
    hook.close()


def test_a_token_service_that_is_away_is_transient(nersc: Facility, hook: SuperfacilityHook) -> None:
    for fault in ({"kind": "status", "status": 503}, {"kind": "drop_before"}, {"kind": "truncate"}):
        hook.session.forget_token()
        nersc.fault(service="nersc", method="POST", path="token", **fault)
        with pytest.raises(TransientError):
            hook.jobs_of_user("perlmutter", "squeue")
        nersc.clear_faults()
    assert hook.user


def test_no_secret_shows_in_errors_logs_or_addresses(
    nersc: Facility, hook: SuperfacilityHook, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    assert hook.user
    token = hook.session._tokens.get().text
    nersc.fault(kind="status", status=403, body={"detail": "no"}, times=2, **JOBS)
    with pytest.raises(CredentialsError) as caught:
        hook.jobs_of_user("perlmutter", "squeue")
    key = Path(nersc.description["nersc"]["key_path"]).read_text().splitlines()[1]
    shown = str(caught.value) + caplog.text + repr(vars(hook)) + repr(vars(caught.value))
    shown += "".join(one["path"] + one["query"] for one in nersc.requests("nersc"))
    assert token not in shown
    assert key not in shown


def test_the_environment_does_not_lead_requests_elsewhere(hook: SuperfacilityHook) -> None:
    assert not [key for key in os.environ if key.upper().startswith("SFAPI")]
    assert hook.session.config.api_url.startswith("http://127.0.0.1")


@pytest.mark.parametrize(
    ("text", "kind", "sent"),
    [
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition", UserError, True),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", UserError, True),
        ("Job violates accounting/QOS policy (job submit limit, ...)", UserError, True),
        ("Batch job submission failed: Socket timed out on send/recv operation", LostReplyError, True),
        ("Batch job submission failed: Socket timed out on send/recv operation", TransientError, False),
        ("submission failed: Unable to contact slurm controller (connect failure)", TransientError, True),
        ("ls: cannot access '/x': No such file or directory", NotFoundError, False),
        ("cat: /x: Permission denied", UserError, False),
        ("write error: Disk quota exceeded", UserError, False),
        ("slurm_load_jobs error: Invalid job id specified", NotFoundError, False),
        ("something new", UserError, True),
    ],
)  # fmt: skip
def test_texts_of_slurm_and_nersc(text: str, kind: type[FacilityError], sent: bool) -> None:
    error = failure_of_text(text, "It failed", sent=sent)
    assert type(error) is kind
    assert error.next_step
    assert text in str(error)


@given(st.text(max_size=200))
def test_any_text_makes_an_error_with_something_to_do(text: str) -> None:
    assert failure_of_text(text, "It failed").next_step


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_reply_is_taken_or_classed(reply: Any) -> None:
    try:
        assert expect_ok(reply, "It failed") is reply
    except FacilityError as error:
        assert error.what.startswith("It failed")  # noqa: PT017 - either outcome is right


def test_meanings_do_not_hide_each_other() -> None:
    assert len({meaning.pattern for meaning in MEANINGS}) == len(MEANINGS)


def test_html_of_a_gateway_is_cut(nersc: Facility, hook: SuperfacilityHook) -> None:
    assert hook.user
    nersc.fault(kind="status", status=502, body="<html>" + "x" * 100_000, **JOBS)
    with pytest.raises(TransientError) as caught:
        hook.jobs("perlmutter", ["1"], "sacct")
    assert len(str(caught.value)) < 2000


def test_httpx_sends_what_we_say(hook: SuperfacilityHook) -> None:
    """A query is encoded once: a job id with a comma stays one value."""
    request = httpx.Request("GET", "http://x", params={"kwargs": "jobid=1,2"})
    assert request.url.query == b"kwargs=jobid%3D1%2C2"
