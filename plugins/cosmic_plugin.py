"""The bundle's Airflow plugin: a "Result" tab on every run, a timetable, and modules for tasks."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from cosmic.airflow_overrides.preloading import preload
from cosmic.pages import URL_PREFIX, app
from cosmic.timetable import BeamlineDays

preload()


class CosmicPlugin(AirflowPlugin):
    """Pages and timetable of the beamline."""

    name = "cosmic"
    timetables = [BeamlineDays]
    fastapi_apps = [{"app": app, "url_prefix": URL_PREFIX, "name": "COSMIC"}]
    external_views = [
        {
            "name": "Result",
            "href": f"{URL_PREFIX}/dags/{{DAG_ID}}/runs/{{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "cosmic-result",
        }
    ]
