"""Links from a task to its job's page at NERSC."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

from facilities.errors import FacilityError

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

    from facilities.superfacility.hook import SuperfacilityHook

log = logging.getLogger(__name__)


class SlurmJobLink(BaseOperatorLink):
    """The page on which NERSC shows the job; there as soon as the job is submitted."""

    name = "Slurm job"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002 - Airflow's
        """Address of the page; empty while there is no job."""
        return XCom.get_value(ti_key=ti_key, key=self.xcom_key) or ""

    def persist(self, context: Any, url: str) -> None:
        """Keep the address where the UI looks for it, also while the task is deferred."""
        if url:
            context["ti"].xcom_push(key=self.xcom_key, value=url)


def job_url(hook: SuperfacilityHook, machine: str, job_id: str) -> str:
    """Address of a job's page, from the connection's `job_url`; empty when it cannot be made.

    By default the jobs page of the user in Iris: NERSC publishes no address of a single job.
    """
    template = hook.config.job_url
    values = {"job_id": quote(job_id, safe=""), "machine": quote(machine, safe="")}
    try:
        if "{uid}" in template:
            values["uid"] = quote(str(hook.account["uid"]), safe="")
        return template.format_map(values)
    except (FacilityError, AttributeError, LookupError, ValueError) as error:
        log.warning("There is no link to the job's page: job_url of the connection: %r", error)
        return ""
