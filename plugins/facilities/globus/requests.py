"""What is asked of Globus: checked paths, collections and labels, and the documents to submit.

Nothing here talks to the network.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import uuid
from dataclasses import dataclass, field
from typing import Literal, get_args

import globus_sdk

from facilities.errors import UserError
from facilities.owners import Owner

SyncLevel = Literal["exists", "size", "mtime", "checksum"]

LABEL_LIMIT = 128
_PATH_LIMIT = 4096
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NOT_LABEL = re.compile(r"[^A-Za-z0-9._ -]+")


@dataclass(frozen=True)
class TransferRequest:
    """A file or folder to be copied. Every field has been checked."""

    source_collection: str
    source_path: str
    destination_collection: str
    destination_path: str
    label: str
    recursive: bool | None = None  # None: not known yet
    sync_level: SyncLevel = "checksum"
    verify_checksum: bool = True
    preserve_timestamp: bool = True
    skip_source_errors: bool = False

    kind: Literal["TRANSFER"] = field(default="TRANSFER", init=False)

    @property
    def fingerprint(self) -> str:
        """Same for the same work, whatever the label."""
        return _digest(
            self.kind,
            self.source_collection,
            self.source_path,
            self.destination_collection,
            self.destination_path,
            self.sync_level,
        )

    def document(self, submission_id: str) -> globus_sdk.TransferData:
        """Document for POST /transfer.

        No deadline is sent: Globus's own moves on while bytes arrive, and does not depend on our
        clock. A full quota fails the task instead of leaving it to hang. Nobody reads the client's mail.
        """
        data = globus_sdk.TransferData(
            self.source_collection,
            self.destination_collection,
            label=self.label,
            submission_id=submission_id,
            sync_level=self.sync_level,
            verify_checksum=self.verify_checksum,
            preserve_timestamp=self.preserve_timestamp,
            skip_source_errors=self.skip_source_errors,
            fail_on_quota_errors=True,
            notify_on_succeeded=False,
            notify_on_failed=False,
            notify_on_inactive=False,
        )
        recursive = globus_sdk.MISSING if self.recursive is None else self.recursive
        data.add_item(self.source_path, self.destination_path, recursive=recursive)
        return data

    def __str__(self) -> str:
        return (
            f"{self.source_path} on {self.source_collection} to "
            f"{self.destination_path} on {self.destination_collection}"
        )


@dataclass(frozen=True)
class DeleteRequest:
    """A file or folder to be removed. Every field has been checked."""

    collection: str
    path: str
    label: str
    recursive: bool = False
    ignore_missing: bool = True

    kind: Literal["DELETE"] = field(default="DELETE", init=False)

    @property
    def fingerprint(self) -> str:
        """Same for the same work, whatever the label."""
        return _digest(self.kind, self.collection, self.path, str(self.recursive))

    def document(self, submission_id: str) -> globus_sdk.DeleteData:
        """Document for POST /delete."""
        data = globus_sdk.DeleteData(
            self.collection,
            label=self.label,
            submission_id=submission_id,
            recursive=self.recursive,
            ignore_missing=self.ignore_missing,
            interpret_globs=False,
            notify_on_succeeded=False,
            notify_on_failed=False,
            notify_on_inactive=False,
        )
        data.add_item(self.path)
        return data

    def __str__(self) -> str:
        return f"{self.path} on {self.collection}"


Request = TransferRequest | DeleteRequest


def check_collection(value: object, name: str) -> str:
    """Return a collection's id in its usual form.

    :raises UserError: when it is no UUID.
    """
    try:
        return str(uuid.UUID(str(value).strip()))
    except ValueError:
        raise UserError(
            f"{name} {value!r} is not a Globus collection's id",
            next_step="give the UUID that the collection's page at https://app.globus.org shows.",
        ) from None


def check_task_id(value: object) -> str:
    """Return a task's id, safe to be put into a URL.

    :raises UserError: when it is no UUID.
    """
    try:
        return str(uuid.UUID(str(value)))
    except ValueError:
        raise UserError(f"{value!r} is not a Globus task's id", next_step="give a task's UUID.") from None


def check_path(value: object, name: str) -> str:
    """Return a path on a collection, normalised, from the collection's root (or its home, `/~/`).

    A slash at the end, which marks a folder, is kept.

    :raises UserError: when it is empty, climbs with `..`, has control characters or is too long.
    """
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name} is empty", next_step="give a path on the collection.")
    if _CONTROL.search(value) or not _encodes(value):
        raise UserError(f"{name} {value!r} has control characters", next_step="give a printable path.")
    if ".." in value.split("/"):
        raise UserError(f"{name} {value!r} climbs out with '..'", next_step="give the path without '..'.")
    if len(value.encode()) > _PATH_LIMIT:
        raise UserError(f"{name} is longer than {_PATH_LIMIT} bytes", next_step="give a shorter path.")
    path = "/" + posixpath.normpath(value).lstrip("/")
    if path == "/.":
        path = "/"
    return path + "/" if value.endswith("/") and not path.endswith("/") else path


def check_sync_level(value: object) -> SyncLevel:
    """Return a sync level.

    :raises UserError: when Globus has no such level.
    """
    for level in get_args(SyncLevel):
        if value == level:
            return level  # type: ignore[no-any-return]  # get_args is not typed
    raise UserError(
        f"sync_level {value!r} is unknown", next_step=f"choose one of {', '.join(get_args(SyncLevel))}."
    )


def make_label(base: str, owner: Owner, fingerprint: str) -> str:
    """Label of at most 128 plain characters that is the same for the same owner and work, and for no other.

    Plain, because Globus's filters give `/`, `:`, `,`, `~`, `=` and `!` a meaning. It ends in the owner's
    hash and the work's.
    """
    end = f"-{owner.digest}-{fingerprint[:8]}"
    plain = _NOT_LABEL.sub("_", base).strip()[: LABEL_LIMIT - len(end)].strip()
    return (plain or "task") + end


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
