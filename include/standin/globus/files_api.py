"""Serves Transfer's endpoint document and file operations: ls, stat, mkdir, rename."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

from aiohttp import web

from standin.globus import filters
from standin.globus.access import Operation, require_operation
from standin.globus.auth import Auth
from standin.globus.collections import BadPathError, Collection, Collections, normalize
from standin.globus.errors import TransferError, bad_request
from standin.globus.listing import file_document, is_part, list_folder
from standin.globus.transport import PREFIX, handler, read_document, result

MAX_ENTRIES = 100_000
_SORT_KEYS = ("name", "type", "size", "last_modified", "user", "group", "permissions")
_FILTERS: dict[str, filters.ClauseMaker] = {
    "name": filters.text_test,
    "type": filters.text_test,
    "user": filters.text_test,
    "group": filters.text_test,
    "permissions": filters.text_test,
    "size": filters.number_test,
    "last_modified": filters.range_test,
}


class FilesApi:
    """Routes that look at or change a collection's files in the foreground."""

    def __init__(self, auth: Auth, collections: Collections) -> None:
        self._auth = auth
        self._collections = collections

    def add_routes(self, app: web.Application) -> None:
        """Add the routes."""
        version = f"{PREFIX}/v0.10"
        operation = f"{version}/operation/endpoint/{{endpoint}}"
        endpoint = f"{version}/endpoint/{{endpoint}}"
        app.router.add_get(endpoint, handler(self._auth, self._endpoint))
        app.router.add_get(f"{endpoint}/my_effective_pause_rule_list", handler(self._auth, self._pause_rules))
        app.router.add_get(f"{operation}/ls", handler(self._auth, self._ls))
        app.router.add_get(f"{operation}/stat", handler(self._auth, self._stat))
        app.router.add_post(f"{operation}/mkdir", handler(self._auth, self._mkdir))
        app.router.add_post(f"{operation}/rename", handler(self._auth, self._rename))

    async def _endpoint(self, request: web.Request, _owner: str) -> dict[str, Any]:
        return self._collections.get(request.match_info["endpoint"]).to_json()

    async def _pause_rules(self, request: web.Request, _owner: str) -> dict[str, Any]:
        rule = self._collections.get(request.match_info["endpoint"]).pause_rule
        return {"DATA_TYPE": "pause_rule_limited_list", "DATA": [rule] if rule else []}

    async def _ls(self, request: web.Request, owner: str) -> dict[str, Any]:
        collection = self._usable(request, owner, "ls")
        path = _path(request.query.get("path", "/"))
        limit, offset = filters.page_bounds(request.query, default=MAX_ENTRIES, maximum=MAX_ENTRIES)
        wanted = [filters.parse_filter(text, _FILTERS) for text in request.query.getall("filter", [])]
        show_hidden = request.query.get("show_hidden", "1").lower() not in ("0", "false")

        def work() -> list[dict[str, Any]]:
            collection.require(path, "read")
            entries = list_folder(collection.local(path), show_hidden=show_hidden)
            if wanted:
                entries = [e for e in entries if any(all(t(e) for t in w.values()) for w in wanted)]
            return filters.order(entries, request.query.get("orderby"), _SORT_KEYS)

        try:
            entries = await asyncio.to_thread(work)
        except OSError as error:
            raise _listing_error(error, path, collection) from error
        page = entries[offset : offset + limit]
        shown = path.rstrip("/") + "/"
        return {
            "DATA_TYPE": "file_list",
            "DATA": page,
            "endpoint": collection.collection_id,
            "path": shown,
            "absolute_path": shown,
            "length": len(page),
            "limit": limit,
            "offset": offset,
            "total": len(entries),
            "rename_supported": True,
            "symlink_supported": False,
        }

    async def _stat(self, request: web.Request, owner: str) -> dict[str, Any]:
        collection = self._usable(request, owner, "stat")
        path = _path(request.query.get("path"))

        def work() -> dict[str, Any]:
            collection.require(path, "read")
            shown = collection.local(path, follow=False)
            try:
                collection.local(path)
            except OSError as error:
                if error.errno != errno.ELOOP:  # a link in a circle is a broken one, and leads nowhere
                    raise
            return file_document(shown, shown.name if path != "/" else "/")

        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise _stat_error(error, path, collection) from error

    async def _mkdir(self, request: web.Request, owner: str) -> dict[str, Any]:
        collection = self._usable(request, owner, "mkdir")
        document = await read_document(request)
        path = _path(document.get("path"))

        def work() -> None:
            collection.require(path, "write")
            collection.local(path).mkdir()

        try:
            await asyncio.to_thread(work)
        except OSError as error:
            raise _operation_error(error, path, collection, "MkdirFailed") from error
        return result(request, "DirectoryCreated", "The directory was created successfully", "mkdir_result")

    async def _rename(self, request: web.Request, owner: str) -> dict[str, Any]:
        collection = self._usable(request, owner, "rename")
        document = await read_document(request)
        old, new = _path(document.get("old_path")), _path(document.get("new_path"))

        def work() -> None:
            for path in (old, new):
                collection.require(path, "write")
            target = collection.local(new, follow=False)
            if target.exists() or target.is_symlink():
                raise FileExistsError(errno.EEXIST, "File exists", new)
            collection.local(old, follow=False).rename(target)

        try:
            await asyncio.to_thread(work)
        except OSError as error:
            raise _operation_error(error, old, collection, "RenameFailed") from error
        return result(request, "FileRenamed", "File or directory renamed successfully")

    def _usable(self, request: web.Request, owner: str, operation: Operation) -> Collection:
        """The collection of a request, when its endpoint answers and the client may use it."""
        collection = self._collections.get(request.match_info["endpoint"])
        require_operation(self._auth, owner, collection, operation)
        return collection


