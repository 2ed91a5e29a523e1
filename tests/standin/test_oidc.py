"""NERSC's token endpoint: who is let in, and who is not."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from standin.nersc.credentials import ClientFiles, registered_client
from support.nersc import Nersc, nersc_running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nersc]:
    """One facility for all tests of the module that leave it as it was."""
    with nersc_running(tmp_path_factory.mktemp("oidc")) as nersc:
        yield nersc


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Nersc]:
    """A facility that the test may spoil."""
    with nersc_running(tmp_path) as nersc:
        yield nersc


def test_token_as_nersc_gives_it(shared: Nersc) -> None:
    reply = shared.ask_token()
    assert reply.status_code == 200
    assert reply.headers["Cache-Control"] == "no-store"
    document = reply.json()
    assert document["expires_in"] == 600
    assert document["token_type"] == "Bearer"
    assert shared.http.get(
        f"{shared.described['api_url']}/account/",
        headers={"Authorization": f"Bearer {document['access_token']}"},
    ).status_code == 200  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "https://oidc.nersc.gov/c2id/token"},
        {"aud": None},
        {"iss": "somebodyelse0"},
        {"sub": "somebodyelse0"},
        {"exp": int(time.time()) - 3600},
        {"exp": None},
        {"jti": None},
        {"iat": None},
        {"iat": int(time.time()) + 3600},
        {"key": rsa.generate_private_key(public_exponent=65537, key_size=2048)},
    ],
    ids=lambda changes: "-".join(changes) if isinstance(changes, dict) else None,
)
def test_wrong_assertion_is_an_invalid_client(shared: Nersc, changes: dict[str, Any]) -> None:
    reply = shared.ask_token(shared.assertion(**changes))
    assert (reply.status_code, reply.json()["error"]) == (401, "invalid_client")
    assert "access_token" not in reply.text


def test_unsigned_and_symmetric_assertions_are_refused(shared: Nersc) -> None:
    claims = jwt.decode(shared.assertion(), options={"verify_signature": False})
    for forged in (
        jwt.encode(claims, "", algorithm="none"),
        jwt.encode(claims, "x" * 64, algorithm="HS256"),
        "not.a.token",
        "",
    ):
        assert shared.ask_token(forged or "x").json()["error"] == "invalid_client"


def test_an_assertion_counts_once(shared: Nersc) -> None:
    assertion = shared.assertion()
    assert shared.ask_token(assertion).status_code == 200
    assert shared.ask_token(assertion).json()["error"] == "invalid_client"


def test_wrong_requests(shared: Nersc) -> None:
    assert shared.ask_token(grant_type="password").json()["error"] == "unsupported_grant_type"
    url = shared.described["token_url"]
    assert shared.http.post(url, data={"x": "y"}).json()["error"] == "invalid_request"
    assert (
        shared.http.post(url, json={"grant_type": "client_credentials"}).json()["error"] == "invalid_request"
    )
    without = {"grant_type": "client_credentials"}
    assert shared.http.post(url, data=without).json()["error"] == "invalid_client"


def test_calls_without_a_valid_token(shared: Nersc) -> None:
    url = f"{shared.described['api_url']}/account/"
    for headers, detail in (
        ({}, "Not authenticated"),
        ({"Authorization": "Basic eDp5"}, "Not authenticated"),
        ({"Authorization": "Bearer nonsense"}, "Could not validate credentials"),
    ):
        reply = shared.http.get(url, headers=headers)
        assert (reply.status_code, reply.json()) == (403, {"detail": detail})
    assert shared.http.get(f"{shared.described['api_url']}/status/perlmutter").status_code == 200


def test_tokens_expire_and_can_be_revoked(own: Nersc) -> None:
    assert own.get("account/clients")
    assert own.control("revoke_tokens") == {"revoked": 1}
    assert own.call("GET", "account/clients").status_code == 403
    own.control("set", token_seconds=0.0)
    token = own.ask_token().json()
    assert token["expires_in"] == 0
    headers = {"Authorization": f"Bearer {token['access_token']}"}
    assert own.http.get(f"{own.described['api_url']}/account/", headers=headers).status_code == 403


def test_client_expiry_is_readable_and_final(own: Nersc) -> None:
    own.control("client_expiry", expires_at="2099-01-02T03:04:05+00:00")
    assert own.get_list("account/clients")[0]["expiresAt"] == "2099-01-02T03:04:05+00:00"
    own.control("client_expiry", days=2)
    own.control("expire_client")
    assert own.call("GET", "account/clients").status_code == 403
    assert own.ask_token().json()["error"] == "invalid_client"
    for wrong in ("soon", "2099-01-01T00:00:00"):
        with pytest.raises(RuntimeError, match="expires_at"):
            own.control("client_expiry", expires_at=wrong)


def test_files_of_the_client(shared: Nersc) -> None:
    files = ClientFiles(Path(shared.described["key_path"]).parent)
    assert stat.S_IMODE(files.folder.stat().st_mode) == 0o700
    for path in (files.client_id, files.pem, files.jwk):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(files.client_id.read_text().strip()) == 13
    key = jwt.PyJWK(json.loads(files.jwk.read_text()), algorithm="RS256")
    assert shared.ask_token(shared.assertion(key=key.key)).status_code == 200


def test_a_start_that_was_killed_between_files_is_completed(tmp_path: Path) -> None:
    first = registered_client(tmp_path)
    files = ClientFiles(tmp_path)
    files.jwk.unlink()
    again = registered_client(tmp_path)
    assert again.client_id == first.client_id
    assert again.public_key.public_numbers() == first.public_key.public_numbers()
    assert json.loads(files.jwk.read_text())["kty"] == "RSA"
