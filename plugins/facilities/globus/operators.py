"""Operators that have Globus move and remove files, exactly once for each Airflow task.

A task that is retried or cleared takes its Globus task up again; a failed one is submitted anew. A
task that is ended in Airflow (marked failed, success or skipped) has its Globus task cancelled.
While Globus cannot be reached the task waits, deferred; it does not fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

from facilities.errors import InfrastructureError, NotFoundError, UserError
from facilities.globus.documents import FileEntry, TaskSnapshot
from facilities.globus.requests import (
    DeleteRequest,
    Request,
    TransferRequest,
    check_collection,
    check_path,
    check_sync_level,
)
from facilities.globus.task_operator import GlobusTaskOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


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

    A missing source is told before anything is submitted. After success the destination is checked:
    it is there, and a file has its source's size. Besides those of `GlobusTaskOperator`:

    :param source_collection: UUID of the collection to read.
    :param source_path: file or folder on it, from its root.
    :param destination_collection: UUID of the collection to write.
    :param destination_path: full path of the file or folder to be; folders above it are made.
    :param recursive: whether the source is a folder; None to look.
    :param sync_level: what makes Globus copy a file that is there already: `exists` (never), another
        `size`, a newer `mtime`, another `checksum`.
    :param verify_checksum: compare checksums after the copy.
    :param preserve_timestamp: keep the modification time.
    :param skip_source_errors: go on without source files that are missing or unreadable.
    :param fail_on_skipped: fail when files were left out for that reason.

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
        recursive: bool | None = None,
        sync_level: str = "checksum",
        verify_checksum: bool = True,
        preserve_timestamp: bool = True,
        skip_source_errors: bool = False,
        fail_on_skipped: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source_collection = source_collection
        self.source_path = source_path
        self.destination_collection = destination_collection
        self.destination_path = destination_path
        self.recursive = recursive
        self.sync_level = sync_level
        self.verify_checksum = verify_checksum
        self.preserve_timestamp = preserve_timestamp
        self.skip_source_errors = skip_source_errors
        self.fail_on_skipped = fail_on_skipped

    def make_request(self, context: Context) -> TransferRequest:
        """Check the arguments and put the request together."""
        request = TransferRequest(
            source_collection=check_collection(self.source_collection, "source_collection"),
            source_path=check_path(self.source_path, "source_path"),
            destination_collection=check_collection(self.destination_collection, "destination_collection"),
            destination_path=check_path(self.destination_path, "destination_path"),
            label="",
            recursive=self.recursive,
            sync_level=check_sync_level(self.sync_level),
            verify_checksum=self.verify_checksum,
            preserve_timestamp=self.preserve_timestamp,
            skip_source_errors=self.skip_source_errors,
        )
        return replace(request, label=self.make_label(context, request.fingerprint))

    def prepare(self, request: Request) -> tuple[Request, int | None]:
        """Look at the source: it must exist, and tells whether to copy a folder."""
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
        is_folder = source.type == "dir"
        if self.recursive is not None and self.recursive != is_folder:
            raise UserError(
                f"{request.source_path} is a {source.type}, but recursive is {self.recursive}",
                remote_id=request.source_collection,
                next_step="leave recursive out, or correct it. Nothing was submitted.",
            )
        if not is_folder and request.destination_path.endswith("/"):
            raise UserError(
                f"destination_path {request.destination_path!r} is a folder, but the source is a file",
                remote_id=request.destination_collection,
                next_step="give the full path of the file to be. Nothing was submitted.",
            )
        return replace(request, recursive=is_folder), None if is_folder else source.size

    def conclude(self, request: Request, task: TaskSnapshot) -> TransferResult:
        """Check what a successful transfer left behind."""
        assert isinstance(request, TransferRequest)  # noqa: S101 - make_request made it
        if task.skipped_errors and self.fail_on_skipped:
            raise UserError(
                f"The transfer left out {task.skipped_errors} of its files",
                remote_id=task.task_id,
                state=task.state,
                next_step="make them readable at the source, then clear the task.",
                details="\n".join(self.hook.skipped_errors(task.task_id)),
            )
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
        there = self._find(request.destination_collection, request.destination_path)
        if there is None:
            raise InfrastructureError(
                f"Globus reports success, but there is no {request.destination_path} on the destination",
                remote_id=task.task_id,
                state=task.state,
                next_step="the next try copies it again; if that is in vain look at the destination.",
            )
        if there.type != "file":
            return
        source = self._find(request.source_collection, request.source_path)
        if source is None:
            self.log.warning("%s is not at the source any more: sizes not compared.", request.source_path)
        elif source.size != there.size:
            raise InfrastructureError(
                f"{request.destination_path} has {there.size} bytes, its source has {source.size}: "
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
    """Remove a file or a folder from a collection. Besides those of `GlobusTaskOperator`:

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

    def make_request(self, context: Context) -> DeleteRequest:
        """Check the arguments and put the request together."""
        path = check_path(self.path, "path")
        if path.strip("/") in ("", "~"):
            raise UserError("A collection's root is never removed", next_step="give a path below it.")
        request = DeleteRequest(
            collection=check_collection(self.collection, "collection"),
            path=path,
            label="",
            recursive=self.recursive,
            ignore_missing=self.ignore_missing,
        )
        return replace(request, label=self.make_label(context, request.fingerprint))

    def conclude(self, request: Request, task: TaskSnapshot) -> DeleteResult:
        """A successful delete leaves nothing to check."""
        assert isinstance(request, DeleteRequest)  # noqa: S101 - make_request made it
        return DeleteResult(task_id=task.task_id, path=request.path, seconds=task.seconds)
