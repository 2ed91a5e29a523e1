"""The page of a scan, as a person sees it: pictures, energies, comparison, errors, a scan that goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from support.live import SLOW, Live, Pipeline, install_engines

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.needs("chromium"), pytest.mark.timeout(900)]
expect.set_options(timeout=SLOW * 1000)

DAY = "2023/02/230216"
SCAN = "NS_230216701"
"""Two energies, of two regions the first; the first file was run again."""

VALUE = re.compile(r"x [\d.]+ [nµ]m, y [\d.]+ [nµ]m: (?:[≥≤] )?([-\d.]+)( rad)?")


@pytest.fixture(scope="module")
def pipeline(live_airflow: Live) -> Pipeline:
    """The running system, with the tests' reconstruction."""
    install_engines(live_airflow.facility)
    return Pipeline(live_airflow)


@pytest.fixture(scope="module")
def begun(pipeline: Pipeline) -> Iterator[dict[str, tuple[str, str]]]:
    """Files with their runs, all begun at once: those of SCAN by their numbers, others by what they do."""
    paths = {what: pipeline.new_scan(what) for what in ("old", "hold", "fail 3")}
    for place in ("0_0", "0_1", "1_0"):
        paths[place] = pipeline.live.scan(f"{DAY}/{SCAN}_ccdframes_{place}.cxi", b"ok\n")
    yield {what: (path, pipeline.start(path, n_iter=800)) for what, path in paths.items()}
    pipeline.let_go(paths["hold"])


@pytest.fixture(scope="module")
def scan(pipeline: Pipeline, begun: dict[str, tuple[str, str]]) -> str:
    """All runs of SCAN, at their end."""
    runs = [begun[place][1] for place in ("0_0", "0_1", "1_0")]
    assert [pipeline.finish(run_id) for run_id in runs] == ["success"] * 3
    again = pipeline.rest.trigger(
        "transfer_auto_recon",
        {"file_path": f"{DAY}/{SCAN}_ccdframes_0_0.cxi", "do_ptychocam": True},
        f"{SCAN}_0_0__r2",
    )
    assert pipeline.finish(again) == "success"
    return SCAN


@pytest.fixture
def page(beamline_user: Page) -> Iterator[Page]:
    """A page of `beamline`. A script that fails, or is refused by the page's policy, fails the test."""
    complaints: list[str] = []
    beamline_user.on(
        "console", lambda message: complaints.append(message.text) if message.type == "error" else None
    )
    beamline_user.on("pageerror", lambda error: complaints.append(str(error)))
    yield beamline_user
    assert [text for text in complaints if "Failed to load resource" not in text] == []


def open_scan(page: Page, name: str, query: str = "") -> Page:
    page.goto(f"/cosmic/scans/{name}{query}")
    return page


def value_at(page: Page, name: str, x: float, y: float) -> float:
    """What the page says of the place of a picture, in fractions of the canvas, after a fit."""
    canvas = page.get_by_role("img", name=re.compile(f"^{name}"))
    box = canvas.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
    readout = canvas.locator("xpath=following-sibling::output")
    expect(readout).to_have_text(VALUE)
    match = VALUE.search(readout.inner_text())
    assert match
    return float(match[1])


def test_pictures_show_their_values_and_zoom_and_pan(pipeline: Pipeline, scan: str, page: Page) -> None:
    """The example's amplitude grows from left to right, its phase from top to bottom."""
    open_scan(page, scan)
    expect(page.get_by_role("heading", level=1)).to_have_text(scan)
    amplitude = page.get_by_role("img", name=re.compile("^amplitude"))
    expect(amplitude).to_have_attribute(
        "aria-label", re.compile(r"640 nm wide and 480 nm high, scale bar \d+ nm")
    )
    assert value_at(page, "amplitude", 0.4, 0.5) < value_at(page, "amplitude", 0.6, 0.5)
    assert value_at(page, "phase", 0.5, 0.4) < value_at(page, "phase", 0.5, 0.6)
    middle = value_at(page, "amplitude", 0.5, 0.5)
    assert middle == pytest.approx(0.2 + 0.01 * 32, abs=0.015)
    left = value_at(page, "amplitude", 0.3, 0.5)
    amplitude.focus()
    for _ in range(8):
        page.keyboard.press("+")
    assert abs(value_at(page, "amplitude", 0.5, 0.5) - middle) < 0.03
    assert value_at(page, "amplitude", 0.3, 0.5) > left
    for _ in range(5):
        page.keyboard.press("Shift+ArrowRight")
    assert value_at(page, "amplitude", 0.5, 0.5) > middle
    page.keyboard.press("0")
    assert value_at(page, "amplitude", 0.5, 0.5) == pytest.approx(middle, abs=0.011)


def pixels(page: Page, name: str) -> Any:
    """The colors of a picture's middle row, a few of them."""
    return page.get_by_role("img", name=re.compile(f"^{name}")).evaluate(
        """canvas => [0.35, 0.5, 0.65].map(x => [
            ...canvas.getContext("2d").getImageData(canvas.width * x, canvas.height * 0.3, 1, 1).data])"""
    )


