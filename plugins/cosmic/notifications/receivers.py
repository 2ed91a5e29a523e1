"""Sends messages to the receivers that connection `notify_default` names: Apprise's URLs, which hold secrets.

Nothing of a URL is ever logged, kept or shown but its scheme and its place in the setting.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

from airflow.configuration import conf
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from cosmic.dag_constants import NOTIFY_CONN_ID
from facilities.errors import TransientError, UserError

MAX_DETAILS = 1000  # characters of Apprise's own reasons of a failure
_BETWEEN = re.compile(r"[\s,]+(?=[A-Za-z][A-Za-z0-9+.-]*://)")


@dataclass(frozen=True)
class Receiver:
    """Where messages go.

    :param name: for people, such as `receiver 2 of NOTIFY (slack)`.
    :param key: the same for the same URL; nobody can find the URL from it.
    """

    name: str
    key: str
    url: str

    def __repr__(self) -> str:
        return f"Receiver({self.name!r})"


def split_urls(text: str) -> list[str]:
    """URLs with spaces or commas between them; a comma within one stays.

    >>> split_urls("mailto://a.org?to=b@c.org,d@e.org, json://f.org")
    ['mailto://a.org?to=b@c.org,d@e.org', 'json://f.org']
    """
    return [url for part in _BETWEEN.split(text.strip()) if (url := part.strip(" \t\r\n,"))]


def receivers() -> list[Receiver]:
    """Who gets messages; empty when there is no connection, or no URL in it."""
    try:
        text = Connection.get(NOTIFY_CONN_ID).password or ""
    except AirflowNotFoundException:
        return []
    key = (conf.get("core", "fernet_key", fallback="") or "").encode()
    found = []
    for place, url in enumerate(split_urls(text), 1):
        mask_secret(url)
        scheme = url.partition("://")[0].lower()
        digest = hmac.new(key, url.encode(), hashlib.sha256).hexdigest()[:16]
        found.append(Receiver(f"receiver {place} of NOTIFY ({scheme})", f"{scheme}-{digest}", url))
    return found


def send(
    receiver: Receiver, subject: str, text: str, *, good: bool, pictures: Mapping[str, bytes] | None = None
) -> None:
    """Send one message.

    :param pictures: PNG images by file name.
    :raises TransientError: it was not taken.
    :raises UserError: the URL is none that Apprise knows.
    """
    # Apprise loads a hundred modules with its first URL, which takes a second.
    import apprise  # noqa: PLC0415
    from apprise.attachment.memory import AttachMemory  # noqa: PLC0415

    attachments = apprise.AppriseAttachment()
    for name, content in (pictures or {}).items():
        attachments.add(AttachMemory(content, name=name, mimetype="image/png"))  # type: ignore[no-untyped-call]
    target = apprise.Apprise()
    with _captured_lines() as lines:
        if not target.add(receiver.url):
            raise UserError(
                f"Nothing can be sent to {receiver.name}: Apprise does not know such a URL",
                next_step="correct NOTIFY in .env, or the password of connection notify_default; see "
                "https://appriseit.com/services/.",
            )
        taken = target.notify(
            title=subject,
            body=text,
            notify_type=apprise.NotifyType.SUCCESS if good else apprise.NotifyType.FAILURE,
            body_format=apprise.NotifyFormat.TEXT,
            attach=attachments if len(attachments) else None,
        )
    if not taken:
        raise TransientError(
            f"A message could not be sent to {receiver.name}",
            next_step="see that it is up and that its URL is right; the message is sent when it answers.",
            details=_without_secrets("\n".join(lines), receiver.url)[:MAX_DETAILS],
        )


@contextmanager
def _captured_lines() -> Iterator[list[str]]:
    """Collects what Apprise logs as a warning, and keeps all that it logs from the task's log."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("apprise")
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


def _without_secrets(text: str, url: str) -> str:
    """The text without any part of the URL that may be a secret."""
    parts = {part for part in re.split(r"[/?&=@:#,]", url.partition("://")[2]) if len(part) >= 6}
    for secret in sorted({url} | parts | {unquote(part) for part in parts}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
