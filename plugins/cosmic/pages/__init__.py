"""The beamline's pages in Airflow's UI: a FastAPI app of the plugin, with Airflow's own users and roles."""
