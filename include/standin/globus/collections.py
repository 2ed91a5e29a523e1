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

Condition = Literal["up", "gc_not_connected", "endpoint_error"]
_LONGEST_PATH = 4096
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


def normalise(path: object) -> str:
    """A path from a request as an absolute path inside a collection, without a slash at the end.

    `~` and a path without a leading slash start at the root, which is the home of these collections.

    :raises BadPathError: for `..`, NUL, an empty path, one that is too long or not a string.
    """
    if not isinstance(path, str) or not path:
        raise BadPathError(f"Path must be a string that is not empty, not {path!r}")
    if "\r\n" in path:
        raise BadPathError(f"Path {path!r} contains a carriage return and line feed, which is not allowed")
    if "\0" in path or len(path.encode("utf-8", "surrogatepass")) > _LONGEST_PATH:
        raise BadPathError(f"Path has a NUL character or more than {_LONGEST_PATH} bytes")
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


@dataclass
class Collection:
    """One collection and the switches that tests set on it."""

    collection_id: str
    name: str
    display_name: str
    root: Path
    owner_id: str = ""
    condition: Condition = "up"
    refuse_submissions: bool = False
    needs_consent: bool = False
    denied: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    quota_left: float | None = None  # bytes that may still be written
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def local(self, path: str, *, follow: bool = True) -> Path:
        """The local path of a normalised path, symlinks resolved (the last one only if `follow`).

        :raises PermissionError: when a symlink leads out of the collection.
        """
        root = self.root.resolve()
        candidate = root / path.lstrip("/")
        if follow or candidate == root:
            real = candidate.resolve()
        else:
            real = candidate.parent.resolve() / candidate.name
        if real != root and root not in real.parents:
            raise PermissionError(errno.EACCES, "Path not allowed", path)
        return real

    def require(self, path: str, right: Literal["read", "write"]) -> None:
        """Check the permission that a switch may have taken away.

        :raises PermissionError: when the path lies in a folder that is denied.
        """
        pure = PurePosixPath(path)
        for prefix, rights in self.denied:
            if right in rights and pure.is_relative_to(prefix):
                raise PermissionError(errno.EACCES, "Permission denied", path)

    def require_up(self) -> None:
        """Check that the endpoint answers.

        :raises TaskFaultError: GC_NOT_CONNECTED or ENDPOINT_ERROR when it was switched off.
        """
        if self.condition == "gc_not_connected":
            raise TaskFaultError("GC_NOT_CONNECTED", f"{self.display_name}: Globus Connect is not connected")
        if self.condition == "endpoint_error":
            raise TaskFaultError("ENDPOINT_ERROR", f"{self.display_name}: the endpoint reported an error")

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
        return {
            "condition": self.condition,
            "refuse_submissions": self.refuse_submissions,
            "needs_consent": self.needs_consent,
            "denied": [[path, sorted(rights)] for path, rights in self.denied],
            "quota_left": self.quota_left,
        }

    def set_switches(self, switches: dict[str, Any]) -> None:
        """Set the switches to what was kept."""
        self.condition = switches["condition"]
        self.refuse_submissions = switches["refuse_submissions"]
        self.needs_consent = switches["needs_consent"]
        self.denied = [(path, frozenset(rights)) for path, rights in switches["denied"]]
        self.quota_left = switches["quota_left"]

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
        """The collection with that id.

        :raises TransferError: 400 when it is not a string, 404 when there is none.
        """
        if not isinstance(collection_id, str):
            raise bad_request(f"Endpoint id must be a string, not {collection_id!r}")
        for collection in self.all:
            if collection.collection_id == collection_id.lower():
                return collection
        raise TransferError(404, "EndpointNotFound", f"No such endpoint '{collection_id}'")

    def named(self, name: object) -> Collection | None:
        """The collection with that name or id, if there is one."""
        for collection in self.all:
            if name in (collection.name, collection.collection_id):
                return collection
        return None
