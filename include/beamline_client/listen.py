"""Listen mode: submits each scan when the beamline's processing program reports its end."""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Counter, Dict, Optional

from beamline_client.errors import InputError
from beamline_client.messages import BadMessageError, End, read_message
from beamline_client.naming import normalize_path
from beamline_client.output import printable
from beamline_client.scan_names import parse_file
from beamline_client.watch import FileState, Journal, WatchedFolder, state_of_file

EXAMPLE = "NS_230216033_ccdframes_0_0"
ADDRESS = "tcp://localhost:37013"  # of the processing program, as it comes
MAX_AWAITED = 1000  # scans that have ended without a file; of more, the oldest are given up
LATE = 60.0  # seconds until a file that is not there is mentioned
NO_PUBLISHER = 10.0  # seconds until a publisher that is not there is mentioned
# What crosses the network: the ends of scans by topic, and dictionaries without a topic (JSON, pickle).
BEGINNINGS = (b"stop", b"abort", b"{", b"\x80", b"(", b"}")
_ADDRESS = re.compile(
    r"tcp://([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]):(?P<port>[1-9][0-9]{0,4})", re.ASCII
)
_POLL_MS = 200


class EndedScans(WatchedFolder):
    """The scans below a folder that have ended by a message, and which of their files are closed.

    A scan that has ended is in the journal until its file is submitted, so it survives a restart. Messages
    come from one thread and files are looked for in another.
    """

    def __init__(self, folder: Path, journal: Journal, *, settle: float, log: Callable[[str], None]) -> None:
        super().__init__(folder, journal, prefix="", settle=settle, done_suffix="", any_name=True, log=log)
        now = time.monotonic()
        self._awaited = {name: now for name in journal.awaited if name not in journal.submitted}
        self._lock = threading.Lock()

    def add(self, end: End) -> None:
        """Await the file of a scan that has ended.

        :raises BadMessageError: the name is not that of a file of a scan.
        """
        file = parse_file(end.identifier)
        if file is None:
            raise BadMessageError(
                f"it names no file of a scan: {end.identifier[:100]!r} is not like {EXAMPLE}"
            )
        try:
            path = normalize_path(f"{file.scan.folder}/{end.identifier}.cxi")
        except InputError as error:
            raise BadMessageError(f"it names a scan that is not submitted: {error}") from None
        with self._lock:
            if path in self.journal.submitted:
                state = state_of_file(self.folder / path)
                if state:
                    self.is_known(path, state)  # logs when it is another file than the one that was submitted
                return
            if path not in self._awaited:
                self.log(f"{_now()}  {end.event}: {end.identifier}")
                try:
                    self.journal.await_file(path)
                except OSError as error:
                    self.log(f"{_now()}  It is lost if this program stops: {self.journal.path}: {error}")
            self._awaited[path] = time.monotonic()
            for oldest in list(self._awaited)[:-MAX_AWAITED]:
                del self._awaited[oldest]
                self.log_once(
                    oldest, f"it has ended, but its file did not come, and {MAX_AWAITED} others are awaited"
                )

    def files(self) -> Dict[str, FileState]:
        """The files that are there, of scans that have ended and are not submitted."""
        found = {}
        with self._lock:
            for name in [name for name in self._awaited if name in self.journal.submitted]:
                del self._awaited[name]
            awaited = dict(self._awaited)
        for name, since in awaited.items():
            state = state_of_file(self.folder / name)
            if state:
                found[name] = state
            elif time.monotonic() - since > LATE:
                self.log_once(name, f"it has ended, but there is no file {self.folder / name} yet")
        return found


class Listener:
    """Receives messages in a thread of its own, for as long as it is entered.

    :param address: of the ZMQ publisher, such as `tcp://localhost:37013`; it need not be there yet.
    :param take: is given the end of each scan; it may raise BadMessageError.
    :param log: takes a line on each change of the connection and on messages that are refused.
    :raises InputError: not an address, or pyzmq is not installed.
    """

    def __init__(self, address: str, take: Callable[[End], None], log: Callable[[str], None]) -> None:
        self.address = address
        self.take = take
        self.log = log
        self._refused: Counter[str] = Counter()
        self._failure: Optional[BaseException] = None
        self._connected: Optional[bool] = None  # until it is for the first time
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listen", daemon=True)
        self._zmq = _load_zmq()
        match = _ADDRESS.fullmatch(address)
        if not match or int(match["port"]) > 65535:
            raise InputError(f"{address!r} is not an address such as {ADDRESS}.")

    def __enter__(self) -> Listener:
        zmq = self._zmq
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        options = {
            zmq.RECONNECT_IVL: 500,  # ms
            zmq.TCP_KEEPALIVE: 1,  # a publisher whose computer was switched off is missed after two minutes
            zmq.TCP_KEEPALIVE_IDLE: 60,
            zmq.TCP_KEEPALIVE_INTVL: 20,
            zmq.TCP_KEEPALIVE_CNT: 3,
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        for beginning in BEGINNINGS:
            self._socket.setsockopt(zmq.SUBSCRIBE, beginning)
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self._socket.connect(self.address)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def wait(self, seconds: float) -> None:
        """Let messages come for so long; raises what has ended the receiving, if anything has."""
        self._thread.join(seconds)
        if self._failure:
            raise self._failure

    def _run(self) -> None:
        try:
            poller = self._zmq.Poller()
            poller.register(self._socket, self._zmq.POLLIN)
            poller.register(self._monitor, self._zmq.POLLIN)
            patience = time.monotonic() + NO_PUBLISHER
            while not self._end.is_set():
                ready = dict(poller.poll(_POLL_MS))
                if not ready and self._connected is None and time.monotonic() > patience:
                    self.log(f"{_now()}  There is no publisher at {self.address} yet; waiting.")
                    patience = math.inf
                if self._monitor in ready:
                    self._connection_changed()
                if self._socket in ready:
                    self._receive()
        except BaseException as error:  # noqa: BLE001 - `wait` raises it in the other thread
            self._failure = error

    def _connection_changed(self) -> None:
        event = int.from_bytes(self._monitor.recv_multipart()[0][:2], sys.byteorder)
        if event == self._zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._connected = True
            self.log(f"{_now()}  Connected to {self.address}.")
        elif self._connected:
            self._connected = False
            self.log(
                f"{_now()}  The connection to {self.address} is lost. Scans that end until it is back are "
                "missed: find_missed_scans starts them, or submit_scan.py FILE."
            )

    def _receive(self) -> None:
        try:
            end = read_message(self._socket.recv_multipart())
            if end:
                self.take(end)
        except BadMessageError as error:
            kind = str(error).partition(":")[0]
            self._refused[kind] += 1
            count = self._refused[kind]
            if count <= 3 or re.fullmatch("10+", str(count)):  # it may come with each frame
                times = f" ({count} times by now)" if count > 1 else ""
                self.log(f"{_now()}  A message was refused{times}: {printable(str(error))}.")


def _load_zmq() -> Any:
    try:
        import zmq  # noqa: PLC0415 - the rest of the client works without it
    except ImportError:
        raise InputError(f"listen needs pyzmq: {sys.executable} -m pip install pyzmq") from None
    return zmq


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
