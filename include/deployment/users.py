"""Makes the users and roles of an installation with Airflow's FAB auth manager.

`admin` may do everything. The role `beamline`, of the shared user of that name and of the people to whom an
administrator gives it, may start and read runs of the beamline's DAGs, stop those of scans and write their
notes, and nothing else. The role `reader` may only look; nobody has it until an administrator gives it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from airflow.providers.fab.auth_manager.cli_commands.utils import (  # type: ignore[import-not-found]
    get_application_builder,
)

from cosmic.dag_constants import (
    FIND_MISSED_SCANS,
    FLIGHT_CHECK,
    PROCESS_NEWFILE,
    TRANSFER_AUTO_RECON,
)

log = logging.getLogger(__name__)

DAGS = (TRANSFER_AUTO_RECON, PROCESS_NEWFILE, FIND_MISSED_SCANS, FLIGHT_CHECK)
STOPPABLE = (TRANSFER_AUTO_RECON, PROCESS_NEWFILE)

READING: frozenset[tuple[str, str]] = frozenset(
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
        # The pages of scans are a plugin's: Airflow shows them to those who may see that there are plugins.
        ("can_read", "Plugins"),
    }
    | {("can_read", f"DAG:{dag}") for dag in DAGS}
    | {("can_read", f"DAG Run:{dag}") for dag in DAGS}
)
ROLES: Mapping[str, frozenset[tuple[str, str]]] = {
    "reader": READING,
    "beamline": READING
    | {("can_create", f"DAG Run:{dag}") for dag in DAGS}
    | {("can_edit", f"DAG Run:{dag}") for dag in STOPPABLE},
}


def make_users(passwords: dict[str, str]) -> list[str]:
    """Bring the roles up to date and make the users that do not exist yet; returns their names.

    :param passwords: first password of each user; a user who exists keeps theirs.
    """
    with get_application_builder() as builder:
        manager = builder.sm
        manager.sync_roles()
        roles = {name: _role(manager, name, permissions) for name, permissions in ROLES.items()}
        roles["admin"] = manager.find_role("Admin")
        return [
            user for user, password in passwords.items() if _make_user(manager, user, roles[user], password)
        ]


def _role(manager: Any, name: str, permissions: frozenset[tuple[str, str]]) -> Any:
    """The role, with exactly these permissions: what somebody added by hand is taken away again."""
    role = manager.find_role(name) or manager.add_role(name)
    for permission in list(role.permissions):
        if (permission.action.name, permission.resource.name) not in permissions:
            manager.remove_permission_from_role(role, permission)
    for action, resource in sorted(permissions):
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
