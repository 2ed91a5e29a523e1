"""Listening to the processing program: a scan is submitted when its end is reported and its file closed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import pytest
import zmq

from beamline_client import listen, waiting, watch
from beamline_client.client import Client
from beamline_client.config import Settings
from beamline_client.errors import InputError
from beamline_client.listen import EndedScans, Listener
from beamline_client.messages import MAX_BYTES, BadMessageError, End
from beamline_client.scan_names import scan_run_id
from beamline_client.watch import Journal, Watcher
from dev.local_airflow.stack import wait_until
from support.airflow_api import DAG_RUNS, AirflowApi
from support.client import PROGRAM, offline, scan
from support.needs import python_3_8

SLOW = 60.0


def identifier(number: int) -> str:
    return Path(scan(number)).stem


def end(number: int, event: str = "stop") -> End:
    return End(event, identifier(number))


class Publisher:
    """The processing program's socket."""

    def __init__(self, port: int = 0) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)  # a PUB that shows its subscriptions
        self.socket.setsockopt(zmq.LINGER, 0)
        self.port = port or self.socket.bind_to_random_port("tcp://127.0.0.1")
        if port:
            self.socket.bind(self.address)

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def wait_for_subscriptions(self) -> set[bytes]:
        """Wait until a listener has subscribed to all that it takes."""
        found: set[bytes] = set()
        while len(found) < len(listen.BEGINNINGS):
            assert self.socket.poll(int(SLOW) * 1000), found
            found.add(self.socket.recv())
        return found

    def publish(self, event: str, name: str) -> None:
        self.socket.send_multipart([event.encode(), json.dumps({"identifier": name}).encode()])

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher()
    yield publisher
    publisher.close()


