"""Real receivers of notifications on this machine: a mail server and a webhook."""

from __future__ import annotations

import base64
import email
import email.policy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dev.local_airflow.stack import free_port


@dataclass
class Mailbox:
    """What a mail server has taken."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)

    @property
    def url(self) -> str:
        """For NOTIFY."""
        return f"mailto://127.0.0.1:{self.port}?from=cosmic@example.org&to=night@example.org&mode=insecure"


@contextmanager
def mail_server() -> Iterator[Mailbox]:
    """A mail server without TLS and passwords."""
    from aiosmtpd.controller import Controller

    mailbox = Mailbox(free_port())

    class Handler:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's
            mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
            assert isinstance(mail, EmailMessage)
            mailbox.mails.append(mail)
            return "250 OK"

    controller = Controller(Handler(), hostname="127.0.0.1", port=mailbox.port)
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()


@dataclass
class Webhook:
    """What a webhook has taken; while `status` is not 200 it takes nothing."""

    port: int
    status: int = 200
    posts: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0

    @property
    def url(self) -> str:
        """For NOTIFY."""
        return f"json://127.0.0.1:{self.port}/hook/of-the-night-shift"

    @property
    def subjects(self) -> list[str]:
        """Of all messages."""
        return [str(post["title"]) for post in self.posts]


@contextmanager
def webhook() -> Iterator[Webhook]:
    """A webhook that takes Apprise's JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if hook.status == 200:
                hook.posts.append(json.loads(content))
            else:
                hook.refused += 1
            self.send_response(hook.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - of http.server
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook = Webhook(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pictures(mail: EmailMessage) -> dict[str, bytes]:
    """The images attached to a mail, by name."""
    return {
        str(part.get_filename()): base64.b64decode(part.get_payload())  # type: ignore[arg-type]
        for part in mail.iter_attachments()
        if part.get_content_type() == "image/png"
    }
