"""Chromium, with the session's running Airflow in it."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from support.browser import chromium, signed_in
from support.live import Live

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether the test failed, for its screenshot."""
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for the tests of a file."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def admin(
    browser: Browser, live_airflow: Live, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Page]:
    """A page of the administrator."""
    yield from _page(browser, live_airflow, "admin", request, tmp_path)


@pytest.fixture
def beamline_user(
    browser: Browser, live_airflow: Live, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Page]:
    """A page of `beamline`, who may start runs and not much more."""
    yield from _page(browser, live_airflow, "beamline", request, tmp_path)


def _page(
    browser: Browser, live: Live, user: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Page]:
    """A page. Its end is kept when the test fails, and always where BROWSER_SCREENSHOTS names a folder."""
    folder = os.environ.get("BROWSER_SCREENSHOTS")
    with signed_in(browser, live.airflow, user) as context:
        page = context.new_page()
        yield page
        if folder or request.node.stash.get(_FAILED, False):
            name = re.sub(r"[^A-Za-z0-9_.-]+", "-", request.node.name)[:120]
            path = Path(folder or tmp_path) / f"{name}.png"
            page.screenshot(path=path, full_page=True)
            print(f"The page as it was at the end: {path}")
