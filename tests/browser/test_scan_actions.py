"""The buttons of a scan, pressed in a browser on a running Airflow: asked, done, and in the audit log."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Frame, Page, expect

from cosmic.dag_constants import FIND_MISSED_SCANS
from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from cosmic.scans import parse_scan_path
from support.browser import signed_in
from support.live import SLOW, Live, Pipeline, install_engines

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.needs("chromium"), pytest.mark.timeout(900)]
expect.set_options(timeout=SLOW * 1000)

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def pipeline(live_airflow: Live) -> Pipeline:
    """The running system, with the tests' reconstruction."""
    install_engines(live_airflow.facility)
    return Pipeline(live_airflow)


@pytest.fixture(scope="module")
def begun(pipeline: Pipeline) -> Iterator[dict[str, tuple[str, str]]]:
    """Files with their runs, all begun at once: those that tests stop, and one with a result."""
    one = pipeline.new_scan("hold")
    other = pipeline.live.scan(one.replace("_0_0.cxi", "_1_0.cxi"), b"hold\n")
    scans = {
        "one": one,
        "other": other,
        "plain": pipeline.new_scan("hold"),
        "forged": pipeline.new_scan("hold"),
    }
    ok = pipeline.new_scan("ok")
    runs = {name: (scan, pipeline.start(scan)) for name, scan in scans.items()}
    yield {**runs, "done": (ok, pipeline.start(ok, n_iter=123, use_illu_mask=True))}
    for scan in scans.values():
        pipeline.let_go(scan)


@pytest.fixture(scope="module")
def done(pipeline: Pipeline, begun: dict[str, tuple[str, str]]) -> str:
    """A run with a result; returns its id."""
    _, run_id = begun["done"]
    assert pipeline.finish(run_id) == "success"
    return run_id


