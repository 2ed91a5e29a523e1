"""Turns an installation's settings into Airflow's connections, `beamline.yaml` and `airflow.cfg`."""

from __future__ import annotations

import configparser
import io
import json
import os
from pathlib import Path
from typing import Any

import yaml

from deployment.settings import Settings
from deployment.standin_settings import bundle_beamline, standin_beamline, standin_seed

CONFIG = Path("/config")
MANAGED = "Written from .env at every start; change it there."
NERSC_API = "https://api.nersc.gov/api/v1.2"


def connections(settings: Settings) -> dict[str, dict[str, Any]]:
    """Connections to the real facilities, as `deployment.database` takes them.

    The Globus client is None when `.env` does not give it: `deployment.prepare` then keeps a connection that
    somebody typed into the UI.
    """
    secret = settings.globus_client_secret
    collections = bundle_beamline()["collections"].values()
    return {
        "globus_default": {
            "conn_type": "globus",
            "login": settings.globus_client_id,
            "password": secret.get_secret_value() if secret is not None else None,
            "extra": {"collections": " ".join(f"{c['id']}:{c['path']}" for c in collections)},
            "description": MANAGED,
        },
        "superfacility_default": {
            "conn_type": "superfacility",
            "host": NERSC_API,
            "extra": {
                "client_id_file": str(settings.path_nersc_id),
                "key_file": str(settings.path_nersc_pri_key),
            },
            "description": MANAGED,
        },
    }


def notify_connection(settings: Settings) -> dict[str, dict[str, Any]]:
    """The connection that names who is notified; its URLs hold secrets, so they are its password."""
    urls = settings.notify
    return {
        "notify_default": {
            "conn_type": "generic",
            "password": urls.get_secret_value() if urls is not None else None,
            "description": MANAGED,
        }
    }


def standin_connections(facility: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Connections to the stand-in; its key goes into the connection, so that no service needs its files."""
    found: dict[str, dict[str, Any]] = standin_seed(facility)["connections"]
    superfacility = found["superfacility_default"]
    extra = superfacility["extra"]
    superfacility["login"] = Path(extra.pop("client_id_file")).read_text().strip()
    superfacility["password"] = Path(extra.pop("key_file")).read_text()
    return {conn_id: fields | {"description": MANAGED} for conn_id, fields in found.items()}


def write_beamline(settings: Settings, facility: dict[str, Any] | None, folder: Path = CONFIG) -> Path:
    """Write `beamline.yaml`: the bundle's own, with this installation's paths.

    :param facility: the stand-in's description of itself, when it is used.
    """
    path = folder / "beamline.yaml"
    if facility is not None:
        new = standin_beamline(facility, folder / ".beamline.yaml", settings.path_job_script)
        new.replace(path)
        return path
    site = bundle_beamline()
    for engine, script in settings.scripts.items():
        site["engines"][engine]["script"] = str(script)
    if settings.path_stack_nersc is not None:
        site["stack"]["script"] = str(settings.path_stack_nersc)
    site["job_script_folder"] = str(settings.path_job_script)
    _write(path, yaml.safe_dump(site, sort_keys=False))
    return path


def write_airflow_cfg(settings: Settings, folder: Path = CONFIG) -> Path:
    """Write what depends on the profiles; all other settings are in docker-compose.yaml's environment."""
    config = configparser.ConfigParser(interpolation=None)
    config["core"] = {"executor": settings.executor}
    if settings.metrics_to is not None:
        host, port = settings.metrics_to
        config["metrics"] = {"statsd_on": "True", "statsd_host": host, "statsd_port": str(port)}
    if settings.dags_git_url is not None:
        bundle = git_bundle(settings.dags_git_url, settings.dags_git_ref)
        # Airflow reads its file with interpolation: a percent sign is written twice.
        config["dag_processor"] = {"dag_bundle_config_list": json.dumps([bundle]).replace("%", "%%")}
    text = io.StringIO()
    config.write(text)
    path = folder / "airflow.cfg"
    _write(path, text.getvalue())
    return path


def git_bundle(url: str, ref: str) -> dict[str, Any]:
    """An entry of `[dag_processor] dag_bundle_config_list` that takes the DAGs from a git repository.

    The repository has this one's shape. From the checkout come `dags/` and the job scripts' templates in
    `include/job_scripts`. A checkout is never on `sys.path`: what DAGs import, `plugins/`, is installed with
    the services, as is the rest of `include/`, and is brought up to date by a restart of them.
    """
    return {
        "name": "cosmic",
        "classpath": "airflow.providers.git.bundles.git.GitDagBundle",
        "kwargs": {"repo_url": url, "tracking_ref": ref, "subdir": "dags", "refresh_interval": 60},
    }


def _write(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}")
    with new.open("w") as file:
        file.write(text)
        os.fsync(file.fileno())
    new.replace(path)
