"""Tokens of the Superfacility API, from sfapi_client; shared by all sessions of a process.

To make one takes a tenth of a second of computing, and a triggerer that cancels 200 jobs needs one, not 200.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from typing import Any

import httpx

from facilities.errors import CredentialsError, FacilityError, TransientError
from facilities.superfacility.connection import SuperfacilityConfig
from facilities.superfacility.credentials import RENEW, ClientKey
from facilities.superfacility.replies import failure_of_status

_REFUSED_CLIENT = frozenset(
    {"invalid_client", "unauthorized_client", "invalid_grant", "access_denied", "invalid_request"}
)


class Tokens:
    """The bearer token of one client, renewed shortly before it expires. May be used by threads."""

    def __init__(self, key: ClientKey, config: SuperfacilityConfig) -> None:
        self._key = key
        self._config = config
        self._oauth: Any = None
        self._last = ""
        self._lock = threading.Lock()

    def get(self) -> str:
        """The token.

        :raises CredentialsError: NERSC refuses the client.
        :raises TransientError: NERSC gives none at the moment.
        """
        with self._lock:
            if self._oauth is None:
                self._oauth = _oauth_client(self._key, self._config)
            try:
                self._last = str(self._oauth.token)
            except Exception as error:
                self._drop()
                raise self._failure(error) from error
            return self._last

    def forget(self, refused: str | None = None) -> None:
        """Get a new token next time, unless another thread has replaced the `refused` one already."""
        with self._lock:
            if refused is None or refused == self._last:
                self._drop()

    def _drop(self) -> None:
        if self._oauth is not None:
            self._oauth.close()
            self._oauth = None

    def _failure(self, error: Exception) -> FacilityError:
        conn_id = self._config.conn_id
        what = f"NERSC gives no token to the client of connection {conn_id}"
        refusal = str(getattr(error, "error", ""))  # of authlib's OAuthError
        if refusal in _REFUSED_CLIENT:
            return CredentialsError(
                what,
                remote_id=self._key.client_id,
                state=refusal,
                next_step="the client has expired, or the key is not its own: "
                + RENEW.format(conn_id=conn_id),
                details=str(getattr(error, "description", None) or ""),
            )
        if isinstance(error, httpx.HTTPStatusError):
            return failure_of_status(error.response, what, client_id=self._key.client_id, conn_id=conn_id)
        details = f"{type(error).__name__}: {error}"
        return TransientError(what, next_step="wait; it is tried again.", details=details)


_shared: dict[tuple[object, ...], Tokens] = {}
_shared_lock = threading.Lock()


def shared_tokens(key: ClientKey, config: SuperfacilityConfig) -> Tokens:
    """The tokens of this process for a client; a renewed key has tokens of its own, and so has a fork."""
    fingerprint = hashlib.sha256(json.dumps(key.secret).encode()).digest()
    identity = (os.getpid(), config.conn_id, config.api_url, config.token_url, key.client_id, fingerprint)
    with _shared_lock:
        return _shared.setdefault(identity, Tokens(key, config))


def _oauth_client(key: ClientKey, config: SuperfacilityConfig) -> Any:
    """A client of sfapi_client, for its tokens."""
    import authlib.deprecate  # type: ignore[import-untyped]  # noqa: F401, PLC0415 - sets a filter of its own

    with warnings.catch_warnings():
        # Authlib would rather have httpx2, which sfapi_client does not know.
        warnings.filterwarnings("ignore", message="The httpx module is deprecated")
        from sfapi_client import Client  # type: ignore[import-untyped]  # noqa: PLC0415 - slow to import

    return Client(
        client_id=key.client_id,
        secret=key.secret,
        api_base_url=config.api_url,
        token_url=config.token_url,
    )
