"""Keys and client ids, as people give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from facilities.errors import CredentialsError, UserError
from facilities.superfacility.connection import (
    API_URL,
    CONNECTION_TYPE,
    TOKEN_URL,
    ClientKey,
    SuperfacilityConfig,
    check_key,
    read_client_key,
)
from facilities.superfacility.hook import SuperfacilityHook
from standin.testing import Facility
from support.superfacility import CONN_ID, connection_to, private, use_connection


@pytest.fixture(scope="module")
def pem() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()


def _read(password: str | None = None, login: str | None = "abcdefghijklm", **extra: Any) -> ClientKey:
    connection = Connection(conn_id="c", conn_type="superfacility", login=login, extra=json.dumps(extra))
    config = SuperfacilityConfig.from_connection(connection, "c")
    key = read_client_key(config, password)
    check_key(key, config)
    return key


@pytest.mark.parametrize("where", ["password", "file"])
@pytest.mark.parametrize("form", ["pem", "jwk", "id_first", "sfapi_json"])
def test_each_form_of_a_key_gets_a_token(
    nersc: Facility, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, form: str
) -> None:
    told = nersc.description["nersc"]
    text, jwk = Path(told["key_path"]).read_text(), Path(told["jwk_path"]).read_text()
    client = {"client_id_file": told["client_id_path"]}
    if form == "jwk":
        text = jwk
    elif form == "id_first":
        text, client = f"{told['client_id']}\n{text}", {}
    elif form == "sfapi_json":
        text, client = json.dumps({"client_id": told["client_id"], "secret": json.loads(jwk)}), {}
    connection = connection_to(nersc, key_file=None, client_id_file=None)
    connection["extra"] |= client
    if where == "password":
        connection["password"] = text
    else:
        connection["extra"]["key_file"] = str(private(tmp_path / "key", text))
    use_connection(monkeypatch, CONN_ID, connection)
    hook = SuperfacilityHook(CONN_ID)
    assert hook.user == told["user"]
    hook.close()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o601])
def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, pem: str, mode: int) -> None:
    path = private(tmp_path / "key.pem", pem, mode)
    with pytest.raises(CredentialsError, match=rf"(?s)mode {mode:04o}.*chmod 600 {path}"):
        _read(key_file=str(path))


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_file_of_its_owner_is_read(tmp_path: Path, pem: str, mode: int) -> None:
    assert _read(key_file=str(private(tmp_path / "key.pem", pem, mode))).client_id == "abcdefghijklm"


def test_a_missing_key_file_a_folder_and_binary_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="does not exist"):
        _read(key_file=str(tmp_path / "gone.pem"))
    with pytest.raises(CredentialsError, match="is not a file"):
        _read(key_file=str(tmp_path))
    binary = tmp_path / "key"
    binary.write_bytes(b"\xff\xfe\x00")
    binary.chmod(0o600)
    with pytest.raises(CredentialsError, match="is not text"):
        _read(key_file=str(binary))


def test_malformed_keys_are_refused_and_not_shown(pem: str) -> None:
    elliptic = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    )
    middle = pem.splitlines()[5]
    for text in (
        "nonsense",
        pem.replace(middle, ""),
        elliptic.decode(),
        "{",
        '{"kty": "RSA", "n": "x"}',
        "[]",
    ):
        with pytest.raises(CredentialsError, match="password of connection c") as caught:
            _read(text)
        assert not any(line in str(caught.value) for line in pem.splitlines()[1:-1])
        assert caught.value.__cause__ is None


def test_missing_ids_and_keys_are_named(pem: str, tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="no private key"):
        _read()
    with pytest.raises(CredentialsError, match="no client id"):
        _read(pem, login=None)
    with pytest.raises(CredentialsError, match=r"Client id file .* cannot be read"):
        _read(pem, login=None, client_id_file=str(tmp_path / "gone"))
    with pytest.raises(CredentialsError, match="not letters and digits"):
        _read(pem, login="abc def\nx")


def test_a_key_does_not_show_in_its_repr(pem: str) -> None:
    assert "BEGIN" not in repr(_read(pem))


def test_an_empty_connection_leads_to_nersc() -> None:
    config = SuperfacilityConfig.from_connection(Connection(conn_id="c", conn_type="superfacility"), "c")
    assert (config.api_url, config.token_url) == (API_URL, TOKEN_URL)


@pytest.mark.parametrize(
    ("host", "schema", "port", "url"),
    [
        ("api.nersc.gov/api/v1.2", None, None, "https://api.nersc.gov/api/v1.2"),
        ("https://api.nersc.gov/api/v1.2/", None, None, "https://api.nersc.gov/api/v1.2"),
        ("localhost", "http", 8000, "http://localhost:8000"),
    ],
)
def test_addresses(host: str, schema: str | None, port: int | None, url: str) -> None:
    connection = Connection(conn_id="c", conn_type="superfacility", host=host, schema=schema, port=port)
    assert SuperfacilityConfig.from_connection(connection, "c").api_url == url


@pytest.mark.parametrize(
    ("host", "extra", "said"),
    [
        ("ftp://nersc.gov", {}, "API address"),
        ("https://user:secret@nersc.gov", {}, "API address"),
        (None, {"token_url": "nersc"}, "token address"),
        (None, {"time_zone": "Mars/Olympus"}, "unknown time zone"),
    ],
)
def test_connections_that_cannot_be_right(host: str | None, extra: dict[str, Any], said: str) -> None:
    connection = Connection(conn_id="c", conn_type="superfacility", host=host, extra=json.dumps(extra))
    with pytest.raises(UserError, match=said) as caught:
        SuperfacilityConfig.from_connection(connection, "c")
    assert "secret" not in str(caught.value)


def test_the_form_has_a_field_for_each_key_of_the_extra() -> None:
    assert CONNECTION_TYPE["connection-type"] == SuperfacilityHook.conn_type
    assert (
        CONNECTION_TYPE["hook-class-name"]
        == f"{SuperfacilityHook.__module__}.{SuperfacilityHook.__qualname__}"
    )
    fields = {"key_file", "client_id_file", "token_url", "time_zone", "user", "job_url"}
    assert set(CONNECTION_TYPE["conn-fields"]) == fields
