"""Makes the users and roles of an installation with Airflow's FAB auth manager.

`admin` may do everything. `beamline` may start and read runs of the beamline's DAGs and nothing else.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.providers.fab.auth_manager.cli_commands.utils import (  # type: ignore[import-not-found]
    get_application_builder,
)

from cosmic.dag_constants import FLIGHT_CHECK, PROCESS_NEWFILE, TRANSFER_AUTO_RECON

log = logging.getLogger(__name__)

ROLE = "beamline"
DAGS = (TRANSFER_AUTO_RECON, PROCESS_NEWFILE, FLIGHT_CHECK)

PERMISSIONS: frozenset[tuple[str, str]] = frozenset(
    {
        ("can_read", "Website"),
        ("can_read", "My Profile"),
        ("can_edit", "My Profile"),
        ("can_read", "My Password"),
        ("can_edit", "My Password"),
        ("menu_access", "DAGs"),
        # Parts of a run; the FAB auth manager asks for the DAG's own permission besides.
        ("can_read", "DAG Runs"),
        ("can_read", "Task Instances"),
        ("can_read", "Task Logs"),
        ("can_read", "XComs"),
        ("can_read", "DAG Versions"),
        # A run's Result tab is a plugin's: Airflow shows it to those who may see that there are plugins.
        ("can_read", "Plugins"),
    }
    | {("can_read", f"DAG:{dag}") for dag in DAGS}
    | {("can_read", f"DAG Run:{dag}") for dag in DAGS}
    | {("can_create", f"DAG Run:{dag}") for dag in DAGS}
)


def make_users(passwords: dict[str, str]) -> list[str]:
    """Bring the roles up to date and make the users that do not exist yet; returns their names.

    :param passwords: first password of each user; a user who exists keeps theirs.
    """
    with get_application_builder() as builder:
        manager = builder.sm
        manager.sync_roles()
        roles = {"admin": manager.find_role("Admin"), "beamline": _beamline_role(manager)}
        return [user for user, role in roles.items() if _make_user(manager, user, role, passwords[user])]


def _beamline_role(manager: Any) -> Any:
    """The role, with exactly `PERMISSIONS`: what somebody added by hand is taken away again."""
    role = manager.find_role(ROLE) or manager.add_role(ROLE)
    for permission in list(role.permissions):
        if (permission.action.name, permission.resource.name) not in PERMISSIONS:
            manager.remove_permission_from_role(role, permission)
    for action, resource in sorted(PERMISSIONS):
        manager.add_permission_to_role(role, manager.create_permission(action, resource))
    return role


def _make_user(manager: Any, name: str, role: Any, password: str) -> bool:
    if manager.find_user(username=name) is not None:
        return False
    made = manager.add_user(
        username=name,
        first_name=name,
        last_name="COSMIC",
        email=f"{name}@localhost",
        role=role,
        password=password,
    )
    if not made:
        raise RuntimeError(f"The user {name} could not be made; the reason is in the lines above.")
    return True
