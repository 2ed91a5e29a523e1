"""Run by CDTools' own interpreter (see test_cdtools_devices.py): prints the peak of its memory, bytes.

usage: python cdtools_memory.py SCAN.cxi ...        # as cdtools_reconstruction.sh
"""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

from reconstruction.cdtools_engine import start

with contextlib.redirect_stdout(sys.stderr):
    start(sys.argv[1:])
# Not ru_maxrss: that counts the process from which this one was started.
found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
print(int(found[1]) * 1024 if found else 0)
