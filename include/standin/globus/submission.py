"""Reads transfer and delete documents: what is accepted becomes a task, what is not is refused."""

from __future__ import annotations

import time
import uuid
from typing import Any

from standin.globus import times
from standin.globus.collections import BadPathError, Collection, Collections, normalize
from standin.globus.copying import ALGORITHMS
from standin.globus.errors import TransferError, bad_request
from standin.globus.model import DAY, Kind, Task

_MAX_LABEL_LENGTH = 128
_SYNC_LEVELS = (None, 0, 1, 2, 3)
_HEX_LENGTH = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}
_FLAGS = (
    "verify_checksum",
    "preserve_timestamp",
    "encrypt_data",
    "skip_source_errors",
    "fail_on_quota_errors",
    "delete_destination_extra",
    "recursive",
    "ignore_missing",
    "interpret_globs",
)
_LOCAL_USERS = ("source_local_user", "destination_local_user", "local_user")


def read_submission(
    document: Any, kind: Kind, owner_id: str, collections: Collections, task_seconds: float = DAY
) -> Task:
    """Make a task of a submitted document.

    :param task_seconds: how long it lives without progress, unless the document says.
    :raises TransferError: 400 for a document that cannot be read, 404 for an unknown endpoint.
    """
    expected = kind.lower()
    if not isinstance(document, dict) or document.get("DATA_TYPE") != expected:
        raise bad_request(f"The body must be a document with DATA_TYPE '{expected}'")
    asked = _common(document)
    if kind == "TRANSFER":
        asked |= _transfer(document, collections)
    else:
        asked |= _delete(document, collections)
    now = time.time()
    deadline = read_deadline(document.get("deadline"))
    return Task(
        task_id=str(uuid.uuid1()),
        submission_id=read_submission_id(document),
        owner_id=owner_id,
        kind=kind,
        document=asked,
        request_time=now,
        deadline=now + task_seconds if deadline is None else deadline,
        deadline_by_user=deadline is not None,
        label=read_label(document.get("label")),
    )


def read_label(label: Any) -> str | None:
    """A label, or None.

    :raises TransferError: 400 when it is too long, or has line breaks or blanks around it.
    """
    if label is None or label == "":
        return None
    if not isinstance(label, str) or len(label) > _MAX_LABEL_LENGTH:
        raise bad_request(f"Label must be a string of at most {_MAX_LABEL_LENGTH} characters")
    if "\n" in label or "\r" in label or label != label.strip():
        raise bad_request("Label must not contain line breaks, nor begin or end with blanks")
    return label


def read_deadline(text: Any) -> float | None:
    """A deadline, or None.

    :raises TransferError: 400 when it is not a time, or not in the future.
    """
    if text is None:
        return None
    try:
        deadline = times.parse(str(text))
    except ValueError as error:
        raise bad_request(f"Deadline {text!r} is not a date and time") from error
    if deadline <= time.time():
        raise bad_request(f"Deadline {text} is not in the future")
    return deadline


def read_submission_id(document: dict[str, Any]) -> str:
    """The submission id of a document.

    :raises TransferError: 400 when it is missing or not a UUID.
    """
    value = document.get("submission_id")
    if value is None:
        raise bad_request("submission_id is missing")
    try:
        return str(uuid.UUID(str(value)))
    except ValueError as error:
        raise bad_request(f"submission_id {value!r} is not a UUID") from error


def _common(document: dict[str, Any]) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for flag in _FLAGS:
        value = document.get(flag)
        if value is not None and not isinstance(value, bool):
            raise bad_request(f"'{flag}' must be true or false, not {value!r}")
        asked[flag] = bool(value)
    for name in _LOCAL_USERS:
        if document.get(name) is not None:
            asked[name] = str(document[name])
    return asked


def _transfer(document: dict[str, Any], collections: Collections) -> dict[str, Any]:
    source = collections.get(document.get("source_endpoint"))
    target = collections.get(document.get("destination_endpoint"))
    for collection in (source, target):
        _require_submissions(collection)
    level = document.get("sync_level")
    if isinstance(level, bool) or level not in _SYNC_LEVELS:
        raise bad_request(f"sync_level must be a number from 0 to 3, not {level!r}")
    return {
        "source_endpoint": source.collection_id,
        "destination_endpoint": target.collection_id,
        "sync_level": level,
        "filter_rules": [_rule(rule) for rule in _list(document.get("filter_rules") or [], "filter_rules")]
        or None,
        "DATA": [_transfer_item(item) for item in _items(document, "transfer")],
    }


def _delete(document: dict[str, Any], collections: Collections) -> dict[str, Any]:
    collection = collections.get(document.get("endpoint"))
    _require_submissions(collection)
    items = []
    for item in _items(document, "delete"):
        if item.get("DATA_TYPE") != "delete_item":
            raise bad_request(f"Item has DATA_TYPE {item.get('DATA_TYPE')!r}; it must be 'delete_item'")
        items.append({"path": _path(item.get("path"))})
    return {"endpoint": collection.collection_id, "DATA": items}


def _require_submissions(collection: Collection) -> None:
    if collection.refuse_submissions:
        raise TransferError(
            409, "GCDisconnectedException", f"Globus Connect of '{collection.display_name}' is not connected"
        )


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise bad_request(f"'{name}' must be a list")
    return value


def _items(document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    items = _list(document.get("DATA", []), "DATA")
    if not items:
        raise bad_request(f"A {kind} requires at least one item", f"No{kind.capitalize()}Items")
    for item in items:
        if not isinstance(item, dict):
            raise bad_request("Each item must be a document")
    return items


def _transfer_item(item: dict[str, Any]) -> dict[str, Any]:
    if item.get("DATA_TYPE") != "transfer_item":
        raise bad_request(f"Item has DATA_TYPE {item.get('DATA_TYPE')!r}; it must be 'transfer_item'")
    recursive = item.get("recursive")
    if recursive is not None and not isinstance(recursive, bool):
        raise bad_request(f"'recursive' must be true or false, not {recursive!r}")
    algorithm = str(item.get("checksum_algorithm") or "md5").lower().replace("-", "")
    if algorithm not in ALGORITHMS:
        raise bad_request(f"checksum_algorithm must be one of {', '.join(ALGORITHMS).upper()}")
    checksum = item.get("external_checksum")
    if checksum is not None and (recursive or len(str(checksum)) != _HEX_LENGTH[algorithm]):
        raise bad_request(f"external_checksum must be the {algorithm.upper()} of a file, in hexadecimal")
    return {
        "source_path": _path(item.get("source_path")),
        "destination_path": _path(item.get("destination_path")),
        "source_is_folder": str(item.get("source_path")).endswith("/"),
        "target_is_folder": str(item.get("destination_path")).endswith("/"),
        "recursive": recursive,
        "external_checksum": checksum,
        "checksum_algorithm": algorithm,
    }


def _path(path: Any) -> str:
    try:
        return normalize(path)
    except BadPathError as error:
        raise bad_request(str(error)) from error


def _rule(rule: Any) -> dict[str, Any]:
    good = (
        isinstance(rule, dict)
        and rule.get("method", "exclude") in ("include", "exclude")
        and isinstance(rule.get("name"), str)
        and rule.get("type") in (None, "file", "dir")
    )
    if not good:
        raise bad_request(
            f"Filter rule {rule!r} needs a method (include, exclude), a name, a type (file, dir)"
        )
    return {"method": rule.get("method", "exclude"), "name": rule["name"], "type": rule.get("type")}
