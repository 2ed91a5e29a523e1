"""What a run asks Slurm for."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from cosmic import plan
from cosmic.beamline import beamline
from cosmic.parameters import RECONSTRUCTION, read_parameters
from cosmic.scans import parse_scan_path
from facilities.superfacility.job_script import SlurmResources

BEAMLINE = Path(__file__).resolve().parents[2] / "include" / "beamline.yaml"
SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"


@pytest.mark.parametrize(
    ("qos", "cpus"), [(None, None), ("regular", None), ("shared", 64)], ids=["default", "regular", "shared"]
)
def test_a_job_on_a_shared_node_asks_for_its_gpus_share_of_the_cpus(
    monkeypatch: pytest.MonkeyPatch, qos: str | None, cpus: int | None
) -> None:
    """Where whole nodes are given a job has all CPUs of its node."""
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(BEAMLINE))
    values = read_parameters(RECONSTRUCTION, {"file_path": SCAN, "n_gpu": 2, "qos": qos})
    run = SimpleNamespace(run_id="one", run_after=datetime(2023, 2, 16, tzinfo=UTC))
    asked = plan._job(beamline(), parse_scan_path(SCAN), "cdtools", values, run)["cdtools_resources"]
    resources = SlurmResources.of(asked)
    assert (resources.qos, resources.gpus, resources.cpus_per_task) == (qos or "regular", 2, cpus)
