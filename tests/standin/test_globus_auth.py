"""Globus Auth, through globus-sdk and on the wire."""

from __future__ import annotations

from typing import Any

import globus_sdk
import httpx
import pytest
from globus_sdk.scopes import GCSCollectionScopes, TransferScopes
from hypothesis import given
from hypothesis import strategies as st

from standin.globus import scopes
from standin.globus.errors import OAuthError
from support.globus_client import Globus

ALL = "urn:globus:auth:scope:transfer.api.globus.org:all"


def token_request(globus: Globus, secret: str | None = None, **form: str) -> httpx.Response:
    url = f"{globus.facility.description['globus']['auth_url']}v2/oauth2/token"
    return httpx.post(url, data=form, auth=(globus.client_id, secret or globus.client_secret))


def test_client_credentials(globus: Globus) -> None:
    reply = globus.auth().oauth2_client_credentials_tokens(requested_scopes=TransferScopes.all)
    tokens = reply.by_resource_server["transfer.api.globus.org"]
    assert reply["expires_in"] == 172800
    assert reply["other_tokens"] == []
    assert (tokens["scope"], tokens["token_type"], tokens["refresh_token"]) == (ALL, "Bearer", None)


def test_client_app_gets_its_token_by_itself(globus: Globus) -> None:
    config = globus_sdk.GlobusAppConfig(token_storage="memory")
    app = globus_sdk.ClientApp(
        "cosmic", client_id=globus.client_id, client_secret=globus.client_secret, config=config
    )
    with app, globus_sdk.TransferClient(app=app) as client:
        assert client.get_endpoint(globus.data7012)["display_name"].startswith("ALS")
    posts = [r for r in globus.facility.requests() if r["path"] == "/globus/auth/v2/oauth2/token"]
    assert len(posts) == 2  # one of the fixture's client, one of this


def test_a_wrong_secret_is_refused(globus: Globus) -> None:
    with pytest.raises(globus_sdk.AuthAPIError) as caught:
        globus.auth("wrong").oauth2_client_credentials_tokens(requested_scopes=TransferScopes.all)
    assert caught.value.http_status == 401
    assert caught.value.raw_json == {"error": "invalid_client"}


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        ({}, 400, "invalid_request"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"grant_type": "client_credentials"}, 400, "invalid_scope"),
        ({"grant_type": "client_credentials", "scope": "nonsense"}, 400, "invalid_scope"),
        ({"grant_type": "client_credentials", "scope": f"{ALL}["}, 400, "invalid_scope"),
    ],
)
def test_bad_token_requests(globus: Globus, form: dict[str, str], status: int, error: str) -> None:
    reply = token_request(globus, **form)
    assert (reply.status_code, reply.json()["error"]) == (status, error)


def test_credentials_that_are_missing_or_malformed(globus: Globus) -> None:
    url = f"{globus.facility.description['globus']['auth_url']}v2/oauth2/token"
    form = {"grant_type": "client_credentials", "scope": ALL}
    for headers in (
        {},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic /w=="},
        {"Authorization": "Basic"},
    ):
        reply = httpx.post(url, data=form, headers=headers)
        assert (reply.status_code, reply.json()) == (401, {"error": "invalid_client"})
    in_form = {**form, "client_id": globus.client_id, "client_secret": globus.client_secret}
    assert httpx.post(url, data=in_form).status_code == 200
    assert httpx.post(url, json=in_form).status_code == 400


def test_one_token_for_each_resource_server(globus: Globus) -> None:
    reply = globus.auth().oauth2_client_credentials_tokens(
        requested_scopes=["openid", "email", TransferScopes.all]
    )
    assert set(reply.by_resource_server) == {"auth.globus.org", "transfer.api.globus.org"}
    token = reply.by_resource_server["auth.globus.org"]["access_token"]
    with globus_sdk.AuthClient(authorizer=globus_sdk.AccessTokenAuthorizer(token)) as client:
        assert client.userinfo()["preferred_username"] == f"{globus.client_id}@clients.auth.globus.org"
    wrong = reply.by_resource_server["transfer.api.globus.org"]["access_token"]
    with globus_sdk.AuthClient(authorizer=globus_sdk.AccessTokenAuthorizer(wrong)) as client:
        with pytest.raises(globus_sdk.AuthAPIError) as caught:
            client.userinfo()
        assert (caught.value.http_status, caught.value.code) == (403, "FORBIDDEN")


def test_a_transfer_call_needs_a_token_for_transfer(globus: Globus) -> None:
    url = f"{globus.facility.description['globus']['transfer_url']}v0.10/submission_id"
    missing = httpx.get(url)
    assert (missing.status_code, missing.json()["code"]) == (400, "ClientError.AuthenticationFailed")
    auth_token = globus.auth().oauth2_client_credentials_tokens(requested_scopes="openid")["access_token"]
    for token in ("nonsense", auth_token):
        reply = httpx.get(url, headers={"Authorization": f"Bearer {token}"})
        assert (reply.status_code, reply.json()["code"]) == (401, "AuthenticationFailed")


