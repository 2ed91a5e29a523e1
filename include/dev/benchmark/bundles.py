"""Airflow's setting for where DAGs come from, for the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

from dev.local_airflow.settings import REPOSITORY

DAGS = REPOSITORY / "dags"
BENCHMARK = REPOSITORY / "include" / "dev" / "benchmark"


def dag_bundles(**folders: Path) -> dict[str, str]:
    """The setting by which DAGs come from these folders, each a bundle of that name."""
    bundles = [
        {
            "name": name,
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(path)},
        }
        for name, path in folders.items()
    ]
    return {"AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles)}
