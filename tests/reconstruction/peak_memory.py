"""Run by test_memory.py in a process of its own: the peak of a reconstruction's memory; prints bytes.

usage: python peak_memory.py SMALL.cxi SCAN.cxi, with the environment of the program

SMALL is reconstructed first: libraries load their parts when they are first needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reconstruction.ptychocam import parse, reconstruct


def status(name: str) -> int:
    """A number of bytes from /proc/self/status: VmRSS, or its peak VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


options = ["-r", "1", "-T", "1", "-M"]
reconstruct(*parse([*options, "-i", "4", sys.argv[1]]))
before = status("VmRSS")
reconstruct(*parse([*options, "-i", "2", sys.argv[2]]))
print(status("VmHWM") - before)
