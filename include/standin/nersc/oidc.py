"""Serves NERSC's token endpoint: client_credentials with private_key_jwt (RFC 7523), RS256."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

import jwt
from aiohttp import web

from standin.nersc.credentials import RegisteredClient
from standin.nersc.database import Database
from standin.nersc.options import LiveOptions

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
CLIENT_DAYS = 30
LEEWAY = 10.0  # seconds of clock difference


class OAuthError(Exception):
    """A refusal in OAuth's shape."""

    def __init__(self, status: int, code: str, description: str) -> None:
        super().__init__(description)
        self.status = status
        self.code = code


class Clients:
    """The registered client, when it expires, and the access tokens that it was given."""

    def __init__(self, database: Database, client: RegisteredClient, options: LiveOptions) -> None:
        self.client = client
        self._database = database
        self._options = options
        if database.kept("client_expires") is None:
            database.keep("client_expires", time.time() + CLIENT_DAYS * 86400)

    @property
    def expires(self) -> float:
        """When the client itself expires."""
        return float(self._database.kept("client_expires"))

    def set_expiry(self, expires: float) -> None:
        """Let the client expire at another time."""
        self._database.keep("client_expires", expires)

    def revoke_tokens(self) -> int:
        """Make all access tokens invalid; returns how many there were."""
        return self._database.run("DELETE FROM tokens").rowcount

    def grant(self) -> dict[str, Any]:
        """A new access token, as the token endpoint answers it."""
        token, now, life = secrets.token_urlsafe(48), time.time(), self._options.now.token_seconds
        with self._database.transaction():
            self._database.run("DELETE FROM tokens WHERE expires < ?", now)
            self._database.run(
                "INSERT INTO tokens VALUES (?, ?, ?)", _digest(token), self.client.client_id, now + life
            )
        return {"access_token": token, "token_type": "Bearer", "expires_in": int(life), "scope": ""}

    def accepts(self, token: str) -> bool:
        """Whether an access token is valid now."""
        row = self._database.row("SELECT expires FROM tokens WHERE digest = ?", _digest(token))
        now = time.time()
        return row is not None and row["expires"] > now and self.expires > now

    def check_assertion(self, assertion: str, audiences: list[str]) -> None:
        """Check a client's proof of who it is.

        :raises OAuthError: when it does not prove it.
        """
        refusal = OAuthError(401, "invalid_client", "Client authentication failed")
        try:
            claims = jwt.decode(
                assertion, self.client.public_key, algorithms=["RS256"], audience=audiences,
                issuer=self.client.client_id, leeway=LEEWAY,
                options={"require": ["exp", "iat", "iss", "sub", "aud", "jti"]},
            )  # fmt: skip
        except jwt.InvalidTokenError as error:
            raise refusal from error
        if claims["sub"] != self.client.client_id or self.expires <= time.time():
            raise refusal
        if not self._is_new(str(claims["jti"]), float(claims["exp"])):
            raise refusal

    def _is_new(self, jti: str, expires: float) -> bool:
        """Whether an assertion was not used before."""
        with self._database.transaction():
            self._database.run("DELETE FROM assertions WHERE expires < ?", time.time() - LEEWAY)
            cursor = self._database.run("INSERT OR IGNORE INTO assertions VALUES (?, ?)", jti, expires)
        return cursor.rowcount == 1


class TokenEndpoint:
    """POST to the token URL."""

    def __init__(self, clients: Clients, url_path: str) -> None:
        self._clients = clients
        self._url_path = url_path
        self.base_url = ""  # known when the port is

    async def post(self, request: web.Request) -> web.Response:
        """Answer a token request."""
        try:
            self._check(await self._form(request), request)
        except OAuthError as refusal:
            content = {"error": refusal.code, "error_description": str(refusal)}
            headers = {"WWW-Authenticate": 'Bearer realm="oidc"'} if refusal.status == 401 else {}
            return web.json_response(content, status=refusal.status, headers=headers)
        headers = {"Cache-Control": "no-store", "Pragma": "no-cache"}
        return web.json_response(self._clients.grant(), headers=headers)

    async def _form(self, request: web.Request) -> dict[str, str]:
        if request.content_type != "application/x-www-form-urlencoded":
            raise OAuthError(400, "invalid_request", "The request must be a form")
        form = await request.post()
        return {name: value for name, value in form.items() if isinstance(value, str)}

    def _check(self, form: dict[str, str], request: web.Request) -> None:
        if "grant_type" not in form:
            raise OAuthError(400, "invalid_request", "Missing grant_type parameter")
        if form["grant_type"] != "client_credentials":
            raise OAuthError(400, "unsupported_grant_type", "Unsupported grant type")
        if form.get("client_assertion_type") != ASSERTION_TYPE or "client_assertion" not in form:
            raise OAuthError(401, "invalid_client", "Client authentication failed")
        # the address by which the client knows us, which behind a name or a proxy is not the one we bound
        seen = f"{request.scheme}://{request.host}{self._url_path}"
        self._clients.check_assertion(form["client_assertion"], [self.base_url + self._url_path, seen])


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
