"""Processes as the kernel shows them: who is below whom, who talks to a port, how much memory they hold."""

from __future__ import annotations

import contextlib
from pathlib import Path

_ESTABLISHED = "01"


def resident_memory(pid: int) -> float:
    """Memory of a process and all below it in MiB, shared pages counted once; 0 when it is gone."""
    return sum(_own_memory(each) for each in {pid, *descendants(pid)})


def descendants(pid: int) -> set[int]:
    """Ids of all processes below `pid`."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):  # it has ended
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found.update(children)
        waiting += children
    return found


def connected_to(port: int, pids: set[int]) -> set[int]:
    """Those of the processes that hold a connection to a port of this machine."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _ESTABLISHED and int(fields[2].rpartition(":")[2], 16) == port:
            inodes.add(f"socket:[{fields[9]}]")
    return {pid for pid in pids if inodes & _open_files(pid)}


def _open_files(pid: int) -> set[str]:
    files = set()
    with contextlib.suppress(OSError):  # it has ended
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                files.add(str(entry.readlink()))
    return files


def _own_memory(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)
