"""Sets up and checks an installation with docker-compose.yaml: keys, settings, database, users, health.

`.env` is the one place where an installation is described; `deployment.settings` reads it, and
`deployment.airflow_settings` turns it into connections, `beamline.yaml` and `airflow.cfg`.
"""
