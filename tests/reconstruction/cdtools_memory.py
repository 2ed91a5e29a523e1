"""Run by CDTools' own interpreter (see test_cdtools_devices.py): prints the peak of its memory, bytes.

usage: python cdtools_memory.py SCAN.cxi ...        # as cdtools_reconstruction.sh
"""

from __future__ import annotations

import contextlib
import resource
import sys

from reconstruction.cdtools_engine import start

with contextlib.redirect_stdout(sys.stderr):
    start(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
