"""Messages to a real mail server and a real webhook; no secret of a URL gets out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from cosmic.notifications.book import Event
from cosmic.notifications.message import compose
from cosmic.notifications.receivers import Receiver, receivers, send, split_urls
from dev.local_airflow.settings import local_environment
from dev.local_airflow.stack import free_port
from facilities.errors import TransientError, UserError
from support.receivers import Mailbox, Webhook, mail_server, pictures, webhook

PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 40


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with mail_server() as mailbox:
        yield mailbox


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as hook:
        yield hook


def receiver(url: str) -> Receiver:
    """One of this URL."""
    return Receiver("receiver 1 of NOTIFY (x)", "x-1", url)


def test_a_mail_with_a_picture(mailbox: Mailbox) -> None:
    send(receiver(mailbox.url), "COSMIC: scan x failed", "Why\n- <b>&", good=False, pictures={"x.png": PNG})
    (mail,) = mailbox.mails
    assert (mail["Subject"], mail["From"], mail["To"]) == (
        "COSMIC: scan x failed",
        "cosmic@example.org",
        "night@example.org",
    )
    body = mail.get_body(("plain",))
    assert body is not None
    assert body.get_content().split("\r\n")[:2] == ["Why", "- <b>&"]
    assert pictures(mail) == {"x.png": PNG}


def test_a_mail_as_html_is_escaped(mailbox: Mailbox) -> None:
    send(receiver(f"{mailbox.url}&format=html"), "s", "<script>alert(1)</script>\n- b", good=False)
    body = mailbox.mails[0].get_body(("html",))
    assert body is not None
    assert "<script>" not in body.get_content()
    assert "&lt;script&gt;" in body.get_content()


@pytest.mark.parametrize(
    "text",
    [
        "x\r\nBcc: all@example.org\r\nContent-Type: text/html\r\n\r\n<script>alert(1)</script>",
        "=?utf-8?q?=0D=0ABcc:_all@example.org?=",
        "\n.\nMAIL FROM:<a@example.org>\n",
        "\u202egnp.exe \ud800 \x00",
        "x" * 5000,
    ],
)
def test_hostile_names_and_causes_add_no_header_and_no_mail(
    mailbox: Mailbox, hook: Webhook, text: str
) -> None:
    event = Event(
        id="1", kind="scan", at=0, subject=text, what=text, advice=text, command=text, url="", pictures=[]
    )
    message = compose([event])
    for url in (mailbox.url, f"{mailbox.url}&format=html", hook.url):
        send(receiver(url), message.subject, message.text, good=False, pictures={"x.png": PNG})
    headers = {"Content-Type", "MIME-Version", "X-Application", "Subject", "From", "To", "Message-ID", "Date"}
    for mail in mailbox.mails:
        assert {*mail.keys()} == headers
        assert mail["To"] == "night@example.org"
        assert mail.get_content_type() == "multipart/mixed"
        html = mail.get_body(("html",))
        assert html is None or "<script>" not in html.get_content()
    assert len(mailbox.mails) == 2
    assert hook.subjects == [message.subject]


def test_a_webhook_with_a_picture(hook: Webhook) -> None:
    send(receiver(hook.url), "COSMIC: NERSC is back", "Text", good=True, pictures={"x.png": PNG})
    (post,) = hook.posts
    assert (post["title"], post["message"], post["type"]) == ("COSMIC: NERSC is back", "Text", "success")
    assert [entry["filename"] for entry in post["attachments"]] == ["x.png"]


@pytest.mark.parametrize(
    "url",
    [
        "json://127.0.0.1:{port}/secret/path?+X-Token=topsecret",
        "json://127.0.0.1:{port}/",
        "mailto://somebody:topsecret@127.0.0.1:{port}?from=a@b.org&to=c@d.org&mode=insecure",
    ],
)
def test_a_receiver_that_is_down_is_named_without_its_secrets(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TransientError, match=r"could not be sent to receiver 1 of NOTIFY") as failure:
        send(receiver(url.format(port=free_port())), "s", "t", good=False)
    for secret in ("topsecret", "secret/path"):
        assert secret not in f"{failure.value}{caplog.text}{failure.value.to_fields()}"


def test_a_webhook_that_refuses_is_named_with_its_answer(hook: Webhook) -> None:
    hook.status = 503
    with pytest.raises(TransientError, match=r"(?s)receiver 1 of NOTIFY.*503"):
        send(receiver(hook.url), "s", "t", good=False)


@pytest.mark.parametrize("url", ["nosuch://topsecret/x", "mailto://:topsecret@", "slack://topsecret"])
def test_a_url_that_apprise_does_not_know(url: str) -> None:
    with pytest.raises(UserError, match="Apprise does not know such a URL") as failure:
        send(receiver(url), "s", "t", good=False)
    assert "topsecret" not in str(failure.value)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"])
def test_mail_does_not_go_through_a_proxy_and_a_webhook_of_no_proxy_neither(
    name: str, mailbox: Mailbox, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spelling in (name, name.lower()):
        monkeypatch.setenv(spelling, f"http://127.0.0.1:{free_port()}")  # nobody answers there
    send(receiver(mailbox.url), "s", "t", good=False)
    assert len(mailbox.mails) == 1
    if name != "HTTPS_PROXY":  # the tests' webhook has no https
        with pytest.raises(TransientError, match=r"could not be sent to receiver 1 of NOTIFY"):
            send(receiver(hook.url), "s", "t", good=False)
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    send(receiver(hook.url), "s", "t", good=False)
    assert len(hook.posts) == 1


def test_urls_are_apart_by_spaces_and_commas() -> None:
    assert split_urls(" mailto://a.org?to=b@c.org,d@e.org, json://f\n,slack://g/h/i/#chan,, ") == [
        "mailto://a.org?to=b@c.org,d@e.org",
        "json://f",
        "slack://g/h/i/#chan",
    ]
    assert split_urls("") == split_urls(" , ") == []


def test_a_local_airflow_takes_the_same_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "AIRFLOW_CONN_NOTIFY_DEFAULT" not in local_environment(tmp_path, 9)
    monkeypatch.setenv("NOTIFY", "json://a.org/topsecret")
    connection = json.loads(local_environment(tmp_path, 9)["AIRFLOW_CONN_NOTIFY_DEFAULT"])
    assert connection["password"] == "json://a.org/topsecret"


def test_receivers_come_from_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", Fernet.generate_key().decode())
    assert receivers() == []
    urls = "json://a.org/topsecret mailto://u:topsecret@b.org"
    monkeypatch.setenv("AIRFLOW_CONN_NOTIFY_DEFAULT", json.dumps({"conn_type": "generic", "password": urls}))
    first, second = receivers()
    assert (first.name, second.name) == ("receiver 1 of NOTIFY (json)", "receiver 2 of NOTIFY (mailto)")
    assert (first.url, second.url) == tuple(urls.split())
    assert first.key == receivers()[0].key != second.key
    assert "topsecret" not in f"{first} {first!r} {first.key}"
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", Fernet.generate_key().decode())
    assert receivers()[0].key != first.key  # nobody can try URLs until the key fits