class Beamline:
    """Scans that have ended, a folder of files, and a clock that tests move."""

    def __init__(
        self, client: Client, root: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.client, self.root, self.messages = client, root, messages
        self.now = 1000.0
        root.mkdir()
        self.clock = SimpleNamespace(monotonic=lambda: self.now, sleep=time.sleep, strftime=time.strftime)
        for module in (listen, waiting, watch):
            monkeypatch.setattr(module, "time", self.clock)
        self.start()

    def start(self) -> None:
        """As after a start of the program."""
        self.client.spool.add([])  # makes the folders
        journal = Journal(self.client.spool.folder / "listen.jsonl")
        if journal.is_new:
            journal.begin({})
        self.scans = EndedScans(self.root, journal, settle=2.0, log=self.messages.append)
        self.watcher = Watcher(self.client, self.scans, {"do_ptychocam": True})

    def write(self, number: int, content: int = 1) -> Path:
        path = self.root / scan(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["x"] = [content] * content
        return path

    def check(self, after: float = 1.0) -> None:
        self.now += after
        self.watcher.check()

    def logged(self, text: str) -> int:
        return sum(text in line for line in self.messages)


@pytest.fixture
def beamline(
    client: Client, tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> Beamline:
    return Beamline(client, tmp_path / "data", messages, monkeypatch)


@pytest.mark.parametrize("event", ["stop", "abort"])
def test_a_scan_that_has_ended_is_submitted(api: AirflowApi, beamline: Beamline, event: str) -> None:
    beamline.write(1)
    beamline.write(2)
    beamline.check(100)
    beamline.scans.add(end(1, event))
    beamline.check()
    assert api.created == []
    beamline.check(3)
    assert api.created == [scan_run_id(scan(1))]
    assert api.runs[scan_run_id(scan(1))]["conf"] == {"file_path": scan(1), "do_ptychocam": True}
    assert beamline.logged(f"{event}: {identifier(1)}") == 1


def test_a_file_that_grows_or_is_not_all_there_is_waited_for(api: AirflowApi, beamline: Beamline) -> None:
    path = beamline.write(1, 5000)
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    beamline.scans.add(end(1))
    for size in (4000, 5000, 6000):
        beamline.check()
        path.write_bytes(whole[:size])
    beamline.check(0)
    beamline.check(10)
    assert api.created == []
    assert beamline.logged(f"Left alone: {scan(1)}: only 6000 of {len(whole)} bytes are there") == 1
    path.write_bytes(whole)
    beamline.check(0)
    beamline.check(1)
    assert api.created == []
    beamline.check(2)
    assert api.created == [scan_run_id(scan(1))]


def test_a_file_that_is_open_for_writing_grows_until_it_is_closed(
    api: AirflowApi, beamline: Beamline
) -> None:
    path = beamline.root / scan(1)
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w", libver="latest") as file:
        frames = file.create_dataset("frames", (0, 64), "f4", maxshape=(None, 64), chunks=(1, 64))
        beamline.scans.add(end(1))
        for number in range(1, 40):
            frames.resize(number, axis=0)
            frames[number - 1] = number
            file.flush()
            beamline.check(1.5)
        assert api.created == []
    beamline.check(0)
    beamline.check(3)
    assert api.created == [scan_run_id(scan(1))]


def test_an_end_that_is_reported_again_makes_no_second_run(api: AirflowApi, beamline: Beamline) -> None:
    beamline.write(1)
    for _ in range(3):
        beamline.scans.add(end(1))
        beamline.check(3)
    beamline.scans.add(end(1, "abort"))
    beamline.check(3)
    beamline.check(3)
    assert api.count("POST", DAG_RUNS) == 1
    assert beamline.logged("stop: ") == 1
    beamline.write(1, 50)
    beamline.scans.add(end(1))
    beamline.check(3)
    assert api.count("POST", DAG_RUNS) == 1
    assert beamline.logged("it changed after it was submitted (to run it again: reprocess)") == 1


def test_a_file_that_does_not_come_is_mentioned_and_taken_when_it_does(
    api: AirflowApi, beamline: Beamline
) -> None:
    beamline.scans.add(end(1, "abort"))
    for _ in range(4):
        beamline.check(20)
    assert beamline.logged(f"it has ended, but there is no file {beamline.root / scan(1)} yet") == 1
    beamline.write(1)
    beamline.check(0)
    beamline.check(3)
    assert api.created == [scan_run_id(scan(1))]


def test_a_link_in_place_of_the_file_is_left_alone(api: AirflowApi, beamline: Beamline) -> None:
    beamline.write(1).rename(beamline.root / "elsewhere")
    (beamline.root / scan(1)).symlink_to(beamline.root / "elsewhere")
    beamline.scans.add(end(1))
    for _ in range(9):
        beamline.check(10)
    assert api.created == []
    assert beamline.logged("there is no file") == 1


def test_an_awaited_file_survives_a_stop_of_the_program(api: AirflowApi, beamline: Beamline) -> None:
    beamline.scans.add(end(1))
    beamline.scans.add(end(2))
    beamline.write(1)
    beamline.check(0)
    beamline.check(3)
    beamline.start()
    beamline.write(2)
    beamline.check(0)
    beamline.check(3)
    assert api.created == [scan_run_id(scan(1)), scan_run_id(scan(2))]
    assert api.count("POST", DAG_RUNS) == 2


def test_a_disk_that_is_full_forgets_nothing_while_the_program_runs(
    api: AirflowApi, beamline: Beamline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(watch, "append_to_file", full)
        beamline.scans.add(end(1))
    assert beamline.logged("It is lost if this program stops") == 1
    beamline.write(1)
    beamline.check(0)
    beamline.check(3)
    assert api.created == [scan_run_id(scan(1))]


def test_while_airflow_is_away_the_request_is_kept(
    api: AirflowApi, settings: Settings, beamline: Beamline, client: Client
) -> None:
    beamline.client = offline(settings)
    beamline.client.log = beamline.messages.append
    beamline.start()
    beamline.write(1)
    beamline.scans.add(end(1))
    beamline.check(0)
    beamline.check(3)
    assert [request.path for request in client.spool.pending()] == [scan(1)]
    assert beamline.logged("1 waiting: It waits in") == 1
    beamline.client = client
    beamline.start()
    beamline.check()
    assert api.created == [scan_run_id(scan(1))]


@pytest.mark.parametrize(
    "name", ["CX-7_230216033_ccdframes_1_0", "NS_230216033_ccdframes_0", "a_b_230216033_ccdframes_0_0_x"]
)
def test_a_scan_with_a_name_of_another_form_is_submitted(
    api: AirflowApi, beamline: Beamline, name: str
) -> None:
    path = f"2023/02/230216/{name}.cxi"
    beamline.write(1).rename(beamline.root / path)
    beamline.scans.add(End("stop", name))
    for _ in range(3):
        beamline.check(3)
    assert api.created == [scan_run_id(path)]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../../etc/passwd", "it names no file of a scan"),
        ("NS_230216033_ccdframes_0_0/../../../x", "cannot be a scan"),
        ("NS_230216033_ccdframes_0_0_ptychocam", "no result's name"),
        ("NS_230216033", "is not like NS_230216033_ccdframes_0_0"),
        ("NS_230299033_ccdframes_0_0", "it names no file of a scan"),
        ("NS_230216033_ccdframes_0_0\x1b[2J", "cannot be a scan"),
        ("NS_230216033_ccdframes_0_0" + "x" * 5000, "longer than"),
        ("$(reboot)", "it names no file of a scan"),
    ],
)
def test_a_name_that_is_no_scans_is_refused(api: AirflowApi, beamline: Beamline, name: str, why: str) -> None:
    with pytest.raises(BadMessageError, match=why):
        beamline.scans.add(End("stop", name))
    beamline.check()
    assert api.created == []


def test_a_flood_of_names_takes_bounded_memory(beamline: Beamline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "MAX_AWAITED", 10)
    for number in range(100, 130):
        beamline.scans.add(end(number))
    assert len(beamline.scans._awaited) == 10
    assert beamline.logged("its file did not come, and 10 others are awaited") == 20


def test_the_ends_of_scans_are_received_in_each_form(publisher: Publisher, messages: list[str]) -> None:
    ends: list[End] = []
    with Listener(publisher.address, ends.append, messages.append):
        publisher.wait_for_subscriptions()
        publisher.publish("start", identifier(1))
        publisher.publish("stop", identifier(1))
        publisher.socket.send_multipart([b"frame", b"{}", b"\0" * 4_000_000])
        publisher.publish("abort", identifier(2))
        publisher.socket.send_json({"event": "stop", "identifier": identifier(3)})
        for protocol in range(6):
            publisher.socket.send(pickle.dumps({"event": "stop", "identifier": identifier(4)}, protocol))
        publisher.socket.send_pyobj({"event": "frame", "data": [1.0] * 100})
        publisher.socket.send_multipart([b"stop", pickle.dumps({"identifier": identifier(5)})])
        assert wait_until(lambda: len(ends) == 10, SLOW, 0.02), ends
    assert ends == [end(1), end(2, "abort"), end(3), *[end(4)] * 6, end(5)]
    assert [line.split("  ")[1] for line in messages] == [f"Connected to {publisher.address}."]


class _Runs:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_hostile_messages_are_refused_and_the_next_end_is_received(
    publisher: Publisher, messages: list[str], tmp_path: Path
) -> None:
    ends: list[End] = []
    trace = tmp_path / "it was run"
    hostile: list[bytes] = [
        *(pickle.dumps({"event": "stop", "identifier": _Runs(f"touch '{trace}'")}, p) for p in range(6)),
        b"\x80\x02}r\xff\xff\xff\xff(j\xff\xff\xff\xff.",
        b"}" * 60_000,
        b"(" * 60_000 + b".",
        b"{" * 60_000,
        b"\x80" + os.urandom(500),
        b"\x80" * (MAX_BYTES + 1),
        pickle.dumps({"event": "stop", "identifier": "\x1b[2J" * 100}),
    ]
    with Listener(publisher.address, ends.append, messages.append):
        publisher.wait_for_subscriptions()
        for content in hostile:
            publisher.socket.send(content)
            publisher.socket.send_multipart([b"stop", content])
        publisher.publish("stop", identifier(1))
        assert wait_until(lambda: end(1) in ends, SLOW, 0.02)
    assert not trace.exists()
    refused = [line for line in messages if "A message was refused" in line]
    assert any("it is a pickle with more than plain values in it (GLOBAL)." in line for line in refused)
    assert any("(3 times by now)" in line for line in refused)
    assert len(refused) < 2 * len(hostile)
    assert all(line.isprintable() for line in messages)


def test_the_same_refusal_is_not_logged_each_time(publisher: Publisher, messages: list[str]) -> None:
    ends: list[End] = []
    with Listener(publisher.address, ends.append, messages.append):
        publisher.wait_for_subscriptions()
        for _ in range(500):
            publisher.socket.send_multipart([b"stop", b"{}"])
        publisher.publish("stop", identifier(1))
        assert wait_until(lambda: bool(ends), SLOW, 0.02)
    counts = [line.partition("refused")[2].partition(":")[0] for line in messages if "refused" in line]
    assert counts == [
        "",
        " (2 times by now)",
        " (3 times by now)",
        " (10 times by now)",
        " (100 times by now)",
    ]


def test_a_lost_connection_is_logged_and_comes_back(publisher: Publisher, messages: list[str]) -> None:
    ends: list[End] = []

    def logged(text: str) -> Callable[[], bool]:
        return lambda: any(text in line for line in messages)

    with Listener(publisher.address, ends.append, messages.append):
        publisher.wait_for_subscriptions()
        publisher.publish("stop", identifier(1))
        assert wait_until(lambda: bool(ends), SLOW, 0.02)
        publisher.close()
        assert wait_until(
            logged(f"The connection to {publisher.address} is lost. Scans that end"), SLOW, 0.02
        )
        again = Publisher(publisher.port)
        try:
            again.wait_for_subscriptions()
            again.publish("abort", identifier(2))
            assert wait_until(lambda: len(ends) == 2, SLOW, 0.02)
        finally:
            again.close()
    assert ends == [end(1), end(2, "abort")]
    assert sum("Connected to" in line for line in messages) == 2


def test_a_publisher_that_comes_later_is_received(messages: list[str]) -> None:
    first = Publisher()
    port = first.port
    first.close()
    ends: list[End] = []
    with Listener(f"tcp://127.0.0.1:{port}", ends.append, messages.append):
        publisher = Publisher(port)
        try:
            publisher.wait_for_subscriptions()
            publisher.publish("stop", identifier(1))
            assert wait_until(lambda: ends == [end(1)], SLOW, 0.02)
        finally:
            publisher.close()


def test_another_kind_of_server_is_no_publisher(messages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "NO_PUBLISHER", 1.5)  # it connects again every half second
    answered: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def hang_up() -> None:
            while len(answered) < 3:
                connection, _ = server.accept()
                answered.append(connection.send(b"220 mail.example.org\r\n"))
                connection.close()

        with ThreadPoolExecutor(1) as pool:
            pool.submit(hang_up)
            with Listener(f"tcp://127.0.0.1:{port}", lambda _: None, messages.append):
                assert wait_until(lambda: len(answered) == 3 and bool(messages), SLOW, 0.02)
    (line,) = messages
    assert line.endswith("yet; waiting.")


def test_a_defect_while_receiving_ends_the_program_loudly(publisher: Publisher, messages: list[str]) -> None:
    def fail(_: End) -> None:
        raise RuntimeError("a defect")

    def listen_on() -> None:
        with Listener(publisher.address, fail, messages.append) as listener:
            publisher.wait_for_subscriptions()
            publisher.publish("stop", identifier(1))
            listener.wait(SLOW)

    with pytest.raises(RuntimeError, match="a defect"):
        listen_on()


@pytest.mark.parametrize(
    "address",
    ["localhost:37013", "tcp://", "udp://a:1", "tcp://a b:1", "tcp://a:99999", "tcp://-:1", "tcp://a:1/x"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="is not an address such as tcp://localhost:37013"):
        Listener(address, lambda _: None, lambda _: None)


def test_a_publisher_that_does_not_come_is_mentioned(
    messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "NO_PUBLISHER", 0.1)
    with Listener("tcp://[::1]:1", lambda _: None, messages.append):
        assert wait_until(lambda: bool(messages), SLOW, 0.02)
    (line,) = messages
    assert line.endswith("There is no publisher at tcp://[::1]:1 yet; waiting.")


Program = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def data(config: Path, tmp_path: Path) -> Path:
    """The folder of the scans, which the settings name."""
    folder = tmp_path / "data"
    folder.mkdir()
    config.write_text(config.read_text() + f"data_root = {folder}\n")
    return folder


def test_the_program_listens_until_it_is_stopped(
    api: AirflowApi, program: Program, data: Path, tmp_path: Path
) -> None:
    context = zmq.Context()
    program_socket = context.socket(zmq.PUB)
    port = program_socket.bind_to_random_port("tcp://127.0.0.1")
    address = f"tcp://127.0.0.1:{port}"
    try:
        listening = program("listen", "--address", address, "--settle", "0.1", "--engine", "cdtools")
        assert listening.stdout is not None
        lines = [listening.stdout.readline(), listening.stdout.readline()]
        assert f"Listening to {address}, for scans in {data}." in "".join(lines)
        assert f"Connected to {address}." in "".join(lines)
        second = program("listen", "--address", address)
        assert second.wait(SLOW) == 2
        assert f"{address} is being listened to already, by another submit_scan." in second.communicate()[0]
        for number in (1, 2):
            path = data / scan(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as file:
                file["x"] = number

        def received() -> bool:
            for number, event in ((1, b"stop"), (2, b"abort")):
                program_socket.send_multipart(
                    [event, json.dumps({"identifier": identifier(number)}).encode()]
                )
            return len(api.created) == 2

        assert wait_until(received, SLOW, 0.1)
        listening.send_signal(signal.SIGTERM)
        out, _ = listening.communicate(timeout=SLOW)
    finally:
        context.destroy(linger=0)
    assert listening.returncode == 0, out
    assert "Stopped. What was found is kept or sent." in out
    assert sorted(api.created) == [scan_run_id(scan(1)), scan_run_id(scan(2))]
    assert api.runs[scan_run_id(scan(1))]["conf"]["do_cdtools"] is True


@pytest.mark.parametrize("version", ["3.11", pytest.param("3.8", marks=pytest.mark.needs("python3.8"))])
def test_without_pyzmq_it_says_what_to_install_and_the_rest_works(
    api: AirflowApi, config: Path, data: Path, version: str
) -> None:
    interpreter = python_3_8() if version == "3.8" else sys.executable
    assert interpreter is not None
    python = [interpreter, "-I", "-S", str(PROGRAM)]  # one with nothing installed

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*python, *arguments, "--config", str(config)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("listen")
    assert done.returncode == 2
    assert re.fullmatch(r"submit_scan: listen needs pyzmq: \S*python\S* -m pip install pyzmq\n", done.stderr)
    done = run(scan(1))
    assert done.returncode == 0, done.stderr
    assert api.created == [scan_run_id(scan(1))]


def test_without_a_data_root_it_says_what_is_missing(config: Path, program: Program) -> None:
    done = program("listen")
    out, _ = done.communicate(timeout=SLOW)
    assert done.returncode == 2
    assert (
        "Where are the scans on this computer? data_root in [client] must name that folder, not None." in out
    )


def test_a_journal_that_cannot_be_used_is_named(data: Path, config: Path, program: Program) -> None:
    spool = next(Path(line[8:]) for line in config.read_text().splitlines() if line.startswith("spool = "))
    address = "tcp://127.0.0.1:1"
    spool.mkdir(parents=True)
    name = hashlib.sha256(f"{address} {data}".encode()).hexdigest()[:12]
    (spool / f"listen-{name}.jsonl").mkdir()
    out, _ = program("listen", "--address", address).communicate(timeout=SLOW)
    assert f"listen-{name}.jsonl, which records what was submitted, cannot be used" in out
