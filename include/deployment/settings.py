"""An installation as `.env` describes it: read, checked, and nothing else.

The names of the first group are those of the agent that this bundle replaces.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

from dev.local_airflow.settings import read_env_file

SETTINGS_FILE = Path("/run/secrets/settings")  # `.env`, as a Compose secret

FACILITY_NAMES = (
    "GLOBUS_CLIENT_ID",
    "GLOBUS_CLIENT_SECRET",
    "PATH_NERSC_ID",
    "PATH_NERSC_PRI_KEY",
    "PATH_JOB_SCRIPT",
    "PATH_PTYCHOCAM_NERSC",
    "PATH_CDTOOLS_NERSC",
)
# These reach the services through docker-compose.yaml too, so that a change of theirs restarts the services.
SERVICE_NAMES = (
    "COMPOSE_PROFILES",
    "COMPOSE_PROJECT_NAME",
    "AIRFLOW_UID",
    "UI_ADDRESS",
    "UI_PORT",
    "UI_URL",
    "STATSD",
    "DAGS_GIT_URL",
    "DAGS_GIT_REF",
    "PARALLELISM",
    "WORKER_CONCURRENCY",
    "STANDIN_SLOTS",
    "SETTINGS_FILE",
)
PROFILES = ("standin", "celery")
JOB_SCRIPTS = "/tmp_job_scripts"  # noqa: S108 - the old agent's name for a folder that is mounted there


class SettingsError(Exception):
    """A setting in `.env` cannot be right; the message names it and says what to do."""


@dataclass(frozen=True)
class Deployment:
    """One installation. Paths are those inside the containers, or at NERSC.

    :param globus_client_id: None when `.env` gives no Globus client.
    :param scripts: path at NERSC of an engine's reconstruction script, for the engines that `.env` names.
    :param statsd: host and port that metrics are sent to; None: nowhere.
    :param dags_git: URL and branch or tag that DAGs are taken from; None: from the mounted folder.
    """

    standin: bool = False
    celery: bool = False
    globus_client_id: str | None = None
    globus_client_secret: str | None = field(default=None, repr=False)
    nersc_id_file: Path = Path("/nersc/clientid.txt")
    nersc_key_file: Path = Path("/nersc/priv_key.pem")
    job_script_folder: Path = Path(JOB_SCRIPTS)
    scripts: Mapping[str, str] = field(default_factory=dict)
    statsd: tuple[str, int] | None = None
    dags_git: tuple[str, str] | None = None

    @property
    def executor(self) -> str:
        """Airflow's name of the executor."""
        return (
            "CeleryExecutor"
            if self.celery
            else "cosmic.airflow_overrides.local_executor.KillProofLocalExecutor"
        )


def read_deployment(
    file: Path = SETTINGS_FILE, environment: Mapping[str, str] = os.environ
) -> tuple[Deployment, list[str]]:
    """Read the settings; returns them and what a person should be told about them.

    :param environment: what docker-compose.yaml passes on: profiles, metrics, where DAGs come from.
    :raises SettingsError: naming the setting that cannot be right.
    """
    values = _read(file)
    warnings = [f"{name} is not a setting of this installation; is it misspelt?" for name in _unknown(values)]
    profiles = _profiles(environment.get("COMPOSE_PROFILES", ""))
    client_id, client_secret = _globus_client(values)
    if client_secret is not None and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsError(
            "the file holds a secret and can be read by others than its owner. Do: chmod 600 .env"
        )
    deployment = Deployment(
        standin="standin" in profiles,
        celery="celery" in profiles,
        globus_client_id=client_id,
        globus_client_secret=client_secret,
        nersc_id_file=_path(values, "PATH_NERSC_ID", "/nersc/clientid.txt"),
        nersc_key_file=_path(values, "PATH_NERSC_PRI_KEY", "/nersc/priv_key.pem"),
        job_script_folder=_path(values, "PATH_JOB_SCRIPT", JOB_SCRIPTS),
        scripts={
            engine: str(_path(values, f"PATH_{engine.upper()}_NERSC", ""))
            for engine in ("ptychocam", "cdtools")
            if values.get(f"PATH_{engine.upper()}_NERSC")
        },
        statsd=_statsd(environment.get("STATSD", "")),
        dags_git=_dags_git(environment),
    )
    return deployment, warnings + ([] if deployment.standin else _check_credentials(deployment))


