"""The "Result" tab and the log of a task, as a person sees them in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from dev.local_airflow.rest import Rest
from support.live import SLOW, Live, Pipeline, install_engines

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.needs("chromium"), pytest.mark.timeout(900)]
expect.set_options(timeout=SLOW * 1000)

FLIGHT_CHECK = "test_cosmicDTN_transfers"
PACIFIC_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d P[SD]T")
INTERNAL_NAMES = ("ptychocam.wait", "cdtools.wait", "check_scan", "upstream_failed")

Show = Callable[..., Page]
Begun = dict[str, tuple[str, str]]  # scan and run of each of RUNS
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "success": ("ok", {}),
    "half": ("half 3", {"do_cdtools": True}),
    "not kept": ("old", {}),
    "not a PNG": ("ok", {}),
    "foreign": ("ok", {}),
    "timeout": ("hold", {"time_limit_minutes": 30}),
    "cancelled": ("hold", {}),
    "running": ("hold", {}),
}


@pytest.fixture(scope="module")
def pipeline(live_airflow: Live) -> Pipeline:
    """The running system, with the tests' reconstruction."""
    install_engines(live_airflow.facility)
    return Pipeline(live_airflow)


@pytest.fixture(scope="module")
def begun(pipeline: Pipeline) -> Begun:
    """Scan and run of each of RUNS, all begun at once."""
    scans = {name: pipeline.new_scan(behaviour) for name, (behaviour, _) in RUNS.items()}
    return {name: (scan, pipeline.start(scan, **RUNS[name][1])) for name, scan in scans.items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])


@pytest.fixture
def open_page(
    browser: Browser, live_airflow: Live, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Page]]:
    """Opens a page of Airflow for a user who is logged in, in the beamline's time zone."""
    airflow = live_airflow.airflow
    context = browser.new_context(
        base_url=airflow.url, viewport={"width": 1300, "height": 1100}, timezone_id="America/Los_Angeles"
    )
    context.set_default_timeout(SLOW * 1000)

    def open_page(path: str, user: str = "admin", **storage: str) -> Page:
        token = Rest(airflow.url, user, airflow.passwords[user]).token
        context.add_cookies([{"name": "_token", "value": token, "url": airflow.url}])
        page = context.new_page()
        page.add_init_script(f"Object.assign(localStorage, {json.dumps(storage)})")
        page.clock.install()
        page.goto(path)
        return page

    yield open_page
    folder = os.environ.get("BROWSER_SCREENSHOTS")
    for number, page in enumerate(context.pages if folder else []):
        page.screenshot(path=f"{folder}/{request.node.name}-{number}.png", full_page=True)
    context.close()


@pytest.fixture
def show(open_page: Callable[..., Page]) -> Show:
    """Opens a run's page alone, without Airflow's around it."""

    def show(run_id: str, dag_id: str = DAG_ID, **options: str) -> Page:
        return open_page(f"/cosmic/dags/{dag_id}/runs/{quote(run_id)}", **options)

    return show


def text(page: Page) -> str:
    """All that the page shows."""
    return page.locator("body").inner_text()


def forget(pipeline: Pipeline, run_id: str) -> None:
    """Remove what is kept of a run's results, so that its preview comes from NERSC."""
    (kept,) = pipeline.airflow.home.glob(f"kept_results/*/{run_id}.*")
    shutil.rmtree(kept)


def preview(pipeline: Pipeline, run_id: str) -> str:
    """Path at NERSC of the run's preview."""
    return str(pipeline.rest.xcom(DAG_ID, run_id, "ptychocam.collect")["preview"])


def test_a_success_shows_its_preview_and_times_of_the_viewer(
    pipeline: Pipeline, begun: Begun, show: Show
) -> None:
    scan, run_id = begun["success"]
    assert pipeline.finish(run_id) == "success"
    page = show(run_id)
    image = page.get_by_role("img", name="Amplitude and phase of the object, ptychocam")
    expect(image).to_be_visible()
    assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [32, 16]
    shown = text(page)
    assert "Success, with warnings. Started" in shown
    assert scan in shown
    assert PACIFIC_TIME.search(shown)
    assert "UTC" not in shown
    job_id = pipeline.jobs_of(scan)[0]["job_id"]
    assert f"sacct -j {job_id}" in shown


