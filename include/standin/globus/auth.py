"""Serves Globus Auth: client credentials, tokens, and what a token allows."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from standin.globus import scopes
from standin.globus.collections import Collections
from standin.globus.errors import OAuthError, TransferError
from standin.globus.store import GlobusStore
from standin.store import write_atomically

TOKEN_SECONDS = 172_800


@dataclass(frozen=True)
class Client:
    """The one confidential client of this facility."""

    client_id: str
    client_secret: str

    @classmethod
    def load(cls, path: Path) -> Client:
        """Read the client's id and secret; make them at the first start."""
        if not path.exists():
            made = {"client_id": str(uuid.uuid4()), "client_secret": secrets.token_urlsafe(32)}
            write_atomically(path, json.dumps(made, indent=2) + "\n")
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class Auth:
    """The token endpoint and its relatives."""

    def __init__(self, client: Client, store: GlobusStore, collections: Collections) -> None:
        self._client = client
        self._store = store
        self._collections = collections
        self.token_seconds = TOKEN_SECONDS
        self.client_enabled = True

    def add_routes(self, app: web.Application, prefix: str) -> None:
        """Add the routes under a prefix."""
        app.router.add_post(f"{prefix}/v2/oauth2/token", self._token)
        app.router.add_post(f"{prefix}/v2/oauth2/token/revoke", self._revoke)
        app.router.add_post(f"{prefix}/v2/oauth2/token/introspect", self._introspect)
        app.router.add_get(f"{prefix}/v2/oauth2/userinfo", self._userinfo)

    async def _token(self, request: web.Request) -> web.Response:
        try:
            form = await _form(request)
            self._authenticate(request, form)
            grant = form.get("grant_type")
            if grant is None:
                raise OAuthError(400, "invalid_request", "grant_type is missing")
            if grant != "client_credentials":
                raise OAuthError(400, "unsupported_grant_type", f"{grant!r} is not offered")
            return web.json_response(
                self._grant(form.get("scope", "")), headers={"Cache-Control": "no-store"}
            )
        except OAuthError as error:
            return _oauth_reply(error)

    async def _revoke(self, request: web.Request) -> web.Response:
        try:
            form = await _form(request)
            self._authenticate(request, form)
        except OAuthError as error:
            return _oauth_reply(error)
        self._store.revoke(_digest(form.get("token", "")))
        return web.json_response({"active": False})

    async def _introspect(self, request: web.Request) -> web.Response:
        try:
            form = await _form(request)
            self._authenticate(request, form)
        except OAuthError as error:
            return _oauth_reply(error)
        token = self._valid(form.get("token", ""))
        if token is None:
            return web.json_response({"active": False})
        identity = self._identity()
        return web.json_response(
            {
                "active": True,
                "scope": " ".join(token["scopes"]),
                "client_id": token["client_id"],
                "username": identity["preferred_username"],
                "token_type": "Bearer",
                "exp": int(token["expires"]),
                "iat": int(token["issued"]),
                "nbf": int(token["issued"]),
                "sub": identity["sub"],
                "aud": [token["resource_server"]],
                "iss": "https://auth.globus.org",
            }
        )

    async def _userinfo(self, request: web.Request) -> web.Response:
        token = self._valid(_bearer(request) or "")
        if token is None:
            return _auth_errors(401, "UNAUTHORIZED", "Call must be authenticated")
        if token["resource_server"] != scopes.AUTH:
            return _auth_errors(403, "FORBIDDEN", "The token is not for Globus Auth")
        return web.json_response(self._identity())

    def require_transfer(self, request: web.Request) -> str:
        """The owner of the request's token, which must be for Transfer.

        :raises TransferError: 400 without a token, 401 for one that is unknown, revoked or expired.
        """
        token = _bearer(request)
        if token is None:
            raise TransferError(400, "ClientError.AuthenticationFailed", "No credentials supplied")
        known = self._valid(token)
        if known is None or known["resource_server"] != scopes.TRANSFER:
            raise TransferError(401, "AuthenticationFailed", "Token is not active")
        return str(known["client_id"])

    def has_data_access(self, client_id: str, collection_id: str) -> bool:
        """Whether the client consented to let Transfer reach the data of a mapped collection."""
        return self._store.has_consent(client_id, scopes.data_access(collection_id))

    def _authenticate(self, request: web.Request, form: dict[str, str]) -> None:
        given = _basic(request) or (form.get("client_id", ""), form.get("client_secret", ""))
        right_id = hmac.compare_digest(given[0].encode(), self._client.client_id.encode())
        right_secret = hmac.compare_digest(given[1].encode(), self._client.client_secret.encode())
        if not (right_id and right_secret and self.client_enabled):
            raise OAuthError(401, "invalid_client")

    def _grant(self, scope: str) -> dict[str, Any]:
        """Tokens for the scopes asked for, one for each resource server."""
        mapped = {c.collection_id for c in self._collections.all if c.needs_consent}
        asked = scopes.parse(scope)
        by_server = scopes.check(asked, mapped)
        self._store.add_consents(self._client.client_id, scopes.dependencies(asked))
        tokens = [self._issue(server, names) for server, names in by_server.items()]
        return {**tokens[0], "other_tokens": tokens[1:]}

    def _issue(self, resource_server: str, names: list[str]) -> dict[str, Any]:
        token = f"Ag{secrets.token_urlsafe(48)}"
        expires = time.time() + self.token_seconds
        self._store.add_token(_digest(token), self._client.client_id, resource_server, names, expires)
        return {
            "access_token": token,
            "scope": " ".join(names),
            "expires_in": self.token_seconds,
            "token_type": "Bearer",
            "resource_server": resource_server,
        }

    def _valid(self, token: str) -> dict[str, Any] | None:
        known = self._store.token(_digest(token))
        if known is None or known["revoked"] or known["expires"] <= time.time():
            return None
        return known

    def _identity(self) -> dict[str, Any]:
        client_id = self._client.client_id
        return {
            "sub": client_id,
            "preferred_username": f"{client_id}@clients.auth.globus.org",
            "name": "COSMIC stand-in client",
            "email": None,
            "identity_provider": "3a4fb0a2-2c8b-4a4f-8a4e-0e0f0d6b7012",
            "identity_provider_display_name": "Globus Auth",
            "last_authentication": None,
            "identity_set": [
                {
                    "sub": client_id,
                    "username": f"{client_id}@clients.auth.globus.org",
                    "name": "COSMIC stand-in client",
                    "email": None,
                }
            ],
        }


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


async def _form(request: web.Request) -> dict[str, str]:
    if request.content_type != "application/x-www-form-urlencoded":
        raise OAuthError(400, "invalid_request", "The body must be a form")
    return {key: value for key, value in (await request.post()).items() if isinstance(value, str)}


def _basic(request: web.Request) -> tuple[str, str] | None:
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise OAuthError(401, "invalid_client") from error
    return (user, password) if colon else None


def _bearer(request: web.Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _oauth_reply(error: OAuthError) -> web.Response:
    return web.json_response(error.to_json(), status=error.status, headers={"Cache-Control": "no-store"})


def _auth_errors(status: int, code: str, detail: str) -> web.Response:
    error = {"status": str(status), "id": str(uuid.uuid4()), "code": code, "detail": detail, "title": detail}
    body = {"errors": [error], "error": code.lower(), "error_description": detail}
    return web.json_response(body, status=status)
