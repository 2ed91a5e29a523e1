"""Serves storage/globus: copies between NERSC's own machines, which see one file system."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from aiohttp import web

from standin.nersc.database import Database
from standin.nersc.paths import locate
from standin.nersc.routes.api import Api, fail, form_fields, required
from standin.nersc.site import iso

ENDPOINTS = frozenset({"dtn", "perlmutter", "hpss"})


class StorageRoutes:
    """Copies files in the background; a copy that a kill interrupts is done again by the next server."""

    def __init__(self, api: Api, database: Database) -> None:
        self._api = api
        self._database = database
        self._running: set[asyncio.Task[None]] = set()

    def add(self, app: web.Application, base: str) -> None:
        """Add the routes."""
        app.router.add_post(f"{base}/storage/globus/transfer", self._api.private(self._post))
        app.router.add_get(f"{base}/storage/globus/transfer/{{transfer_id}}", self._api.private(self._get))

    def start(self) -> None:
        """Take up unfinished copies."""
        for row in self._database.rows("SELECT * FROM transfers"):
            record = json.loads(row["record"])
            if record["globus_status"] == "ACTIVE":
                self._begin(row["id"], record)

    async def stop(self) -> None:
        """Leave unfinished copies to the next server."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _post(self, request: web.Request) -> web.Response:
        fields = await form_fields(request)
        names = ("source_uuid", "target_uuid", "source_dir", "target_dir")
        asked = {name: required(fields, name) for name in names}
        transfer_id = str(uuid.uuid4())
        for name in ("source_uuid", "target_uuid"):
            if asked[name] not in ENDPOINTS:
                reason = f"Unknown endpoint {asked[name]}"
                return web.json_response({"transfer_id": transfer_id, "status": "ERROR", "reason": reason})
        record = {**asked, "label": fields.get("label", [""])[-1], "globus_status": "ACTIVE", "bytes": 0,
                  "began": time.time(), "completion_time": None, "reason": None}  # fmt: skip
        self._keep(transfer_id, record)
        self._begin(transfer_id, record)
        return web.json_response({"transfer_id": transfer_id, "status": "OK", "reason": None})

    async def _get(self, request: web.Request) -> web.Response:
        transfer_id = request.match_info["transfer_id"]
        row = self._database.row("SELECT record FROM transfers WHERE id = ?", transfer_id)
        if row is None:
            fail(404, f"Transfer {transfer_id} not found")
        record = json.loads(row["record"])
        ended = record["completion_time"]
        seconds = max((ended or time.time()) - record["began"], 1e-3)
        return web.json_response({
            "status": "OK", "reason": record["reason"], "globus_status": record["globus_status"],
            "bytes_transferred": record["bytes"], "completion_time": None if ended is None else iso(ended),
            "effective_bytes_per_second": int(record["bytes"] / seconds),
        })  # fmt: skip

    def _begin(self, transfer_id: str, record: dict[str, Any]) -> None:
        task = asyncio.create_task(self._copy(transfer_id, record))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _copy(self, transfer_id: str, record: dict[str, Any]) -> None:
        try:
            source = locate(self._api.file_system, record["source_dir"], follow=True)
            target = locate(self._api.file_system, record["target_dir"], follow=True)
            record["bytes"] = await asyncio.to_thread(_copy_all, source, target)
            record["globus_status"] = "SUCCEEDED"
        except OSError as error:  # shutil.Error too
            record["globus_status"], record["reason"] = "FAILED", f"{record['source_dir']}: {error}"
        record["completion_time"] = time.time()
        self._keep(transfer_id, record)

    def _keep(self, transfer_id: str, record: dict[str, Any]) -> None:
        self._database.run("INSERT OR REPLACE INTO transfers VALUES (?, ?)", transfer_id, json.dumps(record))


def _copy_all(source: Path, target: Path) -> int:
    """Copy a file into, or the contents of a folder to, the target folder; returns the bytes."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)
        return sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target / source.name)
    return source.stat().st_size
