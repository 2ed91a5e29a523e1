"""What needs Slurm itself: the cluster that `make slurm-test` starts around these tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.live import Live, Pipeline, install_engines
from support.nersc import Nersc, nersc_running
from support.slurm_cluster import SlurmCluster


@pytest.fixture(scope="session")
def cluster() -> SlurmCluster:
    """The running cluster."""
    folder = os.environ.get("SLURM_TEST_CLUSTER")
    if folder is None:
        pytest.fail("There is no cluster: make slurm-test starts one around these tests.")
    return SlurmCluster(Path(folder))


@pytest.fixture(scope="module")
def nersc(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nersc]:
    """One facility for the module; its Slurm is the cluster."""
    with nersc_running(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture
def pipeline(cluster: SlurmCluster, live_airflow: Live) -> Pipeline:
    """The running system; its facility's Slurm is the cluster."""
    install_engines(live_airflow.facility)
    return Pipeline(live_airflow)
