"""10,000 hostile names, notes, metadata, errors and warnings on the pages, in a real browser: none runs."""

from __future__ import annotations

import html
import json
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from airflow.models.asset import AssetEvent
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunTriggeredByType
from playwright.sync_api import Page, Route
from sqlalchemy import select, update

from cosmic import kept_results
from cosmic.beamline import DEFAULT_FILE, beamline
from cosmic.dag_constants import TRANSFER_AUTO_RECON
from cosmic.parameters import RECONSTRUCTION
from facilities.failures import ERROR_KEY
from support.browser import chromium
from support.hostile import hostile_texts
from support.many_scans import asset
from support.pages import HOST, Pages, a_reconstruction, dags_in_database, set_states, set_xcom

pytestmark = [pytest.mark.needs("chromium")]

COUNT = 10_000
WATCH = """
window.ran = [];
window.pwned = (number) => window.ran.push(number);
window.blocked = [];
addEventListener("securitypolicyviolation", (event) => window.blocked.push(
    `${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""
WOKEN = """() => {
  for (const element of document.querySelectorAll("*")) {
    for (const kind of ["mouseover", "focus", "toggle", "load", "error"]) {
      element.dispatchEvent(new Event(kind));
    }
  }
  const all = [...document.querySelectorAll("*")];
  const handlers = all.flatMap((e) => e.getAttributeNames().filter((name) => name.startsWith("on")));
  const target = (e) => e.getAttribute("href") || e.getAttribute("src") || e.getAttribute("action") || "";
  const links = all.filter((e) => /^\\s*javascript:/i.test(target(e)));
  const text = all.map((e) => e.tagName === "TEXTAREA" ? e.value : e.value ?? "").join("\\n");
  return {
    ran: window.ran, blocked: window.blocked, handlers, links: links.map((e) => e.outerHTML),
    scripts: document.scripts.length, frames: frames.length, bases: document.querySelectorAll("base").length,
    shown: document.body.textContent + text,
  };
}"""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return hostile_texts(COUNT)


@pytest.fixture(scope="module")
def replies(airflow_database: None, texts: list[str]) -> dict[str, httpx.Response]:
    """The pages with the texts on them, by address."""
    with pytest.MonkeyPatch.context() as patch, dags_in_database("transfer_auto_recon.py"):
        patch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(DEFAULT_FILE))
        with closing(Pages()) as pages:
            return {path: pages.get(user, path) for user, path in written(pages, texts)}


def written(pages: Pages, texts: list[str]) -> Iterator[tuple[str, str]]:
    """Put the texts where people and programs can; users and addresses of pages that show them."""
    left = iter(texts)

    def some(count: int) -> list[str]:
        return [next(left) for _ in range(count)]

    scan = f"NS_230216{uuid.uuid4().int % 10**9:09}"
    run_id = start(pages, scan)
    root = beamline().collections.destination.file_system_path
    own = f"{root}/2023/02/230216/{scan}_ccdframes_0_0_ptychocam.cxi"
    results = a_reconstruction(own, warnings=some(6000), job_id=next(left))
    set_xcom(TRANSFER_AUTO_RECON, run_id, "ptychocam.collect", results)
    for task in ("copy_to_nersc", "ptychocam.submit", "ptychocam.wait", "cdtools.submit"):
        keys = ("what", "id", "state", "next_step", "run_again", "details")
        error = {key: "\n".join(some(150)) for key in keys}
        set_xcom(TRANSFER_AUTO_RECON, run_id, task, error, key=ERROR_KEY)
        set_states(run_id, "failed", **{task.replace(".", "__"): "failed"})
    note = "\n".join(some(20))[:1000]
    facts = dict(zip(("proposal", "sample"), some(2), strict=True)) | {"scan": scan, "warnings": 1}
    with create_session(scoped=False) as session:
        session.add(
            AssetEvent(
                asset_id=asset(session),
                extra=facts,
                source_dag_id=TRANSFER_AUTO_RECON,
                source_run_id=run_id,
                source_task_id="ptychocam.collect",
                source_map_index=-1,
                partition_key=None,
            )
        )
        run = session.scalar(select(DagRun).where(DagRun.run_id == run_id))
        assert run
        run.conf = {name: next(left) for name in RECONSTRUCTION} | {"file_path": run.conf["file_path"]}
        run.note = (note, "1")
        run.triggered_by = DagRunTriggeredByType.UI  # what a person has typed into its form
        figures: dict[str, Any] = {
            name: dict(zip(some(50), some(50), strict=True)) for name in ("metadata", "parameters")
        }
        figures |= {"notes": some(50), "errors": [0.5, 0.25], "energy_ev": 707.5, "errors_are": next(left)}
        assert kept_results.keep(run, "ptychocam", {kept_results.FIGURES: json.dumps(figures).encode()})
        for text in some(100):
            other = another_run(run, uuid.uuid4().hex)
            session.add(other)
            session.flush()
            # Airflow itself refuses such an id.
            session.execute(update(DagRun).where(DagRun.id == other.id).values(run_id=f"{scan}{text}"[:250]))
    rest = list(left)
    second = start(pages, scan, energy=1)
    set_xcom(TRANSFER_AUTO_RECON, second, "ptychocam.collect", a_reconstruction("/n/y.cxi", warnings=rest))
    tab = f"/cosmic/dags/{TRANSFER_AUTO_RECON}/runs"
    yield "ada", f"{tab}/{run_id}"
    yield "ada", f"{tab}/{run_id}/ptychocam/figures.json"
    yield "ada", "/cosmic/scans"
    yield "reader", f"/cosmic/scans/{scan}"
    yield "ada", f"/cosmic/scans/{scan}?run={run_id}"
    yield "ada", f"/cosmic/scans/{scan}/data"
    yield "reader", f"{tab}/{run_id}"
    yield "ada", f"{tab}/{second}"
    for action in ("stop", "run-again"):
        yield "ada", f"/cosmic/scans/{scan}/{action}"
    yield "ada", f"/cosmic/scans/{scan}/run-again?run_id={run_id}"


def start(pages: Pages, scan: str, energy: int = 0) -> str:
    conf = {"file_path": f"2023/02/230216/{scan}_ccdframes_{energy}_0.cxi", "do_ptychocam": True}
    address = f"/api/v2/dags/{TRANSFER_AUTO_RECON}/dagRuns"
    reply = pages.send("POST", "ada", address, {}, json={"logical_date": None, "conf": conf})
    return str(reply.json()["dag_run_id"])


def another_run(like: DagRun, run_id: str) -> DagRun:
    run = DagRun(
        dag_id=like.dag_id, run_id=run_id, run_type="manual", state=DagRunState.QUEUED, conf=like.conf
    )
    run.run_after = like.run_after
    return run


@pytest.fixture(scope="module")
def page(replies: dict[str, httpx.Response]) -> Iterator[Page]:
    """A page of a browser; begun after the requests, which need this thread's event loop."""
    with chromium() as browser:
        page = browser.new_page(base_url=HOST)
        page.add_init_script(WATCH)
        yield page


