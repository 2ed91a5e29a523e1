"""`.env`: what is taken, what is refused, and the messages for the person who wrote it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployment.env_file import read_env_file
from deployment.settings import Settings, SettingsError, read_settings
from dev.local_airflow.settings import REPOSITORY

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


def read(file: Path, **environment: str) -> Settings:
    """The settings alone."""
    return read_with_warnings(file, **environment)[0]


def read_with_warnings(file: Path, **environment: str) -> tuple[Settings, list[str]]:
    """Settings and warnings, with these variables from docker-compose.yaml."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return read_settings(file)


def secret_of(settings: Settings) -> str | None:
    """The Globus client's secret in the clear."""
    secret = settings.globus_client_secret
    return secret.get_secret_value() if secret is not None else None


def test_the_example_names_every_setting_and_no_other() -> None:
    names = set(read_env_file(REPOSITORY / ".env.example"))
    known = {name.upper() for name in Settings.model_fields}
    assert names == known - {"COMPOSE_PROJECT_NAME", "SETTINGS_FILE"}


def test_the_example_has_the_defaults(tmp_path: Path) -> None:
    text = (REPOSITORY / ".env.example").read_text()
    named_for_nersc = re.sub("(?m)^PATH_PTYCHOCAM_NERSC=.*", "", text)
    assert read(write(tmp_path, named_for_nersc)) == read(write(tmp_path))


def test_the_example_is_an_installation_that_lacks_credentials_only(tmp_path: Path) -> None:
    missing = [f"PATH_NERSC_ID={tmp_path}/id", f"PATH_NERSC_PRI_KEY={tmp_path}/key"]
    text = (REPOSITORY / ".env.example").read_text()
    settings, warnings = read_settings(write(tmp_path, text, *missing))
    assert settings.executor == "cosmic.airflow_overrides.local_executor.KillProofLocalExecutor"
    assert not settings.standin
    assert settings.path_job_script == Path("/tmp_job_scripts")
    assert settings.scripts["ptychocam"].name == "ptychocam_reconstruction.sh"
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
    settings, warnings = read_with_warnings(file, COMPOSE_PROFILES="celery")
    assert warnings == []
    assert settings.globus_client_id == CLIENT_ID
    assert secret_of(settings) == "s3cr#t = x"
    assert settings.path_nersc_id == nersc / "clientid.txt"
    assert settings.path_nersc_pri_key == nersc / "priv_key.pem"
    assert settings.path_job_script == Path("/scripts")
    assert settings.scripts == {"ptychocam": Path("/global/p.sh")}
    assert settings.executor == "cosmic.airflow_overrides.celery_executor.CeleryExecutor"
    assert "s3cr" not in repr(settings)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["GLOBUS_CLIENT_ID=" + CLIENT_ID], "go together: give both or neither"),
        (["GLOBUS_CLIENT_SECRET=x"], "go together: give both or neither"),
        (["GLOBUS_CLIENT_ID=me", "GLOBUS_CLIENT_SECRET=x"], "GLOBUS_CLIENT_ID is 'me'; it must be a UUID"),
        (["PATH_PTYCHOCAM_NERSC=bin/p.sh"], "PATH_PTYCHOCAM_NERSC is 'bin/p.sh'; it must be an absolute"),
        (["PATH_JOB_SCRIPT=/a/../b"], "PATH_JOB_SCRIPT is '/a/../b'"),
        (["PATH_NERSC_ID=~/id"], "PATH_NERSC_ID is '~/id'"),
        (["NOTIFY=half@example.org"], "NOTIFY; it must be Apprise URLs"),
        (["PARALLELISM=many"], "PARALLELISM is 'many'; it must be a whole number, 1 or more."),
        (["AIRFLOW_UID=0"], "AIRFLOW_UID is '0'; it must be a whole number, 1 or more."),
        (["# a comment", "PATH_NERSC_ID"], "line 2 cannot be read; it must be NAME=value"),
        (
            ["GLOBUS_CLIENT_SECRET='half"],
            "line 1 cannot be read; it must be NAME=value, with quotes in pairs",
        ),
    ],
)
def test_what_cannot_be_right_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read(write(tmp_path, *lines))
    assert message in str(refused.value)
    assert "half" not in str(refused.value)


