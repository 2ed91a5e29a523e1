"""Measures how fast a burst of posts is accepted, and checks that each becomes exactly one run."""

from __future__ import annotations

import concurrent.futures
import time
from typing import NamedTuple

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from dev.local_airflow.rest import Rest, RestError

POSTS = 1000
THREADS = 8
_PREFIX = "burst__"


class Burst(NamedTuple):
    """What became of a burst of posts."""

    posts: int
    seconds: float
    accepted: int
    refused: int
    runs: int

    @property
    def rate(self) -> float:
        """Accepted posts a second."""
        return self.accepted / self.seconds


def measure_posts(rest: Rest, posts: int = POSTS) -> Burst:
    """Post many scans at once.

    The DAG is paused meanwhile: what is measured is how fast posts are taken, not how fast runs go on.
    """
    switch = f"/api/v2/dags/{DAG_ID}"
    rest.call("PATCH", switch, {"is_paused": True})

    def post(number: int) -> bool:
        file_path = f"2022/01/220101/NS_220101{number:04}_ccdframes_0_0.cxi"
        try:
            rest.trigger(DAG_ID, {"file_path": file_path, "do_ptychocam": True}, f"{_PREFIX}{number}")
        except RestError:
            return False
        return True

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(post, range(posts)))
    seconds = time.perf_counter() - started
    query = f"run_id_prefix_pattern={_PREFIX}&limit=1"
    runs = int(rest.call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns?{query}")["total_entries"])
    return Burst(posts, seconds, answers.count(True), answers.count(False), runs)
