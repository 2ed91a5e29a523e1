"""Reads and checks the settings of an installation: `.env`, and what docker-compose.yaml passes on."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from deployment.env_file import EnvFileError, read_env_file

SETTINGS_FILE = Path("/run/secrets/settings")  # `.env`, as a Compose secret
PROFILES = ("standin", "celery", "metrics")
OWN_STATSD = ("statsd", 9125)  # of the profile metrics
JOB_SCRIPTS = Path("/tmp_job_scripts")  # noqa: S108 - the previous agent's name for the mounted folder


class SettingsError(Exception):
    """Settings in `.env` are wrong; the message has a line for each, with its name and what to do."""


def _absolute_path(path: Path) -> Path:
    text = str(path)
    if not path.is_absolute() or ".." in path.parts or re.search(r"[\x00-\x1f]", text):
        raise ValueError("it must be an absolute path without '..'")
    return path


def _whole_number(value: object) -> object:
    if isinstance(value, str) and not (value.isascii() and value.isdigit() and int(value) >= 1):
        raise ValueError("it must be a whole number, 1 or more")
    return value


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise ValueError(
            "it must be a UUID; copy it from https://app.globus.org/settings/developers"
        ) from None


def _profiles(value: object) -> object:
    if not isinstance(value, str):
        return value
    names = frozenset(name.strip() for name in value.split(",") if name.strip())
    if not names <= set(PROFILES):
        raise ValueError(f"it must be {', '.join(PROFILES)}, or several with commas between")
    return names


def _host_and_port(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        parts = urlsplit(f"//{value.strip()}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None or parts.path:
        raise ValueError("it must be HOST:PORT, such as statsd.example.org:8125")
    return host, port


def _folder_or_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.password:
        raise ValueError("it holds a password, which would show in logs; put it into an Airflow connection")
    if not text.startswith("/") and not (parts.scheme and parts.netloc):
        raise ValueError("it must be an absolute path in the containers, or s3://CONNECTION@BUCKET/FOLDER")
    return text


def _urls(text: SecretStr) -> SecretStr:
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text.get_secret_value()):
        raise ValueError("it must be Apprise URLs with spaces or commas between, such as mailto://...")
    return text


def _without_password(url: str) -> str:
    if urlsplit(url).password:
        raise ValueError("the URL holds a password, which would show in logs; use a public address")
    return url


_AbsolutePath = Annotated[Path, AfterValidator(_absolute_path)]
_WholeNumber = Annotated[int, BeforeValidator(_whole_number)]


class Settings(BaseSettings):
    """One installation. In `.env` the names are upper case. Paths are those in the containers, or at NERSC.

    `Settings(statsd="statsd.example.org:8125").statsd` is `("statsd.example.org", 8125)`.
    """

    model_config = SettingsConfigDict(
        alias_generator=str.upper,
        case_sensitive=True,
        extra="allow",  # a misspelt name is a warning, see `read_settings`
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    # The facilities. The names are those of the agent that this bundle replaces.
    globus_client_id: Annotated[str, AfterValidator(_uuid)] | None = None
    globus_client_secret: SecretStr | None = None
    path_nersc_id: _AbsolutePath = Path("/nersc/clientid.txt")
    path_nersc_pri_key: _AbsolutePath = Path("/nersc/priv_key.pem")
    path_job_script: _AbsolutePath = JOB_SCRIPTS
    path_ptychocam_nersc: _AbsolutePath | None = None
    path_cdtools_nersc: _AbsolutePath | None = None
    path_stack_nersc: _AbsolutePath | None = None

    # Who is notified when something is wrong.
    notify: Annotated[SecretStr, AfterValidator(_urls)] | None = None

    # The network, for all services.
    https_proxy: str | None = None
    no_proxy: str | None = None

    # The stack. docker-compose.yaml uses these too.
    compose_profiles: Annotated[frozenset[str], NoDecode, BeforeValidator(_profiles)] = frozenset()
    compose_project_name: str | None = None
    airflow_uid: _WholeNumber = 50000
    ui_address: str = "127.0.0.1"
    ui_port: _WholeNumber = 8080
    ui_url: str = "http://localhost:8080"
    statsd: Annotated[tuple[str, int] | None, NoDecode, BeforeValidator(_host_and_port)] = None
    kept_results: Annotated[str, AfterValidator(_folder_or_url)] | None = None
    kept_results_days: _WholeNumber = 90
    grafana_port: _WholeNumber = 3000
    dags_git_url: Annotated[str, AfterValidator(_without_password)] | None = None
    dags_git_ref: str = "main"
    parallelism: _WholeNumber = 16
    worker_concurrency: _WholeNumber = 8
    standin_slots: _WholeNumber = 2
    settings_file: str | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings passes all by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, which is what Compose used, comes before the file."""
        return env_settings, init_settings

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if not isinstance(value, str) or value.strip()}

    @model_validator(mode="after")
    def _client_and_secret(self) -> Settings:
        if (self.globus_client_id is None) != (self.globus_client_secret is None):
            raise ValueError("GLOBUS_CLIENT_ID and GLOBUS_CLIENT_SECRET go together: give both or neither")
        return self

    @property
    def standin(self) -> bool:
        """Whether the stand-in takes the place of Globus and NERSC."""
        return "standin" in self.compose_profiles

    @property
    def celery(self) -> bool:
        """Whether tasks run in Celery's workers."""
        return "celery" in self.compose_profiles

    @property
    def metrics_to(self) -> tuple[str, int] | None:
        """Host and port of the StatsD server, if any."""
        return self.statsd or (OWN_STATSD if "metrics" in self.compose_profiles else None)

    @property
    def executor(self) -> str:
        """Airflow's name of the executor."""
        module = "celery_executor.CeleryExecutor" if self.celery else "local_executor.KillProofLocalExecutor"
        return f"cosmic.airflow_overrides.{module}"

    @property
    def scripts(self) -> dict[str, Path]:
        """Paths at NERSC of the reconstruction scripts that `.env` names, by engine."""
        paths = {"ptychocam": self.path_ptychocam_nersc, "cdtools": self.path_cdtools_nersc}
        return {engine: path for engine, path in paths.items() if path is not None}