def test_introspection_and_revocation(globus: Globus) -> None:
    auth = globus.auth()
    token = auth.oauth2_client_credentials_tokens(requested_scopes=TransferScopes.all)["access_token"]
    known = auth.post("/v2/oauth2/token/introspect", data={"token": token}, encoding="form")
    assert (known["active"], known["scope"]) == (True, ALL)
    auth.oauth2_revoke_token(token)
    assert auth.post("/v2/oauth2/token/introspect", data={"token": token}, encoding="form").data == {
        "active": False
    }


def test_revoked_tokens_are_renewed_by_the_sdk(globus: Globus) -> None:
    client = globus.client(max_retries=1)
    client.get_submission_id()
    assert globus.facility.control("globus", "revoke_tokens") == {"revoked": 2}
    globus.facility.clear_requests()
    client.get_submission_id()  # 401, new token, again
    seen = [(r["path"].rsplit("/", 1)[1], r["status"]) for r in globus.facility.requests()]
    assert seen == [("submission_id", 401), ("token", 200), ("submission_id", 200)]


def test_expired_tokens_are_refused(globus: Globus) -> None:
    globus.facility.control("globus", "token_seconds", seconds=300)
    reply = globus.auth().oauth2_client_credentials_tokens(requested_scopes=TransferScopes.all)
    assert reply["expires_in"] == 300
    token = globus_sdk.AccessTokenAuthorizer(reply["access_token"])
    retries = globus_sdk.transport.RetryConfig(max_retries=0)
    with globus_sdk.TransferClient(authorizer=token, retry_config=retries) as client:
        client.get_submission_id()
        assert globus.facility.control("globus", "expire_tokens")["expired"] == 2
        with pytest.raises(globus_sdk.TransferAPIError) as caught:
            client.get_submission_id()
    assert (caught.value.http_status, caught.value.code) == (401, "AuthenticationFailed")


def test_a_disabled_client_gets_no_more_tokens(globus: Globus) -> None:
    globus.facility.control("globus", "client", enabled=False)
    with pytest.raises(globus_sdk.AuthAPIError) as caught:
        globus.client()
    assert caught.value.raw_json == {"error": "invalid_client"}
    globus.facility.control("globus", "client", enabled=True)
    globus.client().get_submission_id()


def test_data_access_consent(globus: Globus) -> None:
    access = GCSCollectionScopes(globus.nersc7012).data_access
    scope = TransferScopes.all.with_dependency(access.with_optional(True))
    with pytest.raises(globus_sdk.AuthAPIError) as unknown:  # it is not a mapped collection yet
        globus.auth().oauth2_client_credentials_tokens(requested_scopes=scope)
    assert unknown.value.raw_json == {
        "error": "invalid_scope",
        "error_description": f"Unknown scope '{scopes.data_access(globus.nersc7012)}'",
    }
    globus.facility.control("globus", "consent", collection="nersc7012", required=True)
    assert globus.transfer.get_endpoint(globus.nersc7012)["entity_type"] == "GCSv5_mapped_collection"
    globus.file("a")
    for call in (lambda: globus.transfer.operation_ls(globus.nersc7012), lambda: globus.submit(("/a", "/a"))):
        with pytest.raises(globus_sdk.TransferAPIError) as refused:
            call()
        assert (refused.value.http_status, refused.value.code) == (403, "ConsentRequired")
    needed = refused.value.info.consent_required.required_scopes
    assert needed == [f"{ALL}[*https://auth.globus.org/scopes/{globus.nersc7012}/data_access]"]
    assert globus.facility.transfers() == []
    globus.auth().oauth2_client_credentials_tokens(requested_scopes=needed)  # consent is kept by the service
    assert globus.run(("/a", "/a"))["status"] == "SUCCEEDED"


def test_tokens_are_kept_as_hashes_only(globus: Globus) -> None:
    reply = globus.auth().oauth2_client_credentials_tokens(requested_scopes=TransferScopes.all)
    kept = b"".join(path.read_bytes() for path in (globus.facility.root / "state").glob("globus.sqlite*"))
    assert b"tokens" in kept
    assert reply["access_token"].encode() not in kept


names = st.sampled_from(["openid", "email", ALL, "https://auth.globus.org/scopes/x/data_access"])
trees = st.recursive(
    names, lambda inner: st.tuples(names, st.lists(inner, min_size=1, max_size=3)), max_leaves=6
)


def written(tree: Any, star: str = "") -> str:
    if isinstance(tree, str):
        return star + tree
    return f"{star}{tree[0]}[{' '.join(written(t, '*') for t in tree[1])}]"


def read(scope: scopes.Scope) -> Any:
    return (scope.name, [read(s) for s in scope.needs]) if scope.needs else scope.name


@given(st.lists(trees, min_size=1, max_size=3))
def test_scope_strings_are_read_back(asked: list[Any]) -> None:
    assert [read(scope) for scope in scopes.parse(" ".join(written(tree) for tree in asked))] == asked


@given(st.text(alphabet="ab[]* ", max_size=12))
def test_any_scope_string_is_read_or_refused(text: str) -> None:
    try:
        found = scopes.parse(text)
    except OAuthError as error:
        refused = error.error
    else:
        refused = ""
        assert found
    assert refused in ("", "invalid_scope")
