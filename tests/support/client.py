"""Shortcuts for tests of the client."""

from __future__ import annotations

import os
from pathlib import Path

import beamline_client
from beamline_client.client import Client
from beamline_client.config import Settings
from beamline_client.output import Outcome

PROGRAM = Path(beamline_client.__file__).parents[1]  # the built file: tests/beamline_client/conftest.py


def scan(number: int) -> str:
    """Path of a scan with a usual name."""
    return f"2023/02/230216/NS_230216{number:03}_ccdframes_0_0.cxi"


def codes(outcomes: list[Outcome]) -> list[tuple[str, int]]:
    """What became of requests, in short."""
    return [(outcome.outcome, outcome.exit_code) for outcome in outcomes]


def offline(settings: Settings) -> Client:
    """A client of the same spool that cannot reach Airflow."""
    away = Settings(**{**settings.__dict__, "url": "http://127.0.0.1:1", "timeout": 0.05})
    return Client(away, log=lambda _: None)


def environment() -> dict[str, str]:
    """For a process that imports the client."""
    return {**os.environ, "PYTHONPATH": str(PROGRAM)}
