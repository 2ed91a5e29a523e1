"""When a stack starts by itself, and what `stack_scan` makes of a scan's files, runs and results."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.api.datamodels._generated import DagRunType
from airflow.sdk.exceptions import AirflowSkipException
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, GetTaskStates, OKResponse, TriggerDagRun

from cosmic import runs, stack_start, stacks
from cosmic.beamline import beamline
from cosmic.dag_constants import (
    COPY_TASK,
    NO_STACK_KEY,
    REPORT_TASK,
    STACK_SCAN,
    SUPERFACILITY_CONN_ID,
    TRANSFER_AUTO_RECON,
)
from cosmic.scans import parse_scan_path, parse_whole_scan
from facilities.errors import UserError
from standin.testing import Facility
from support.airflow_says import AirflowSays
from support.superfacility import connection_to, use_connection

Write = Callable[..., Path]
FOLDER = "2023/02/230216"


class Airflow(AirflowSays):
    """Runs of both DAGs."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[TriggerDagRun] = []
        self.xcoms: dict[str, Any] = {}  # of the first task of `stack_scan`

    def add(
        self, scan: str, place: tuple[int, int], generation: int = 1, report: str | None = "success"
    ) -> None:
        """Add a run of a file, by the state of its last task; None: it has come as far as its copy."""
        run_id = path_of(scan, place).run_id(generation)
        state = report if report in ("success", "failed") else "running"
        self.runs[TRANSFER_AUTO_RECON, run_id] = state
        collected = "success" if report in ("success", "running") else report
        self.tasks[TRANSFER_AUTO_RECON, run_id] = {
            COPY_TASK: "success",
            "ptychocam.collect": collected,
            REPORT_TASK: report,
        }

    def send(self, msg: Any) -> Any:
        if not isinstance(msg, TriggerDagRun):
            return super().send(msg)
        if (msg.dag_id, msg.run_id) in self.runs:
            return ErrorResponse(error="DAGRUN_ALREADY_EXISTS")  # type: ignore[arg-type]
        self.runs[msg.dag_id, msg.run_id] = "queued"
        self.started.append(msg)
        return OKResponse(ok=True)


@pytest.fixture
def airflow(standin: Facility, monkeypatch: pytest.MonkeyPatch) -> Airflow:
    fake = Airflow()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", fake, raising=False)
    return fake


@pytest.fixture
def scan(request: pytest.FixtureRequest) -> str:
    """A scan of the test's own: the stand-in is everybody's."""
    return f"NS_230216{zlib.crc32(request.node.nodeid.encode()):010}"


def path_of(scan: str, place: tuple[int, int]) -> Any:
    return parse_scan_path(f"{FOLDER}/{scan}_ccdframes_{place[0]}_{place[1]}.cxi")


def end(scan: str, place: tuple[int, int]) -> None:
    stack_start.start_when_done(str(path_of(scan, place).relative), ["ptychocam"])


def ids(airflow: Airflow) -> list[str]:
    return [run.run_id for run in airflow.started]


def test_the_last_file_of_a_scan_starts_one_stack_and_a_later_one_another(
    airflow: Airflow, scan: str
) -> None:
    for place in ((0, 0), (0, 1), (1, 0)):
        airflow.add(scan, place)
    airflow.add(scan, (1, 1), report=None)
    end(scan, (0, 0))
    assert ids(airflow) == []
    # Two end at the same moment: each sees the other's last task running.
    airflow.add(scan, (1, 0), report="running")
    airflow.add(scan, (1, 1), report="running")
    end(scan, (1, 0))
    end(scan, (1, 1))
    (run,) = airflow.started
    assert (run.dag_id, run.run_id) == (STACK_SCAN, f"{scan}_ptychocam_4")
    assert run.conf == {"scan": scan, "engine": "ptychocam"}
    assert run.run_after is not None
    assert timedelta(minutes=9) < run.run_after - datetime.now(UTC) <= timedelta(minutes=10)

    airflow.add(scan, (2, 0))
    end(scan, (2, 0))
    airflow.add(scan, (0, 0), generation=2)  # reprocessed
    end(scan, (0, 0))
    assert ids(airflow)[1:] == [f"{scan}_ptychocam_5", f"{scan}_ptychocam_6"]


def test_a_failed_file_does_not_count_until_it_is_reprocessed(airflow: Airflow, scan: str) -> None:
    airflow.add(scan, (0, 0))
    airflow.add(scan, (1, 0), report="upstream_failed")
    airflow.add(scan, (1, 0), generation=2, report="queued")
    end(scan, (0, 0))
    assert ids(airflow) == []
    airflow.add(scan, (1, 0), generation=2, report="running")
    end(scan, (1, 0))
    assert ids(airflow) == [f"{scan}_ptychocam_2"]


