"""Parses scope strings: `a b[c *d]`, where brackets hold dependent scopes and a star makes one optional."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from standin.globus.errors import OAuthError

AUTH = "auth.globus.org"
TRANSFER = "transfer.api.globus.org"

_KNOWN = {
    "openid": AUTH,
    "email": AUTH,
    "profile": AUTH,
    "urn:globus:auth:scope:auth.globus.org:view_identities": AUTH,
    "urn:globus:auth:scope:auth.globus.org:view_identity_set": AUTH,
    "urn:globus:auth:scope:auth.globus.org:view_consents": AUTH,
    "urn:globus:auth:scope:auth.globus.org:manage_projects": AUTH,
    "urn:globus:auth:scope:transfer.api.globus.org:all": TRANSFER,
}
_DATA_ACCESS = "https://auth.globus.org/scopes/{}/data_access"
_DATA_ACCESS_RE = re.compile(re.escape(_DATA_ACCESS).replace(r"\{\}", "([0-9a-f-]{36})"))
_PIECE_RE = re.compile(r"\*|\[|\]|[^\s\[\]*]+|\s+")


def data_access(collection_id: str) -> str:
    """The scope that lets Transfer reach the data of a mapped collection."""
    return _DATA_ACCESS.format(collection_id)


@dataclass
class Scope:
    """One scope and those that it depends on."""

    name: str
    needs: list[Scope] = field(default_factory=list)


def parse(text: str) -> list[Scope]:
    """Read a scope parameter.

    :raises OAuthError: invalid_scope when it is empty or its brackets do not match.
    """
    top: list[Scope] = []
    stack = [top]
    previous = " "
    for piece in _PIECE_RE.findall(text):
        if piece == "[":
            if not stack[-1] or previous.isspace():
                raise _invalid(text)
            stack.append(stack[-1][-1].needs)
        elif piece == "]":
            if len(stack) == 1 or not stack[-1]:
                raise _invalid(text)
            stack.pop()
        elif piece != "*" and not piece.isspace():
            stack[-1].append(Scope(piece))
        previous = piece
    if len(stack) != 1 or not top or previous == "*":
        raise _invalid(text)
    return top


def check(asked: list[Scope], mapped: Collection[str]) -> dict[str, list[str]]:
    """The scopes to grant, by resource server, in the order in which they were asked for.

    :param mapped: ids of the collections that have a data_access scope.
    :raises OAuthError: invalid_scope for a scope that does not exist.
    """
    by_server: dict[str, list[str]] = {}
    for scope in asked:
        server = _KNOWN.get(scope.name)
        if server is None:
            raise _unknown(scope.name)
        names = by_server.setdefault(server, [])
        if scope.name not in names:
            names.append(scope.name)
        for name in _below(scope):
            match = _DATA_ACCESS_RE.fullmatch(name)
            if match is None or match[1] not in mapped:
                raise _unknown(name)
    return by_server


def dependencies(asked: list[Scope]) -> list[str]:
    """The names of all dependent scopes."""
    return [name for scope in asked for name in _below(scope)]


def _below(scope: Scope) -> Iterator[str]:
    for needed in scope.needs:
        yield needed.name
        yield from _below(needed)


def _invalid(text: str) -> OAuthError:
    return OAuthError(400, "invalid_scope", f"Cannot read scope {text!r}")


def _unknown(name: str) -> OAuthError:
    return OAuthError(400, "invalid_scope", f"Unknown scope {name!r}")
