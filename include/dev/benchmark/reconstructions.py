"""Measures the reconstructions: both engines, CDTools used by hand, and pty-chi, on the same scan.

Each runs in a process of its own, one after the other. Seconds of an iteration are those between the lines
that it prints; memory is the process's peak without what its imports take; the picture is compared with the
truth.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from dev.demo.orientation import Orientation, find_orientation
from dev.local_airflow.settings import REPOSITORY
from standin.synthetic_scan import Optics, SyntheticScan, make_scan

PYTHON = REPOSITORY / ".venv-bench" / "bin" / "python"
OPTICS = Optics()
FRAMES = 625
FRAME_BYTES = 4 * FRAMES * OPTICS.frame**2
ITERATIONS = 40
FINAL = ITERATIONS // 4  # CDTools' last stage
# A process's peak begins with the memory of the one that starts it: this one has little.
_PEAK = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
_LINE = re.compile(r"iteration (\d+) of \d+")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A program that reconstructs.

    :param arguments: of its interpreter; {scan} and {output} stand for paths without `.cxi`.
    :param imports: the modules that it needs whatever the scan.
    """

    name: str
    python: Path
    arguments: tuple[str, ...]
    imports: str


class Measured(NamedTuple):
    """Seconds of an iteration (median), bytes of memory above the imports, and the picture."""

    seconds: float
    memory: int
    picture: Orientation


def _script(name: str) -> tuple[str, ...]:
    return ("-m", f"dev.benchmark.{name}", "{scan}.cxi", "{output}.cxi", str(ITERATIONS), str(OPTICS.defocus))


_CDTOOLS = f"false 1 1 {OPTICS.defocus} true 1 {ITERATIONS - FINAL} {FINAL} 0 none false none"
CONTENDERS = (
    Contender(
        name="ptychocam (ours)",
        python=Path(sys.executable),
        arguments=(
            *("-m", "reconstruction.ptychocam"),
            *f"-i {ITERATIONS} -r 1 -T 1 -M".split(),
            "{scan}.cxi",
        ),
        imports="reconstruction.ptychocam",
    ),
    Contender(
        name="CDTools engine (ours)",
        python=PYTHON,
        arguments=("-m", "reconstruction.cdtools_engine", "{scan}.cxi", *_CDTOOLS.split()),
        imports="reconstruction.fancy",
    ),
    Contender(
        name="CDTools by hand",
        python=PYTHON,
        arguments=_script("cdtools_by_hand"),
        imports="dev.benchmark.cdtools_by_hand",
    ),
    Contender(name="pty-chi", python=PYTHON, arguments=_script("pty_chi"), imports="dev.benchmark.pty_chi"),
)


def measure_reconstructions(folder: Path) -> tuple[SyntheticScan, dict[str, Measured]]:
    """Reconstruct one scan with all of them."""
    scan = make_scan(folder / "scan.cxi", n_frames=FRAMES, optics=OPTICS)
    return scan, {contender.name: _measure(contender, scan, folder) for contender in CONTENDERS}


def _measure(contender: Contender, scan: SyntheticScan, folder: Path) -> Measured:
    output = folder / contender.name.replace(" ", "_")
    paths = {"scan": str(scan.cxi.with_suffix("")), "output": str(output)}
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY / "include"),
        "COSMIC_OUTPUT": str(output),
        "MPLBACKEND": "Agg",
        "OMP_WAIT_POLICY": "PASSIVE",  # as in cdtools_reconstruction.sh
    }
    _, imports = _run(contender.python, ("-c", f"import {contender.imports}"), environment)
    arguments = tuple(argument.format(**paths) for argument in contender.arguments)
    iterations, peak = _run(contender.python, arguments, environment)
    steps = [
        (later - earlier) / (after - before) for (before, earlier), (after, later) in pairwise(iterations)
    ]
    picture = find_orientation(output.with_suffix(".cxi"), scan.truth)
    return Measured(median(steps), peak - imports, picture)


def _run(
    python: Path, arguments: tuple[str, ...], environment: Mapping[str, str]
) -> tuple[list[tuple[int, float]], int]:
    """When each iteration was printed, and the peak of memory in bytes.

    :raises RuntimeError: it failed.
    """
    process = subprocess.Popen(  # noqa: S603 - our own interpreters and text
        [sys.executable, "-c", _PEAK, python, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
    )
    printed, seen = [], []
    for line in process.stdout or ():
        printed.append(line)
        if found := _LINE.search(line):
            seen.append((int(found[1]), time.perf_counter()))
    if process.wait():
        raise RuntimeError(
            f"{' '.join(arguments[:2])} ended with {process.returncode}:\n{''.join(printed[-20:])}"
        )
    return seen, int(printed[-1]) * 1024
