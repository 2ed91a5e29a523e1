"""DAGs in the session's database, as the scheduler reads them, for tests of what Airflow itself does."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any


@contextlib.contextmanager
def stored(written: Any) -> Iterator[Any]:
    """Write a DAG into the database; gives what the scheduler has of it, and deletes all of it at the end."""
    from airflow.api.common.delete_dag import delete_dag
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.serialization.definitions.dag import SerializedDAG
    from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG
    from airflow.utils.session import create_session

    lazy = LazyDeserializedDAG.from_dag(written)
    with create_session() as session:
        session.merge(DagBundleModel(name="tests"))
        session.flush()
        SerializedDAG.bulk_write_to_db("tests", None, [lazy], session=session)
        SerializedDagModel.write_dag(lazy, bundle_name="tests", session=session)
    try:
        yield DagSerialization.from_dict(lazy.data)
    finally:
        delete_dag(written.dag_id)


def new_run(dag: Any, session: Any, state: str = "running") -> Any:
    """Add a run of a stored DAG."""
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    return dag.create_dagrun(
        run_id=f"run_{uuid.uuid4().hex}",
        run_after=datetime.now(UTC),
        run_type=DagRunType.MANUAL,
        triggered_by=DagRunTriggeredByType.TEST,
        state=DagRunState(state),
        session=session,
    )