@pytest.mark.parametrize(
    "path",
    [
        "2023/02/230216/NS_230216033_ccdframes_0_0.cxi",  # the only energy
        "2023/02/230216/NS_230216033_ccdframes_0_0_cosmic2.cxi",
        "2024/tests/NS_230216033_ccdframes_0_0.cxi",
        "calibration.cxi",
    ],
)
def test_a_lone_file_costs_one_request_at_most(airflow: Airflow, path: str) -> None:
    airflow.add("NS_230216033", (0, 0), report="running")
    stack_start.start_when_done(path, ["ptychocam"])
    assert ids(airflow) == []
    assert len(airflow.asked) <= 1


def test_the_largest_scan_takes_a_bounded_number_of_requests(airflow: Airflow, scan: str) -> None:
    for place in ((i, j) for i in range(200) for j in range(4)):
        airflow.add(scan, place)
    end(scan, (199, 3))
    assert ids(airflow) == [f"{scan}_ptychocam_800"]
    assert all(len(asked.run_ids or []) <= 40 for asked in airflow.asked if isinstance(asked, GetTaskStates))
    assert len(airflow.asked) == 40


def test_a_stack_that_airflow_refuses_does_not_fail_the_file(
    airflow: Airflow, scan: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> bool:
        raise UserError(f"Airflow refuses to start a run of {STACK_SCAN}", next_step="see its log.")

    monkeypatch.setattr(runs, "start", refuse)
    for place in ((0, 0), (1, 0)):
        airflow.add(scan, place)
    end(scan, (1, 0))
    assert "No stack was started: Airflow refuses to start a run of stack_scan" in caplog.text


def test_without_the_setting_none_is_started(
    airflow: Airflow, scan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = beamline().model_copy(update={"stack": None})
    monkeypatch.setattr(stack_start, "beamline", lambda: site)
    for place in ((0, 0), (1, 0)):
        airflow.add(scan, place)
    end(scan, (1, 0))
    assert airflow.asked == []


@pytest.fixture
def check(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run the first task of `stack_scan`, started by hand unless `run_id` is given."""

    def run(scan: str, *, run_id: str | None = None, **params: Any) -> dict[str, Any]:
        kind = DagRunType.MANUAL if run_id is None else DagRunType.OPERATOR_TRIGGERED
        dag_run = SimpleNamespace(run_id=run_id or "manual__1", run_type=kind)
        context = {"dag_run": dag_run, "ti": SimpleNamespace(xcom_push=airflow.xcoms.__setitem__)}
        monkeypatch.setattr(stacks, "get_current_context", lambda: context)
        found: dict[str, Any] = stacks.check_energies.function({"scan": scan, **params})
        return found

    return run


def write_files(
    write: Write, scan: str, places: Iterable[tuple[int, int]], results: Iterable[tuple[int, int]]
) -> None:
    for place in places:
        write(str(path_of(scan, place).relative))
        write(str(path_of(scan, place).relative), at="nersc7012")
    for i, j in results:
        for kind in ("cxi", "json"):
            write(f"{FOLDER}/{scan}_ccdframes_{i}_{j}_ptychocam_r2.{kind}", at="nersc7012")


def test_a_complete_scan_is_planned_by_its_name_or_one_of_its_files(
    airflow: Airflow, check: Callable[..., dict[str, Any]], write: Write, scan: str
) -> None:
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    write_files(write, scan, places, places)
    for name in (f"{scan}_ccdframes_7_0_cosmic2", f"{scan}_ccdframes_8", f"{scan}1_ccdframes_9_0"):
        write(f"{FOLDER}/{name}.cxi", at="nersc7012")  # of another version, without a region, of another scan
    for place in places:
        airflow.add(scan, place)
    # Its run is not over while its report has only to be ended.
    airflow.add(scan, (1, 1), report="running")
    plan = check(scan, run_id=f"{scan}_ptychocam_4")
    assert plan["regions"] == [
        {"region": 0, "done": [0, 1], "missing": []},
        {"region": 1, "done": [0, 1], "missing": []},
    ]
    folder = f"{beamline().collections.destination.file_system_path}/{FOLDER}"
    assert plan["job"]["arguments"] == ["-e", "ptychocam", "-n", "2", f"{folder}/{scan}"]
    assert plan["job"]["script"].endswith("/stack.sh")
    assert plan["prefix"] == f"{folder}/{scan}_ptychocam_stack"
    assert check(f"/{FOLDER}/{scan}_ccdframes_1_0.cxi") == plan


def test_an_incomplete_scan_is_refused_by_hand_left_alone_otherwise_and_stacked_on_request(
    airflow: Airflow, check: Callable[..., dict[str, Any]], write: Write, scan: str
) -> None:
    write_files(write, scan, [(0, 0), (1, 0), (2, 0), (3, 0), (5, 0)], [(0, 0), (5, 0)])
    airflow.add(scan, (0, 0))
    airflow.add(scan, (5, 0))
    airflow.add(scan, (1, 0), report="failed")
    airflow.add(scan, (2, 0), report="queued")
    words = r"2 are done, 1 running \(2_0\), 1 failed \(1_0\), 1 missing \(3_0\), 1 without a file \(4_0\)"
    with pytest.raises(UserError, match=words) as refused:
        check(scan)
    assert "incomplete: true" in refused.value.next_step
    with pytest.raises(AirflowSkipException, match="has had more runs since"):
        check(scan, run_id=f"{scan}_ptychocam_2")
    airflow.add(scan, (2, 0), report="failed")
    with pytest.raises(AirflowSkipException, match=r"2 are done, 2 failed \(1_0, 2_0\), 1 missing"):
        check(scan, run_id=f"{scan}_ptychocam_2")
    assert "2 are done, 2 failed (1_0, 2_0), 1 missing" in airflow.xcoms[NO_STACK_KEY]
    with pytest.raises(AirflowSkipException, match="has had more runs since"):
        check(scan, run_id=f"{scan}_ptychocam_1")

    plan = check(scan, incomplete=True)
    assert plan["regions"] == [{"region": 0, "done": [0, 5], "missing": [1, 2, 3, 4]}]
    assert plan["job"]["arguments"][3] == "6"
    with pytest.raises(UserError, match="has no result of cdtools at NERSC"):
        check(scan, incomplete=True, engine="cdtools")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NS_230216999999", "has no file NS_230216999999_ccdframes"),
        ("NS_231316033", "neither a scan nor a file of one"),
        ("2023/02/230217/NS_230216033_ccdframes_0_0.cxi", "not in the folder of its day, 2023/02/230216"),
        ("NS_1", "scan must be a scan such as NS_230216033"),
        ("../NS_230216033", "scan must be a scan such as NS_230216033"),
        ("NS_230216033; id", "scan must be a scan such as NS_230216033"),
    ],
)
def test_what_is_no_scan_is_refused(check: Callable[..., dict[str, Any]], text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(text)


def test_names_of_other_prefixes_and_suffixes() -> None:
    scan = parse_whole_scan("a.b-c_230216033")
    assert (scan.name, scan.day.isoformat()) == ("a.b-c_230216033", "2023-02-16")


JOB = {"job_id": "17", "state": "COMPLETED", "stdout": "/x/y_17.out"}


@pytest.fixture
def made(standin: Facility, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """What `stack.sh` leaves of region 0, in job 17; returns the prefix."""
    use_connection(monkeypatch, SUPERFACILITY_CONN_ID, connection_to(standin))
    prefix = standin.nersc / f"{tmp_path.name}_stack"
    Path(f"{prefix}_0.nxs").write_bytes(b"stack")
    summary = {"job_id": "17", "energy_index": [0, 2], "missing_energy_index": [1]}
    Path(f"{prefix}_0.json").write_text(json.dumps(summary))
    return str(prefix)


def collect(prefix: str, job: Any = JOB) -> Any:
    regions: list[stacks.Region] = [
        {"region": 0, "done": [0, 2], "missing": [1]},
        {"region": 1, "done": [], "missing": [0, 1, 2]},
    ]
    return stacks.collect_stacks.function("perlmutter", prefix, regions, job)


def test_the_result_says_which_energies_are_in_each_stack(made: str) -> None:
    result = collect(made)
    assert result["stacks"] == [
        {"region": 0, "stack": f"{made}_0.nxs", "bytes": 5, "energies": [0, 2], "missing": [1]}
    ]
    assert result["message"] == f"{made}_0.nxs: 2 energies, 1 missing (1); region 1 has no result"
    assert (result["without_result"], result["job_id"]) == ([1], "17")


@pytest.mark.parametrize("how", ["no stack", "empty", "no summary", "damaged", "earlier job"])
def test_a_stack_that_is_missing_or_of_another_job_is_none(made: str, how: str) -> None:
    stack, summary = Path(f"{made}_0.nxs"), Path(f"{made}_0.json")
    if how == "no stack":
        stack.unlink()
    elif how == "empty":
        stack.write_bytes(b"")
    elif how == "no summary":
        summary.unlink()
    elif how == "damaged":
        summary.write_text("[]")
    else:
        summary.write_text(summary.read_text().replace("17", "16"))
    with pytest.raises(UserError, match=rf"its result {stack} is missing or is not this job's") as refused:
        collect(made)
    assert "Slurm job 17" in str(refused.value)
    assert "/x/y_17.out" in refused.value.next_step


def test_a_wait_that_was_marked_is_no_stack(made: str) -> None:
    with pytest.raises(UserError, match="wait was marked as success"):
        collect(made, None)
