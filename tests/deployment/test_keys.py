"""Keys are made once, whole, and for nobody else."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from deployment import keys
from deployment.keys import make_keys, read_key


def contents(folder: Path) -> dict[str, str]:
    """All files of a folder."""
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_keys_are_made_once(tmp_path: Path) -> None:
    made = make_keys(tmp_path)
    first = contents(tmp_path)
    assert sorted(made) == sorted(first)
    assert make_keys(tmp_path) == []
    assert contents(tmp_path) == first
    assert len(set(first.values())) == len(first)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o440}
    Fernet(read_key("fernet_key", tmp_path).encode()).encrypt(b"x")


def test_an_upgrade_adds_what_is_new_and_keeps_the_rest(tmp_path: Path) -> None:
    make_keys(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "redis_password").unlink()
    (tmp_path / "broker_url").unlink()
    assert make_keys(tmp_path) == ["redis_password", "broker_url"]
    after = contents(tmp_path)
    assert after["broker_url"] == f"redis://:{after['redis_password']}@redis:6379/0"
    del before["redis_password"], before["broker_url"]
    assert before.items() <= after.items()


def test_addresses_follow_the_passwords_and_the_release(tmp_path: Path) -> None:
    make_keys(tmp_path)
    address = tmp_path / "result_backend"
    right = address.read_text()
    address.unlink()
    address.write_text("db+postgresql://as-an-earlier-release-had-it")
    assert make_keys(tmp_path) == ["result_backend"]
    assert address.read_text() == right
    assert right.startswith("db+postgresql+psycopg2://")
    assert stat.S_IMODE(address.stat().st_mode) == 0o440


def test_addresses_need_no_quoting(tmp_path: Path) -> None:
    make_keys(tmp_path)
    password = read_key("postgres_password", tmp_path)
    assert password.replace("-", "").replace("_", "").isalnum()
    assert (
        read_key("sql_alchemy_conn", tmp_path) == f"postgresql+psycopg2://airflow:{password}@postgres/airflow"
    )


def test_two_at_the_same_time_agree(tmp_path: Path) -> None:
    threads = [threading.Thread(target=make_keys, args=(tmp_path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = contents(tmp_path)
    assert found["postgres_password"] in found["sql_alchemy_conn"]
    assert not [name for name in found if name.startswith(".new")]


def test_a_full_disk_leaves_no_half_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            make_keys(tmp_path)
    assert contents(tmp_path) == {}
    assert "fernet_key" in make_keys(tmp_path)
    assert set(keys.USERS) == {"admin", "beamline"}
