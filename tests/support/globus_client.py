"""The stand-in's Globus as its users see it: through globus-sdk, unmodified."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import globus_sdk

from standin.testing import Facility, until

ClientT = TypeVar("ClientT", bound=globus_sdk.BaseClient)


class Globus:
    """The stand-in's Globus as its users see it: through globus-sdk, unmodified."""

    def __init__(self, facility: Facility) -> None:
        self.facility = facility
        described = facility.description["globus"]
        self.client_id, self.client_secret = described["client_id"], described["client_secret"]
        self.data7012 = facility.description["collections"]["data7012"]["id"]
        self.nersc7012 = facility.description["collections"]["nersc7012"]["id"]
        self.source = facility.collection("data7012")
        self.target = facility.collection("nersc7012")
        self._open: list[globus_sdk.BaseClient] = []
        self.transfer = self.client()

    def auth(self, secret: str | None = None) -> globus_sdk.ConfidentialAppAuthClient:
        """An Auth client."""
        return self._kept(globus_sdk.ConfidentialAppAuthClient(self.client_id, secret or self.client_secret))

    def client(self, **settings: Any) -> globus_sdk.TransferClient:
        """A Transfer client with an authorizer of its own; it does not retry unless asked to."""
        scope = globus_sdk.TransferClient.scopes.all
        authorizer = globus_sdk.ClientCredentialsAuthorizer(self.auth(), scope)
        retries = globus_sdk.transport.RetryConfig(max_retries=settings.pop("max_retries", 0))
        return self._kept(globus_sdk.TransferClient(authorizer=authorizer, retry_config=retries, **settings))

    def _kept(self, client: ClientT) -> ClientT:
        self._open.append(client)
        return client

    def close(self) -> None:
        """Close all clients."""
        for client in self._open:
            client.close()

    def file(self, path: str, content: bytes = b"scan") -> Path:
        """A file in the beamline's collection."""
        local = self.source / path.lstrip("/")
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(content)
        return local

    def data(self, *pairs: tuple[str, str], **options: Any) -> globus_sdk.TransferData:
        """A transfer document from the beamline to NERSC."""
        data = globus_sdk.TransferData(self.data7012, self.nersc7012, **options)
        for source, target in pairs:
            data.add_item(source, target)
        return data

    def submit(self, *pairs: tuple[str, str], **options: Any) -> str:
        """Submit a transfer; returns the task id."""
        return str(self.transfer.submit_transfer(self.data(*pairs, **options))["task_id"])

    def task(self, task_id: str) -> dict[str, Any]:
        """The task document."""
        return dict(self.transfer.get_task(task_id).data)

    def wait(self, task_id: str, key: str = "status", *values: Any, within: float = 60.0) -> dict[str, Any]:
        """Wait until a field of the task has one of the values; by default until the task has ended."""
        wanted = values or ("SUCCEEDED", "FAILED")

        def look() -> dict[str, Any] | None:
            document = self.task(task_id)
            return document if document[key] in wanted else None

        found = until(look, within)
        assert found is not None
        return found

    def run(self, *pairs: tuple[str, str], **options: Any) -> dict[str, Any]:
        """Submit a transfer and wait for its end."""
        return self.wait(self.submit(*pairs, **options))

    def book(self, task_id: str) -> dict[str, Any]:
        """The task's line in the facility's books."""
        return next(line for line in self.facility.transfers() if line["task_id"] == task_id)


def tree(folder: Path) -> dict[str, bytes]:
    """The files below a folder and what is in them."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def codes(globus: Globus, task_id: str, **query: str) -> list[str]:
    """The codes of a task's events, newest first."""
    events = globus.transfer.task_event_list(task_id, limit=1000, query_params=query)
    return [event["code"] for event in events]


def soon(seconds: float) -> str:
    """A deadline that many seconds from now, as globus-sdk writes it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(sep=" ")
