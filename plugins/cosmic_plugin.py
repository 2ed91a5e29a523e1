"""The bundle's Airflow plugin: a "Result" tab on every run, with the previews of its reconstructions."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from cosmic.pages import URL_PREFIX, app


class CosmicPlugin(AirflowPlugin):
    """Pages of the beamline."""

    name = "cosmic"
    fastapi_apps = [{"app": app, "url_prefix": URL_PREFIX, "name": "COSMIC"}]
    external_views = [
        {
            "name": "Result",
            "href": f"{URL_PREFIX}/dags/{{DAG_ID}}/runs/{{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "cosmic-result",
        }
    ]
