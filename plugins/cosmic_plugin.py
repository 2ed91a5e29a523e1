"""The bundle's Airflow plugin: a "Result" tab on every run, and the timetable of `find_missed_scans`."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from cosmic.pages import URL_PREFIX, app
from cosmic.timetable import BeamlineDays


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
