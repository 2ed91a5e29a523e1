"""Registers the listener that cancels remote work which nobody waits for any more."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from facilities import sweeping


class FacilitiesPlugin(AirflowPlugin):
    """A listener for tasks and runs that a person has ended."""

    name = "facilities"
    listeners = [sweeping]
