"""The operators that have Globus move and remove files; what they have in common is in `task_operator`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypedDict

from facilities.errors import (
    InfrastructureError,
    NotFoundError,
    UserError,
)
from facilities.globus.model import (
    FileEntry,
    TaskSnapshot,
    check_collection,
    check_path,
)
from facilities.globus.submission import (
    DeleteRequest,
    Request,
    TransferRequest,
    check_sync_level,
)
from facilities.globus.task_operator import GlobusTaskOperator

_ODD = {"invalid_symlink": "a broken symbolic link", "pipe": "a pipe", "chr": "a device", "blk": "a device"}
"""What an entry is that Globus cannot copy."""


class TransferResult(TypedDict):
    """What a transfer did. Sizes in bytes, rate in bytes/s, seconds by Globus's clock.

    `files` and `bytes` are what this Globus task moved: 0 when the destination was up to date.
    """

    task_id: str
    bytes: int
    files: int
    files_skipped: int  # were there already
    faults: int
    seconds: float | None
    rate: float
    source_path: str
    destination_path: str


class GlobusTransferOperator(GlobusTaskOperator):
    """Copy a file or a folder from one collection to another.

    Example::

        GlobusTransferOperator(
            task_id="copy",
            source_collection="639c49be-604f-423c-9c5d-82a53afe1bf1",
            source_path="/2023/02/scan.cxi",
            destination_collection="df82346e-9a15-11ea-b3c4-0ae144191ee3",
            destination_path="/scans/scan.cxi",
            timeout=timedelta(hours=12),
        )

    A missing source fails the task before anything is submitted. After success the destination is checked:
    it is there, and a file has its source's size. Besides the parameters of `GlobusTaskOperator`:

    :param source_collection: UUID of the collection to read.
    :param source_path: file or folder on it, from its root.
    :param destination_collection: UUID of the collection to write.
    :param destination_path: full path of the file or folder to be; folders above it are made.
    :param sync_level: what makes Globus copy a file that is there already: `exists` (never), another
        `size`, a newer `mtime`, another `checksum`.

    Returns a `TransferResult`.
    """

    template_fields: Sequence[str] = (
        *GlobusTaskOperator.template_fields,
        "source_collection",
        "source_path",
        "destination_collection",
        "destination_path",
        "sync_level",
    )

    def __init__(
        self,
        *,
        source_collection: str,
        source_path: str,
        destination_collection: str,
        destination_path: str,
        sync_level: str = "checksum",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source_collection = source_collection
        self.source_path = source_path
        self.destination_collection = destination_collection
        self.destination_path = destination_path
        self.sync_level = sync_level

    def make_request(self) -> TransferRequest:
        return TransferRequest(
            source_collection=check_collection(self.source_collection, "source_collection"),
            source_path=check_path(self.source_path, "source_path"),
            destination_collection=check_collection(self.destination_collection, "destination_collection"),
            destination_path=check_path(self.destination_path, "destination_path"),
            label="",
            sync_level=check_sync_level(self.sync_level),
        )

    def prepare(self, request: Request) -> tuple[Request, int | None]:
        """Look at the source: it must exist; a folder is copied with all that is in it."""
        assert isinstance(request, TransferRequest)  # noqa: S101 - make_request made it
        try:
            source = self.hook.stat(request.source_collection, request.source_path)
        except NotFoundError as error:
            raise NotFoundError(
                f"There is no {request.source_path} on the source collection",
                remote_id=request.source_collection,
                next_step="check the path and that the file has been written there, then clear the task. "
                "Nothing was submitted.",
                details=error.details,
            ) from error
        if source.type not in ("file", "dir"):
            odd = _ODD.get(source.type, f"of type {source.type}")
            raise UserError(
                f"{request.source_path} on the source collection is {odd}, not a file or a folder",
                remote_id=request.source_collection,
                state=source.type,
                next_step="put the file itself there, then clear the task. Nothing was submitted.",
            )
        is_folder = source.type == "dir"
        if not is_folder and request.destination_path.endswith("/"):
            raise UserError(
                f"destination_path {request.destination_path!r} is a folder, but the source is a file",
                remote_id=request.destination_collection,
                next_step="give the full path of the file to be. Nothing was submitted.",
            )
        return replace(request, recursive=is_folder), None if is_folder else source.size

    def conclude(self, request: Request, task: TaskSnapshot) -> TransferResult:
        assert isinstance(request, TransferRequest)  # noqa: S101 - make_request made it
        self._check_destination(request, task)
        return TransferResult(
            task_id=task.task_id,
            bytes=task.bytes_transferred,
            files=task.files_transferred,
            files_skipped=task.files_skipped,
            faults=task.faults,
            seconds=task.seconds,
            rate=task.rate,
            source_path=request.source_path,
            destination_path=request.destination_path,
        )

    def _check_destination(self, request: TransferRequest, task: TaskSnapshot) -> None:
        copy = self._find(request.destination_collection, request.destination_path)
        if copy is None:
            raise InfrastructureError(
                f"Globus reports success, but there is no {request.destination_path} on the destination",
                remote_id=task.task_id,
                state=task.state,
                next_step="the next try copies it again; if that is in vain look at the destination.",
            )
        if copy.type != "file":
            return
        source = self._find(request.source_collection, request.source_path)
        if source is None:
            self.log.warning("%s is not at the source any more: sizes not compared.", request.source_path)
        elif source.size != copy.size:
            raise InfrastructureError(
                f"{request.destination_path} has {copy.size} bytes, its source has {source.size}: "
                "the source was written to during the transfer, or the copy is damaged",
                remote_id=task.task_id,
                state=task.state,
                next_step="the next try copies it again; make sure that the file is complete.",
            )

    def _find(self, collection: str, path: str) -> FileEntry | None:
        try:
            return self.hook.stat(collection, path)
        except NotFoundError:
            return None


class DeleteResult(TypedDict):
    """What a delete did."""

    task_id: str
    path: str
    seconds: float | None


class GlobusDeleteOperator(GlobusTaskOperator):
    """Remove a file or a folder from a collection.

    Example::

        GlobusDeleteOperator(
            task_id="remove",
            collection="df82346e-9a15-11ea-b3c4-0ae144191ee3",
            path="/scans/test.txt",
        )

    Besides the parameters of `GlobusTaskOperator`:

    :param collection: UUID of the collection.
    :param path: file or folder on it, from its root. Never the root itself.
    :param recursive: remove a folder with all that is in it.
    :param ignore_missing: a path that is not there is a success.

    Returns a `DeleteResult`.
    """

    template_fields: Sequence[str] = (*GlobusTaskOperator.template_fields, "collection", "path")

    def __init__(
        self,
        *,
        collection: str,
        path: str,
        recursive: bool = False,
        ignore_missing: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.collection = collection
        self.path = path
        self.recursive = recursive
        self.ignore_missing = ignore_missing

    def make_request(self) -> DeleteRequest:
        path = check_path(self.path, "path")
        if path.strip("/") in ("", "~"):
            raise UserError("A collection's root is never removed", next_step="give a path below it.")
        return DeleteRequest(
            collection=check_collection(self.collection, "collection"),
            path=path,
            label="",
            recursive=self.recursive,
            ignore_missing=self.ignore_missing,
        )

    def conclude(self, request: Request, task: TaskSnapshot) -> DeleteResult:
        assert isinstance(request, DeleteRequest)  # noqa: S101 - make_request made it
        return DeleteResult(task_id=task.task_id, path=request.path, seconds=task.seconds)
