"""Registers the connection types, so that Airflow's UI has forms for them.

Airflow finds this through the entry point in `plugins/cosmic_airflow_bundle-0.1.0.dist-info`, which works
where the plugins folder is on PYTHONPATH.
"""

from __future__ import annotations

from typing import Any

from facilities.globus.connection import CONNECTION_TYPE as GLOBUS
from facilities.superfacility.connection import CONNECTION_TYPE as SUPERFACILITY


def get_provider_info() -> dict[str, Any]:
    """Describe this package in the form that Airflow's providers manager reads."""
    return {
        "package-name": "cosmic-airflow-bundle",
        "name": "COSMIC facilities",
        "description": "Globus Transfer and NERSC's Superfacility API.",
        "versions": ["0.1.0"],
        "connection-types": [GLOBUS, SUPERFACILITY],
    }
