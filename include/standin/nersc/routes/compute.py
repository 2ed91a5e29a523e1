"""Serves compute/jobs: submit, list, cancel."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from aiohttp import web

from standin.nersc.paths import locate
from standin.nersc.routes.api import Api, form_fields, parse_bool, query_bool, query_int, required
from standin.nersc.schedulers.interface import Query, QueryError, RejectedError, Row, Submission
from standin.nersc.schedulers.policy import refuse
from standin.service import ABOUT

MAX_SCRIPT = 4 * 1024 * 1024  # Slurm's own limit for a batch script


class ComputeRoutes:
    """Jobs on Perlmutter."""

    def __init__(self, api: Api) -> None:
        self._api = api
        api.tasks.register("submit", self._submit, repeatable=True)
        api.tasks.register("cancel", self._cancel, repeatable=True)

    def add(self, app: web.Application, base: str) -> None:
        """Add the routes."""

        def private(handler: Any) -> Any:
            return self._api.private(handler, needs_machine=True)

        jobs = f"{base}/compute/jobs/{{machine}}"
        app.router.add_post(jobs, private(self._post))
        app.router.add_get(jobs, private(self._list))
        app.router.add_get(f"{jobs}/{{job_id}}", private(self._list))
        app.router.add_delete(f"{jobs}/{{job_id}}", private(self._delete))

    async def _post(self, request: web.Request) -> web.Response:
        fields = await form_fields(request)
        job = required(fields, "job")
        is_path = parse_bool("body", "isPath", fields.get("isPath", [None])[-1], None)
        if request.match_info["machine"] != "perlmutter":
            return _no_scheduler(request)
        work = {"job": job, "is_path": is_path, "args": fields.get("args", [])}
        task_id = self._api.tasks.create("submit", work)
        name = re.search(r"(?m)^#SBATCH (?:--job-name=|-J )(\S+)", job)
        request[ABOUT] = f"{name[1] if name else 'a job'}, task {task_id}"
        return web.json_response({"task_id": task_id, "status": "OK", "error": None})

    async def _delete(self, request: web.Request) -> web.Response:
        if request.match_info["machine"] != "perlmutter":
            return _no_scheduler(request)
        task_id = self._api.tasks.create("cancel", {"job_id": request.match_info["job_id"]})
        return web.json_response({"task_id": task_id, "status": "OK", "error": None})

    async def _list(self, request: web.Request) -> web.Response:
        index, limit = query_int(request, "index", 0), query_int(request, "limit", 0)
        sacct, cached = query_bool(request, "sacct", False), query_bool(request, "cached", True)
        if request.match_info["machine"] != "perlmutter":
            return _no_scheduler(request)
        try:
            filters = _filters(request)
            scheduler = self._api.scheduler
            rows = await (scheduler.sacct if sacct else scheduler.squeue)(Query(filters, cached))
        except QueryError as error:
            return web.json_response({"status": "ERROR", "output": [], "error": str(error)})
        end = index + limit if limit else None
        return web.json_response({"status": "OK", "output": rows[index:end], "error": None})

    async def _submit(self, task_id: str, work: dict[str, Any]) -> dict[str, Any]:
        """The task of a POST: call sbatch."""
        try:
            text, name = await self._script(work)
            submission = Submission(f"sfapi-{task_id}", text, tuple(work["args"]), name)
            job_id = await self._api.scheduler.submit(submission)
        except RejectedError as refusal:
            return {"status": "error", "jobid": None, "error": str(refusal)}
        return {"status": "ok", "jobid": job_id, "error": None}

    async def _script(self, work: dict[str, Any]) -> tuple[str, str | None]:
        """The script's text, and the path it came from."""
        if not work["is_path"]:
            return work["job"], None
        asked = work["job"]
        try:
            path = locate(self._api.file_system, str(self._api.home / asked), follow=True)
            text = await asyncio.to_thread(_read_script, path)
        except (OSError, UnicodeDecodeError) as error:
            raise RejectedError(f"sbatch: error: Unable to open file {asked}") from error
        return text, asked

    async def _cancel(self, _task_id: str, work: dict[str, Any]) -> dict[str, Any]:
        """The task of a DELETE: call scancel."""
        await self._api.scheduler.cancel(work["job_id"])
        return {"status": "ok", "output": "", "error": ""}


def _read_script(path: Path) -> str:
    if path.stat().st_size > MAX_SCRIPT:
        raise refuse("Pathname of a file, directory or other parameter too long")
    return path.read_text(encoding="utf-8")


def _filters(request: web.Request) -> dict[str, str]:
    filters: dict[str, str] = {}
    for pair in request.query.getall("kwargs", []):
        name, equals, value = pair.partition("=")
        if not equals:
            raise QueryError(f"Invalid argument: {pair}")
        filters[name.strip().lower()] = value
    if "job_id" in request.match_info:
        filters["jobid"] = request.match_info["job_id"]
    return filters


def _no_scheduler(request: web.Request) -> web.Response:
    error = f"{request.match_info['machine']} has no batch system"
    output: list[Row] = []
    return web.json_response({"task_id": None, "status": "ERROR", "output": output, "error": error})
