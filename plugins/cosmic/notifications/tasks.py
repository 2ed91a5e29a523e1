"""The task of `notify`: looks, and sends one message to each receiver that has to be notified."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urljoin

import httpx
from airflow.configuration import conf
from airflow.sdk import Variable, task

from cosmic import kept_results
from cosmic.beamline import beamline, notify_limits
from cosmic.dag_constants import SUPERFACILITY_CONN_ID
from cosmic.notifications import book as books
from cosmic.notifications import outages
from cosmic.notifications.book import Book, Event
from cosmic.notifications.message import compose
from cosmic.notifications.receivers import Receiver, receivers, send
from cosmic.results import check_png
from facilities.errors import FacilityError, TransientError
from facilities.superfacility.hook import SuperfacilityHook

log = logging.getLogger(__name__)

AUDIENCE = "cosmic-notifications"
"""Of the tokens with which this task asks the API server."""

NEWS_PREFIX = "/cosmic-notifications"
"""Address, in the API server, of what it asks."""

BOOK = "cosmic_notifications"
"""The Airflow Variable that keeps the book."""

MAX_PICTURES = 3  # in one message
_TOKEN_SECONDS = 60.0


@task(execution_timeout=timedelta(minutes=8))
def send_notifications() -> list[str]:
    """Send what is due; returns the subjects of the messages.

    :raises FacilityError: a message was not taken by a receiver. It is sent with the next run.
    """
    listed = receivers()
    if not listed:
        log.info("NOTIFY names no receiver: nobody is notified.")
        return []
    now = time.time()
    kept = Variable.get(BOOK, default=None, deserialize_json=True)
    book = books.read_book(kept, {receiver.key for receiver in listed}, now)
    books.observe(book, outages.look(), now)
    events = [*_ask_for_news(books.since(book, now)), *books.outage_events(book, now, outages.STATUS_PAGES)]
    interval = notify_limits().interval_minutes * 60
    subjects: list[str] = []
    errors: list[FacilityError] = []
    for receiver in listed:
        due = books.due(book["receivers"][receiver.key], events, now, interval)
        try:
            if due:
                subjects.append(_send(receiver, due))
        except FacilityError as error:
            log.error("%s", error)
            errors.append(error)
        else:
            books.enter(book["receivers"][receiver.key], events, due, now)
            _keep(book)
    _keep(book)
    if errors:
        raise errors[0]
    return subjects


def _ask_for_news(since: float) -> list[Event]:
    """What the API server reads from Airflow's database.

    :raises TransientError: it does not answer.
    """
    from airflow.api_fastapi.auth.tokens import JWTGenerator, get_signing_args  # noqa: PLC0415 - see `news`

    signing = get_signing_args(make_secret_key_if_needed=False)
    token = JWTGenerator(audience=AUDIENCE, valid_for=_TOKEN_SECONDS, **signing).generate()
    server = conf.get("core", "execution_api_server_url", fallback="") or urljoin(
        conf.get("api", "base_url", fallback="") or "http://localhost:8080/", "execution/"
    )
    address = urljoin(f"{server.rstrip('/')}/", f"..{NEWS_PREFIX}/news")
    try:
        reply = httpx.get(
            address, params={"since": since}, headers={"Authorization": f"Bearer {token}"}, timeout=120
        )
        reply.raise_for_status()
        events: list[Event] = reply.json()["events"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise TransientError(
            "Airflow's API server does not answer what has failed",
            state=str(error)[:300],
            next_step="see its log; after 401: workers need the same [api_auth] jwt_secret as it has.",
        ) from error
    return events


def _send(receiver: Receiver, due: Sequence[Event]) -> str:
    message = compose(due)
    send(receiver, message.subject, message.text, good=message.good, pictures=_pictures(due))
    log.info("Sent to %s: %s", receiver.name, message.subject)
    return message.subject


class _Run(NamedTuple):
    run_id: str
    run_after: datetime


def _pictures(events: Sequence[Event]) -> dict[str, bytes]:
    """The first pictures, by name: as they are kept, or else NERSC's; without those that it does not give."""
    pictures: dict[str, bytes] = {}
    nersc_answers = True
    for wanted in [picture for event in events for picture in event["pictures"]][:MAX_PICTURES]:
        run = _Run(wanted["run_id"], datetime.fromisoformat(wanted["run_after"]))
        content = kept_results.read(run, wanted["engine"], kept_results.PREVIEW)
        try:
            if content is None and nersc_answers:
                content = _from_nersc(wanted["path"])
        except FacilityError as error:
            log.warning("A message goes without its picture. %s", error)
            nersc_answers = not isinstance(error, TransientError)
        if content is not None:
            pictures[wanted["name"]] = content
    return pictures


def _from_nersc(path: str) -> bytes:
    with closing(SuperfacilityHook(SUPERFACILITY_CONN_ID, attempts=1)) as hook:
        content = hook.download(beamline().job.machine, path)
    check_png(content, path)
    return content


def _keep(book: Book) -> None:
    value: Any = book
    Variable.set(BOOK, value, description="What the DAG notify has sent to whom", serialize_json=True)