def _read(file: Path) -> dict[str, str]:
    try:
        values = read_env_file(file)
    except OSError as error:
        raise SettingsError(
            f".env cannot be read by user id {os.getuid()} ({error.strerror}). Copy .env.example to .env, "
            "and set AIRFLOW_UID to the id of the file's owner (id -u)."
        ) from error
    return {name: _unquoted(value) for name, value in values.items()}


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return re.sub(r"\s+#.*$", "", value)


def _unknown(values: Mapping[str, str]) -> list[str]:
    return sorted(set(values) - {*FACILITY_NAMES, *SERVICE_NAMES})


def _profiles(text: str) -> set[str]:
    profiles = {name.strip() for name in text.split(",") if name.strip()}
    if wrong := sorted(profiles - set(PROFILES)):
        raise SettingsError(
            f"COMPOSE_PROFILES names {', '.join(wrong)}; there are {' and '.join(PROFILES)}, "
            "with a comma between."
        )
    return profiles


def _globus_client(values: Mapping[str, str]) -> tuple[str | None, str | None]:
    client_id, secret = values.get("GLOBUS_CLIENT_ID") or None, values.get("GLOBUS_CLIENT_SECRET") or None
    if (client_id is None) != (secret is None):
        raise SettingsError("GLOBUS_CLIENT_ID and GLOBUS_CLIENT_SECRET go together: give both or neither.")
    if client_id is not None:
        try:
            UUID(client_id)
        except ValueError:
            raise SettingsError(
                f"GLOBUS_CLIENT_ID is {client_id!r}, which is not a UUID. Copy it from "
                "https://app.globus.org/settings/developers."
            ) from None
    return client_id, secret


def _path(values: Mapping[str, str], name: str, default: str) -> Path:
    text = values.get(name) or default
    if not text.startswith("/") or ".." in text.split("/") or re.search(r"[\x00-\x1f]", text):
        raise SettingsError(f"{name} is {text!r}; it must be an absolute path without '..'.")
    return Path(text)


def _statsd(text: str) -> tuple[str, int] | None:
    if not text.strip():
        return None
    try:
        parts = urlsplit(f"//{text.strip()}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None or parts.path:
        raise SettingsError(f"STATSD is {text!r}; it must be HOST:PORT, such as statsd.example.org:8125.")
    return host, port


def _dags_git(environment: Mapping[str, str]) -> tuple[str, str] | None:
    url = environment.get("DAGS_GIT_URL", "").strip()
    if not url:
        return None
    if urlsplit(url).password:
        raise SettingsError("DAGS_GIT_URL holds a password, which would show in logs. Use a public address.")
    return url, environment.get("DAGS_GIT_REF", "").strip() or "main"


def _check_credentials(deployment: Deployment) -> list[str]:
    """What is missing for the real facilities; a key that Airflow would refuse is an error."""
    missing = []
    if deployment.globus_client_id is None:
        missing.append(
            "GLOBUS_CLIENT_ID and GLOBUS_CLIENT_SECRET are not set: no file can be copied until they are."
        )
    for name, path in (
        ("PATH_NERSC_ID", deployment.nersc_id_file),
        ("PATH_NERSC_PRI_KEY", deployment.nersc_key_file),
    ):
        if not path.exists():
            missing.append(f"{name}: there is no {path}, so no job can be submitted until there is.")
        elif not os.access(path, os.R_OK):
            owner = path.stat().st_uid
            raise SettingsError(
                f"{name}: {path} belongs to user id {owner} and cannot be read by {os.getuid()}, which "
                f"Airflow runs as. Set AIRFLOW_UID={owner}, or give the file away: chown {os.getuid()}."
            )
    key = deployment.nersc_key_file
    if key.exists() and key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsError(
            f"PATH_NERSC_PRI_KEY: {key} can be read by others than its owner. Do: chmod 600 {key.name} "
            "in the folder that is mounted as /nersc, and consider the key known."
        )
    return missing
