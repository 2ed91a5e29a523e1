"""The base of links from a task to a page about its remote work."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom
from airflow.sdk.types import TaskInstanceKey


class RemoteWorkLink(BaseOperatorLink):
    """A page about the task's remote work; there as soon as that has been submitted.

    Example::

        class MyJobLink(RemoteWorkLink):
            name = "My job"

        MyJobLink().persist(context, "https://service.example/jobs/80")
    """

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002 - Airflow's
        """Address of the page; empty while there is none."""
        return XCom.get_value(ti_key=ti_key, key=self.xcom_key) or ""

    def persist(self, context: Any, url: str) -> None:
        """Keep the address where the UI looks for it, also while the task is deferred."""
        if url:
            context["ti"].xcom_push(key=self.xcom_key, value=url)
