"""Makes the environment of a local Airflow: the bundle's settings plus what differs from place to place."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from deployment.env_file import read_env_file

REPOSITORY = Path(__file__).resolve().parents[3]
SETTINGS_FILE = REPOSITORY / "include" / "airflow.env"
SQLITE_PLUGIN = Path(__file__).with_name("sqlite_plugin.py")

# What a local Airflow inherits from the shell; another Airflow's settings and credentials stay out.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV")


def local_environment(home: Path, port: int, extra: dict[str, str] | None = None) -> dict[str, str]:
    """Environment for every component of the Airflow that lives in `home` and serves on `port`.

    Keys and passwords are made once per `home` and kept in files that only the owner can read.
    """
    environment = {key: os.environ[key] for key in INHERITED if key in os.environ}
    environment |= read_env_file(SETTINGS_FILE)
    environment |= {
        "AIRFLOW_HOME": str(home),
        "PYTHONPATH": os.pathsep.join(str(REPOSITORY / folder) for folder in ("plugins", "include")),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
        "AIRFLOW__CORE__EXECUTOR": "cosmic.airflow_overrides.local_executor.KillProofLocalExecutor",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,beamline:user,reader:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
    }
    if urls := os.environ.get("NOTIFY"):  # as in .env of an installation
        connection = {"conn_type": "generic", "password": urls}
        environment["AIRFLOW_CONN_NOTIFY_DEFAULT"] = json.dumps(connection)
    environment |= _keys(home)
    environment |= extra or {}
    if environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].startswith("sqlite:"):
        module = "dev.local_airflow.sqlite"
        environment.setdefault("AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS", f"{module}.CONNECT_ARGS")
        environment.setdefault(
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS_ASYNC", f"{module}.ASYNC_CONNECT_ARGS"
        )
        environment["AIRFLOW__CORE__PLUGINS_FOLDER"] = str(_sqlite_plugins(home))
    return environment


def _sqlite_plugins(home: Path) -> Path:
    """A folder of the bundle's plugins and the one that SQLite needs: Airflow takes one folder only."""
    folder = home / "plugins"
    folder.mkdir(exist_ok=True)
    for name, target in (("bundle", REPOSITORY / "plugins"), (SQLITE_PLUGIN.name, SQLITE_PLUGIN)):
        link = folder / name
        if not (link.is_symlink() and link.readlink() == target):
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    return folder


def passwords(home: Path) -> dict[str, str]:
    """Password of each user of the UI and the REST API."""
    values: dict[str, str] = json.loads((home / "passwords.json").read_text())
    return values


def _keys(home: Path) -> dict[str, str]:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    users = {user: secrets.token_urlsafe(9) for user in ("admin", "beamline", "reader")}
    _write_once(home / "passwords.json", json.dumps(users))
    _write_once(
        home / "keys.json",
        json.dumps(
            {
                # 32 random bytes, urlsafe base64 with padding: what Fernet takes.
                "AIRFLOW__CORE__FERNET_KEY": secrets.token_urlsafe(32) + "=",
                "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(48),
                "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(32),
            }
        ),
    )
    keys: dict[str, str] = json.loads((home / "keys.json").read_text())
    return keys


def _write_once(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
