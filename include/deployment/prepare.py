"""Prepares an installation, as docker-compose.yaml's service `init`: `python -m deployment.prepare`.

Reads `.env`, writes `airflow.cfg` and `beamline.yaml`, makes or migrates the database, and writes
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

from deployment.airflow_settings import (
    MANAGED,
    connections,
    notify_connection,
    standin_connections,
    write_airflow_cfg,
    write_beamline,
)
from deployment.keys import USERS, read_key
from deployment.settings import Settings, SettingsError, read_settings
from deployment.standin_settings import pools

STANDIN = Path("/standin/standin.json")
STANDIN_HEALTH = "http://standin:8000/healthz"
MAX_WAIT = 180.0  # seconds for the stand-in or Redis to answer


def main() -> None:
    """Prepare an installation; ends with a message on stderr when a setting is wrong."""
    try:
        settings, warnings = read_settings()
        facility = _wait_for_standin() if settings.standin else None
        if settings.celery:
            _wait_for_port("redis", 6379)
    except SettingsError as error:
        lines = "\n".join(f".env: {line}" for line in str(error).splitlines())
        sys.exit(f"\n{lines}\n")
    write_airflow_cfg(settings)
    write_beamline(settings, facility)
    _check_beamline()
    facilities = standin_connections(facility) if facility else connections(settings)
    _write_database(facilities | notify_connection(settings))
    _make_users()
    for warning in warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    print(_summary(settings), flush=True)


def _wait_for_standin() -> dict[str, Any]:
    """The stand-in's description of itself, once it answers."""
    deadline = time.monotonic() + MAX_WAIT
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
    deadline = time.monotonic() + MAX_WAIT
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


def _write_database(wanted: dict[str, dict[str, Any]]) -> None:
    """Write tables, connections and pools; what `.env` leaves open stays as it was typed in."""
    from airflow.models.connection import Connection  # noqa: PLC0415 - see above
    from airflow.utils.session import create_session  # noqa: PLC0415
    from sqlalchemy import select  # noqa: PLC0415

    from deployment.database import prepare_database  # noqa: PLC0415

    prepare_database({"pools": pools()})
    with create_session() as session:
        typed_in = set(
            session.scalars(
                select(Connection.conn_id).where(Connection.description.is_distinct_from(MANAGED))
            )
        )
    incomplete = {conn_id for conn_id, fields in wanted.items() if not fields.get("password", "none needed")}
    prepare_database({"connections": {c: f for c, f in wanted.items() if c not in incomplete & typed_in}})


def _make_users() -> None:
    from deployment.users import make_users  # noqa: PLC0415 - see above

    for user in make_users({user: read_key(f"{user}_password") for user in USERS}):
        print(f"made user {user}; first password: docker-compose exec api-server cat /keys/{user}_password")


def _summary(settings: Settings) -> str:
    parts = [f"executor {settings.executor}"]
    parts.append("the stand-in" if settings.standin else "the real Globus and NERSC")
    statsd = settings.metrics_to
    parts.append(f"metrics to {statsd[0]}:{statsd[1]}" if statsd else "no metrics")
    parts.append("people are notified" if settings.notify else "nobody is notified (NOTIFY is empty)")
    parts.append(f"DAGs from {settings.dags_git_url or './dags'}")
    return f"prepared: {', '.join(parts)}"


if __name__ == "__main__":
    main()