@pytest.fixture
def open_page(browser: Browser, live_airflow: Live, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens a page for a user who is logged in; all pages of a test are of one browser."""
    with ExitStack() as contexts:
        pages: list[Page] = []

        def open_page(path: str, user: str = "beamline", **options: Any) -> Page:
            context = contexts.enter_context(signed_in(browser, live_airflow.airflow, user, **options))
            context.set_default_timeout(SLOW * 1000)
            pages.append(context.new_page())
            pages[-1].goto(path)
            return pages[-1]

        yield open_page
        folder = os.environ.get("BROWSER_SCREENSHOTS")
        for number, page in enumerate(pages if folder else []):
            page.screenshot(path=f"{folder}/{request.node.name}-{number}.png", full_page=True)


def tab(run_id: str) -> str:
    """The Result tab alone."""
    return f"/cosmic/dags/{DAG_ID}/runs/{quote(run_id)}"


def in_airflow(page: Page) -> Frame:
    """The tab within Airflow's page."""
    handle = page.locator("iframe").element_handle()
    frame = handle.content_frame()
    assert frame
    return frame


def audit(pipeline: Pipeline, run_id: str) -> list[tuple[str, str]]:
    """Events and persons of Airflow's audit log about a run."""
    found = pipeline.rest.call("GET", f"/api/v2/eventLogs?run_id={quote(run_id)}&order_by=when")["event_logs"]
    return [(entry["event"], entry["owner"]) for entry in found if entry["owner"] in ("beamline", "admin")]


def test_stop_asks_stops_and_says_by_whom_in_airflows_own_frame_and_alone(
    pipeline: Pipeline, begun: dict[str, tuple[str, str]], open_page: Open
) -> None:
    (scan, run_id), (_, other_id) = begun["one"], begun["other"]
    for each in (run_id, other_id):
        pipeline.wait_for_task(each, "ptychocam.wait", "deferred")
    page = open_page(f"/dags/{DAG_ID}/runs/{run_id}/plugin/cosmic-result")
    shown = in_airflow(page)
    shown.get_by_role("link", name="Stop", exact=True).click()
    expect(shown.get_by_role("heading", name=f"Stop {run_id}?")).to_be_visible()
    expect(shown.get_by_text(f"Stops 1 Slurm job of {run_id}. What is done stays")).to_be_visible()
    shown.get_by_role("link", name="Leave it running").click()
    assert pipeline.rest.run(DAG_ID, run_id)["state"] == "running"
    shown.get_by_role("link", name="Stop", exact=True).click()
    shown.get_by_role("button", name="Stop").click()
    expect(shown.get_by_role("status").filter(has_text="1 run stopped")).to_be_visible()
    pipeline.wait_for(lambda: pipeline.job_states(scan) == ["CANCELLED"], "the job is cancelled")
    shown.get_by_role("link", name=run_id).click()
    expect(shown.get_by_text("Cancelled by beamline", exact=False)).to_be_visible()
    expect(shown.get_by_role("link", name="Stop", exact=True)).to_have_count(0)
    assert ("patch_dag_run", "beamline") in audit(pipeline, run_id)

    assert pipeline.rest.run(DAG_ID, other_id)["state"] == "running"
    page.goto(f"/cosmic/scans/{scan_of(run_id)}")
    page.get_by_role("link", name="Stop", exact=True).click()
    expect(page.get_by_text(f"Stops 1 Slurm job of {scan_of(run_id)}. What is done stays")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("link", name=scan_of(run_id)).click()
    expect(page.get_by_role("heading", name=scan_of(run_id), exact=True)).to_be_visible()
    assert pipeline.rest.run(DAG_ID, other_id)["state"] == "failed"


def test_run_again_has_the_last_parameters_and_starts_what_was_changed(
    pipeline: Pipeline, done: str, open_page: Open
) -> None:
    page = open_page(f"/cosmic/scans/{scan_of(done)}")
    page.get_by_role("link", name="Run again").click()
    iterations = page.get_by_label("Iterations (not the default)", exact=True)
    expect(iterations).to_have_value("123")
    expect(page.get_by_label("Illumination mask")).to_be_checked()
    assert page.get_by_label("File path").count() == 0
    iterations.fill("0")
    page.get_by_role("button", name="Run again").click()
    expect(page.get_by_role("alert")).to_contain_text(
        "n_iter must be a whole number from 1 to 100000, not '0'"
    )
    page.get_by_label("Iterations (not the default)", exact=True).fill("456")
    page.get_by_role("button", name="Run again").click()
    expect(page.get_by_text("1 run started")).to_be_visible()
    page.get_by_role("link", name=f"{done}__r2").click()
    before = pipeline.rest.run(DAG_ID, done)["conf"]
    expect(page.get_by_role("heading", name=before["file_path"])).to_be_visible()
    assert pipeline.rest.run(DAG_ID, f"{done}__r2")["conf"] | {"n_iter": 123} == before
    assert pipeline.rest.run(DAG_ID, f"{done}__r2")["conf"]["n_iter"] == 456
    assert audit(pipeline, f"{done}__r2") == [("trigger_dag_run", "beamline")]


def test_a_note_is_written_by_one_and_read_by_all(done: str, open_page: Open) -> None:
    page = open_page(tab(done))
    page.get_by_text("Write a note").click()
    page.get_by_label("About this scan").fill("Beam lost at 3:10.\n<b>Use the second</b>.")
    page.get_by_role("button", name="Save note").click()
    expect(page.get_by_text("Note by beamline")).to_be_visible()
    reader = open_page(f"/cosmic/scans/{scan_of(done)}", "reader")
    expect(reader.locator("p.note")).to_have_text("Beam lost at 3:10.\n<b>Use the second</b>.")
    expect(reader.get_by_text("You may look at this scan, but not stop it or run it again.")).to_be_visible()
    for name in ("Stop", "Run again", "Save note", "Change the note"):
        expect(reader.get_by_text(name, exact=True)).to_have_count(0)
    reader.goto(f"/cosmic/scans/{scan_of(done)}/stop")
    expect(reader.get_by_text("You may not stop a scan: you are logged in as reader")).to_be_visible()


def scan_of(run_id: str) -> str:
    return run_id.removesuffix("_0_0")


def test_without_a_clipboard_the_path_is_selected(done: str, open_page: Open) -> None:
    page = open_page("/cosmic/scans")
    page.add_init_script(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
        "document.execCommand = () => false;"
    )
    page.goto(tab(done))
    page.get_by_text("Download, or copy the path").click()
    page.get_by_role("button", name="Copy path").click()
    expect(page.get_by_text("The path is selected: press Ctrl+C.")).to_be_visible()
    assert page.evaluate("String(getSelection())") == page.locator("#path-1").inner_text()


def test_results_are_downloaded_and_their_paths_copied(
    pipeline: Pipeline, done: str, open_page: Open
) -> None:
    result = Path(pipeline.rest.xcom(DAG_ID, done, "ptychocam.collect")["result"])
    page = open_page(f"/dags/{DAG_ID}/runs/{done}/plugin/cosmic-result", "reader")
    shown = in_airflow(page)
    shown.get_by_text("Download, or copy the path").click()
    for kind in (".cxi", ".h5", ".png", ".json"):
        with page.expect_download() as waiting:
            shown.get_by_role("link", name=f"Download {result.stem}{kind}").click()
        assert waiting.value.suggested_filename == f"{result.stem}{kind}"
        assert Path(waiting.value.path()).read_bytes() == result.with_suffix(kind).read_bytes()
    shown.get_by_role("button", name="Copy path").click()
    expect(shown.get_by_text(f"Copied: {result}")).to_be_visible()
    result.write_bytes(bytes(5_242_881))  # one more than NERSC's API gives
    shown.get_by_role("link", name=f"Download {result.stem}.cxi").click()
    expect(shown.get_by_role("heading", name=f"{result.name} comes by Globus")).to_be_visible()
    link = shown.get_by_role("link", name="Its folder at Globus")
    folder = quote("/2023/02/230216/", safe="")
    expect(link).to_have_attribute("href", re.compile(f"origin_id=[0-9a-f-]+&origin_path=.*{folder}$"))


def test_the_missing_ones_of_a_day_are_started(pipeline: Pipeline, open_page: Open) -> None:
    scan = pipeline.new_scan("ok")
    file = pipeline.facility.collection("data7012") / scan
    os.utime(file, (1_700_000_000, 1_700_000_000))
    page = open_page("/cosmic/scans/missing?day=2023-02-16")
    page.get_by_role("button", name="Run the missing ones").click()
    expect(page.get_by_text("The scans of 2023-02-16 that have no run are being started")).to_be_visible()
    missing = page.get_by_role("link", name=re.compile("^missing_2023-02-16_")).inner_text()
    assert pipeline.rest.wait_for_run(FIND_MISSED_SCANS, missing, SLOW)["state"] == "success"
    pipeline.finish(parse_scan_path(scan).name)
    assert audit(pipeline, missing) == [("trigger_dag_run", "beamline")]


def test_the_buttons_work_without_script(
    pipeline: Pipeline, begun: dict[str, tuple[str, str]], open_page: Open
) -> None:
    _, run_id = begun["plain"]
    page = open_page(tab(run_id), java_script_enabled=False)
    page.get_by_role("link", name="Stop", exact=True).click()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("1 run stopped")).to_be_visible()
    assert pipeline.finish(run_id) == "failed"


def test_a_page_of_another_server_cannot_press_them(
    pipeline: Pipeline, begun: dict[str, tuple[str, str]], open_page: Open
) -> None:
    scan, run_id = begun["forged"]
    page = open_page(f"/cosmic/scans/{scan_of(run_id)}/stop")
    token = page.locator("input[name=csrf_token]").input_value()
    fields = {"csrf_token": token, "newest": "999999", "run_id": ""}
    inputs = "".join(f"<input name={name} value='{value}'>" for name, value in fields.items())
    forged = f"{pipeline.airflow.url}/cosmic/scans/{scan_of(run_id)}/stop"
    body = f"<form method=post action='{forged}'>{inputs}<button>Win</button></form>"
    # The port makes no other site: the browser sends the login's cookie along.
    for site in ("http://127.0.0.1:9", "http://another.example"):
        page.route(f"{site}/", lambda route: route.fulfill(body=body, content_type="text/html"))
        page.goto(f"{site}/")
        with page.expect_response(forged) as waiting:
            page.get_by_role("button", name="Win").click()
        assert waiting.value.status == (403 if "127" in site else 401)
    assert pipeline.rest.run(DAG_ID, run_id)["state"] in ("queued", "running")
    assert audit(pipeline, run_id) == [("trigger_dag_run", "admin")]
    pipeline.let_go(scan)
    assert pipeline.finish(run_id) == "success"
