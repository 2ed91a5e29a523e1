"""Serves Transfer's task submission and task management."""

from __future__ import annotations

import uuid
from typing import Any

from aiohttp import web

from standin.globus import filters, times
from standin.globus.access import require_submission
from standin.globus.auth import Auth
from standin.globus.collections import Collections
from standin.globus.engine import Engine
from standin.globus.errors import TransferError, bad_request
from standin.globus.model import Kind, Task, task_document
from standin.globus.store import GlobusStore
from standin.globus.submission import read_deadline, read_label, read_submission, read_submission_id
from standin.globus.transport import PREFIX, handler, read_document, result
from standin.service import ABOUT

MAX_TASKS = 1000
FILES_A_PAGE = 100


def _label_test(key: str, values: Any) -> filters.Test:
    return filters.text_test(key, values, ignore_case=True)


_TASK_FILTERS: dict[str, filters.ClauseMaker] = {
    "task_id": filters.text_test,
    "type": filters.text_test,
    "status": filters.text_test,
    "label": _label_test,
    "source_endpoint_id": filters.text_test,
    "destination_endpoint_id": filters.text_test,
    "request_time": filters.range_test,
    "completion_time": filters.range_test,
    "deadline": filters.range_test,
}
_TASK_SORT_KEYS = (
    "task_id",
    "type",
    "status",
    "label",
    "request_time",
    "completion_time",
    "deadline",
    "faults",
    "files",
)
_QUICK_KEYS = ("task_id", "type", "status", "label")  # tested before a whole document is made
_EVENT_FILTERS: dict[str, filters.ClauseMaker] = {"is_error": filters.number_test, "code": filters.text_test}
_CANCEL_MESSAGES = {
    "Canceled": "The task has been cancelled successfully.",
    "CancelAccepted": "The task cancellation has been accepted and will take effect shortly.",
    "TaskComplete": "The task completed before the cancel request was processed.",
}


