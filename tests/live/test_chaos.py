"""A short chaos run: a real Airflow of its own and a stand-in, both killed and cut off; then the books."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.chaos.run import Chaos
from dev.chaos.table import table

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(900)]

SCANS, FAULTS, SEED = 3, 12, 3


def test_nothing_is_lost_nothing_done_twice_and_nothing_left_running(tmp_path: Path) -> None:
    said: list[str] = []
    chaos = Chaos(tmp_path, scans=SCANS, faults=FAULTS, seed=SEED, limit=800.0, say=said.append)
    result = chaos.run()
    told = "\n".join([*said, table(result)])
    assert result.passed, told
    books = result.reckoning
    assert len([*books.succeeded, *books.failed_as_meant, *books.ended_by_a_person]) == SCANS, told
    assert len(result.happened) >= FAULTS / 2, told
