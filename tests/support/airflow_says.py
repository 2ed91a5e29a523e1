"""What Airflow says about runs and tasks, for code that asks through Airflow's Task SDK."""

from __future__ import annotations

from typing import Any

from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import (
    DagRunStateResult,
    ErrorResponse,
    GetDagRunState,
    GetTaskStates,
    TaskStatesResult,
)


class AirflowSays:
    """The other end of a task's connection to its supervisor, for questions about runs and tasks.

    :ivar runs: states of runs by DAG id and run id; the tasks' states by their keys.
    """

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], str] = {}
        self.tasks: dict[tuple[str, str], dict[str, str | None]] = {}
        self.asked: list[Any] = []

    def send(self, msg: Any) -> Any:
        """Answer as Airflow's execution API does."""
        self.asked.append(msg)
        if isinstance(msg, GetDagRunState):
            state = self.runs.get((msg.dag_id, msg.run_id))
            if state is None:
                detail = {"status_code": 404, "message": "Not found"}
                raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail))
            return DagRunStateResult(state=state)
        assert isinstance(msg, GetTaskStates)
        found = {
            run_id: {key: state for key, state in states.items() if _is_one_of(key, msg.task_ids or [])}
            for (dag_id, run_id), states in self.tasks.items()
            if dag_id == msg.dag_id and run_id in (msg.run_ids or [run_id])
        }
        return TaskStatesResult(task_states={run_id: states for run_id, states in found.items() if states})


def _is_one_of(key: str, task_ids: list[str]) -> bool:
    return any(key == task_id or key.rpartition("_")[0] == task_id for task_id in task_ids)
