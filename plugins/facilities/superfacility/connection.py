"""The connection type `superfacility`: fields of its form, and what a connection means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from facilities.errors import CredentialsError, UserError

if TYPE_CHECKING:
    from airflow.sdk import Connection

API_URL = "https://api.nersc.gov/api/v1.2"
TOKEN_URL = "https://oidc.nersc.gov/c2id/token"  # noqa: S105 - an address, not a secret
TIME_ZONE = "America/Los_Angeles"
JOB_URL = "https://iris.nersc.gov/user/{uid}/jobs"


def _field(label: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["string", "null"], **schema}}


CONNECTION_TYPE: dict[str, Any] = {
    "connection-type": "superfacility",
    "hook-class-name": "facilities.superfacility.hook.SuperfacilityHook",
    "hook-name": "NERSC Superfacility API",
    "ui-field-behaviour": {
        "hidden-fields": ["schema", "port"],
        "relabeling": {"host": "API address", "login": "Client id", "password": "Private key (PEM or JWK)"},
        "placeholders": {
            "host": API_URL,
            "login": "13 characters, from Iris; or give a client id file below",
            "password": "text of the key; or give a key file below",
        },
    },
    "conn-fields": {
        "key_file": _field("Private key file", "PEM or JWK, readable by Airflow's user only (chmod 600)."),
        "client_id_file": _field("Client id file", "A file that holds the client id, if it is not above."),
        "token_url": _field("Token address", f"Left empty: {TOKEN_URL}"),
        "time_zone": _field("Time zone", f"Of the times that Slurm reports. Left empty: {TIME_ZONE}"),
        "user": _field("NERSC user", "Owner of the jobs. Left empty: asked of the API."),
        "job_url": _field("Job page", f"May hold {{job_id}}, {{machine}}, {{uid}}. Left empty: {JOB_URL}"),
    },
}


@dataclass(frozen=True)
class SuperfacilityConfig:
    """A connection of type `superfacility`, read and checked, without its secrets."""

    conn_id: str
    api_url: str
    token_url: str
    zone: ZoneInfo
    user: str | None
    job_url: str
    client_id: str | None
    client_id_file: str | None
    key_file: str | None

    @classmethod
    def from_connection(cls, connection: Connection, conn_id: str) -> SuperfacilityConfig:
        """Read a connection.

        :raises UserError: an address or a time zone cannot be right.
        :raises CredentialsError: extra is not a JSON object.
        """
        extra = _extra(connection, conn_id)

        def text(key: str) -> str | None:
            return str(extra.get(key) or "").strip() or None

        return cls(
            conn_id=conn_id,
            api_url=_url(text("api_url") or _host(connection) or API_URL, "API address", conn_id),
            token_url=_url(text("token_url") or TOKEN_URL, "token address", conn_id),
            zone=_zone(text("time_zone") or TIME_ZONE, conn_id),
            user=text("user"),
            job_url=text("job_url") or JOB_URL,
            client_id=(connection.login or "").strip() or None,
            client_id_file=text("client_id_file"),
            key_file=text("key_file"),
        )


def _extra(connection: Connection, conn_id: str) -> Mapping[str, Any]:
    extra = connection.extra_dejson
    if not isinstance(extra, Mapping):
        raise CredentialsError(
            f"The extra of connection {conn_id} is not a JSON object",
            next_step="correct it under Admin, Connections.",
        )
    return extra


def _host(connection: Connection) -> str | None:
    host = (connection.host or "").strip()
    if not host:
        return None
    address = host if "://" in host else f"{connection.schema or 'https'}://{host}"
    has_port = urlsplit(address).port is not None
    return f"{address}:{connection.port}" if connection.port and not has_port else address


def _url(address: str, what: str, conn_id: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        shown = f"{parts.scheme}://{parts.hostname}" if parts.hostname else address[:80]  # without a login
        raise UserError(
            f"The {what} of connection {conn_id} is not a plain http(s) address: {shown!r}",
            next_step="correct it under Admin, Connections.",
        )
    return address.rstrip("/")


def _zone(name: str, conn_id: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UserError(
            f"Connection {conn_id} names an unknown time zone: {name!r}",
            next_step="use a name such as America/Los_Angeles in its extra.",
        ) from error
