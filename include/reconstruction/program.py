"""What the two programs share as commands: where results go, errors, signals, progress."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

from reconstruction.scan import ScanError

OUTPUT_VARIABLE = "COSMIC_OUTPUT"
FAILED, USAGE = 1, 2
# Nor does a library start (cusolverDnCreate) that has no memory for itself.
_NO_GPU_MEMORY = re.compile(r"CUDA.*out of memory|ALLOC_FAILED|when calling `cu[A-Za-z]+Create\(")


class UsageError(Exception):
    """The command line is wrong."""


def run(name: str, usage: str, work: Callable[[], None]) -> int:
    """Do the work as a command: one line on stderr when it fails, and the exit code."""
    terminated: list[int] = []

    def terminate(number: int, _frame: FrameType | None) -> None:  # so that temporary files are removed
        terminated.append(128 + number)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, terminate)
    try:
        work()
    except Exception as error:
        # A library that is being imported makes an ImportError, or even a SyntaxError, of a SystemExit.
        if terminated:
            return terminated[0]
        if isinstance(error, UsageError):
            print(f"{name}: {error}\nusage: {usage}", file=sys.stderr, flush=True)
            return USAGE
        if (message := _message(error)) is None:
            raise
        print(f"{name}: error: {message}", file=sys.stderr, flush=True)
        return FAILED
    return 0


def _message(error: Exception) -> str | None:
    """What a person is told; None of what is a defect, whose traceback is wanted."""
    if isinstance(error, MemoryError):
        return f"not enough memory ({error}); ask for a node with more, or fewer frames."
    if isinstance(error, RuntimeError):  # of torch, cuFFT, cuBLAS; torch's own class is not all of them
        sentences = str(error).partition("\n")[0].split(". ")[:2]
        cause = ". ".join(each for each in sentences if not each.startswith("If "))  # advice to programmers
        if _NO_GPU_MEMORY.search(cause):
            return f"not enough memory of the GPU ({cause}); ask for a node with more, or fewer frames."
    elif isinstance(error, (ScanError, OSError, ValueError, FloatingPointError)):
        return str(error)
    return None


def output_prefix(scan: Path, engine: str) -> Path:
    """Where the results go: COSMIC_OUTPUT, or beside the scan, `<file without .cxi>_<engine>`."""
    given = os.environ.get(OUTPUT_VARIABLE, "")
    if not given:
        return scan.with_name(f"{scan.name.removesuffix('.cxi')}_{engine}")
    if given.endswith("/") or "\0" in given:
        raise UsageError(
            f"{OUTPUT_VARIABLE} is {given!r}; it takes a path to which .cxi, .h5, .png and .json are added"
        )
    return Path(given)


def say(notes: Iterable[str], warnings: Iterable[str]) -> None:
    """Print how the file was read, and what a person should look at."""
    for note in notes:
        print(note, flush=True)
    for warning in warnings:
        print(f"warning: {warning}", flush=True)


def whole_number(text: str, what: str, *, low: int, high: int) -> int:
    """A whole number in plain digits, within bounds.

    :raises UsageError: naming what it is for.
    """
    if not (text.isascii() and text.isdigit()) or not low <= int(text[:12]) <= high or len(text) > 12:
        raise UsageError(f"{what} is {text!r}; it takes a whole number from {low} to {high}")
    return int(text)


class Progress:
    """Progress lines, about ten for a run, and the first and last iteration always."""

    def __init__(self, total: int, label: str = "") -> None:
        self.total = total
        self.label = label

    def __call__(self, iteration: int, error: float) -> None:
        step = max(1, self.total // 10)
        if iteration in (1, self.total) or iteration % step == 0:
            print(f"{self.label}iteration {iteration} of {self.total}, error {error:.5g}", flush=True)


def cpus() -> int:
    """How many CPUs this process may use: the job's share, and no more than OMP_NUM_THREADS says."""
    share, told = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(told)) if told.isdecimal() and int(told) > 0 else share
