"""Reading Globus's replies: what is not as it should be is a passing failure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from facilities.errors import TransientError
from facilities.globus.sdk_errors import Call, unreadable


def read_json(reply: Any, call: Call) -> Any:
    """The JSON object of a reply.

    :raises TransientError: when it is none; `LostReplyError` for a call that changes something.
    """
    data = getattr(reply, "data", None)
    if not isinstance(data, Mapping):
        raise unreadable(call, f"HTTP {reply.http_status}, {reply.content_type or 'no content type'}")
    return data


def read_field(reply: Mapping[str, Any], key: str, what: str) -> str:
    """A text that a reply must have.

    :raises TransientError: when it does not.
    """
    value = reply.get(key)
    if not isinstance(value, str) or not value:
        raise TransientError(f"Globus: {what} was answered without a {key}")
    return value


def read_documents(reply: Mapping[str, Any], what: str) -> list[Any]:
    """The documents of a list.

    :raises TransientError: when the reply is no list.
    """
    documents = reply.get("DATA")
    if not isinstance(documents, list):
        raise TransientError(f"Globus: {what} was answered without a list")
    return documents


def read_pauses(pause: Mapping[str, Any]) -> list[str]:
    """Why a task is paused: messages of its two collections' managers, and of their rules."""
    rules = pause.get("pause_rules")
    rules = rules if isinstance(rules, list) else []
    messages = [rule.get("message") for rule in rules if isinstance(rule, Mapping)]
    messages += [value for key, value in pause.items() if "pause_message" in key]
    return [f"paused: {message}" for message in messages if isinstance(message, str) and message]


def describe_event(document: object) -> str:
    """One line about an event of a task; empty for what is none."""
    if not isinstance(document, Mapping):
        return ""
    details = document.get("details")
    text = details if isinstance(details, str) else json.dumps(details)
    return f"{document.get('code')} at {document.get('time')}: {document.get('description')}; {text}"
