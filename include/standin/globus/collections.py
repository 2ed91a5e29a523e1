"""Collections: folders with an id, and the rule that no path leads out of them."""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from standin.globus.errors import TaskFaultError, TransferError, bad_request
from standin.settings import Settings

DATA7012 = "741b96e1-1b98-42a8-918d-daacc24c145f"
NERSC7012 = "d40248e6-d874-4f7b-badd-2c06c16f1a58"

Condition = Literal["up", "connect_failed", "gc_not_connected", "endpoint_error", "deleted"]
Refusal = Literal["no_account", "session", "policy"]
PAUSABLE = ("ls", "mkdir", "rename", "task_delete", "task_transfer_read", "task_transfer_write")
_MAX_PATH_LENGTH = 4096
_UNSET = (  # of the endpoint document
    "gcp_connected",
    "gcp_paused",
    "host_endpoint_id",
    "host_path",
    "subscription_id",
    "contact_email",
    "contact_info",
    "department",
    "info_link",
    "user_message",
    "user_message_link",
    "tlsftp_server",
    "https_server",
)


class BadPathError(ValueError):
    """A path that no collection accepts; the message says why."""


def normalize(path: object) -> str:
    """A path from a request as an absolute path inside a collection, without a slash at the end.

    `~` and a path without a leading slash start at the root, which is the home of these collections.

    :raises BadPathError: for `..`, NUL, an empty path, one that is too long or not a string.
    """
    if not isinstance(path, str) or not path:
        raise BadPathError(f"Path must be a string that is not empty, not {path!r}")
    if "\r\n" in path:
        raise BadPathError(f"Path {path!r} contains a carriage return and line feed, which is not allowed")
    if "\0" in path or len(path.encode("utf-8", "surrogatepass")) > _MAX_PATH_LENGTH:
        raise BadPathError(f"Path has a NUL character or more than {_MAX_PATH_LENGTH} bytes")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if parts and parts[0] == "~" and path.startswith(("~", "/~")):
        parts = parts[1:]
    if ".." in parts:
        raise BadPathError(f"Path {path!r} contains '..', which is not allowed")
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadPathError("Path is not valid Unicode") from error
    return "/" + "/".join(parts)


@dataclass(frozen=True)
class Outage:
    """An endpoint that does not work: a running task's fault, the end of a listing's code, and the words."""

    fault: str
    listing: str
    action: str
    message: str


OUTAGES: dict[Condition, Outage] = {
    "connect_failed": Outage("CONNECT_FAILED", "ConnectFailed", "connect", "Could not connect to server"),
    "gc_not_connected": Outage(
        "GC_NOT_CONNECTED", "GCDisconnected", "connect", "Globus Connect is not connected"
    ),
    "endpoint_error": Outage("ENDPOINT_ERROR", "", "list", "Fatal FTP response"),
    "deleted": Outage("ENDPOINT_ERROR", "", "connect", "The endpoint has been deleted"),
}


