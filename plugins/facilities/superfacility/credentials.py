"""The client id and the private key of a Superfacility API client.

NERSC hands keys out as PEM and as JSON Web Key; both are taken, in the connection or in a file. Files
as sfapi_client reads them (client id on the first line of a PEM, or `{"client_id", "secret"}`) are too.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from facilities.errors import CredentialsError
from facilities.superfacility.connection import SuperfacilityConfig

RENEW = (
    "make a new client in Iris (iris.nersc.gov, Profile, Superfacility API Clients), security level red, "
    "with this machine's address in its IP range, and put its id and key into connection {conn_id}."
)

_PRIVATE_JWK = ("n", "e", "d")
_BEGIN = "-----BEGIN"


@dataclass(frozen=True)
class ClientKey:
    """A client and its key; `secret` is what sfapi_client takes: PEM text or a JWK as a dictionary."""

    client_id: str
    secret: str | dict[str, Any] = field(repr=False)


def read_client_key(config: SuperfacilityConfig, password: str | None) -> ClientKey:
    """Find the client id and the key that a connection gives or points to.

    :raises CredentialsError: missing, unreadable, readable by others, or not an RSA private key.
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
    return ClientKey(client_id, secret)


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
    if not rest or not _is_rsa_key(pem):
        _refuse(config, f"The {where} is neither a PEM nor a JWK with an RSA private key", "copy it again.")
    return pem, first.strip() or None


@lru_cache(maxsize=8)  # the check of the primes takes a while
def _is_rsa_key(pem: str) -> bool:
    try:
        return isinstance(load_pem_private_key(pem.encode(), password=None), RSAPrivateKey)
    except (ValueError, TypeError):  # its text could hold a part of the key: not shown
        return False


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