def _path(text: object) -> str:
    try:
        path = normalize(text)
    except BadPathError as error:
        raise bad_request(str(error)) from error
    if is_part(path.rsplit("/", 1)[-1]):
        raise bad_request(f"Path {text!r} is in use by the transfer service")
    return path


def _describe(error: OSError, path: str, collection: Collection, action: str) -> str:
    return collection.report(action, error.strerror or str(error), f"Error: '{path}'")


def _listing_error(error: OSError, path: str, collection: Collection) -> TransferError:
    message = _describe(error, path, collection, "list")
    if error.errno == errno.ENOENT:
        return TransferError(404, "ClientError.NotFound", f"Directory '{path}' not found, {message}")
    if error.errno == errno.ENOTDIR:
        return TransferError(502, "ExternalError.DirListingFailed.NotDirectory", message)
    if error.errno in (errno.EACCES, errno.EPERM):
        return TransferError(403, "ExternalError.DirListingFailed.PermissionDenied", message)
    return TransferError(502, "ExternalError.DirListingFailed", message)


def _stat_error(error: OSError, path: str, collection: Collection) -> TransferError:
    message = _describe(error, path, collection, "list")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return TransferError(404, "NotFound", f"Path not found, {message}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return TransferError(403, "EndpointPermissionDenied", f"Denied by endpoint, {message}")
    return TransferError(502, "EndpointError", message)


def _operation_error(error: OSError, path: str, collection: Collection, failed: str) -> TransferError:
    message = _describe(error, path, collection, failed.removesuffix("Failed").lower())
    if error.errno == errno.EEXIST:
        return TransferError(502, f"ExternalError.{failed}.Exists", f"Path already exists, {message}")
    if error.errno == errno.ENOENT:
        return TransferError(404, "ClientError.NotFound", f"Path not found, {message}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return TransferError(403, f"ExternalError.{failed}.PermissionDenied", message)
    return TransferError(502, f"ExternalError.{failed}", message)