@dataclass
class Collection:
    """One collection and the switches that tests set on it.

    :param refusal: why nobody may log in: the client has no account there, its session does not do, or an
        authentication policy is not met; `requires` is then what Globus calls `authorization_parameters`.
    :param pause_rule: the rule of the collection's manager, as the API shows it.
    :param denied: rights that are denied, by path.
    :param quota_left: bytes that may still be written.
    """

    collection_id: str
    name: str
    display_name: str
    root: Path
    owner_id: str = ""
    condition: Condition = "up"
    refuse_submissions: bool = False
    needs_consent: bool = False
    refusal: Refusal | None = None
    requires: dict[str, Any] = field(default_factory=dict)
    pause_rule: dict[str, Any] | None = None
    denied: dict[str, list[str]] = field(default_factory=dict)
    quota_left: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def local(self, path: str, *, follow: bool = True) -> Path:
        """The local path of a normalized path, symlinks resolved (the last one only if `follow`).

        :raises PermissionError: when a symlink leads out of the collection.
        :raises OSError: ELOOP when symlinks lead in a circle.
        """
        root = self.root.resolve()
        candidate = root / path.lstrip("/")
        try:
            if follow or candidate == root:
                real = candidate.resolve()
            else:
                real = candidate.parent.resolve() / candidate.name
        except RuntimeError as error:  # how pathlib says it
            raise OSError(errno.ELOOP, "Too many levels of symbolic links", path) from error
        if real != root and root not in real.parents:
            raise PermissionError(errno.EACCES, "Path not allowed", path)
        return real

    def require(self, path: str, right: Literal["read", "write"]) -> None:
        """Check the permission that a switch may have taken away.

        :raises PermissionError: when the path lies in a folder that is denied.
        """
        pure = PurePosixPath(path)
        for prefix, rights in self.denied.items():
            if right in rights and pure.is_relative_to(prefix):
                raise PermissionError(errno.EACCES, "Permission denied", path)

    def require_usable(self) -> None:
        """Check that a running task may go on: the endpoint answers, and lets the client in.

        :raises TaskFaultError: that of the outage, or NO_CREDENTIALS.
        """
        outage = OUTAGES.get(self.condition)
        if outage is not None:
            raise TaskFaultError(outage.fault, self.report(outage.action, outage.message))
        if self.refusal is not None:
            raise TaskFaultError("NO_CREDENTIALS", self.report("login", "Login Failed"))

    def pauses(self, operation: str) -> bool:
        """Whether the manager's rule pauses an operation, one of `PAUSABLE`."""
        return self.pause_rule is not None and bool(self.pause_rule[f"pause_{operation}"])

    def report(self, action: str, message: str, details: str = "") -> str:
        """What went wrong there, in the form in which Globus puts it into errors and events."""
        return (
            f"Error ({action})\nEndpoint: {self.display_name} ({self.collection_id})\n"
            f"Server: 127.0.0.1:443\nMessage: {message}\n---\nDetails: {details or message}"
        )

    def charge(self, size: int) -> None:
        """Count bytes against the quota.

        :raises OSError: EDQUOT when they do not fit.
        """
        with self._lock:
            if self.quota_left is None:
                return
            if size > self.quota_left:
                raise OSError(errno.EDQUOT, "Disk quota exceeded")
            self.quota_left -= size

    def refund(self, size: int) -> None:
        """Give bytes back that were charged and not written after all."""
        with self._lock:
            if self.quota_left is not None:
                self.quota_left += size

    def switches(self) -> dict[str, Any]:
        """The switches, as they are kept over a restart."""
        return {name: getattr(self, name) for name in _SWITCHES}

    def set_switches(self, switches: dict[str, Any]) -> None:
        """Set the switches to what was kept."""
        for name in _SWITCHES:
            if name in switches:
                setattr(self, name, switches[name])

    def to_json(self) -> dict[str, Any]:
        """The endpoint document."""
        kind = "GCSv5_mapped_collection" if self.needs_consent else "GCSv5_guest_collection"
        return {
            "DATA_TYPE": "endpoint",
            "id": self.collection_id,
            "canonical_name": f"u_standin#{self.collection_id}",
            "display_name": self.display_name,
            "name": self.name,
            "organization": "Stand-in facility",
            "description": f"The folder {self.name} of a local stand-in facility",
            "owner_id": self.owner_id,
            "owner_string": f"{self.owner_id}@clients.auth.globus.org",
            "entity_type": kind,
            "high_assurance": False,
            "mfa_required": False,
            "public": False,
            "default_directory": "/",
            "is_globus_connect": False,
            "keywords": [],
            **dict.fromkeys(_UNSET),
            "disable_verify": False,
            "force_verify": False,
            "force_encryption": False,
            "non_functional": False,
            "shareable": False,
            "acl_available": False,
            "acl_editable": False,
            "in_use": False,
            "DATA": [],
        }


_SWITCHES = (
    "condition",
    "refuse_submissions",
    "needs_consent",
    "refusal",
    "requires",
    "pause_rule",
    "denied",
    "quota_left",
)


class Collections:
    """The collections of a facility, by id and by name."""

    def __init__(self, settings: Settings, owner_id: str) -> None:
        beamline = Collection(
            DATA7012, "data7012", "ALS BL7.0.1.2 (stand-in)", settings.beamline_collection, owner_id
        )
        nersc = Collection(
            NERSC7012,
            "nersc7012",
            "NERSC ALS data mover 7012 (stand-in)",
            settings.nersc_collection,
            owner_id,
        )
        self.all = [beamline, nersc]

    def get(self, collection_id: object) -> Collection:
        """The collection with the id that a request names.

        :raises TransferError: 400 when it is not a string, 404 when there is none, or none any more.
        """
        if not isinstance(collection_id, str):
            raise bad_request(f"Endpoint id must be a string, not {collection_id!r}")
        wanted = collection_id.lower()
        if wanted not in (c.collection_id for c in self.all):
            raise TransferError(404, "EndpointNotFound", f"No such endpoint '{collection_id}'")
        collection = self[wanted]
        if collection.condition == "deleted":
            raise TransferError(404, "EndpointDeleted", f"Endpoint '{collection_id}' has been deleted")
        return collection

    def __getitem__(self, collection_id: str) -> Collection:
        """The collection of an accepted task, deleted or not."""
        return next(c for c in self.all if c.collection_id == collection_id)

    def named(self, name: object) -> Collection | None:
        """The collection with that name or id, if there is one."""
        for collection in self.all:
            if name in (collection.name, collection.collection_id):
                return collection
        return None
