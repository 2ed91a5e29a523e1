"""Airflow's FAB auth manager, with "may start runs of this DAG" as a permission of its own.

FAB asks for "may edit the DAG" before somebody may start a run of it, and whoever may edit a DAG may also
pause it. A beamline computer must not be able to stop the pipeline for everybody, so here "can_create" on
"DAG Run:<dag_id>" together with "can_read" on the DAG is enough for a start.
"""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.providers.fab.auth_manager.fab_auth_manager import (  # type: ignore[import-not-found]
    FabAuthManager,
)


class BeamlineAuthManager(FabAuthManager):  # type: ignore[misc] # the provider is in the image only
    """FAB's auth manager; set as `[core] auth_manager`."""

    def is_authorized_dag(
        self,
        *,
        method: str,
        user: Any,
        access_entity: DagAccessEntity | None = None,
        details: Any = None,
    ) -> bool:
        """Tell whether a user may do something with a DAG or a part of it."""
        starts_run = method == "POST" and access_entity is DagAccessEntity.RUN and details and details.id
        if starts_run and ("can_create", f"DAG Run:{details.id}") in user.perms:
            method, access_entity = "GET", None
        allowed: bool = super().is_authorized_dag(
            method=method, user=user, access_entity=access_entity, details=details
        )
        return allowed
