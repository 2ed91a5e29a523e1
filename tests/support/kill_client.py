"""Kill the beamline's client at every point: `python kill_client.py SCENARIO POINTS SPEC`, SPEC being JSON.

For n = 1, 2, ... a forked process does the scenario with a spool of its own and sends itself SIGKILL at its
n-th point; a second one then does what a person or the next start would do. A point is a line of the client's
code that runs for the first time ("lines"), or a call into the operating system that the interpreter audits
("calls"). At a line the power is cut, too: of the spool only what was synced is left. Ends when the scenario
runs to its end unharmed, and prints one JSON object for each n.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import beamline_client
from beamline_client.client import Client
from beamline_client.config import Settings
from beamline_client.rest import Airflow
from beamline_client.watch import Journal, WatchedFolder, Watcher
from support.power_cut import Disk

CALLS = ("open", "os.", "fcntl.", "socket.", "http.client.", "urllib.")


def quiet(_: str) -> None:
    """Log nothing."""


def no_sync(_: object) -> None:
    """SIGKILL loses nothing that was written, and real syncs cost seconds here."""


def client_of(spec: dict[str, Any], n: int, timeout: float = 10.0) -> Client:
    """The client of try `n`: a spool of its own, a quick first retry."""
    Airflow.first_pause = 0.01
    settings = Settings(
        url=spec["url"],
        user="beamline",
        password_file=Path(spec["password_file"]),
        spool=spool_of(spec, n),
        timeout=timeout,
    )
    return Client(settings, log=quiet)


def spool_of(spec: dict[str, Any], n: int) -> Path:
    """The spool of try `n`."""
    return Path(spec["folder"]).resolve() / str(n) / "spool"


def scan(n: int) -> str:
    """The scan of try `n`."""
    return f"2023/02/230216/NS_230216{n:05}_ccdframes_0_0.cxi"


def submit(spec: dict[str, Any], n: int) -> None:
    """Submit a scan."""
    client_of(spec, n).submit([scan(n)], {"n_iter": 7})


def submit_in_an_outage(spec: dict[str, Any], n: int) -> None:
    """Submit a scan while nobody answers: it is kept."""
    client_of({**spec, "url": "http://127.0.0.1:9"}, n, timeout=0.05).submit([scan(n)], {"n_iter": 7})


def reprocess(spec: dict[str, Any], n: int) -> None:
    """Reprocess a scan that has run."""
    client_of(spec, n).reprocess([scan(n)], {"n_iter": 7})


def flush(spec: dict[str, Any], n: int) -> None:
    """What the next use of the client does."""
    client_of(spec, n).sender.flush()


def watch(spec: dict[str, Any], n: int) -> None:
    """Two checks of a folder: a scan is seen, then found settled and submitted."""
    client = client_of(spec, n)
    folder = Path(spec["folder"]) / str(n) / "data"
    with client.spool.lock("watch", 1.0):
        journal = Journal(client.spool.folder / "watch.jsonl")
        watched = WatchedFolder(
            folder, journal, prefix="", settle=1e-9, done_suffix="", any_name=False, log=quiet
        )
        if journal.is_new:
            journal.begin({})
        watcher = Watcher(client, watched, {"n_iter": 7})
        watcher.check()
        watcher.check()


SCENARIOS: dict[str, tuple[Callable[[dict[str, Any], int], None], Callable[[dict[str, Any], int], None]]] = {
    "submit": (submit, flush),
    "outage": (submit_in_an_outage, flush),
    "reprocess": (reprocess, flush),
    "watch": (watch, watch),
}


def die() -> None:
    """What `kill -9` and a power cut do."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_line(n: int) -> None:
    """Die before the n-th line of the client that runs for the first time."""
    package = str(Path(beamline_client.__file__).parent)
    seen: set[tuple[str, int]] = set()

    def on_line(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(package):
            return None
        if event == "line":
            seen.add((frame.f_code.co_filename, frame.f_lineno))
            if len(seen) == n:
                die()
        return on_line

    sys.settrace(on_line)


def die_at_call(n: int) -> None:
    """Die before the n-th audited call into the operating system."""
    left = n

    def on_call(event: str, _: tuple[Any, ...]) -> None:
        nonlocal left
        if event.startswith(CALLS):
            left -= 1
            if left == 0:
                die()

    sys.addaudithook(on_call)


def in_child(do: Callable[[], None]) -> int:
    """Do something in a forked process; returns its wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            do()
            code = 0
        finally:
            sys.settrace(None)
            os._exit(code)
    return os.waitpid(child, 0)[1]


def main(scenario: str, points: str, spec: dict[str, Any]) -> None:
    """Kill at each point, recover, report."""
    act, recover = SCENARIOS[scenario]
    arm = {"lines": die_at_line, "calls": die_at_call}[points]
    os.fsync = no_sync  # type: ignore[assignment]  # named fd there
    n = spec["first"]
    killed = True
    while killed:
        n += 1
        disk = Disk(spool_of(spec, n)) if points == "lines" else None
        spool_of(spec, n).parent.mkdir(parents=True)
        if scenario == "watch":
            file = Path(spec["folder"]) / str(n) / "data" / scan(n)
            file.parent.mkdir(parents=True)
            file.write_bytes(bytes.fromhex(spec["hdf5"]))

        def act_until_killed(n: int = n, disk: Disk | None = disk) -> None:
            if disk:
                disk.watch()
            arm(n - spec["first"])
            act(spec, n)

        status = in_child(act_until_killed)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if disk:
            disk.cut()
        waited = len(client_of(spec, n).spool.names())
        recovered = in_child(lambda n=n: recover(spec, n))  # type: ignore[misc]
        left = len(client_of(spec, n).spool.names())
        report = {
            "n": n,
            "killed": killed,
            "status": status,
            "waited": waited,
            "recovered": recovered,
            "left": left,
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
