"""Makes or migrates the database and writes connections and pools: `python -m deployment.database FILE`.

FILE is JSON, `{"connections": {id: {conn_type, host, login, password, extra}}, "pools": {name: {slots,
description}}}`. It is one process because each `airflow` command takes seconds to start.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from airflow.models.connection import Connection
from airflow.models.pool import Pool
from airflow.utils.db import initdb
from airflow.utils.session import create_session
from sqlalchemy import delete


def prepare_database(seed: dict[str, Any]) -> None:
    """Bring the database to this Airflow's version and write `seed`; running it again changes nothing."""
    initdb()
    with create_session() as session:
        for conn_id, fields in seed.get("connections", {}).items():
            session.execute(delete(Connection).where(Connection.conn_id == conn_id))
            extra = json.dumps(fields["extra"]) if fields.get("extra") else None
            # The UI's Test button sends port 0 for no port, and is refused when another is stored.
            session.add(Connection(**{"port": 0, **fields, "conn_id": conn_id, "extra": extra}))
    for name, fields in seed.get("pools", {}).items():
        Pool.create_or_update_pool(
            name=name,
            slots=fields["slots"],
            description=fields["description"],
            include_deferred=fields.get("include_deferred", False),
        )


if __name__ == "__main__":
    prepare_database(json.loads(Path(sys.argv[1]).read_text()))
