"""The connection type `globus`: its form, its reading, how it gets a token, and the client of Transfer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import globus_sdk

from facilities.errors import CredentialsError, UserError
from facilities.tokens import Credentials, Token

if TYPE_CHECKING:
    from airflow.sdk import Connection

AUTH_URL = "https://auth.globus.org/"
TRANSFER_URL = "https://transfer.api.globus.org/"
WEB_URL = "https://app.globus.org/"


def _url_field(label: str, default: str, description: str) -> dict[str, Any]:
    return {
        "label": label,
        "description": f"{description} Empty: {default}",
        "schema": {"type": ["string", "null"], "format": "url"},
    }


CONNECTION_TYPE: dict[str, Any] = {
    "connection-type": "globus",
    "hook-class-name": "facilities.globus.hook.GlobusHook",
    "hook-name": "Globus",
    "ui-field-behaviour": {
        "hidden-fields": ["host", "schema", "port"],
        "relabeling": {"login": "Client ID", "password": "Client secret"},
        "placeholders": {
            "login": "UUID of a confidential client, from https://app.globus.org/settings/developers",
            "password": "one of its secrets",
        },
    },
    "conn-fields": {
        "transfer_base_url": _url_field(
            "Transfer URL", TRANSFER_URL, "Only for another Globus than the real one."
        ),
        "auth_base_url": _url_field("Auth URL", AUTH_URL, "Only for another Globus than the real one."),
        "collections": {
            "label": "Collections",
            "description": "What the Test button looks into: ids, each with a colon and a folder.",
            "schema": {"type": ["string", "null"]},
        },
        "web_app_url": _url_field("Web app URL", WEB_URL, "Where links to tasks point to."),
    },
}


@dataclass(frozen=True)
class GlobusSettings:
    """The fields of a connection of type `globus`, checked.

    :param collections: what the connection's test looks into: ids, each with a colon and a folder.
    """

    conn_id: str
    client_id: str
    client_secret: str = field(repr=False)
    auth_url: str = AUTH_URL
    transfer_url: str = TRANSFER_URL
    web_url: str = WEB_URL
    collections: str = ""

    @property
    def identity(self) -> str:
        """The client's own identity: collections give permissions to this name."""
        return f"{self.client_id}@clients.auth.globus.org"

    @classmethod
    def from_connection(cls, connection: Connection, conn_id: str) -> GlobusSettings:
        """Read and check a connection.

        :raises CredentialsError: when the client's id or secret is missing.
        :raises UserError: when it is of another type or a URL is malformed.
        """
        if connection.conn_type != "globus":
            raise UserError(
                f"Connection '{conn_id}' is of type '{connection.conn_type}', not 'globus'",
                next_step="choose the type Globus in the connection's form.",
            )
        client_id, secret = (connection.login or "").strip(), (connection.password or "").strip()
        for value, name in ((client_id, "client id (login)"), (secret, "client secret (password)")):
            if not value:
                raise CredentialsError(
                    f"Connection '{conn_id}' has no {name}",
                    next_step="make a confidential client and a secret for it at "
                    "https://app.globus.org/settings/developers and put both into the connection.",
                )
        extra = connection.extra_dejson
        return cls(
            conn_id=conn_id,
            client_id=client_id,
            client_secret=secret,
            auth_url=_url(extra.get("auth_base_url"), AUTH_URL, conn_id, "auth_base_url"),
            transfer_url=_url(extra.get("transfer_base_url"), TRANSFER_URL, conn_id, "transfer_base_url"),
            web_url=_url(extra.get("web_app_url"), WEB_URL, conn_id, "web_app_url"),
            collections=str(extra.get("collections") or ""),
        )


def _url(value: object, default: str, conn_id: str, key: str) -> str:
    if value is None or value == "":
        return default
    parts = urlsplit(value) if isinstance(value, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise UserError(
            f"Connection '{conn_id}': {key} is not an http(s) address without user name",
            next_step="correct it, or leave it empty for the real Globus.",
        )
    return f"{parts.geturl().rstrip('/')}/"


def credentials_of(settings: GlobusSettings, scopes: Sequence[str]) -> Credentials:
    """What tokens are asked for with, as `facilities.tokens` takes it.

    :param scopes: what Globus Auth is asked for besides Transfer itself.
    """
    name = ["globus", settings.conn_id, settings.auth_url, settings.transfer_url, *scopes]
    return Credentials(name, json.dumps([settings.client_id, settings.client_secret]))


def ask_token(settings: GlobusSettings, scopes: Sequence[str], http_timeout: float) -> Token:
    """Ask Globus Auth for a token for Transfer.

    :raises globus_sdk.GlobusError: it gives none.
    :raises TokenReplyError: its reply has no token.
    """
    with closing(_transport(http_timeout)) as transport:
        # Addresses and environment are given, here and below, so that GLOBUS_SDK_* variables change nothing.
        login = globus_sdk.ConfidentialAppAuthClient(
            settings.client_id,
            settings.client_secret,
            environment="production",
            base_url=settings.auth_url,
            transport=transport,
            retry_config=_once(),
        )
        all_scopes = [str(globus_sdk.TransferClient.scopes.all), *scopes]
        try:
            reply = login.oauth2_client_credentials_tokens(requested_scopes=all_scopes)
            (token,) = reply.by_resource_server.values()
            return Token(str(token["access_token"]), float(token["expires_at_seconds"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # the SDK reads what it expects
            raise TokenReplyError(f"{type(error).__name__}: {error}") from error


class TokenReplyError(Exception):
    """Globus Auth's reply to a request for a token cannot be read."""


def transfer_client(settings: GlobusSettings, http_timeout: float) -> globus_sdk.TransferClient:
    """A client of Transfer that sends each request once; it has no token yet."""
    return globus_sdk.TransferClient(
        environment="production",
        base_url=settings.transfer_url,
        transport=_transport(http_timeout),
        retry_config=_once(),
    )


def _transport(http_timeout: float) -> globus_sdk.transport.RequestsTransport:
    # globus_sdk has this module as an attribute only after somebody has imported it.
    from globus_sdk.transport import RequestsTransport  # noqa: PLC0415 - slow to import

    return RequestsTransport(http_timeout=http_timeout)


def _once() -> globus_sdk.transport.RetryConfig:
    from globus_sdk.transport import RetryConfig  # noqa: PLC0415 - slow to import

    return RetryConfig(max_retries=0)