def test_times_are_in_the_zone_that_is_chosen_in_airflows_header(
    pipeline: Pipeline, begun: Begun, show: Show
) -> None:
    _, run_id = begun["success"]
    assert pipeline.finish(run_id) == "success"
    assert "GMT+9" in text(show(run_id, timezone='"Asia/Tokyo"'))


def test_a_preview_that_nersc_does_not_give_is_words_and_comes_when_nersc_answers(
    pipeline: Pipeline, begun: Begun, show: Show
) -> None:
    _, run_id = begun["not kept"]
    assert pipeline.finish(run_id) == "success"
    forget(pipeline, run_id)
    pipeline.facility.fault(service="nersc", path="/utilities/download", kind="status", status=500, times=100)
    try:
        page = show(run_id)
        note = page.locator("figcaption")
        expect(note).to_contain_text("could not be read from NERSC")
        expect(note).to_contain_text(re.compile(r"Trying again at \d\d:\d\d:\d\d\."))
        expect(page.locator("img")).to_have_count(0)
    finally:
        pipeline.facility.clear_faults()
    page.clock.fast_forward(61_000)
    expect(page.locator("figure img")).to_be_visible()
    expect(note).to_have_count(0)


def test_half_a_success_shows_the_good_half_and_why_the_other_failed(
    pipeline: Pipeline, begun: Begun, show: Show
) -> None:
    scan, run_id = begun["half"]
    assert pipeline.finish(run_id) == "failed"
    page = show(run_id, user="beamline")
    expect(page.locator("figure img")).to_be_visible()
    shown = text(page)
    assert "Failed in part: ptychocam is done, its result is below." in shown
    assert "cdtools: Slurm job failed: the probe has no support. The Slurm job " in shown
    assert "ended as FAILED" in shown
    assert "What to do:" in shown
    assert f"submit_scan.py reprocess {scan}" in shown
    assert not [name for name in INTERNAL_NAMES if name in shown]
    page.get_by_text("Output and details").click()
    assert "--- last lines of stderr" in text(page)


def test_a_job_that_ran_out_of_time_says_how_to_give_it_more(
    pipeline: Pipeline, begun: Begun, show: Show
) -> None:
    scan, run_id = begun["timeout"]
    pipeline.wait_for_task(run_id, "ptychocam.wait", "deferred")
    (job,) = pipeline.jobs_of(scan)
    pipeline.facility.control("nersc", "end_job", job_id=job["job_id"], state="TIMEOUT")
    assert pipeline.finish(run_id) == "failed"
    shown = text(show(run_id, user="beamline"))
    assert "Failed" in shown
    assert f"submit_scan.py reprocess {scan} --param time_limit_minutes=60" in shown
    log = pipeline.rest.log(DAG_ID, run_id, "ptychocam.wait")
    assert f"    submit_scan.py reprocess {scan} --param time_limit_minutes=60" in log


def test_a_failure_says_why_and_what_to_do_in_the_tab_and_at_the_end_of_the_log(
    pipeline: Pipeline, show: Show
) -> None:
    scan = "2023/02/230216/NS_230216998_ccdframes_0_0.cxi"
    run_id = pipeline.start(scan)
    assert pipeline.finish(run_id) == "failed"
    shown = text(show(run_id))
    assert "Copy to NERSC failed:" in shown
    assert scan in shown
    assert "What to do:" in shown
    assert not [name for name in INTERNAL_NAMES if name in shown]


def test_a_cancelled_run_says_by_whom_and_does_not_look_failed(
    pipeline: Pipeline, begun: Begun, show: Show
) -> None:
    scan, run_id = begun["cancelled"]
    pipeline.wait_for_task(run_id, "ptychocam.wait", "deferred")
    pipeline.rest.call("PATCH", f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}", {"state": "failed"})
    pipeline.finish(run_id)
    page = show(run_id)
    shown = text(page)
    assert "Cancelled. Started" in shown
    assert re.search(r"Cancelled by admin at \d{4}-\d\d-\d\d", shown, re.IGNORECASE)
    assert "marked the run as failed" in shown
    assert f"submit_scan.py reprocess {scan}" in shown
    expect(page.locator(".failed")).to_have_count(0)


