"""The pages within Airflow's real API server, in this process: requests of a user, and runs to show."""

from __future__ import annotations

import asyncio
import html
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import update

DAGS = Path(__file__).parents[2] / "dags"
HOST = "http://airflow.example"
FROM_A_PAGE = {"Accept": "text/html", "Origin": HOST, "Sec-Fetch-Site": "same-origin"}
ROLES = {"admin": "admin", "beamline": "user", "ada": "user", "reader": "viewer"}
"""Users of the tests, with their roles of Airflow's simple auth manager."""


@contextmanager
def dags_in_database(*files: str) -> Iterator[None]:
    """The bundle's DAGs of these files, as the scheduler reads them, until the block ends."""
    from airflow.api.common.delete_dag import delete_dag
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.models.dagbundle import DagBundleModel

    bags = [DagBag(dag_folder=str(DAGS / file), bundle_name="tests") for file in files]
    with create_session(scoped=False) as session:
        session.merge(DagBundleModel(name="tests"))
    for bag in bags:
        assert not bag.import_errors
        sync_bag_to_db(bag, "tests", None)
    yield
    for bag in bags:
        for dag_id in bag.dags:
            delete_dag(dag_id)


class Pages:
    """The app. A user's requests carry what a browser sends with a form on one of its pages."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it imports warns
            from airflow.api_fastapi.main import app
        self.app = app
        self._loop = asyncio.Runner()  # one for all requests, as in a server

    def close(self) -> None:
        """End the event loop."""
        self._loop.close()

    def token(self, user: str) -> str:
        """A token of a user, as after the login."""
        from airflow.api_fastapi.app import get_auth_manager
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

        return get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=user, role=ROLES[user]))

    def get(self, user: str, path: str, **headers: str) -> httpx.Response:
        """Open a page."""
        return self.send("GET", user, path, headers)

    def post(
        self, user: str, path: str, fields: dict[str, str], headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Send a form as it is."""
        return self.send("POST", user, path, headers or {}, data=fields)

    def send(
        self, method: str, user: str, path: str, headers: dict[str, str], *, raises: bool = True, **body: Any
    ) -> httpx.Response:
        """Send any request; nobody is logged in when `user` is empty. An empty header is left out.

        :param raises: what the app raises; otherwise its answer is returned.
        """
        cookies = {"_token": self.token(user)} if user else {}
        all_headers = {name: value for name, value in (FROM_A_PAGE | headers).items() if value}

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=raises)
            async with httpx.AsyncClient(transport=transport, base_url=HOST, cookies=cookies) as client:
                return await client.request(method, path, headers=all_headers, **body)

        return self._loop.run(send())

    def press(self, user: str, path: str, changes: dict[str, str] | None = None) -> httpx.Response:
        """Open the page of a question, change fields of its form and send it."""
        page = self.get(user, path)
        assert page.status_code == 200, page.text
        return self.post(user, path.partition("?")[0], form_of(page) | (changes or {}))


def form_of(page: httpx.Response) -> dict[str, str]:
    """The fields of the page's form, as a browser would send them."""
    fields = {}
    for tag in re.findall(r"<input [^>]*>", page.text):
        attributes = dict(re.findall(r'([a-z-]+)="([^"]*)"', tag))
        if attributes.get("type") != "checkbox":
            fields[attributes["name"]] = html.unescape(attributes.get("value", ""))
        elif tag.endswith(" checked>"):
            fields[attributes["name"]] = "on"
    for name, options in re.findall(r'(?s)<select [^>]*name="([^"]*)".*?>(.*?)</select>', page.text):
        values = re.findall(r'<option value="([^"]*)"( selected)?>', options)
        fields[name] = html.unescape(next((value for value, chosen in values if chosen), values[0][0]))
    for name, text in re.findall(r'(?s)<textarea [^>]*name="([^"]*)"[^>]*>\n?(.*?)</textarea>', page.text):
        fields[name] = html.unescape(text)
    return fields


def set_states(run_id: str, state: str, **tasks: str) -> None:
    """Put a run, and tasks of it (with `__` for the dot), into states."""
    with create_session(scoped=False) as session:
        session.execute(update(DagRun).where(DagRun.run_id == run_id).values(state=state))
        for task, of_task in tasks.items():
            session.execute(
                update(TaskInstance)
                .where(TaskInstance.run_id == run_id, TaskInstance.task_id == task.replace("__", "."))
                .values(state=of_task)
            )


def a_reconstruction(result: str, **changes: Any) -> dict[str, Any]:
    """A `cosmic.results.Reconstruction` of ptychocam.

    :param result: path of its CXI file.
    """
    quality = dict.fromkeys(
        ("frames", "iterations", "final_error", "pixel_size_m", "object_shape", "resolution_m")
    )
    return {
        "engine": "ptychocam",
        "result": result,
        "preview": result.removesuffix(".cxi") + ".png",
        "preview_size": [4, 4],
        "bytes": 1000,
        "quality": quality,
        "warnings": [],
        "job_id": "7",
        "queue_seconds": 1.0,
        "run_seconds": 2.0,
        "node_hours": 0.1,
    } | changes


def set_xcom(dag_id: str, run_id: str, task_id: str, value: Any, key: str = "return_value") -> None:
    """Leave a task's result."""
    with create_session(scoped=False) as session:
        XComModel.set(key, value, dag_id=dag_id, task_id=task_id, run_id=run_id, session=session)
