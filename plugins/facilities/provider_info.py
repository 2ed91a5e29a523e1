"""Registers the connection types, so that Airflow's UI has forms for them.

Airflow finds this through the entry point in `pyproject.toml`, once the bundle's metadata is installed:
`pip install --no-deps -e .`.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from facilities.globus.connection import CONNECTION_TYPE as GLOBUS
from facilities.superfacility.connection import CONNECTION_TYPE as SUPERFACILITY

NAME = "cosmic-airflow-bundle"


def get_provider_info() -> dict[str, Any]:
    """Describe this package in the form that Airflow's providers manager reads."""
    return {
        "package-name": NAME,
        "name": "COSMIC facilities",
        "description": "Globus Transfer and NERSC's Superfacility API.",
        "versions": [version(NAME)],
        "connection-types": [GLOBUS, SUPERFACILITY],
    }