def test_a_task_that_was_marked_as_failed_is_a_cancellation_too(pipeline: Pipeline, show: Show) -> None:
    run_id = pipeline.start(pipeline.new_scan("hold"))
    pipeline.wait_for_task(run_id, "ptychocam.wait", "deferred")
    pipeline.rest.set_task_state(DAG_ID, run_id, "ptychocam.wait", "failed")
    assert pipeline.finish(run_id) == "failed"
    shown = text(show(run_id))
    assert "who marked ptychocam: Slurm job as failed" in shown


def test_a_run_that_goes_on_says_what_it_does_and_names_its_job(
    pipeline: Pipeline, begun: Begun, show: Show
) -> None:
    scan, run_id = begun["running"]
    pipeline.wait_for_task(run_id, "ptychocam.wait", "deferred")
    (job,) = pipeline.jobs_of(scan)
    shown = text(show(run_id))
    assert "Running. Started" in shown
    assert re.search(r"ptychocam: Slurm job\s+waiting at the facility", shown)
    assert f"squeue -j {job['job_id']}" in shown
    pipeline.let_go(scan)
    assert pipeline.finish(run_id) == "success"


def test_a_preview_that_is_not_a_png_is_not_served(pipeline: Pipeline, begun: Begun, show: Show) -> None:
    _, run_id = begun["not a PNG"]
    assert pipeline.finish(run_id) == "success"
    forget(pipeline, run_id)
    path = pipeline.facility.nersc / preview(pipeline, run_id).lstrip("/")
    path = path if path.exists() else type(path)(preview(pipeline, run_id))
    path.write_text("<script>alert(1)</script>")
    note = show(run_id).locator("figcaption")
    expect(note).to_contain_text("is not a PNG image")


def test_only_the_runs_own_preview_is_served(pipeline: Pipeline, begun: Begun, show: Show) -> None:
    _, run_id = begun["foreign"]
    _, other = begun["success"]
    assert pipeline.finish(run_id) == pipeline.finish(other) == "success"
    value = pipeline.rest.xcom(DAG_ID, run_id, "ptychocam.collect")
    entry = f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}/taskInstances/ptychocam.collect/xcomEntries/return_value"
    pipeline.rest.call("PATCH", entry, {"value": value | {"preview": preview(pipeline, other)}})
    note = show(run_id).locator("figcaption")
    expect(note).to_contain_text("is not its own")


def test_the_flight_check_shows_the_days_that_the_client_has_left(pipeline: Pipeline, show: Show) -> None:
    run_id = pipeline.rest.trigger(FLIGHT_CHECK)
    assert pipeline.rest.wait_for_run(FLIGHT_CHECK, run_id, SLOW)["state"] == "success"
    assert re.search(r"NERSC's client\s+expires in \d+ days", text(show(run_id, FLIGHT_CHECK)))


def test_in_airflows_own_pages_the_tab_works_and_the_log_shows_what_to_do(
    pipeline: Pipeline, begun: Begun, open_page: Callable[..., Page]
) -> None:
    scan, run_id = begun["half"]
    assert pipeline.finish(run_id) == "failed"
    page = open_page(f"/dags/{DAG_ID}/runs/{run_id}/plugin/cosmic-result")
    tab = page.frame_locator("iframe")
    expect(tab.locator("figure img")).to_be_visible()
    expect(tab.locator("time").first).to_have_text(PACIFIC_TIME)

    tab.get_by_role("link", name="Its log").click()
    page.wait_for_url(f"**/dags/{DAG_ID}/runs/{run_id}/tasks/cdtools.wait")
    for words in ("What to do: read the end of its output", f"submit_scan.py reprocess {scan}"):
        line = page.get_by_text(words).last
        expect(line).to_be_in_viewport()
        end = line.bounding_box()
        assert end
        assert end["x"] + end["width"] <= 1300, "the line is cut at the right"