class TasksApi:
    """Routes for tasks: submit, look, change, cancel."""

    def __init__(self, auth: Auth, collections: Collections, engine: Engine, store: GlobusStore) -> None:
        self._auth = auth
        self._collections = collections
        self._engine = engine
        self._store = store

    def add_routes(self, app: web.Application) -> None:
        """Add the routes."""
        version = f"{PREFIX}/v0.10"
        task = f"{version}/task/{{task_id}}"
        app.router.add_get(f"{version}/submission_id", handler(self._auth, self._new_submission_id))
        app.router.add_post(f"{version}/transfer", handler(self._auth, self._transfer))
        app.router.add_post(f"{version}/delete", handler(self._auth, self._delete))
        app.router.add_get(f"{version}/task_list", handler(self._auth, self._task_list))
        app.router.add_get(task, handler(self._auth, self._get))
        app.router.add_put(task, handler(self._auth, self._update))
        app.router.add_post(f"{task}/cancel", handler(self._auth, self._cancel))
        app.router.add_get(f"{task}/event_list", handler(self._auth, self._events))
        app.router.add_get(f"{task}/pause_info", handler(self._auth, self._pause_info))
        app.router.add_get(f"{task}/successful_transfers", handler(self._auth, self._successful))
        app.router.add_get(f"{task}/skipped_errors", handler(self._auth, self._skipped))

    async def _new_submission_id(self, _request: web.Request, _owner: str) -> dict[str, Any]:
        return {"DATA_TYPE": "submission_id", "value": str(uuid.uuid1())}

    async def _transfer(self, request: web.Request, owner: str) -> tuple[int, dict[str, Any]]:
        return await self._submit(request, owner, "TRANSFER")

    async def _delete(self, request: web.Request, owner: str) -> tuple[int, dict[str, Any]]:
        return await self._submit(request, owner, "DELETE")

    async def _submit(self, request: web.Request, owner: str, kind: Kind) -> tuple[int, dict[str, Any]]:
        document = await read_document(request)
        # nothing is awaited from here on: of two equal submissions one is first
        known = self._engine.find_submission(owner, read_submission_id(document))
        if known is not None:
            request[ABOUT] = f"{known.label}, task {known.task_id} again"
            message = "A task with this submission id was already created"
            return 200, self._accepted(request, known, "Duplicate", message)
        new = read_submission(document, kind, owner, self._collections, self._engine.task_seconds)
        self._check_new(new, owner)
        self._engine.submit(new)
        request[ABOUT] = f"{new.label}, task {new.task_id}"
        message = f"The {kind.lower()} has been accepted and a task has been created and queued for execution"
        return 202, self._accepted(request, new, "Accepted", message)

    def _check_new(self, new: Task, owner: str) -> None:
        for collection_id, _ in new.uses:
            require_submission(self._auth, owner, self._collections[collection_id])
        unfinished = self._engine.unfinished(owner)
        if len(unfinished) >= self._engine.pending_limit:
            raise TransferError(
                409,
                "ClientError.Conflict.TooManyPendingJobs",
                f"You have {len(unfinished)} unfinished tasks; the limit is {self._engine.pending_limit}",
            )
        pairs = new.path_pairs()
        if any(pairs & task.path_pairs() for task in unfinished):
            raise TransferError(409, "Conflict", "A transfer with identical paths has not yet completed")

    def _accepted(self, request: web.Request, task: Task, code: str, message: str) -> dict[str, Any]:
        return {
            **result(request, code, message, f"{task.kind.lower()}_result"),
            "submission_id": task.submission_id,
            "task_id": task.task_id,
            "task_link": {
                "DATA_TYPE": "link",
                "href": f"/v0.10/task/{task.task_id}?format=json",
                "rel": "related",
                "resource": "task",
                "title": "related task",
            },
        }

    async def _task_list(self, request: web.Request, owner: str) -> dict[str, Any]:
        limit, offset = filters.page_bounds(request.query, default=10, maximum=MAX_TASKS)
        clauses = filters.parse_filter(request.query.get("filter", ""), _TASK_FILTERS)
        clauses.setdefault("type", filters.text_test("type", ["TRANSFER"]))
        quick = [clauses.pop(key) for key in _QUICK_KEYS if key in clauses]
        found = []
        for task in reversed(self._engine.tasks.values()):  # newest first
            if task.owner_id == owner and all(test(_quick_document(task)) for test in quick):
                document = self._document(task)
                if all(test(document) for test in clauses.values()):
                    found.append(document)
        found = filters.order(found, request.query.get("orderby") or "request_time DESC", _TASK_SORT_KEYS)
        page = found[offset : offset + limit]
        fields = [f for f in request.query.get("fields", "").split(",") if f]
        if fields:
            page = [{key: d[key] for key in ("DATA_TYPE", *fields) if key in d} for d in page]
        return {
            "DATA_TYPE": "task_list",
            "DATA": page,
            "length": len(page),
            "limit": limit,
            "offset": offset,
            "total": len(found),
        }

    async def _get(self, request: web.Request, owner: str) -> dict[str, Any]:
        return self._document(self._task(request, owner))

    async def _update(self, request: web.Request, owner: str) -> dict[str, Any]:
        task = self._task(request, owner)
        document = await read_document(request)
        if task.ended:
            raise TransferError(409, "Conflict", "The task has completed and cannot be changed any more")
        label = read_label(document["label"]) if "label" in document else task.label
        deadline = read_deadline(document.get("deadline"))
        task.label = label
        if deadline is not None:
            task.deadline, task.deadline_by_user = deadline, True
        self._engine.changed(task)
        return result(request, "Updated", "Updated task successfully")

    async def _cancel(self, request: web.Request, owner: str) -> dict[str, Any]:
        code = await self._engine.cancel(self._task(request, owner), "user")
        return result(request, code, _CANCEL_MESSAGES[code])

    async def _events(self, request: web.Request, owner: str) -> dict[str, Any]:
        task = self._task(request, owner)
        limit, offset = filters.page_bounds(request.query, default=10, maximum=MAX_TASKS)
        clauses = filters.parse_filter(request.query.get("filter", ""), _EVENT_FILTERS)
        events = [e for e in self._store.events(task.task_id) if all(test(e) for test in clauses.values())]
        page = events[offset : offset + limit]
        return {
            "DATA_TYPE": "event_list",
            "DATA": page,
            "length": len(page),
            "limit": limit,
            "offset": offset,
            "total": len(events),
        }

    async def _pause_info(self, request: web.Request, owner: str) -> dict[str, Any]:
        task = self._task(request, owner)
        rules = self._engine.pause_rules(task) if task.paused_by_rule else []
        return {
            "DATA_TYPE": "pause_info_limited",
            "pause_rules": rules,
            "source_pause_message": task.pause_message if task.is_paused and not rules else None,
            "source_pause_message_share": None,
            "destination_pause_message": None,
            "destination_pause_message_share": None,
        }

    async def _successful(self, request: web.Request, owner: str) -> dict[str, Any]:
        rows, page = self._finished_files(request, owner, "moved", "successful_transfers")
        page["DATA"] = [
            {
                "DATA_TYPE": "successful_transfer",
                "source_path": row["source_path"],
                "destination_path": row["destination_path"],
                "size": row["size"],
                "checksum": row["checksum"],
                "checksum_algorithm": row["algorithm"],
                "dynamic": False,
            }
            for row in rows
        ]
        return page

    async def _skipped(self, request: web.Request, owner: str) -> dict[str, Any]:
        rows, page = self._finished_files(request, owner, "skipped_error", "skipped_errors")
        page["DATA"] = [
            {
                "DATA_TYPE": "skipped_error",
                "source_path": row["source_path"],
                "destination_path": row["destination_path"],
                "error_code": row["error_code"],
                "error_details": row["error_details"],
                "error_time": times.iso(row["time"]),
                "is_directory": bool(row["is_directory"]),
                "checksum_algorithm": None,
                "external_checksum": None,
            }
            for row in rows
        ]
        return page

    def _finished_files(
        self, request: web.Request, owner: str, outcome: str, data_type: str
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """One page of a finished transfer's files, and the document around it."""
        task = self._task(request, owner)
        if task.kind != "TRANSFER" or not task.ended:
            raise bad_request(f"'{data_type}' is only there for transfers that have completed")
        text = request.query.get("marker", "0")
        if not text.isdecimal() or len(text) > 18:
            raise bad_request(f"'marker' is {text!r}; it must be one that this service gave out")
        rows = self._store.files(task.task_id, outcome, int(text), FILES_A_PAGE + 1)
        more = len(rows) > FILES_A_PAGE
        rows = rows[:FILES_A_PAGE]
        document = {
            "DATA_TYPE": data_type,
            "marker": int(text),
            "next_marker": rows[-1]["number"] if more else None,
        }
        return rows, document

    def _task(self, request: web.Request, owner: str) -> Task:
        task_id = request.match_info["task_id"]
        task = self._engine.tasks.get(task_id.lower())
        if task is None or task.owner_id != owner:
            raise TransferError(404, "ClientError.NotFound", f"Task '{task_id}' not found")
        return task

    def _document(self, task: Task) -> dict[str, Any]:
        names = {c.collection_id: c.display_name for c in self._collections.all}
        return task_document(task, names)


def _quick_document(task: Task) -> dict[str, Any]:
    return {"task_id": task.task_id, "type": task.kind, "status": task.status, "label": task.label}
