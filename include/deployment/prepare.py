"""The init step of docker-compose.yaml: `python -m deployment.prepare`.

Reads `.env`, writes `airflow.cfg` and `beamline.yaml`, makes or migrates the database, and lays down
connections, pools, roles and users. Running it again changes nothing but what `.env` changes.
"""

from __future__ import annotations

import json
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from deployment.keys import USERS, read_key
from deployment.settings import Deployment, SettingsError, read_deployment
from deployment.site import (
    MANAGED,
    connections,
    pools,
    standin_connections,
    write_airflow_cfg,
    write_beamline,
)

STANDIN = Path("/standin/standin.json")
STANDIN_HEALTH = "http://standin:8000/healthz"
PATIENCE = 180.0  # seconds for the stand-in or Redis to answer


def main() -> None:
    """Prepare an installation; ends with a message on stderr when a setting is wrong."""
    try:
        deployment, warnings = read_deployment()
        facility = _wait_for_standin() if deployment.standin else None
        if deployment.celery:
            _wait_for_port("redis", 6379)
    except SettingsError as error:
        sys.exit(f"\n.env: {error}\n")
    write_airflow_cfg(deployment)
    write_beamline(deployment, facility)
    _check_beamline()
    _lay_down(standin_connections(facility) if facility else connections(deployment))
    _make_users()
    for warning in warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    print(_summary(deployment), flush=True)


def _wait_for_standin() -> dict[str, Any]:
    """The stand-in's description of itself, once it answers."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(STANDIN_HEALTH, timeout=5):
                description: dict[str, Any] = json.loads(STANDIN.read_text())
                return description
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise SettingsError(
                    f"the stand-in does not answer ({error}). Look at: docker-compose logs standin"
                ) from error
        time.sleep(1)


def _wait_for_port(host: str, port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise SettingsError(
                    f"{host} does not answer ({error}). Look at: docker-compose logs {host}"
                ) from error
        else:
            return
        time.sleep(1)


# Airflow reads airflow.cfg when it is imported: what needs it is imported after the file was written.


def _check_beamline() -> None:
    from cosmic.beamline import beamline  # noqa: PLC0415 - see above
    from facilities.errors import UserError  # noqa: PLC0415

    try:
        beamline()
    except UserError as error:
        sys.exit(f"\nbeamline.yaml: {error}\n")


def _lay_down(wanted: dict[str, dict[str, Any]]) -> None:
    """Database, connections and pools; a connection that `.env` does not give stays as it was typed in."""
    from airflow.models.connection import Connection  # noqa: PLC0415 - see above
    from airflow.utils.session import create_session  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415

    from dev.local_airflow.prepare import prepare  # noqa: PLC0415

    prepare({"pools": pools()})
    with create_session() as session:
        typed_in = set(
            session.scalars(
                select(Connection.conn_id).where(Connection.description.is_distinct_from(MANAGED))
            )
        )
    incomplete = {conn_id for conn_id, fields in wanted.items() if "login" in fields and not fields["login"]}
    prepare({"connections": {c: f for c, f in wanted.items() if c not in incomplete & typed_in}})


def _make_users() -> None:
    from deployment.users import make_users  # noqa: PLC0415 - see above

    for user in make_users({user: read_key(f"{user}_password") for user in USERS}):
        print(f"made user {user}; first password: docker-compose exec api-server cat /keys/{user}_password")


def _summary(deployment: Deployment) -> str:
    parts = [f"executor {deployment.executor}"]
    parts.append("the stand-in facility" if deployment.standin else "the real Globus and NERSC")
    parts.append(
        f"metrics to {deployment.statsd[0]}:{deployment.statsd[1]}" if deployment.statsd else "no metrics"
    )
    parts.append(f"DAGs from {deployment.dags_git[0]}" if deployment.dags_git else "DAGs from ./dags")
    return f"prepared: {', '.join(parts)}"


if __name__ == "__main__":
    main()
