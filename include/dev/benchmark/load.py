"""Sends many scans at once to an installation, and measures the time and the CPU seconds that they take."""

from __future__ import annotations

import concurrent.futures
import time
from typing import NamedTuple, Protocol

from dev.benchmark.posts import THREADS
from standin.testing import SpawnedFacility

STANDSTILL = 300.0  # seconds without the end of a run after which the others are not waited for


class Installation(Protocol):
    """Something that is sent a scan and does the rest."""

    def post(self, run_id: str, file_path: str) -> None:
        """Start the run for a scan."""

    def unfinished(self, prefix: str) -> int:
        """How many of the runs whose ids begin with `prefix` have not ended."""

    def last_end(self, prefix: str) -> float:
        """When the last of these runs ended that have, by the installation's records (seconds of the epoch).

        :raises RuntimeError: one has failed, or none has ended.
        """

    def cpu(self) -> dict[str, float]:
        """CPU seconds of each of its parts so far."""


class Load(NamedTuple):
    """What scans at once took: seconds until the last has ended, and CPU seconds by part.

    :param runs: how many were sent.
    :param unended: how many of them had not ended when none had for a long time.
    """

    runs: int
    unended: int
    seconds: float
    cpu: dict[str, float]

    @property
    def cpu_of_one(self) -> float:
        """CPU seconds of one scan."""
        return sum(self.cpu.values()) / self.runs


def new_scan(facility: SpawnedFacility, number: int, size: int) -> str:
    """Make a file of `size` bytes at the beamline; returns its path."""
    file_path = f"2023/02/230216/NS_230216{number:05}_ccdframes_0_0.cxi"
    path = facility.collection("data7012") / file_path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return file_path


def measure_load(
    installation: Installation, prefix: str, scans: list[str], *, may_stand_still: bool = False
) -> Load:
    """Send all scans at once and wait until the last run has ended.

    :param prefix: of the runs' ids; new each time.
    :param scans: paths of their files.
    :param may_stand_still: count runs that do not end, and measure those that have.
    :raises TimeoutError: a run does not end.
    """
    before, posted = installation.cpu(), time.time()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        sent = [pool.submit(installation.post, f"{prefix}{n:03}", path) for n, path in enumerate(scans)]
    for one in sent:
        one.result()
    unended, since, after = len(scans), time.monotonic(), before
    while unended and time.monotonic() < since + STANDSTILL:
        time.sleep(0.5)
        if (left := installation.unfinished(prefix)) != unended:
            unended, since, after = left, time.monotonic(), installation.cpu()
    if unended and not may_stand_still:
        raise TimeoutError(f"{unended} of {len(scans)} runs do not end: none has for {STANDSTILL:.0f} s.")
    used = {part: seconds - before[part] for part, seconds in after.items()}
    return Load(len(scans), unended, installation.last_end(prefix) - posted, used)
