"""Ports for servers that take seconds to listen."""

from __future__ import annotations

import socket

import pytest

from dev.local_airflow import stack
from dev.local_airflow.stack import LocalAirflowError, free_port


def test_a_port_is_given_to_nobody_who_asks_for_any() -> None:
    with socket.socket() as anybody:
        anybody.bind(("127.0.0.1", 0))
        system: int = anybody.getsockname()[1]
    ports = {free_port() for _ in range(50)}
    assert max(ports) < 32_768 <= system
    assert len(ports) > 25  # two that ask at the same time hardly ever get the same


def test_a_port_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(stack, "_PORTS", range(port, port + 1))
        with pytest.raises(LocalAirflowError, match=f"No port from {port} to {port} is free"):
            free_port()