def read_settings(file: Path = SETTINGS_FILE) -> tuple[Settings, list[str]]:
    """Read the settings of an installation; returns them and warnings for whoever wrote them.

    :raises SettingsError: naming the settings that are wrong, and how they must be.
    """
    values = _read(file)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError("\n".join(_message(found) for found in error.errors())) from None
    if (settings.globus_client_secret or settings.notify) and _others_can_read(file):
        raise SettingsError(
            "the file holds a secret and can be read by others than its owner. Do: chmod 600 .env"
        )
    warnings = [
        f"{name} is not a setting of this installation; is it misspelt?"
        for name in sorted(settings.model_extra or {})
    ]
    return settings, warnings + ([] if settings.standin else _check_credentials(settings))


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(read_env_file(file))
    except EnvFileError as error:
        raise SettingsError(str(error)) from error
    except OSError as error:
        raise SettingsError(
            f".env cannot be read by user id {os.getuid()} ({error.strerror}). Copy .env.example to .env, "
            "and set AIRFLOW_UID to the id of the file's owner (id -u)."
        ) from error


def _message(error: Any) -> str:
    """What is wrong with a setting; values that may hold a secret are not repeated."""
    text = str(error["ctx"]["error"])
    if not error["loc"]:
        return f"{text}."
    name = str(error["loc"][0]).upper()
    shown = "" if name in ("DAGS_GIT_URL", "NOTIFY") else f" is {error['input']!r}"
    return f"{name}{shown}; {text}."


def _others_can_read(path: Path) -> bool:
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def _check_credentials(settings: Settings) -> list[str]:
    """What is missing for the real facilities; a key that Airflow would refuse is an error."""
    missing = []
    if settings.globus_client_id is None:
        missing.append(
            "GLOBUS_CLIENT_ID and GLOBUS_CLIENT_SECRET are not set: no file can be copied until they are."
        )
    for name, path in (
        ("PATH_NERSC_ID", settings.path_nersc_id),
        ("PATH_NERSC_PRI_KEY", settings.path_nersc_pri_key),
    ):
        if not path.exists():
            missing.append(f"{name}: there is no {path}, so no job can be submitted until there is.")
        elif not os.access(path, os.R_OK):
            owner = path.stat().st_uid
            raise SettingsError(
                f"{name}: {path} belongs to user id {owner} and cannot be read by {os.getuid()}, which "
                f"Airflow runs as. Set AIRFLOW_UID={owner}, or give the file away: chown {os.getuid()}."
            )
    key = settings.path_nersc_pri_key
    if key.exists() and _others_can_read(key):
        raise SettingsError(
            f"PATH_NERSC_PRI_KEY: {key} can be read by others than its owner. Do: chmod 600 {key.name} "
            "in the folder that is mounted as /nersc, and replace the key if others may have seen it."
        )
    return missing
