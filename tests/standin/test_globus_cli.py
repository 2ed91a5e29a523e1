"""globus-cli against the stand-in: a client that nobody here wrote, unmodified."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.globus_client import Globus, tree

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(globus: Globus, globus_cli: str, tmp_path: Path) -> Cli:
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "GLOBUS_CLI_CLIENT_ID": globus.client_id,
        "GLOBUS_CLI_CLIENT_SECRET": globus.client_secret,
        "GLOBUS_SDK_SERVICE_URL_AUTH": globus.facility.description["globus"]["auth_url"],
        "GLOBUS_SDK_SERVICE_URL_TRANSFER": globus.facility.description["globus"]["transfer_url"],
    }

    def run(*arguments: str, ok: bool = True, **changes: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [globus_cli, *arguments],
            env={**environment, **changes},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (ended.returncode == 0) is ok, ended.stdout + ended.stderr
        return ended

    return run


def answer(ended: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(ended.stdout)


def test_looking_around(globus: Globus, cli: Cli) -> None:
    globus.file("day/a.cxi", b"1234")
    globus.file("day/deep/b.txt", b"1")
    assert cli("whoami").stdout.strip() == f"{globus.client_id}@clients.auth.globus.org"
    assert cli("ls", f"{globus.data7012}:/day").stdout.split() == ["a.cxi", "deep/"]
    recursive = cli("ls", "-r", "--filter", "~*.txt", f"{globus.data7012}:/day").stdout
    assert "deep/b.txt" in recursive
    assert "a.cxi" not in recursive
    stat = answer(cli("stat", "-F", "json", f"{globus.data7012}:/day/a.cxi"))
    assert (stat["type"], stat["size"]) == ("file", 4)
    assert "GCSv5_guest_collection" in cli("api", "transfer", "GET", f"/endpoint/{globus.data7012}").stdout


def test_a_transfer_from_submit_to_show(globus: Globus, cli: Cli) -> None:
    globus.file("day/a.cxi", b"1234")
    globus.file("day/b.tmp", b"1")
    source, target = f"{globus.data7012}:/day", f"{globus.nersc7012}:/day"
    submitted = answer(
        cli("transfer", "-F", "json", "-r", "--label", "from the cli", "--exclude", "*.tmp", source, target)
    )
    assert submitted["code"] == "Accepted"
    task_id = submitted["task_id"]
    cli("task", "wait", "--polling-interval", "1", "--timeout", "30", task_id)
    shown = answer(cli("task", "show", "-F", "json", task_id))
    assert (shown["status"], shown["label"], shown["files_transferred"]) == ("SUCCEEDED", "from the cli", 1)
    assert shown["verify_checksum"] is True  # the cli asks for it, globus-sdk does not
    assert tree(globus.target) == {"day/a.cxi": b"1234"}
    moved = cli("task", "show", "--successful-transfers", task_id).stdout
    assert "/day/a.cxi" in moved
    assert "81dc9bdb52d04dc20036dbd8313ed055" in moved
    assert "SUCCEEDED" in cli("task", "event-list", task_id).stdout
    assert task_id in cli("task", "list", "--filter-label", "From*").stdout


def test_a_task_that_is_stuck_and_canceled(globus: Globus, cli: Cli) -> None:
    source, target = f"{globus.data7012}:/none", f"{globus.nersc7012}:/none"
    task_id = answer(cli("transfer", "-F", "json", source, target))["task_id"]
    globus.wait(task_id, "nice_status", "FILE_NOT_FOUND")
    assert "FILE_NOT_FOUND" in cli("task", "show", task_id).stdout
    globus.facility.control("globus", "pause", task_id=task_id, message="maintenance")
    assert "maintenance" in cli("task", "pause-info", task_id).stdout
    cli("task", "update", task_id, "--label", "stuck", "--deadline", "2030-01-01")
    assert globus.task(task_id)["deadline"] == "2030-01-01T00:00:00+00:00"
    assert "cancelled successfully" in cli("task", "cancel", "--all").stdout
    assert cli("task", "wait", "--timeout", "5", task_id, ok=False).returncode == 1


def test_folders_and_deletes(globus: Globus, cli: Cli) -> None:
    cli("mkdir", f"{globus.nersc7012}:/a")
    (globus.target / "a/x").touch()
    cli("rename", globus.nersc7012, "/a", "/b")
    assert (globus.target / "b/x").exists()
    cli("rm", "-r", "--polling-interval", "1", f"{globus.nersc7012}:/b")
    assert list(globus.target.iterdir()) == []
    missing = cli("rm", "--polling-interval", "1", f"{globus.nersc7012}:/b", ok=False)
    failed = globus.facility.transfers()[-1]
    assert failed["task_id"] in missing.stderr
    assert failed["fatal_error"]["code"] == "FILE_NOT_FOUND"


def test_errors_are_told_in_the_clis_own_words(globus: Globus, cli: Cli, tmp_path: Path) -> None:
    missing = cli("ls", f"{globus.data7012}:/none", ok=False)
    assert "ClientError.NotFound" in missing.stderr
    changes = {"GLOBUS_CLI_CLIENT_SECRET": "wrong", "HOME": str(tmp_path / "other")}  # no token kept there
    wrong = cli("ls", f"{globus.data7012}:/", ok=False, **changes)
    assert "401" in wrong.stdout + wrong.stderr


def test_the_cli_asks_for_a_missing_consent_by_itself(globus: Globus, cli: Cli) -> None:
    globus.facility.control("globus", "consent", collection="data7012", required=True)
    globus.file("a")
    assert cli("ls", f"{globus.data7012}:/").stdout.split() == ["a"]
    seen = [(r["path"].rsplit("/", 1)[1], r["status"]) for r in globus.facility.requests()][-3:]
    assert seen == [("ls", 403), ("token", 200), ("ls", 200)]


def test_the_cli_shows_a_refused_login_and_a_paused_collection(globus: Globus, cli: Cli) -> None:
    globus.facility.control("globus", "login", collection="data7012", refusal="no_account")
    refused = cli("ls", f"{globus.data7012}:/", ok=False)
    assert "ExternalError.DirListingFailed.LoginFailed" in refused.stderr
    assert "LOGIN_DENIED" in refused.stderr
    policy = {"session_message": "needs a policy", "session_required_policies": [globus.nersc7012]}
    globus.facility.control("globus", "login", collection="data7012", refusal="policy", requires=policy)
    refused = cli("ls", f"{globus.data7012}:/", ok=False)
    assert "needs a policy" in refused.stdout + refused.stderr
    assert f"globus session update --policy '{globus.nersc7012}'" in refused.stdout + refused.stderr
    globus.facility.control("globus", "login", collection="data7012", refusal=None)
    globus.facility.control("globus", "pause_rule", collection="data7012", message="new disks")
    assert "new disks" in cli("ls", f"{globus.data7012}:/", ok=False).stderr
    globus.facility.control("globus", "pause_rule", collection="data7012", message="new disks",
                            operations=["task_transfer_read"])  # fmt: skip
    source, target = f"{globus.data7012}:/a", f"{globus.nersc7012}:/a"
    task_id = answer(cli("transfer", "-F", "json", source, target))["task_id"]
    assert "new disks" in cli("task", "pause-info", task_id).stdout