def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        read(write(tmp_path, "PATH_NERSC_ID=id", "GLOBUS_CLIENT_ID=me", "STATSD=here"))
    assert [line.split()[0] for line in str(refused.value).splitlines()] == [
        "GLOBUS_CLIENT_ID",
        "PATH_NERSC_ID",
        "STATSD",
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("COMPOSE_PROFILES", "standin,cellery", "it must be standin, celery, metrics, or several"),
        ("STATSD", "statsd.example.org", "it must be HOST:PORT"),
        ("STATSD", "statsd:port", "it must be HOST:PORT"),
        ("STATSD", "statsd:8125/x", "it must be HOST:PORT"),
        ("STATSD", "[::1:8125", "it must be HOST:PORT"),
        ("DAGS_GIT_URL", "https://me:pw@example.org/x.git", "DAGS_GIT_URL; the URL holds a password"),
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
    settings = read(
        write(tmp_path),
        COMPOSE_PROFILES=" standin, celery",
        STATSD="[::1]:8125",
        DAGS_GIT_URL="https://example.org/x.git",
        DAGS_GIT_REF="",
    )
    assert (settings.standin, settings.celery) == (True, True)
    assert settings.statsd == settings.metrics_to == ("::1", 8125)
    assert read(write(tmp_path)).metrics_to is None
    assert read(write(tmp_path, "COMPOSE_PROFILES=metrics")).metrics_to == ("statsd", 9125)
    assert (settings.dags_git_url, settings.dags_git_ref) == ("https://example.org/x.git", "main")


def test_what_docker_compose_used_comes_before_the_file(tmp_path: Path) -> None:
    """A profile taken back in the shell is empty here, and Compose has not started the stand-in."""
    assert not read(write(tmp_path, "COMPOSE_PROFILES=standin"), COMPOSE_PROFILES="").standin


@pytest.mark.parametrize(
    "lines",
    [[f"GLOBUS_CLIENT_ID={CLIENT_ID}", "GLOBUS_CLIENT_SECRET=hush"], ["NOTIFY=slack://hush/hush/hush"]],
)
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"chmod 600 \.env") as refused:
        read(write(tmp_path, *lines, mode=0o640))
    assert "hush" not in str(refused.value)


def test_who_is_notified_is_a_secret(tmp_path: Path) -> None:
    urls = "mailto://a.org?to=b@c.org,d@e.org, slack://hush/b/c/#chan"
    settings = read(write(tmp_path, f"NOTIFY={urls}"))
    assert settings.notify is not None
    assert settings.notify.get_secret_value() == urls
    assert "hush" not in repr(settings)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path, nersc: Path) -> None:
    (nersc / "priv_key.pem").chmod(0o604)
    file = write(tmp_path, f"PATH_NERSC_ID={nersc}/clientid.txt", f"PATH_NERSC_PRI_KEY={nersc}/priv_key.pem")
    with pytest.raises(SettingsError, match=r"chmod 600 priv_key\.pem"):
        read(file)
    assert read(file, COMPOSE_PROFILES="standin").standin  # which uses none of it


def test_the_message_for_a_key_of_somebody_else_says_what_to_do(
    tmp_path: Path, nersc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, f"PATH_NERSC_ID={nersc}/clientid.txt", f"PATH_NERSC_PRI_KEY={nersc}/priv_key.pem")
    owner = (nersc / "clientid.txt").stat().st_uid
    monkeypatch.setattr(os, "access", lambda *_args: False)
    monkeypatch.setattr(os, "getuid", lambda: 50000)
    with pytest.raises(SettingsError, match=f"cannot be read by 50000.*Set AIRFLOW_UID={owner}"):
        read(file)


def test_the_message_for_a_missing_env_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"Copy \.env\.example to \.env"):
        read(tmp_path / "env")


def test_a_misspelt_setting_is_a_warning(tmp_path: Path) -> None:
    file = write(tmp_path, "GLOBUS_CLIENT_SECRT=x")
    _, warnings = read_with_warnings(file, COMPOSE_PROFILES="standin")
    assert warnings == ["GLOBUS_CLIENT_SECRT is not a setting of this installation; is it misspelt?"]


_printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


@given(secret=_printable.filter(lambda text: text[0] not in "'\"" and text[-1] not in "'\""))
def test_any_secret_arrives_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, secret: str) -> None:
    folder = tmp_path_factory.mktemp("env")
    escaped = secret.replace("\\", r"\\")
    double, single = escaped.replace('"', r"\""), escaped.replace("'", r"\'")
    for written in (secret, f'"{double}"', f"'{single}'"):
        file = write(folder, f"GLOBUS_CLIENT_ID={CLIENT_ID}", f"GLOBUS_CLIENT_SECRET={written}")
        assert secret_of(read(file, COMPOSE_PROFILES="standin")) == secret
