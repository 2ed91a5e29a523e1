"""Chromium, and what tests do in it with Airflow's pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Locator, Page, sync_playwright

from dev.local_airflow.rest import Rest
from dev.local_airflow.stack import LocalAirflow

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
STARTS_RUNS = re.compile(r"/api/v2/(dags/[^/]+/dagRuns|backfills)$")
SUBMIT = re.compile("^(Trigger|Run Backfill)$")
FIELD = "[id^=element_], [name^=element_]"
TIMEOUT = 120  # seconds that a page may take on a busy machine
LONG = 20  # characters; the page takes 50 ms for a key


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
def signed_in(browser: Browser, airflow: LocalAirflow, user: str, **options: Any) -> Iterator[BrowserContext]:
    """A browser's profile of a user, with a token in place of the login, in the beamline's time zone."""
    size = {"width": 1300, "height": 1100}
    context = browser.new_context(
        **{"base_url": airflow.url, "viewport": size, "timezone_id": "America/Los_Angeles", **options}
    )
    context.set_default_timeout(TIMEOUT * 1000)
    token = Rest(airflow.url, user, airflow.passwords[user]).token
    context.add_cookies([{"name": "_token", "value": token, "url": airflow.url, "sameSite": "Lax"}])
    yield context
    context.close()


@dataclass(frozen=True)
class Outcome:
    """What became of a press on *Trigger* or *Run Backfill*.

    :param status: of the API's reply; 0: the form let nothing be sent.
    :param made: the reply, when it was accepted: the run, or the backfill.
    :param shown: what the dialog showed, when it was not.
    """

    status: int
    made: dict[str, Any]
    shown: str

    @property
    def accepted(self) -> bool:
        """Whether something was made."""
        return self.status == 200


class TriggerForm:
    """The dialog of *Trigger* on a DAG's page, of a single run or a backfill."""

    def __init__(self, page: Page, dag_id: str) -> None:
        self.page = page
        self.dag_id = dag_id
        self.form = page.get_by_test_id("config-form")
        self.dialog = page.get_by_role("dialog").filter(has=self.form)

    def open(self, *, backfill: bool = False) -> TriggerForm:
        """Open it anew; a paused DAG stays paused."""
        self.page.goto(f"/dags/{self.dag_id}/runs")
        self.page.get_by_role("button", name="Trigger").first.click()
        self.form.wait_for()
        if backfill:
            self.dialog.get_by_text("Backfill", exact=True).click()
            self.dialog.get_by_text("Date Range").wait_for()
        unpause = self.dialog.locator("[data-part=root][data-scope=checkbox]", has_text="Unpause")
        if unpause.count() and unpause.get_attribute("data-state") == "checked":
            unpause.click()
        return self

    def names(self) -> set[str]:
        """The parameters that have a field."""
        found = self.form.locator(FIELD).evaluate_all("all => all.map(e => e.getAttribute('name') || e.id)")
        return {name.removeprefix("element_") for name in found}

    def field(self, name: str) -> Locator:
        """A parameter's field, in sight."""
        selector = f"[name=element_{name}], [id=element_{name}]"
        self.unfold(self.form.locator("[data-part=item]", has=self.page.locator(selector)))
        return self.form.locator(selector).first

    def unfold(self, section: Locator) -> None:
        """Open a section; it closes the others."""
        button = section.locator("[data-part=item-trigger]")
        if button.get_attribute("aria-expanded") == "false":
            button.click()

    def advanced(self, label: str) -> Locator:
        """A field of *Advanced Options*."""
        self.unfold(self.form.locator("[data-part=item]", has_text="Advanced Options"))
        return self.form.locator("[data-part=root][data-scope=field]", has_text=label).locator("input")

    def type(self, name: str, text: str) -> None:
        """Replace what is in a parameter's field."""
        self.retype(self.field(name), text)

    def retype(self, field: Locator, text: str) -> None:
        """Replace what is in a field, key by key (what is long, as a paste), and leave it."""
        field.click()
        field.press("Control+a")
        field.press("Delete")
        if len(text) > LONG:
            self.page.keyboard.insert_text(text)
        else:
            field.press_sequentially(text)
        field.blur()

    def choose(self, name: str, option: str) -> None:
        """Choose from a parameter's list."""
        self.field(name).click()
        self.page.get_by_role("option", name=option).click()

    def switch(self, name: str) -> None:
        """Press a parameter's switch."""
        self.field(name).locator("xpath=ancestor::label").click()

    def set_date(self, label: str, day: str) -> None:
        """Type a day (YYYY/MM/DD) into a field for a date and a time."""
        field = self.dialog.locator("[data-part=root][data-scope=field]", has_text=label)
        field.get_by_test_id("datetime-input").click()
        named = self.page.get_by_role("textbox", name=label, exact=True)
        typed = named.and_(self.page.get_by_placeholder("YYYY/MM/DD"))
        self.retype(typed, day)
        self.page.keyboard.press("Escape")
        typed.wait_for(state="hidden")

    def submit(self) -> Outcome:
        """Press the dialog's button and wait for what becomes of it."""
        button = self.dialog.get_by_role("button", name=SUBMIT)
        if button.is_disabled():
            return Outcome(0, {}, " ".join(self.form.locator("[data-part=error-text]").all_inner_texts()))
        with self.page.expect_response(lambda reply: _starts_runs(reply.request)) as waiting:
            button.click()
        reply = waiting.value
        if reply.ok:
            return Outcome(reply.status, reply.json(), "")
        alert = self.dialog.get_by_test_id("error-alert")
        alert.get_by_text(reply.json()["detail"]).wait_for()
        return Outcome(reply.status, {}, " ".join(alert.inner_text().split()))


def _starts_runs(request: Any) -> bool:
    return request.method == "POST" and STARTS_RUNS.search(request.url) is not None
