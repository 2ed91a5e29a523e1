"""The running Airflow of the session, with a reconstruction that does what the scan's text says."""

from __future__ import annotations

import pytest

from support.live import Live, Pipeline, install_engines


@pytest.fixture(scope="session")
def engines(live_airflow: Live) -> None:
    """The test engine is installed at the session's facility."""
    install_engines(live_airflow.facility)


@pytest.fixture
def pipeline(live_airflow: Live, engines: None) -> Pipeline:
    """The running system."""
    return Pipeline(live_airflow)
