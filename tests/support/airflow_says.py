"""What Airflow says about runs and tasks, for code that asks through Airflow's Task SDK."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DagRunState
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import (
    AssetEventsResult,
    DagRunStateResult,
    DRCount,
    ErrorResponse,
    GetAssetEventByAssetAlias,
    GetDagRunState,
    GetDRCount,
    GetTaskStates,
    GetTICount,
    TaskStatesResult,
    TICount,
)


class AirflowSays:
    """The other end of a task's connection to its supervisor, for questions about runs and tasks.

    :ivar runs: states of runs by DAG id and run id.
    :ivar tasks: the tasks' states by their keys, likewise.
    :ivar events: of each asset alias, the runs that added one, with its `extra`.
    """

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], str] = {}
        self.tasks: dict[tuple[str, str], dict[str, str | None]] = {}
        self.events: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        self.asked: list[Any] = []

    def send(self, msg: Any) -> Any:
        """Answer as Airflow's execution API does."""
        self.asked.append(msg)
        if isinstance(msg, GetDagRunState):
            state = self.runs.get((msg.dag_id, msg.run_id))
            if state is None:
                detail = {"status_code": 404, "message": "Not found"}
                raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail))
            return DagRunStateResult(state=DagRunState(state))
        if isinstance(msg, GetDRCount):
            return DRCount(
                count=sum(state in (msg.states or [state]) for state in self._runs_of(msg).values())
            )
        if isinstance(msg, GetTICount):
            return TICount(count=self._count_tasks(msg))
        if isinstance(msg, GetAssetEventByAssetAlias):
            return AssetEventsResult(asset_events=self._events_of(msg.alias_name))
        assert isinstance(msg, GetTaskStates)
        found = {
            run_id: {key: state for key, state in states.items() if _is_one_of(key, msg.task_ids or [])}
            for (dag_id, run_id), states in self.tasks.items()
            if dag_id == msg.dag_id and run_id in (msg.run_ids or [run_id])
        }
        return TaskStatesResult(task_states={run_id: states for run_id, states in found.items() if states})

    def _runs_of(self, msg: GetDRCount) -> dict[str, str]:
        return {
            run_id: state
            for (dag_id, run_id), state in self.runs.items()
            if dag_id == msg.dag_id and run_id in (msg.run_ids or [run_id])
        }

    def _count_tasks(self, msg: GetTICount) -> int:
        states = [None if state == "null" else state for state in msg.states or []]
        return sum(
            _is_one_of(key, msg.task_ids or []) and state in states
            for (dag_id, run_id), tasks in self.tasks.items()
            for key, state in tasks.items()
            if dag_id == msg.dag_id and run_id in (msg.run_ids or [run_id])
        )

    def _events_of(self, alias: str) -> list[Any]:
        asset = {"name": "any", "uri": "any", "group": "asset", "extra": {}}
        return [
            {
                "id": number,
                "timestamp": "2026-01-01T00:00:00Z",
                "extra": extra,
                "asset": asset,
                "created_dagruns": [],
                "source_run_id": run_id,
            }
            for number, (run_id, extra) in enumerate(self.events.get(alias, []))
        ]


def _is_one_of(key: str, task_ids: list[str]) -> bool:
    return any(key == task_id or key.rpartition("_")[0] == task_id for task_id in task_ids)
