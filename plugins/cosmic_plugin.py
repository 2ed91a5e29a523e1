"""Registers with Airflow: the pages, checks and names of new runs, the timetable and the metrics."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from cosmic import metrics
from cosmic.airflow_overrides.preloading import preload
from cosmic.notifications import news
from cosmic.notifications.tasks import NEWS_PREFIX
from cosmic.pages.app import app
from cosmic.pages.rendering import URL_PREFIX
from cosmic.pages.scans import LoadAtStart
from cosmic.run_requests import RunRequests
from cosmic.timetable import BeamlineDays

preload()


class CosmicPlugin(AirflowPlugin):
    """Pages, timetable and metrics of the beamline."""

    name = "cosmic"
    timetables = [BeamlineDays]
    listeners = [metrics] if metrics.enabled() else []
    fastapi_apps = [
        {"app": app, "url_prefix": URL_PREFIX, "name": "COSMIC"},
        {"app": news.app, "url_prefix": NEWS_PREFIX, "name": "COSMIC notifications"},
    ]
    fastapi_root_middlewares = [
        {"middleware": RunRequests, "name": "checks and names of new runs"},
        {"middleware": LoadAtStart, "name": "reads the list of scans"},
    ]
    external_views = [
        {
            "name": "Scans",
            "href": f"{URL_PREFIX}/scans",
            "destination": "nav",
            "nav_top_level": True,
            "url_route": "cosmic-scans",
        },
        {
            "name": "Result",
            "href": f"{URL_PREFIX}/dags/{{DAG_ID}}/runs/{{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "cosmic-result",
        },
    ]
