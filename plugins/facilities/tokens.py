"""Shares access tokens among the processes of a machine: one is asked for when none is valid.

Airflow runs each task in a process of its own, so a token for each process would be one for each task, and
its cost: a request, and for NERSC the computing that reads the key and signs.

A token is kept in a file of `tokens` in AIRFLOW_HOME, encrypted with a key that is derived from the
credentials for which the service gave it. Who can decrypt it holds these, and could ask for a token of his
own: the file gives nobody anything, not even a backup of it. Other credentials cannot read it, so a renewed
key or secret has its own token at once. Where the file cannot be written each process asks for itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from airflow.configuration import AIRFLOW_HOME
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import TypeAdapter, ValidationError

from facilities.private_files import write_private

log = logging.getLogger(__name__)

FOLDER = Path(AIRFLOW_HOME) / "tokens"

_RENEW_BEFORE = 60.0  # seconds before its end at which a token is not used any more


@dataclass(frozen=True)
class Token:
    """An access token.

    :param expires: when it ends, in seconds since the epoch.
    :param facts: what the service has said of the client meanwhile; asked for again with each token.
    """

    text: str = field(repr=False)
    expires: float
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Credentials:
    """What a token is asked for with.

    :param name: of which connection they are, and what for: addresses, scopes. Names the file.
    :param secret: id and secret of the client; a password that people choose has too few random bits for it.
    """

    name: Sequence[str]
    secret: str = field(repr=False)


class Tokens:
    """The access token of one client. May be used by threads.

    Example::

        tokens = shared_tokens(Credentials(["globus", conn_id, url], secret), ask)
        headers = {"authorization": f"Bearer {tokens.get().text}"}

    :param ask: asks the service for a new token; its errors are `get`'s.
    """

    def __init__(self, credentials: Credentials, ask: Callable[[], Token]) -> None:
        self._ask = ask
        self._file = _TokenFile(credentials)
        self._token: Token | None = None
        self._asked_for = ""  # the last one that `ask` gave
        self._refused = ""
        self._lock = threading.Lock()

    def get(self) -> Token:
        """A token that is valid for some time yet."""
        with self._lock:
            if not self._is_valid(self._token):
                self._token = self._file.read()
            if self._token is None or not self._is_valid(self._token):
                self._token = None  # stays so when asking fails
                self._token = self._ask()
                self._asked_for = self._token.text
                if self._refused == self._asked_for:  # the service gives the same one again
                    self._refused = ""
                self._file.write(self._token)
            return self._token

    def forget(self, refused: str | None = None) -> None:
        """Ask for a new token next time, unless the `refused` one has been replaced already."""
        with self._lock:
            kept = self._file.read()
            if kept is not None and refused in (None, kept.text):
                self._refused = kept.text  # also when the file cannot be removed
                self._file.remove()
            if self._token is not None and refused in (None, self._token.text):
                self._refused = self._token.text
                self._token = None

    def is_kept(self, token: Token) -> bool:
        """Whether a token was there already: what its client may do may have changed since."""
        with self._lock:
            return token.text != self._asked_for

    def add_facts(self, token: Token, **facts: Any) -> None:
        """Keep with a token what the service says of the client."""
        with self._lock:
            if self._token is not None and self._token.text == token.text:
                self._token = replace(token, facts={**self._token.facts, **facts})
                self._file.write(self._token)

    def _is_valid(self, token: Token | None) -> bool:
        return (
            token is not None and token.text != self._refused and time.time() < token.expires - _RENEW_BEFORE
        )


class _TokenFile:
    """The file that keeps a client's token; one that cannot be used counts as missing."""

    def __init__(self, credentials: Credentials) -> None:
        name = json.dumps(list(credentials.name)).encode()
        self._name = hashlib.sha256(name).hexdigest()[:32]
        key = HKDF(SHA256(), 32, salt=None, info=b"access token " + name).derive(credentials.secret.encode())
        self._cipher = Fernet(base64.urlsafe_b64encode(key))

    def read(self) -> Token | None:
        try:
            content = self._cipher.decrypt((FOLDER / self._name).read_bytes())
            return TypeAdapter(Token).validate_json(content)
        except FileNotFoundError:
            return None
        except (OSError, InvalidToken, ValidationError) as error:  # InvalidToken: of other credentials
            log.debug("The kept token cannot be used: %r", error)
            return None

    def write(self, token: Token) -> None:
        try:
            write_private(FOLDER, self._name, self._cipher.encrypt(json.dumps(asdict(token)).encode()))
        except OSError as error:
            log.info("The token is not kept for other processes: %s", error)

    def remove(self) -> None:
        try:
            (FOLDER / self._name).unlink(missing_ok=True)
        except OSError as error:
            log.info("The kept token is not removed: %s", error)


_shared: dict[tuple[object, ...], Tokens] = {}


def shared_tokens(credentials: Credentials, ask: Callable[[], Token]) -> Tokens:
    """The tokens of this process for these credentials; a fork has its own, since a lock may be held."""
    digest = hashlib.sha256(credentials.secret.encode()).digest()
    identity = (os.getpid(), *credentials.name, digest)
    return _shared.setdefault(identity, Tokens(credentials, ask))
