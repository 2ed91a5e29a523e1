"""What docker-compose.yaml's services run besides Airflow itself: keys, settings, users, health checks.

`.env` is the one place where an installation is described; `deployment.settings` reads it, and
`deployment.site` turns it into connections, `beamline.yaml` and `airflow.cfg`.
"""
