"""Access tokens that the processes of a machine share, and who cannot read them."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from facilities import tokens
from facilities.tokens import Credentials, Token, Tokens, shared_tokens
from standin.testing import Facility
from support.globus import CONN_ID as GLOBUS
from support.globus import Place, Run, making
from support.superfacility import CONN_ID as NERSC
from support.superfacility import Task

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = Credentials(["service", "conn", "https://api"], "a-secret")


class Service:
    """Gives tokens, and counts them."""

    def __init__(self, life: float = 600.0) -> None:
        self.life = life
        self.given = 0

    def __call__(self) -> Token:
        self.given += 1
        return Token(f"token-{self.given}", time.time() + self.life)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def another_process(service: Service) -> Callable[[], Tokens]:
    """Makes what a process has that knows nothing but the credentials."""
    return lambda: Tokens(SECRET, service)


def test_one_token_serves_all_processes(service: Service, another_process: Callable[[], Tokens]) -> None:
    assert {another_process().get().text for _ in range(20)} == {"token-1"}
    assert service.given == 1


def test_one_token_serves_all_threads_of_a_process(service: Service) -> None:
    with ThreadPoolExecutor(8) as pool:
        given = pool.map(lambda _: shared_tokens(SECRET, service).get().text, range(50))
    assert set(given) == {"token-1"}


def test_a_process_that_is_forked_meanwhile_has_tokens_of_its_own(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, forked = threading.Event(), threading.Event()

    class Slow(Tokens):
        def __init__(self, *given: Any) -> None:
            made.set()
            forked.wait(60)
            super().__init__(*given)

    monkeypatch.setattr(tokens, "Tokens", Slow)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(shared_tokens, SECRET, service)
        made.wait(60)
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # ends it when it waits for a lock that no thread of it will release
            forked.set()
            try:
                shared_tokens(SECRET, service).get()
                os._exit(0)
            finally:
                os._exit(1)
        forked.set()
        assert os.waitpid(child, 0)[1] == 0


def test_the_file_shows_no_token_and_only_its_owner_can_read_it(
    another_process: Callable[[], Tokens],
) -> None:
    token = another_process().get()
    (file,) = tokens.FOLDER.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(tokens.FOLDER.stat().st_mode) == 0o700
    assert token.text.encode() not in file.read_bytes()
    assert token.text not in repr(token)
    assert "a-secret" not in repr(SECRET)


@pytest.mark.parametrize("name", [SECRET.name, ["service", "conn", "https://other"]])
def test_other_credentials_cannot_read_it(
    service: Service, another_process: Callable[[], Tokens], name: list[str]
) -> None:
    another_process().get()
    (file,) = tokens.FOLDER.iterdir()
    other = Tokens(Credentials(name, "renewed"), service)
    file.rename(tokens.FOLDER / other._file._name)
    assert other.get().text == "token-2"


def test_a_refused_token_is_used_by_nobody_any_more(
    service: Service, another_process: Callable[[], Tokens]
) -> None:
    one, two = another_process(), another_process()
    assert one.get().text == two.get().text == "token-1"
    one.forget("token-1")
    assert one.get().text == "token-2"
    two.forget("token-1")
    assert two.get().text == another_process().get().text == "token-2"
    assert service.given == 2


def test_a_token_that_others_have_replaced_is_not_forgotten(another_process: Callable[[], Tokens]) -> None:
    tokens_ = another_process()
    tokens_.get()
    tokens_.forget("token-0")
    assert tokens_.get().text == "token-1"


def test_a_refused_token_that_the_service_gives_again_is_used(
    service: Service, another_process: Callable[[], Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = another_process()
    again = one.get()
    one.forget()

    def give_again() -> Token:
        service()
        return again

    monkeypatch.setattr(one, "_ask", give_again)
    assert [one.get().text for _ in range(5)] == ["token-1"] * 5
    assert service.given == 2
    one.forget("token-1")
    one.get()
    assert service.given == 3


def test_a_token_is_replaced_before_it_ends(service: Service, another_process: Callable[[], Tokens]) -> None:
    service.life = 50.0
    assert another_process().get().text == "token-1"
    assert another_process().get().text == "token-2"


def test_what_is_known_of_the_client_goes_with_the_token(another_process: Callable[[], Tokens]) -> None:
    one = another_process()
    one.add_facts(one.get(), name="cosmic")
    assert another_process().get().facts == {"name": "cosmic"}
    one.forget()
    assert one.get().facts == {}


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 200])
def test_a_damaged_file_counts_as_missing(another_process: Callable[[], Tokens], content: bytes) -> None:
    another_process().get()
    (file,) = tokens.FOLDER.iterdir()
    file.write_bytes(content)
    assert another_process().get().text == "token-2"
    assert another_process().get().text == "token-2"


def test_a_kept_text_that_is_no_token_counts_as_missing(another_process: Callable[[], Tokens]) -> None:
    one = another_process()
    one.get()
    (file,) = tokens.FOLDER.iterdir()
    file.write_bytes(one._file._cipher.encrypt(json.dumps({"text": 7}).encode()))
    assert another_process().get().text == "token-2"


def test_without_a_folder_to_write_to_each_process_asks(
    another_process: Callable[[], Tokens], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tokens, "FOLDER", tmp_path / "file" / "tokens")
    one = another_process()
    assert [one.get().text, one.get().text] == ["token-1", "token-1"]
    assert another_process().get().text == "token-2"
    one.forget("token-1")
    assert one.get().text == "token-3"


def test_a_refused_token_whose_file_stays_is_not_used_again(
    another_process: Callable[[], Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = another_process()
    one.get()
    monkeypatch.setattr(one._file, "remove", lambda: None)
    monkeypatch.setattr(one._file, "write", lambda _: None)
    one.forget("token-1")
    assert one.get().text == "token-2"


ASK_BOTH = """
import json, sys
from facilities.globus.hook import GlobusHook
from facilities.superfacility.hook import SuperfacilityHook
globus, nersc = json.loads(sys.argv[1])
GlobusHook(globus, attempts=1).ping()
hook = SuperfacilityHook(nersc, attempts=1)
print(hook.user, hook.job_url("perlmutter", "80"))
"""


def test_both_services_are_asked_for_one_token_by_three_processes(both: Facility) -> None:
    path = os.pathsep.join(str(REPOSITORY / folder) for folder in ("plugins", "include"))
    command = [sys.executable, "-c", ASK_BOTH, json.dumps([GLOBUS, NERSC])]
    for _ in range(3):
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    asked = [entry["path"].rsplit("/", 1)[-1] for entry in both.requests() if entry["method"] == "POST"]
    assert asked == ["token", "token"]
    accounts = [entry for entry in both.requests("nersc") if "/account" in entry["path"]]
    assert len(accounts) == 1


def test_twenty_scans_in_one_process_need_one_token_of_each_service(
    both: Facility, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where no file can keep it."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(tokens, "FOLDER", tmp_path / "file" / "tokens")
    for number in range(20):
        place = Place(both, f"/2023/02/NS_{number}.cxi").write()
        assert Run().finish(making(place))["files"] == 1
        task = Task(both)
        assert task.finish(task.submit("true"))
    asked = Counter(
        entry["path"].rsplit("/", 1)[-1] for entry in both.requests() if entry["method"] == "POST"
    )
    assert asked == {"token": 2, "transfer": 20, "perlmutter": 20}
    assert len([entry for entry in both.requests("nersc") if "/account" in entry["path"]]) == 1
