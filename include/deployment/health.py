"""Checks that this container's component is alive: `python -m deployment.health scheduler|triggerer|...`

The components are scheduler, triggerer, dag-processor and worker.

Asks for the heartbeat that the component itself writes, as `airflow jobs check` does, without importing
Airflow: that takes seconds of a core, and a health check runs every half minute in every container.
"""

from __future__ import annotations

import socket
import sys

from deployment.keys import read_key

JOB_TYPES = {
    "scheduler": "SchedulerJob",
    "triggerer": "TriggererJob",
    "dag-processor": "DagProcessorJob",
}
MAX_HEARTBEAT_AGE = 60  # seconds; heartbeats come every 5

_QUERY = """
SELECT count(*) FROM job
WHERE job_type = %s AND hostname = %s AND state = 'running'
  AND latest_heartbeat > now() - make_interval(secs => %s)
"""


def has_heartbeat(component: str) -> bool:
    """Whether the component of this host has written a heartbeat lately."""
    import psycopg2  # type: ignore[import-untyped] # noqa: PLC0415 - in the image only

    address = read_key("sql_alchemy_conn").replace("postgresql+psycopg2:", "postgresql:")
    connection = psycopg2.connect(address, connect_timeout=5)
    try:
        with connection.cursor() as cursor:
            cursor.execute(_QUERY, (JOB_TYPES[component], socket.gethostname(), MAX_HEARTBEAT_AGE))
            return bool(cursor.fetchone()[0])
    finally:
        connection.close()


def worker_answers() -> bool:
    """Whether the Celery worker of this host answers a ping."""
    from celery import Celery  # noqa: PLC0415 - in the image only

    name = f"celery@{socket.gethostname()}"
    return bool(Celery(broker=read_key("broker_url")).control.inspect([name], timeout=5).ping())


def main() -> None:
    """Exit code 0 when the component named on the command line is alive."""
    component = sys.argv[1]
    alive = worker_answers() if component == "worker" else has_heartbeat(component)
    sys.exit(None if alive else f"no heartbeat of the {component} of {socket.gethostname()}")


if __name__ == "__main__":
    main()
