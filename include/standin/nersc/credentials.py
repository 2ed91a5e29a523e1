"""Makes the stand-in's one Superfacility API client, id and RSA key, at the first start."""

from __future__ import annotations

import base64
import functools
import json
import secrets
import string
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from standin.store import write_atomically

ID_LENGTH = 13  # as NERSC's are


@dataclass(frozen=True)
class ClientFiles:
    """Where a client finds what it logs in with; all readable by the owner alone."""

    folder: Path

    @property
    def client_id(self) -> Path:
        """The client id, one line."""
        return self.folder / "sfapi_client_id.txt"

    @property
    def pem(self) -> Path:
        """The private key as PEM."""
        return self.folder / "sfapi_key.pem"

    @property
    def jwk(self) -> Path:
        """The private key as JSON Web Key."""
        return self.folder / "sfapi_jwk.json"


@dataclass(frozen=True)
class RegisteredClient:
    """What NERSC keeps of a client."""

    client_id: str
    public_key: rsa.RSAPublicKey


def registered_client(folder: Path) -> RegisteredClient:
    """The client of that folder; what is missing is made.

    A start that is killed in between leaves whole files, and the next one makes the rest.
    """
    files = ClientFiles(folder)
    if files.pem.exists():
        key = serialization.load_pem_private_key(files.pem.read_bytes(), password=None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ValueError(f"{files.pem} holds no RSA key. Delete it, and the next start makes a new one.")
    else:
        key = _new_key()
        write_atomically(files.pem, _pem(key))
        files.jwk.unlink(missing_ok=True)
    if not files.jwk.exists():
        write_atomically(files.jwk, json.dumps(_jwk(key)) + "\n")
    if not files.client_id.exists():
        alphabet = string.ascii_lowercase + string.digits
        write_atomically(files.client_id, "".join(secrets.choice(alphabet) for _ in range(ID_LENGTH)) + "\n")
    return RegisteredClient(files.client_id.read_text(encoding="ascii").strip(), key.public_key())


@functools.cache
def _new_key() -> rsa.RSAPrivateKey:
    """One for all roots that a process begins: tests begin hundreds, and a key takes as long as a test."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _pem(key: rsa.RSAPrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()


def _jwk(key: rsa.RSAPrivateKey) -> dict[str, str]:
    private = key.private_numbers()
    numbers = {
        "n": private.public_numbers.n, "e": private.public_numbers.e, "d": private.d, "p": private.p,
        "q": private.q, "dp": private.dmp1, "dq": private.dmq1, "qi": private.iqmp,
    }  # fmt: skip
    return {"kty": "RSA", **{name: _base64url(number) for name, number in numbers.items()}}


def _base64url(number: int) -> str:
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
