"""Chromium, and what tests do in it with Airflow's pages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, sync_playwright

from support.live import SLOW

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",  # as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TRIGGER = re.compile(r"/api/v2/(dags/[^/]+/dagRuns|backfills)$")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A new browser without a profile.

    Until it is closed, an event loop runs in this thread: `asyncio.run` is refused.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def logged_in(browser: Browser, url: str, user: str, password: str) -> Iterator[Page]:
    """A page of a user, in the beamline's time zone."""
    context = browser.new_context(
        base_url=url, viewport={"width": 1300, "height": 1100}, timezone_id="America/Los_Angeles"
    )
    context.set_default_timeout(SLOW * 1000)
    page = context.new_page()
    page.goto("/auth/login")
    page.fill("input[name=username]", user)
    page.fill("input[type=password]", password)
    page.click("button[type=submit]")
    page.wait_for_selector("nav")
    yield page
    context.close()


@dataclass(frozen=True)
class Outcome:
    """What became of a press on *Trigger*.

    :param status: of the API's reply; 0: the form let nothing be sent.
    :param run: the reply, when it was accepted.
    :param shown: what the dialog showed, when it was not.
    """

    status: int
    run: dict[str, Any]
    shown: str

    @property
    def accepted(self) -> bool:
        """Whether there is a run now."""
        return self.status == 200


class TriggerForm:
    """The dialog of *Trigger* on a DAG's page."""

    def __init__(self, page: Page, dag_id: str) -> None:
        self.page = page
        self.dag_id = dag_id
        self.dialog = page.get_by_role("dialog").filter(has=page.get_by_test_id("trigger-dag-submit"))

    def open(self) -> TriggerForm:
        """Open it afresh."""
        self.page.goto(f"/dags/{self.dag_id}/runs")
        self.page.get_by_role("button", name="Trigger", exact=True).first.click()
        self.dialog.get_by_test_id("config-form").wait_for()
        return self

    def names(self) -> set[str]:
        """The parameters that have a field."""
        fields = self.dialog.locator("[data-testid=config-form] [id^=element_], [name^=element_]")
        found = fields.evaluate_all("all => all.map(e => e.getAttribute('name') || e.id)")
        return {name.removeprefix("element_") for name in found}

    def field(self, name: str) -> Locator:
        """A parameter's field, in sight."""
        field = self.dialog.locator(f"[name=element_{name}], [id=element_{name}]").first
        self.unfold(self.dialog.locator("[data-part=item]", has=field))
        return field

    def unfold(self, section: Locator) -> None:
        """Open a section; it closes the others."""
        button = section.locator("[data-part=item-trigger]")
        if button.get_attribute("aria-expanded") == "false":
            button.click()
        section.locator("[data-part=item-content][data-state=open]").wait_for()

    def type(self, name: str, text: str) -> None:
        """Replace what is in a parameter's field, key by key."""
        self.retype(self.field(name), text)

    def advanced(self, label: str) -> Locator:
        """A field below *Advanced Options*: `Run ID`."""
        section = self.dialog.locator("[data-part=item]", has_text="Advanced Options")
        self.unfold(section)
        return section.get_by_label(label)

    def retype(self, field: Locator, text: str) -> None:
        """Replace what is in a field, key by key, and leave it."""
        field.click()
        field.press("Control+a")
        field.press("Delete")
        field.press_sequentially(text)
        field.press("Tab")

    def trigger(self) -> Outcome:
        """Press *Trigger* and wait for what becomes of it."""
        button = self.dialog.get_by_test_id("trigger-dag-submit")
        if button.is_disabled():
            return Outcome(0, {}, " ".join(self.dialog.locator("[data-part=error-text]").all_inner_texts()))
        with self.page.expect_response(lambda reply: _is_trigger(reply.request)) as waiting:
            button.click()
        reply = waiting.value
        if reply.ok:
            return Outcome(reply.status, reply.json(), "")
        self.dialog.get_by_role("alert").or_(self.dialog.locator("[data-scope=alert]")).first.wait_for()
        return Outcome(reply.status, {}, self.dialog.inner_text())


def _is_trigger(request: Any) -> bool:
    return request.method == "POST" and TRIGGER.search(request.url) is not None


def keep_screenshot(page: Page, folder: Path, name: str) -> Path:
    """Save what the page shows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    return path


def pretty(document: object) -> str:
    """For messages of failed tests."""
    return json.dumps(document, indent=2)
