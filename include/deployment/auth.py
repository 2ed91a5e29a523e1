"""Extends Airflow's FAB auth manager: starting and changing runs are permissions, a lost database is a 503.

FAB asks for "may edit the DAG" before somebody may start or change a run of it, and who may edit a DAG may
pause it, too. A beamline computer must not be able to stop the pipeline for everybody: here "can_create" on
"DAG Run:<dag_id>" together with "can_read" on the DAG is enough for a start, and "can_edit" for a change: to
stop a run, to clear it as a whole, or to write its note.

A login while the database is away is an outage (503). FAB takes a user whom it cannot look up for one who
does not exist, and a beamline computer that hears "wrong password" (401) needs a person; for 503 it waits.
"""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.providers.fab.auth_manager.fab_auth_manager import (  # type: ignore[import-not-found]
    FabAuthManager,
)
from airflow.utils.session import create_session
from fastapi import HTTPException
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

_ACTIONS = {"POST": "can_create", "PUT": "can_edit"}


class BeamlineAuthManager(FabAuthManager):  # type: ignore[misc] # the provider is in the image only
    """FAB's auth manager; set as `[core] auth_manager`."""

    def create_token(self, headers: dict[str, str], body: dict[str, Any]) -> Any:
        """The user who logs in for a token; None when name or password are wrong."""
        user = super().create_token(headers=headers, body=body)
        if user is not None:
            return user
        try:
            with create_session() as session:
                session.execute(text("SELECT 1"))
        except DBAPIError as error:
            raise HTTPException(503, "The database does not answer; try again.") from error
        # It may have been away a moment ago.
        return super().create_token(headers=headers, body=body)

    def is_authorized_dag(
        self,
        *,
        method: str,
        user: Any,
        access_entity: DagAccessEntity | None = None,
        details: Any = None,
    ) -> bool:
        """Whether a user may do something with a DAG or a part of it."""
        is_of_run = access_entity is DagAccessEntity.RUN and details and details.id
        if is_of_run and (_ACTIONS.get(method), f"DAG Run:{details.id}") in user.perms:
            method, access_entity = "GET", None
        allowed: bool = super().is_authorized_dag(
            method=method, user=user, access_entity=access_entity, details=details
        )
        return allowed
