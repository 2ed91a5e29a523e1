"""Links from a task to its page in Globus's web app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class GlobusTaskLink(BaseOperatorLink):
    """The activity page of the task's transfer; there as soon as it has been submitted."""

    name = "Globus task"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002 - Airflow's
        """Address of the page; empty while nothing has been submitted."""
        return XCom.get_value(ti_key=ti_key, key=self.xcom_key) or ""

    def persist(self, context: Any, url: str) -> None:
        """Keep the address where the UI looks for it, also while the task is deferred."""
        context["ti"].xcom_push(key=self.xcom_key, value=url)
