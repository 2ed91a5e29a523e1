"""`.env`: what is taken, what is refused, and what the person who wrote it is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployment.settings import (
    FACILITY_NAMES,
    SERVICE_NAMES,
    Deployment,
    SettingsError,
    read_deployment,
)
from dev.local_airflow.settings import REPOSITORY, read_env_file

CLIENT_ID = "741b96e1-1b98-42a8-918d-daacc24c145f"


@pytest.fixture
def nersc(tmp_path: Path) -> Path:
    """A folder with a client id and a key, as ./nersc should be."""
    folder = tmp_path / "nersc"
    folder.mkdir()
    (folder / "clientid.txt").write_text("abcdefghijklm\n")
    key = folder / "priv_key.pem"
    key.touch(mode=0o600)
    key.write_text("-----BEGIN RSA PRIVATE KEY-----")
    return folder


def write(folder: Path, *lines: str, mode: int = 0o600) -> Path:
    """Write a `.env`."""
    file = folder / "env"
    file.write_text("\n".join(lines) + "\n")
    file.chmod(mode)
    return file


def read(file: Path, **environment: str) -> Deployment:
    """The settings alone."""
    return read_deployment(file, environment)[0]


def test_the_example_names_every_setting_and_no_other() -> None:
    names = set(read_env_file(REPOSITORY / ".env.example"))
    assert names == {*FACILITY_NAMES, *SERVICE_NAMES} - {"COMPOSE_PROJECT_NAME", "SETTINGS_FILE"}


def test_the_example_is_an_installation_that_lacks_credentials_only(tmp_path: Path) -> None:
    missing = [f"PATH_NERSC_ID={tmp_path}/id", f"PATH_NERSC_PRI_KEY={tmp_path}/key"]
    text = (REPOSITORY / ".env.example").read_text()
    deployment, warnings = read_deployment(write(tmp_path, text, *missing), {})
    assert deployment.executor == "cosmic.local_executor.KillProofLocalExecutor"
    assert not deployment.standin
    assert deployment.job_script_folder == Path("/tmp_job_scripts")
    assert deployment.scripts["ptychocam"].endswith("/c_ptychocam/ptychocam_reconstruction.sh")
    assert len(warnings) == 3
    assert "no file can be copied" in warnings[0]
    assert "no job can be submitted" in warnings[2]


def test_the_old_agents_settings(tmp_path: Path, nersc: Path) -> None:
    file = write(
        tmp_path,
        f"GLOBUS_CLIENT_ID={CLIENT_ID}",
        "GLOBUS_CLIENT_SECRET='s3cr#t = x'",
        f"PATH_NERSC_ID={nersc}/clientid.txt   # 13 characters",
        f'PATH_NERSC_PRI_KEY="{nersc}/priv_key.pem"',
        "PATH_JOB_SCRIPT=/scripts",
        "PATH_PTYCHOCAM_NERSC=/global/p.sh",
        "PATH_CDTOOLS_NERSC=",
    )
    deployment, warnings = read_deployment(file, {"COMPOSE_PROFILES": "celery"})
    assert warnings == []
    assert deployment.globus_client_id == CLIENT_ID
    assert deployment.globus_client_secret == "s3cr#t = x"
    assert deployment.nersc_id_file == nersc / "clientid.txt"
    assert deployment.nersc_key_file == nersc / "priv_key.pem"
    assert deployment.job_script_folder == Path("/scripts")
    assert deployment.scripts == {"ptychocam": "/global/p.sh"}
    assert deployment.executor == "CeleryExecutor"
    assert "s3cr" not in repr(deployment)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["GLOBUS_CLIENT_ID=" + CLIENT_ID], "go together: give both or neither"),
        (["GLOBUS_CLIENT_SECRET=x"], "go together: give both or neither"),
        (["GLOBUS_CLIENT_ID=me", "GLOBUS_CLIENT_SECRET=x"], "'me', which is not a UUID"),
        (["PATH_PTYCHOCAM_NERSC=bin/p.sh"], "PATH_PTYCHOCAM_NERSC is 'bin/p.sh'; it must be an absolute"),
        (["PATH_JOB_SCRIPT=/a/../b"], "PATH_JOB_SCRIPT is '/a/../b'"),
        (["PATH_NERSC_ID=~/id"], "PATH_NERSC_ID is '~/id'"),
    ],
)
def test_what_cannot_be_right_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read(write(tmp_path, *lines))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("COMPOSE_PROFILES", "standin,cellery", "names cellery; there are standin and celery"),
        ("STATSD", "statsd.example.org", "it must be HOST:PORT"),
        ("STATSD", "statsd:port", "it must be HOST:PORT"),
        ("STATSD", "statsd:8125/x", "it must be HOST:PORT"),
        ("STATSD", "[::1:8125", "it must be HOST:PORT"),
        ("DAGS_GIT_URL", "https://me:pw@example.org/x.git", "holds a password"),
    ],
)
def test_what_docker_compose_passes_on_is_checked_too(
    tmp_path: Path, name: str, value: str, message: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        read(write(tmp_path), **{name: value})
    assert message in str(refused.value)
    assert ":pw@" not in str(refused.value)


def test_profiles_metrics_and_git(tmp_path: Path) -> None:
    deployment = read(
        write(tmp_path),
        COMPOSE_PROFILES=" standin, celery",
        STATSD="[::1]:8125",
        DAGS_GIT_URL="https://example.org/x.git",
        DAGS_GIT_REF="",
    )
    assert (deployment.standin, deployment.celery) == (True, True)
    assert deployment.statsd == ("::1", 8125)
    assert deployment.dags_git == ("https://example.org/x.git", "main")


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    lines = [f"GLOBUS_CLIENT_ID={CLIENT_ID}", "GLOBUS_CLIENT_SECRET=hush"]
    with pytest.raises(SettingsError, match=r"chmod 600 \.env") as refused:
        read(write(tmp_path, *lines, mode=0o640))
    assert "hush" not in str(refused.value)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path, nersc: Path) -> None:
    (nersc / "priv_key.pem").chmod(0o604)
    file = write(tmp_path, f"PATH_NERSC_ID={nersc}/clientid.txt", f"PATH_NERSC_PRI_KEY={nersc}/priv_key.pem")
    with pytest.raises(SettingsError, match=r"chmod 600 priv_key\.pem"):
        read(file)
    assert read(file, COMPOSE_PROFILES="standin").standin  # which uses none of it


def test_a_key_of_somebody_else_is_told_with_the_way_out(
    tmp_path: Path, nersc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, f"PATH_NERSC_ID={nersc}/clientid.txt", f"PATH_NERSC_PRI_KEY={nersc}/priv_key.pem")
    owner = (nersc / "clientid.txt").stat().st_uid
    monkeypatch.setattr(os, "access", lambda *_args: False)
    monkeypatch.setattr(os, "getuid", lambda: 50000)
    with pytest.raises(SettingsError, match=f"cannot be read by 50000.*Set AIRFLOW_UID={owner}"):
        read(file)


def test_a_missing_env_is_told_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"Copy \.env\.example to \.env"):
        read(tmp_path / "env")


def test_misspelt_settings_are_told(tmp_path: Path) -> None:
    _, warnings = read_deployment(write(tmp_path, "GLOBUS_CLIENT_SECRT=x"), {"COMPOSE_PROFILES": "standin"})
    assert warnings == ["GLOBUS_CLIENT_SECRT is not a setting of this installation; is it misspelt?"]


_printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


@given(secret=_printable.filter(lambda text: text[0] not in "'\"" and text[-1] not in "'\""))
def test_any_secret_arrives_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, secret: str) -> None:
    folder = tmp_path_factory.mktemp("env")
    for written in (secret, f'"{secret}"', f"'{secret}'"):
        file = write(folder, f"GLOBUS_CLIENT_ID={CLIENT_ID}", f"GLOBUS_CLIENT_SECRET={written}")
        assert read(file, COMPOSE_PROFILES="standin").globus_client_secret == secret
