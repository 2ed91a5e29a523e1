"""A scan from its post to its result, through a running Airflow and the stand-in facility."""

from __future__ import annotations

import concurrent.futures
import hashlib
import shutil
from typing import Any

import pytest
import requests

from cosmic.dag_constants import FLIGHT_CHECK, PROCESS_NEWFILE
from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from cosmic.scans import parse_scan_path
from dev.local_airflow.rest import RestError
from support.live import SLOW, Live, Pipeline

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]

Begun = dict[str, tuple[str, str]]  # what is copied, and the run
NOT_THERE = "2023/02/230216/NS_230216999_ccdframes_0_0.cxi"
FOLDER, FOLDER_FILES = "2024/folder", ("a.cxi", "sub/b.txt")
# Of each run of a scan: what its job does, and its parameters besides the path.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "ptychocam": ("ok", {"n_iter": 7, "use_illu_mask": True, "n_gpu": 2}),
    "both engines": ("ok", {"do_cdtools": True}),
    "no engine": ("ok", {"do_ptychocam": False}),
    **{behaviour: (behaviour, {}) for behaviour in ("fail 3", "nothing", "empty", "text")},
}


@pytest.fixture(scope="module")
def begun(live_airflow: Live, engines: None) -> Begun:
    """Those of RUNS, a scan that is not there, a folder and the flight check, all begun at once."""
    pipeline = Pipeline(live_airflow)
    scans = {name: pipeline.new_scan(behaviour) for name, (behaviour, _) in RUNS.items()}
    for name in FOLDER_FILES:
        live_airflow.scan(f"{FOLDER}/{name}", b"x" * 1000)
    return {
        **{name: (scan, pipeline.start(scan, **RUNS[name][1])) for name, scan in scans.items()},
        "not there": (NOT_THERE, pipeline.start(NOT_THERE)),
        "folder": (FOLDER, pipeline.rest.trigger(PROCESS_NEWFILE, {"file_path": FOLDER})),
        "flight check": ("", pipeline.rest.trigger(FLIGHT_CHECK)),
    }


@pytest.mark.both
def test_a_scan_is_copied_reconstructed_and_reported(pipeline: Pipeline, begun: Begun) -> None:
    scan, run_id = begun["ptychocam"]
    assert pipeline.finish(run_id) == "success"

    report = pipeline.rest.xcom(DAG_ID, run_id, "report")
    assert report["scan"] == scan
    at_nersc = pipeline.facility.collection("nersc7012") / scan
    at_beamline = pipeline.facility.collection("data7012") / scan
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in (at_nersc, at_beamline)]
    assert digests[0] == digests[1]
    assert report["transfer"]["bytes"] == at_beamline.stat().st_size

    (result,) = report["reconstructions"]
    (job,) = pipeline.jobs_of(scan)
    assert result["engine"] == "ptychocam"
    assert result["job_id"] == str(job["job_id"])
    assert result["quality"]["final_error"] == 0.25
    assert result["preview_size"] == [32, 16]
    assert result["result"] == str(at_nersc).removesuffix(".cxi") + "_ptychocam.cxi"
    arguments = (at_nersc.parent / f"{at_nersc.stem}_ptychocam.cxi").read_text().splitlines()
    assert arguments == ["-i", "7", "-M", str(at_nersc)]
    assert len(pipeline.transfers_of(run_id)) == 1


def test_a_scan_of_one_engine_starts_few_workers(pipeline: Pipeline, begun: Begun) -> None:
    _, run_id = begun["ptychocam"]
    assert pipeline.finish(run_id) == "success"
    starts = pipeline.worker_starts(run_id)
    assert starts.pop("ptychocam.submit") >= 1  # more when Slurm takes long to give the job its id
    assert starts == {
        "check_scan": 1,
        "copy_to_nersc": 2,
        "ptychocam.wait": 2,
        "ptychocam.collect": 1,
        "report": 1,
    }


@pytest.mark.both
def test_both_engines_run_side_by_side(pipeline: Pipeline, begun: Begun) -> None:
    scan, run_id = begun["both engines"]
    assert pipeline.finish(run_id) == "success"
    report = pipeline.rest.xcom(DAG_ID, run_id, "report")
    assert {r["engine"] for r in report["reconstructions"]} == {"ptychocam", "cdtools"}
    assert len(pipeline.jobs_of(scan)) == 2


def test_without_an_engine_the_scan_is_only_copied_and_the_run_says_so(
    pipeline: Pipeline, begun: Begun
) -> None:
    scan, run_id = begun["no engine"]
    assert pipeline.finish(run_id) == "success"
    assert "no reconstruction was asked for" in pipeline.rest.xcom(DAG_ID, run_id, "report")["message"]
    assert "engines: none" in pipeline.rest.log(DAG_ID, run_id, "check_scan")
    assert pipeline.state(run_id, "ptychocam.submit") == "skipped"
    assert pipeline.jobs_of(scan) == []


def test_the_same_scan_posted_five_times_at_once_is_one_run_one_transfer_one_job(pipeline: Pipeline) -> None:
    scan = pipeline.new_scan()
    run_id = parse_scan_path(scan).run_id()

    def post(_: int) -> int:
        try:
            pipeline.rest.trigger(DAG_ID, {"file_path": scan, "do_ptychocam": True}, run_id)
        except RestError as error:
            return error.status
        return 200

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        answers = sorted(pool.map(post, range(5)))
    assert answers == [200, 409, 409, 409, 409]
    assert pipeline.finish(run_id) == "success"
    assert len(pipeline.transfers_of(run_id)) == 1
    assert len(pipeline.jobs_of(scan)) == 1


