"""The page of scans, as people see it at night: in Airflow's navigation and by itself, kept up to date."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, FrameLocator, Locator, Page, expect

from cosmic.scan_names import scan_name
from cosmic.scans import parse_scan_path
from support.browser import signed_in
from support.live import SLOW, Live, Pipeline, install_engines

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.needs("chromium"), pytest.mark.timeout(900)]
expect.set_options(timeout=SLOW * 1000)

SLOW_COPY = 300_000  # bytes per second
CONTENT = 4_000_000  # bytes: a dozen seconds

Row = Callable[[Any, str], Any]


@pytest.fixture(scope="module")
def pipeline(live_airflow: Live) -> Pipeline:
    """The running system, with the tests' reconstruction."""
    install_engines(live_airflow.facility)
    return Pipeline(live_airflow)


@pytest.fixture(scope="module")
def begun(pipeline: Pipeline) -> Iterator[dict[str, tuple[str, str]]]:
    """Scans with their runs, all begun at once."""
    scans = {"done": pipeline.new_scan(), "held": pipeline.new_scan("hold"), "failed": pipeline.new_scan()}
    (pipeline.facility.collection("data7012") / scans["failed"]).unlink()
    long = pipeline.live.scan(f"2023/02/230216/{'x' * 70}_{'long-name' * 12}.cxi", b"ok\n")
    yield {name: (scan, pipeline.start(scan)) for name, scan in {**scans, "long": long}.items()}
    pipeline.let_go(scans["held"])


