"""Registers the beamline's metrics with Airflow, when metrics are on."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from cosmic import metrics


class CosmicMetricsPlugin(AirflowPlugin):
    """A listener for the ends of tasks and runs."""

    name = "cosmic_metrics"
    listeners = [metrics] if metrics.wanted() else []