def open_page(page: Page, path: str, replies: dict[str, httpx.Response]) -> dict[str, Any]:
    """Show a reply with its headers, wake everything on it; what was found."""

    def answer(route: Route) -> None:
        reply = replies.get(route.request.url.removeprefix(HOST))
        if reply is None:
            route.fulfill(status=404, json={"detail": "nothing"})
        else:
            headers = {
                k: v for k, v in reply.headers.items() if k not in ("content-encoding", "content-length")
            }
            route.fulfill(status=reply.status_code, headers=headers, body=reply.content)

    page.route("**/*", answer)
    page.goto(path)
    found: dict[str, Any] = page.evaluate(WOKEN)
    page.unroute("**/*")
    return found


def test_none_of_them_runs(page: Page, replies: dict[str, httpx.Response], texts: list[str]) -> None:
    shown = ""
    for path, reply in replies.items():
        assert reply.status_code == 200, path
        if "html" not in reply.headers["content-type"]:
            continue  # for a page's script
        found = open_page(page, path, replies)
        shown += found.pop("shown")
        scripts = reply.text.count("<script")
        assert found == {
            "ran": [],
            "blocked": [],
            "handlers": [],
            "links": [],
            "scripts": scripts,
            "frames": 0,
            "bases": 0,
        }, path
    assert 'class="note"' in replies[next(path for path in replies if "?run=" in path)].text
    there = sum(f"window.pwned({number})" in shown for number in range(COUNT))
    assert there > 0.97 * COUNT  # a note has room for some, a list for the first


def test_they_would_run_on_a_page_that_does_not_escape_them(page: Page, texts: list[str]) -> None:
    body = "".join(f'<div>{text}</div><div title="{text}"></div>' for text in texts[:40])
    naive = httpx.Response(200, html=f"<!doctype html><title>x</title>{body}")
    found = open_page(page, "/naive", {"/naive": naive})
    assert found["ran"]


def test_escaping_alone_is_enough_and_so_is_the_policy(
    page: Page, replies: dict[str, httpx.Response]
) -> None:
    path, reply = next(iter(replies.items()))
    bare = httpx.Response(200, html=reply.text)
    assert not open_page(page, path, {path: bare})["ran"]
    unescaped = httpx.Response(
        200,
        html=html.unescape(reply.text),
        headers={"Content-Security-Policy": reply.headers["Content-Security-Policy"]},
    )
    assert not open_page(page, path, {path: unescaped})["ran"]
