"""Reads a connection of type `superfacility`: its form, its client id and key, and how it gets a token.

NERSC hands keys out as PEM and as JSON Web Key; both are taken, in the connection or in a file, and so are
files as sfapi_client reads them (client id on the first line of a PEM, or `{"client_id", "secret"}`). Tokens
come from sfapi_client, and are shared (`facilities.tokens`).
"""

from __future__ import annotations

import functools
import json
import stat
import time
import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import httpx
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from facilities.errors import CredentialsError, FacilityError, TransientError, UserError
from facilities.superfacility.errors import RENEW, failure_of_status
from facilities.tokens import Credentials, Token

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


# Client id and key

_PRIVATE_JWK = ("n", "e", "d")
_BEGIN = "-----BEGIN"


@dataclass(frozen=True)
class ClientKey:
    """A client and its key.

    :param secret: what sfapi_client takes: PEM text or a JWK as a dictionary.
    :param where: where it was found, for errors.
    """

    client_id: str
    secret: str | dict[str, Any] = field(repr=False)
    where: str = ""


def read_client_key(config: SuperfacilityConfig, password: str | None) -> ClientKey:
    """Find the client id and the key that a connection gives or points to.

    Whether a PEM is an RSA private key is looked at when a token is asked for with it: that takes a while.

    :raises CredentialsError: missing, unreadable, readable by others, or neither a PEM nor a JWK.
    """
    if config.key_file:
        text, where = _read_private_file(Path(config.key_file), config), f"key file {config.key_file}"
    elif password:
        text, where = password, f"password of connection {config.conn_id}"
    else:
        _refuse(config, "There is no private key", "give its text as password, or its file as key_file.")
    secret, id_with_key = _parse(text.strip(), where, config)
    client_id = config.client_id or _id_from_file(config) or id_with_key
    if not client_id:
        _refuse(config, "There is no client id", "give it as login, or its file as client_id_file.")
    if not client_id.isascii() or not client_id.isalnum():
        _refuse(config, f"The client id {client_id!r} is not letters and digits", "copy it from Iris again.")
    return ClientKey(client_id, secret, where)