def test_contrast_and_colors_change_the_picture(pipeline: Pipeline, scan: str, page: Page) -> None:
    open_scan(page, scan)
    expect(page.get_by_role("img", name=re.compile("^amplitude"))).to_be_visible()
    gray = pixels(page, "amplitude")
    assert all(red == green == blue for red, green, blue, _ in gray)
    assert gray[0] < gray[1] < gray[2]
    page.get_by_text("Contrast and colors").click()
    page.locator("#amplitude-map").select_option("viridis")
    page.locator("#amplitude-black").focus()
    page.keyboard.press("End")
    expect(page.locator("#amplitude-range")).to_have_text(re.compile(r"^0\.83 to"))
    dark = pixels(page, "amplitude")
    assert dark[0] == dark[1] == [68, 1, 84, 255]  # the lowest color of viridis
    page.locator("#amplitude-auto").click()
    page.locator("#amplitude-map").select_option("gray")
    expect(page.locator("#amplitude-range")).to_have_text(re.compile(r"^0\.25\d* to 0\.83"))
    assert pixels(page, "amplitude") == gray


def test_energies_regions_and_runs_are_chosen_and_the_address_follows(
    pipeline: Pipeline, scan: str, page: Page
) -> None:
    open_scan(page, scan)
    expect(page.get_by_role("heading", level=2, name=f"Run {scan}_0_0__r2")).to_be_visible()
    slider = page.get_by_role("slider", name="Energy")
    expect(slider).to_have_attribute("aria-valuetext", re.compile(r"707\.50 eV, region 0 \(1 of 2\)"))
    page.get_by_role("img", name=re.compile("^amplitude")).focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", level=2, name=f"Run {scan}_1_0")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^amplitude"))).to_be_focused()
    assert f"run={scan}_1_0" in page.url
    page.keyboard.press("ArrowLeft")
    page.get_by_label("Region", exact=True).select_option("1")
    expect(page.get_by_role("heading", level=2, name=f"Run {scan}_0_1")).to_be_visible()
    page.get_by_label("Region", exact=True).select_option("0")
    page.get_by_label("Run", exact=True).select_option(f"{scan}_0_0")
    expect(page.get_by_text("2 differ from the default and are marked.")).to_be_visible()
    expect(page.locator("tr.changed", has_text="Iterations")).to_contain_text("800 (default: 500)")
    page.reload()
    expect(page.get_by_role("heading", level=2, name=f"Run {scan}_0_0")).to_be_visible()


def test_two_results_are_compared_side_by_side_and_blinking(
    pipeline: Pipeline, scan: str, page: Page
) -> None:
    open_scan(page, scan)
    page.get_by_label("Show", exact=True).select_option("amplitude")
    expect(page.locator("#panels canvas")).to_have_count(1)
    page.get_by_label("Compare", exact=True).select_option("side by side")
    page.get_by_label("with", exact=True).select_option(f"{scan}_1_0|ptychocam")
    expect(page.locator("#panels canvas")).to_have_count(2)
    assert value_at(page, "amplitude, ptychocam, 707.50 eV, region 0, run .*r2", 0.5, 0.5) == pytest.approx(
        0.52, abs=0.02
    )
    page.get_by_label("Compare", exact=True).select_option("blinking")
    expect(page.locator("#panels canvas")).to_have_count(1)
    page.get_by_role("button", name="Swap").click()
    caption = page.locator("#panels figcaption")
    first = caption.inner_text()
    page.get_by_role("button", name="Swap").click()
    expect(caption).not_to_have_text(first)
    page.get_by_role("button", name="Swap").click()
    expect(caption).to_have_text(first)


def test_errors_figures_and_hostile_values_are_there(pipeline: Pipeline, scan: str, page: Page) -> None:
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    open_scan(page, scan)
    expect(page.get_by_role("img", name="error, ptychocam, 707.50 eV")).to_have_attribute(
        "aria-label", re.compile(r"from 1 to 0\.1$")
    )
    expect(page.locator("#error-plot canvas")).to_be_visible()
    shown = page.locator("main").inner_text()
    for text in (
        "ptychocam has warnings",
        "<b>bold</b>",
        "ALS-01234",
        "<script>alert(1)</script>",
        "transfer",
    ):
        assert text in shown
    assert shown.index("has warnings") < shown.index("Time line")


def test_what_is_old_says_so_and_who_is_logged_out_is_led_to_the_login(scan: str, page: Page) -> None:
    open_scan(page, scan)
    trouble = page.locator("#trouble")
    news = re.compile(f"/scans/{scan}/data$")
    page.route(news, lambda route: route.abort())
    expect(trouble).to_have_text(
        re.compile(r"^Airflow does not answer\. This page is as of [\d:]+\. It is tried again\.$")
    )
    page.unroute(news)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(trouble).to_be_hidden()
    page.route(news, lambda route: route.fulfill(status=404, json={"detail": f"No scan {scan} has a run."}))
    expect(trouble).to_have_text(re.compile(f"^No scan {scan} has a run\\. This page is as of"))
    page.unroute(news)
    page.context.clear_cookies()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_url(re.compile("/auth/login"))