@pytest.fixture
def page(browser: Browser, live_airflow: Live, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of `beamline`."""
    with signed_in(browser, live_airflow.airflow, "beamline") as context:
        page = context.new_page()
        yield page
        keep(page, request.node.name)


def keep(page: Page, name: str) -> None:
    """Keep the page as it looks, where BROWSER_SCREENSHOTS names a folder."""
    if folder := os.environ.get("BROWSER_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/scans-{name}.png", full_page=True)


def row(page: Page | FrameLocator, scan: str) -> Any:
    """The row of the scan to which a file belongs."""
    return page.locator(f"tr[data-name='{scan_name(parse_scan_path(scan).stem)}']")


def place_in_sight(link: Locator) -> float:
    """Pixels from the window's upper edge."""
    box = link.bounding_box()
    assert box
    return box["y"]


def slow_scan(pipeline: Pipeline, behaviour: str) -> str:
    """A scan whose copy takes a while."""
    scan = pipeline.new_scan()
    (pipeline.facility.collection("data7012") / scan).write_bytes(f"{behaviour}\n".encode() + b"\0" * CONTENT)
    return scan


def test_one_click_after_the_login_a_scan_is_followed_from_its_copy_to_its_result(
    pipeline: Pipeline, begun: dict[str, tuple[str, str]], page: Page
) -> None:
    done, run_id = begun["done"]
    assert pipeline.finish(run_id) == "success"
    page.goto("/")
    page.get_by_test_id("nav-sidebar").get_by_role("link", name="Scans").wait_for()
    began = time.monotonic()
    page.get_by_test_id("nav-sidebar").get_by_role("link", name="Scans").click()
    frame = page.frame_locator("iframe")
    expect(row(frame, done)).to_contain_text("done")
    picture = row(frame, done).locator("img")
    expect(picture).to_have_js_property("complete", value=True)
    print(f"From the click to the scan's picture: {time.monotonic() - began:.2f} s")
    assert picture.evaluate("image => image.naturalWidth") > 0

    pipeline.facility.control("globus", "bandwidth", bytes_per_second=SLOW_COPY)
    try:
        scan = slow_scan(pipeline, "hold")
        run_id = pipeline.start(scan)
        expect(row(frame, scan)).to_contain_text(
            re.compile(r"waiting for the transfer: \d+ %(, [\d.]+ MB/s)?")
        )
        keep(page, "transfer")
    finally:
        pipeline.facility.control("globus", "bandwidth", bytes_per_second=None)
    expect(row(frame, scan)).to_contain_text(re.compile(r"running, \d+ of \d+ min"))
    keep(page, "running")
    pipeline.let_go(scan)
    assert pipeline.finish(run_id) == "success"
    expect(row(frame, scan)).to_contain_text("done")
    expect(row(frame, scan)).not_to_contain_text("running")


def test_a_list_that_changes_keeps_focus_and_scroll_and_says_what_has_ended(
    pipeline: Pipeline, begun: dict[str, tuple[str, str]], page: Page
) -> None:
    scan, run_id = begun["held"]
    page.set_viewport_size({"width": 1300, "height": 300})
    page.goto("/cosmic/scans?day=2023-02-16")
    expect(row(page, scan)).to_contain_text("running")
    link = row(page, scan).get_by_role("link")
    link.focus()
    link.scroll_into_view_if_needed()
    before = place_in_sight(link)
    assert page.evaluate("scrollY") > 0
    page.evaluate("window.sameDocument = true")
    pipeline.let_go(scan)
    assert pipeline.finish(run_id) == "success"
    expect(row(page, scan)).to_contain_text("done")
    expect(link).to_be_focused()
    assert abs(place_in_sight(link) - before) <= 1  # whatever happens to the rows above it
    assert page.evaluate("window.sameDocument") is True
    name = scan_name(parse_scan_path(scan).stem)
    expect(page.get_by_role("status")).to_have_text(re.compile(f"{name} is done"))


def test_a_failure_says_why_and_filters_stay_in_the_address(
    pipeline: Pipeline, begun: dict[str, tuple[str, str]], page: Page
) -> None:
    scan, run_id = begun["failed"]
    number = re.sub(r".*NS_(\d+)_.*", r"\1", scan)
    assert pipeline.finish(run_id) == "failed"
    page.goto("/cosmic/scans")
    expect(row(page, scan)).to_contain_text("failed: There is no /2023/02/230216")
    page.get_by_label("State").select_option("failed")
    expect(page).to_have_url(re.compile(r"\?state=failed$"))
    expect(page.locator("#scans tbody tr")).not_to_have_count(0)
    others = page.locator("#scans tbody tr:not([data-state=failed], [data-state=partial])")
    expect(others).to_have_count(0)
    page.get_by_label("Search").press_sequentially(number)
    expect(page.locator("#scans tbody tr")).to_have_count(1)
    expect(page).to_have_url(re.compile(rf"\?text={number}&state=failed$"))
    page.reload()
    expect(page.get_by_label("Search")).to_have_value(number)
    expect(row(page, scan)).to_be_visible()
    page.get_by_role("link", name="Show all").click()
    expect(page).to_have_url(re.compile("/cosmic/scans$"))


def test_nothing_is_asked_while_the_tab_is_hidden_and_an_outage_is_said(
    pipeline: Pipeline, page: Page
) -> None:
    asked: list[str] = []
    page.clock.install()
    page.goto("/cosmic/scans")
    page.on("request", lambda request: asked.append(request.url) if "scan-list" in request.url else None)
    hidden = "value => { Object.defineProperty(document, 'hidden', {value, configurable: true}); "
    hidden += "document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(hidden, True)
    asked.clear()
    page.clock.run_for(60_000)
    assert asked == []
    with page.expect_response(lambda reply: "scan-list" in reply.url) as waiting:
        page.evaluate(hidden, False)
    assert waiting.value.status in (200, 304)

    page.route("**/scan-list*", lambda route: route.abort())
    page.clock.run_for(4000)
    expect(page.get_by_role("alert")).to_contain_text("Airflow does not answer: the list is as of")
    keep(page, "outage")
    page.unroute("**/scan-list*")
    page.clock.run_for(60_000)
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize(("theme", "width"), [("light", 1300), ("dark", 1300), ("dark", 390)])
def test_it_is_readable_in_both_themes_and_on_a_telephone(
    begun: dict[str, tuple[str, str]], page: Page, theme: str, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.add_init_script(f"localStorage.setItem('theme', '{theme}')")
    page.goto("/cosmic/scans?day=2023-02-16")
    long = page.locator("#scans tbody tr", has_text="xxxxxxxx").first
    expect(long).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    state = long.locator("td.state").bounding_box()
    assert state
    assert state["width"] > 150, "a long name leaves no place for the state"
    style = "getComputedStyle(document.body)"
    colors = page.evaluate(f"[{style}.backgroundColor, {style}.color]")
    lightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in colors]
    assert (lightness[0] < lightness[1]) is (theme == "dark")


def test_who_opens_a_shared_address_comes_back_to_it_after_the_login(
    browser: Browser, live_airflow: Live, pipeline: Pipeline
) -> None:
    airflow = live_airflow.airflow
    context = browser.new_context(base_url=airflow.url)
    page = context.new_page()
    page.goto("/cosmic/scans?state=done")
    page.fill("input[name=username]", "beamline")
    page.fill("input[type=password]", airflow.passwords["beamline"])
    page.click("button[type=submit]")
    expect(page).to_have_url(f"{airflow.url}/cosmic/scans?state=done")
    expect(page.get_by_label("State")).to_have_value("done")
    context.close()