def _read_private_file(path: Path, config: SuperfacilityConfig) -> str:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            _refuse(config, f"Key file {path} is not a file", "name the PEM or JWK file itself.")
        if mode & 0o077:
            _refuse(
                config,
                f"Key file {path} can be read by others than its owner (mode {stat.S_IMODE(mode):04o})",
                f"chmod 600 {path}, and consider the key known: make a new client in Iris.",
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        _refuse(config, f"Key file {path} does not exist", "check key_file, and what is mounted there.")
    except UnicodeDecodeError:
        _refuse(config, f"Key file {path} is not text", "use the PEM or JWK text from Iris.")
    except OSError as error:
        _refuse(config, f"Key file {path} cannot be read ({error.strerror})", "let Airflow's user read it.")


def _id_from_file(config: SuperfacilityConfig) -> str | None:
    if not config.client_id_file:
        return None
    path = Path(config.client_id_file)
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        _refuse(config, f"Client id file {path} cannot be read ({reason})", "check client_id_file.")


def _parse(text: str, where: str, config: SuperfacilityConfig) -> tuple[str | dict[str, Any], str | None]:
    if text.startswith("{"):
        return _parse_json(text, where, config)
    first, _, rest = text.partition(_BEGIN)
    pem = (_BEGIN + rest).strip() + "\n"
    if not rest:
        _refuse_key(config, where)
    return pem, first.strip() or None


def check_key(key: ClientKey, config: SuperfacilityConfig) -> None:
    """Check that a PEM is an RSA private key, its primes included."""
    if isinstance(key.secret, str) and not _is_rsa_key(key.secret):
        _refuse_key(config, key.where)


@functools.lru_cache(maxsize=2)  # 30 ms for each token otherwise
def _is_rsa_key(pem: str) -> bool:
    try:
        return isinstance(load_pem_private_key(pem.encode(), password=None), RSAPrivateKey)
    except (ValueError, TypeError):  # its text could hold a part of the key: not shown
        return False


def _refuse_key(config: SuperfacilityConfig, where: str) -> NoReturn:
    _refuse(config, f"The {where} is neither a PEM nor a JWK with an RSA private key", "copy it again.")


def _parse_json(
    text: str, where: str, config: SuperfacilityConfig
) -> tuple[str | dict[str, Any], str | None]:
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = {}
    if "secret" in parsed and "client_id" in parsed:
        inner = parsed["secret"]
        secret, _ = _parse(
            json.dumps(inner) if isinstance(inner, dict) else str(inner).strip(), where, config
        )
        return secret, str(parsed["client_id"]).strip()
    if parsed.get("kty") != "RSA" or not all(isinstance(parsed.get(part), str) for part in _PRIVATE_JWK):
        _refuse(config, f"The {where} is not a JWK with an RSA private key", "copy it from Iris again.")
    return parsed, None


def _refuse(config: SuperfacilityConfig, what: str, next_step: str) -> NoReturn:
    raise CredentialsError(
        f"{what} (connection {config.conn_id})", remote_id=config.client_id, next_step=next_step
    ) from None


# Tokens

_REFUSED_CLIENT = frozenset(
    {"invalid_client", "unauthorized_client", "invalid_grant", "access_denied", "invalid_request"}
)
_LIFE = 300.0  # seconds for which a token is used when NERSC does not say


def credentials_of(key: ClientKey, config: SuperfacilityConfig) -> Credentials:
    """What tokens are asked for with, as `facilities.tokens` takes it."""
    name = ["superfacility", config.conn_id, config.api_url, config.token_url]
    return Credentials(name, json.dumps([key.client_id, key.secret]))


def ask_token(key: ClientKey, config: SuperfacilityConfig) -> Token:
    """Ask NERSC for a token.

    :raises CredentialsError: the key is none, or NERSC refuses the client.
    :raises TransientError: NERSC gives none at the moment.
    """
    check_key(key, config)
    with closing(_oauth_client(key, config)) as client:
        try:
            reply = client._http_client().token  # the only place that has its end
            return Token(str(reply["access_token"]), float(reply.get("expires_at") or time.time() + _LIFE))
        except Exception as error:
            raise _failure(error, key, config) from error


def _failure(error: Exception, key: ClientKey, config: SuperfacilityConfig) -> FacilityError:
    what = f"NERSC gives no token to the client of connection {config.conn_id}"
    refusal = str(getattr(error, "error", ""))  # of authlib's OAuthError
    if refusal in _REFUSED_CLIENT:
        return CredentialsError(
            what,
            remote_id=key.client_id,
            state=refusal,
            next_step="the client has expired, or the key is not its own: "
            + RENEW.format(conn_id=config.conn_id),
            details=str(getattr(error, "description", None) or ""),
        )
    if isinstance(error, httpx.HTTPStatusError):
        return failure_of_status(error.response, what, client_id=key.client_id, conn_id=config.conn_id)
    details = f"{type(error).__name__}: {error}"
    return TransientError(
        what, next_step="look at https://www.nersc.gov/live-status/motd if it stays so.", details=details
    )


def _oauth_client(key: ClientKey, config: SuperfacilityConfig) -> Any:
    """A client of sfapi_client, for its tokens."""
    import authlib.deprecate  # noqa: F401, PLC0415 - sets a filter of its own

    with warnings.catch_warnings():
        # Authlib would rather have httpx2, which sfapi_client does not know.
        warnings.filterwarnings("ignore", message="The httpx module is deprecated")
        from sfapi_client import Client  # noqa: PLC0415 - slow to import

    return Client(
        client_id=key.client_id,
        secret=key.secret,
        api_base_url=config.api_url,
        token_url=config.token_url,
    )