def test_a_run_that_is_stopped_before_its_picture_is_not_waited_for(scan: str, page: Page) -> None:
    outcome = "active"

    def answer(route: Route) -> None:
        news = page.request.get(route.request.url).json()
        for run in (run for file in news["files"] for run in file["runs"]):
            run |= {"outcome": outcome, "results": {}}
        route.fulfill(json=news)

    page.route(re.compile(f"/scans/{scan}/data$"), answer)
    open_scan(page, scan)
    note = page.locator("#viewer-note")
    expect(note).to_have_text("There is no picture yet: the run goes on.")
    outcome = "stopped"
    expect(note).to_have_text("This run has left no picture.")


def test_a_run_without_a_picture_leads_to_the_newest_one(scan: str, page: Page) -> None:
    def answer(route: Route) -> None:
        news = page.request.get(route.request.url).json()
        for run in (run for file in news["files"] for run in file["runs"] if run["id"] == f"{scan}_0_0__r2"):
            run |= {"outcome": "failed", "results": {}}
        route.fulfill(json=news)

    page.route(re.compile(f"/scans/{scan}/data$"), answer)
    open_scan(page, scan)
    expect(page.locator("#viewer-note")).to_have_text("This run has left no picture.")
    page.get_by_role("button", name=re.compile(f"^Show the picture of run {scan}_")).click()
    expect(page.get_by_role("img", name=re.compile("^amplitude"))).to_be_visible()
    expect(page.locator("#other-picture")).to_be_hidden()
    assert re.search(rf"run={scan}_(0_0|0_1|1_0)&", page.url)


def test_an_error_that_is_no_number_is_not_drawn_as_nothing(scan: str, page: Page) -> None:
    errors = {"errors": [1, 0.5, 0.25, None], "iterations": 4, "engine": "ptychocam"}
    page.route(re.compile("figures.json"), lambda route: route.fulfill(json=errors))
    open_scan(page, scan)
    expect(page.locator("#error-plot")).to_have_attribute("aria-label", re.compile(r"from 1 to 0\.25$"))


def test_the_page_stands_when_nersc_is_down_and_says_what_it_has_not(
    pipeline: Pipeline, scan: str, begun: dict[str, tuple[str, str]], page: Page
) -> None:
    _, old_run = begun["old"]
    assert pipeline.finish(old_run) == "success"
    pipeline.facility.fault(service="nersc", path="/utilities", kind="status", status=503, times=10_000)
    try:
        open_scan(page, scan)
        expect(page.get_by_role("img", name=re.compile("^amplitude"))).to_be_visible()
        page.get_by_text("ptychocam: last lines of its job").click()
        expect(page.locator("details.log pre")).to_contain_text("could not be read from NERSC")
        open_scan(page, old_run.removesuffix("_0_0"))
        expect(page.get_by_role("img", name="Amplitude and phase, ptychocam")).to_be_visible()
        expect(page.locator("#viewer-note")).to_contain_text("of an older release")
    finally:
        pipeline.facility.clear_faults()


def test_a_scan_that_goes_on_shows_its_job_and_then_its_picture_without_a_reload(
    pipeline: Pipeline, begun: dict[str, tuple[str, str]], page: Page
) -> None:
    path, run_id = begun["hold"]
    pipeline.wait_for_task(run_id, "ptychocam.wait", "deferred")
    (job,) = pipeline.jobs_of(path)
    pipeline.wait_for(lambda: pipeline.job_states(path) == ["RUNNING"], "the job runs")
    open_scan(page, run_id.removesuffix("_0_0"))
    expect(page.locator("#viewer-note")).to_contain_text("There is no picture yet")
    page.get_by_text("ptychocam: last lines of its job").click()
    expect(page.locator("details.log pre")).to_contain_text("reconstructing")
    page.evaluate("window.same = true")
    pipeline.let_go(path)
    assert pipeline.finish(run_id) == "success"
    expect(page.get_by_role("img", name=re.compile("^amplitude"))).to_be_visible()
    expect(page.locator("#state")).to_contain_text("done")
    assert page.evaluate("window.same")
    assert str(job["job_id"]) in page.locator("#run").inner_text()


def test_a_failed_scan_says_why_and_what_to_do_and_narrow_dark_screens_work(
    pipeline: Pipeline, begun: dict[str, tuple[str, str]], page: Page
) -> None:
    _, run_id = begun["fail 3"]
    assert pipeline.finish(run_id) == "failed"
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 800})
    open_scan(page, run_id.removesuffix("_0_0"))
    box = page.locator("#news .box.failed")
    expect(box).to_contain_text("cannot allocate the probe")
    expect(box).to_contain_text("What to do:")
    expect(page.locator("#news")).to_contain_text("You may")
    expect(page.locator("#tools")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(17, 17, 17)"