@pytest.mark.parametrize(
    "conf",
    [
        {},
        {"file_path": "2023/../../etc/x.cxi"},
        {"file_path": "x.cxi\n"},
        {"file_path": "$(touch /tmp/pwned).cxi"},
        {"file_path": "a'b.cxi"},
        {"file_path": "x.cxi", "n_gpu": "8"},
        {"file_path": "x.cxi", "n_gpu": 400},
        {"file_path": "x.cxi", "qos": "regular\n#SBATCH -A other"},
    ],
)
def test_bad_parameters_are_refused_before_a_run_exists(pipeline: Pipeline, conf: dict[str, Any]) -> None:
    with pytest.raises(RestError) as refused:
        pipeline.rest.trigger(DAG_ID, conf, "refused")
    assert refused.value.status == 400
    assert next(iter(set(conf) - {"file_path"}), "file_path") in refused.value.detail
    with pytest.raises(RestError, match="404"):
        pipeline.rest.run(DAG_ID, "refused")


@pytest.mark.parametrize(
    ("behaviour", "task", "said"),
    [
        pytest.param(
            "fail 3",
            "ptychocam.wait",
            ("FAILED", "exit code 3", "cannot allocate the probe: see line 17", ".err"),
            marks=pytest.mark.both,
        ),
        ("nothing", "ptychocam.collect", ("_ptychocam.cxi is missing", "start a new run")),
        ("empty", "ptychocam.collect", ("_ptychocam.cxi is empty", "start a new run")),
        ("text", "ptychocam.collect", ("is not a PNG image",)),
    ],
)
def test_a_failed_reconstruction_says_what_and_why_and_is_not_run_again(
    pipeline: Pipeline, begun: Begun, behaviour: str, task: str, said: tuple[str, ...]
) -> None:
    scan, run_id = begun[behaviour]
    assert pipeline.finish(run_id) == "failed"
    assert pipeline.state(run_id, task) == "failed"
    log = pipeline.rest.log(DAG_ID, run_id, task)
    for words in said:
        assert words in log
    assert len(pipeline.jobs_of(scan)) == 1


def test_a_scan_that_is_not_there_fails_with_its_path_and_moves_nothing(
    pipeline: Pipeline, begun: Begun
) -> None:
    _, run_id = begun["not there"]
    assert pipeline.finish(run_id) == "failed"
    log = pipeline.rest.log(DAG_ID, run_id, "copy_to_nersc")
    assert NOT_THERE in log
    assert "What to do:" in log
    assert pipeline.transfers_of(run_id) == []


def test_a_folder_is_copied_by_the_transfer_dag(pipeline: Pipeline, begun: Begun) -> None:
    _, run_id = begun["folder"]
    assert pipeline.rest.wait_for_run(PROCESS_NEWFILE, run_id, SLOW)["state"] == "success"
    for name in FOLDER_FILES:
        copy = pipeline.facility.collection("nersc7012") / FOLDER / name
        assert copy.read_bytes() == b"x" * 1000


def test_the_flight_check_copies_compares_and_tidies_up(pipeline: Pipeline, begun: Begun) -> None:
    _, run_id = begun["flight check"]
    assert pipeline.rest.wait_for_run(FLIGHT_CHECK, run_id, SLOW)["state"] == "success"
    folder = pipeline.facility.collection("nersc7012") / "datamovement_test"
    assert [path.name for path in folder.iterdir()] == ["test.txt"]
    assert "expires in" in pipeline.rest.log(FLIGHT_CHECK, run_id, "check_nersc")


def test_the_result_page_shows_figures_and_preview_to_those_who_are_logged_in(
    pipeline: Pipeline, begun: Begun
) -> None:
    scan, run_id = begun["ptychocam"]
    assert pipeline.finish(run_id) == "success"
    page = f"{pipeline.airflow.url}/cosmic/dags/{DAG_ID}/runs/{run_id}"
    assert requests.get(page, timeout=30).status_code == 401
    assert requests.get(f"{page}/ptychocam/preview.png", timeout=30).status_code == 401

    token = {"Authorization": f"Bearer {pipeline.rest.token}"}
    html = requests.get(page, headers=token, timeout=30)
    assert html.status_code == 200
    assert scan in html.text
    assert "The scan is at NERSC." in html.text
    assert "&lt;b&gt;bold&lt;/b&gt;" in html.text
    assert "<b>" not in html.text
    assert "default-src 'none'" in html.headers["Content-Security-Policy"]

    image = requests.get(f"{page}/ptychocam/preview.png", headers=token, timeout=30)
    assert image.headers["Content-Type"] == "image/png"
    assert image.content.startswith(b"\x89PNG")
    assert requests.get(f"{page}/cdtools/preview.png", headers=token, timeout=30).status_code == 404
    assert requests.get(f"{page}/..%2fx/preview.png", headers=token, timeout=30).status_code == 404
    pipeline.facility.fault(service="nersc", path="/utilities/download", kind="status", status=500, times=8)
    try:
        kept = requests.get(f"{page}/ptychocam/preview.png", headers=token, timeout=60)
        (folder,) = (pipeline.airflow.home / "kept_results").glob(f"*/{run_id}.*")
        shutil.rmtree(folder)
        outage = requests.get(f"{page}/ptychocam/preview.png", headers=token, timeout=60)
    finally:
        pipeline.facility.clear_faults()
    assert kept.content == image.content
    assert outage.status_code == 502
    assert "The picture could not be read from NERSC" in outage.text
