"""The stack of a scan's energies, in a running Airflow, with the real programs and small scans."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from cosmic.dag_constants import STACK_SCAN
from cosmic.scans import parse_scan_path
from dev.local_airflow.rest import RestError
from standin.synthetic_scan import Optics, make_scan
from support.live import SLOW, Pipeline
from support.missed import changed_site

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(900)]

INSTALL = Path(__file__).parents[2] / "include" / "reconstruction" / "install"


@pytest.fixture
def programs(pipeline: Pipeline) -> Iterator[None]:
    """The real programs take the test engine's place; a stack begins at once."""
    prefix = pipeline.facility.nersc / "programs"
    subprocess.run([INSTALL, prefix, sys.executable], check=True, capture_output=True)
    engine = {"script": str(prefix / "ptychocam_reconstruction.sh")}
    stack = {"script": str(prefix / "stack.sh"), "wait_minutes": 0}
    with changed_site(pipeline, engines={"ptychocam": engine}, stack=stack):
        yield


def wait_for_stack(pipeline: Pipeline, run_id: str) -> str:
    """Wait until a run of `stack_scan` has started by itself, and for its end; returns its state."""

    def there() -> bool:
        try:
            return bool(pipeline.rest.run(STACK_SCAN, run_id))
        except RestError:
            return False

    pipeline.wait_for(there, f"a run {run_id}")
    return str(pipeline.rest.wait_for_run(STACK_SCAN, run_id, SLOW)["state"])


def test_a_scan_of_two_energies_is_stacked_by_itself_when_both_are_done(
    pipeline: Pipeline, programs: None
) -> None:
    name = f"NS_230216{uuid.uuid4().int % 10**9:09}"
    runs = []
    for energy in (0, 1):
        path = f"2023/02/230216/{name}_ccdframes_{energy}_0.cxi"
        target = pipeline.facility.collection("data7012") / path
        target.parent.mkdir(parents=True, exist_ok=True)
        make_scan(target, n_frames=64, step=130e-9, seed=3, optics=Optics(frame=64, photons=2e6))
        runs.append(path)

    first = pipeline.start(runs[0], n_iter=10)
    assert pipeline.finish(first) == "success"
    with pytest.raises(RestError, match="404"):  # one energy is no stack
        pipeline.rest.run(STACK_SCAN, f"{name}_ptychocam_1")
    by_hand = pipeline.rest.trigger(STACK_SCAN, {"scan": name})
    assert pipeline.rest.wait_for_run(STACK_SCAN, by_hand, SLOW)["state"] == "failed"
    assert "1 are done, 1 missing (1_0)" in pipeline.rest.log(STACK_SCAN, by_hand, "check")

    second = pipeline.start(runs[1], n_iter=10)
    assert pipeline.finish(second) == "success"
    run_id = f"{name}_ptychocam_2"
    assert wait_for_stack(pipeline, run_id) == "success"
    assert pipeline.rest.run(STACK_SCAN, run_id)["conf"] == {"scan": name, "engine": "ptychocam"}
    result = pipeline.rest.xcom(STACK_SCAN, run_id, "collect")
    (stack,) = result["stacks"]
    assert (stack["energies"], stack["missing"]) == ([0, 1], [])
    with h5py.File(stack["stack"]) as file:
        assert file["entry0/counter0/data"].shape[0] == 2
        assert [text.decode() for text in file["entry0/alignment/result"]] == [
            f"{name}_ccdframes_{energy}_0_ptychocam.cxi" for energy in (0, 1)
        ]
    assert parse_scan_path(runs[1]).run_id() == second
    # The last task of a run once more: the same results, so no second stack.
    pipeline.rest.clear("transfer_auto_recon", second, ["report"])
    assert pipeline.finish(second) == "success"

    # A result more, but there is a file without a run: the run that starts by itself makes no stack.
    pipeline.live.scan(f"2023/02/230216/{name}_ccdframes_2_0.cxi")
    assert pipeline.finish(pipeline.start(runs[0], n_iter=10)) == "success"
    run_id = f"{name}_ptychocam_3"
    assert wait_for_stack(pipeline, run_id) == "success"
    states = {task: ti["state"] for task, ti in pipeline.rest.task_instances(STACK_SCAN, run_id).items()}
    assert set(states.values()) == {"skipped"}
    assert "2 are done, 1 missing (2_0)" in pipeline.rest.log(STACK_SCAN, run_id, "check")
    assert "2 are done, 1 missing (2_0)" in pipeline.rest.xcom(STACK_SCAN, run_id, "check", "no_stack")
    jobs = [job["name"] for job in pipeline.facility.jobs()]
    assert len([job for job in jobs if job.startswith("stack-") and name in job]) == 1
