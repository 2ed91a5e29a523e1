"""Of a task that was in several workers, only the exit of the one that has it can end it.

Against Airflow's own models and its scheduler's `process_executor_events`, which decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from airflow.executors.local_executor import LocalExecutor
from airflow.utils.state import TaskInstanceState
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from cosmic.airflow_overrides.local_executor import KillProofLocalExecutor, ResultQueue, WorkQueue
from cosmic.airflow_overrides.resumed_tasks import KeepsResumedTasks
from support.stored_dags import new_run, stored

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("airflow_database")]

DAG_ID = "resumed_tasks"
JOB = 7  # the scheduler's id
STATES = [None, *TaskInstanceState]
EXITS = [TaskInstanceState.SUCCESS, TaskInstanceState.FAILED]
WORKER_HAS_IT = {TaskInstanceState.QUEUED, TaskInstanceState.RUNNING, TaskInstanceState.RESTARTING}


class OnlyWaiting(KeepsResumedTasks, LocalExecutor):
    """Airflow's executor with what any executor needs, without what only this one lacks."""


@pytest.fixture(scope="module")
def dag(airflow_database: None) -> Iterator[Any]:
    """A DAG with one task and a retry."""
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG

    with DAG(DAG_ID, schedule=None) as written:
        EmptyOperator(task_id="waits", retries=1)
    with stored(written) as found:
        yield found


def after_exits(dag: Any, executor: Any, state: TaskInstanceState | None, exits: list[Any]) -> str | None:
    """State of a resumed task, in its second try, after the scheduler has processed exits of workers.

    :param exits: with each the number of the try, and what puts it into the executor.
    """
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.models.dagbag import DBDagBag
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        run = new_run(dag, session)
        (task,) = run.get_task_instances(session=session)
        task.state, task.try_number, task.max_tries = state, 2, 3
        task.queued_by_job_id, task.next_method = JOB, "execute_complete"
        session.commit()
        for report, try_number in exits:
            report(executor, task.key.with_try_number(try_number))
        SchedulerJobRunner.process_executor_events(executor, JOB, DBDagBag(), session)
        session.commit()
        found: str | None = session.scalar(
            select(TaskInstance.state).where(TaskInstance.run_id == run.run_id)
        )
        session.expire_all()
        session.delete(run)
    assert not executor.event_buffer
    return found


def executor_without_workers() -> Any:
    executor: Any = KillProofLocalExecutor(1)  # type: ignore[no-untyped-call]
    executor.activity_queue = WorkQueue()
    executor.result_queue = ResultQueue(executor.activity_queue)
    executor._given_out = {}
    return executor


def reports(executor: Any, key: Any, part: int, state: TaskInstanceState) -> None:
    """A worker that had the workload with this number ends."""
    executor.result_queue._work.number = part
    executor.result_queue.put((key, state, None))
    executor._read_results()


def plain(executor_class: Any) -> Any:
    return executor_class(parallelism=1)


def changes(executor: Any, key: Any, state: TaskInstanceState) -> None:
    executor.change_state(key, state)


# What Airflow does


def test_airflow_still_needs_the_numbers(dag: Any) -> None:
    """When this fails, LocalExecutor knows what it has given out: take the numbers of workloads away."""
    late = (lambda executor, key: changes(executor, key, TaskInstanceState.SUCCESS), 2)
    for state in (TaskInstanceState.QUEUED, TaskInstanceState.RUNNING):
        assert after_exits(dag, plain(OnlyWaiting), state, [late]) == "up_for_retry"


def test_airflow_still_needs_the_look_at_the_state(dag: Any) -> None:
    """When this fails, Airflow looks itself: take KeepsResumedTasks away."""
    late = (lambda executor, key: changes(executor, key, TaskInstanceState.FAILED), 2)
    assert after_exits(dag, plain(LocalExecutor), TaskInstanceState.SCHEDULED, [late]) == "up_for_retry"


# What is right


@pytest.mark.parametrize("state", [*EXITS, TaskInstanceState.DEFERRED, TaskInstanceState.SCHEDULED, None])
@pytest.mark.parametrize("exit_state", EXITS)
def test_an_exit_changes_nothing_where_no_worker_has_the_task(
    dag: Any, state: TaskInstanceState | None, exit_state: TaskInstanceState
) -> None:
    late = (lambda executor, key: changes(executor, key, exit_state), 2)
    assert after_exits(dag, plain(OnlyWaiting), state, [late]) == state


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    state=st.sampled_from(STATES) | st.sampled_from(sorted(WORKER_HAS_IT)),
    exits=st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from(EXITS)), max_size=3, unique_by=lambda one: one[0]
    ),
    try_number=st.sampled_from([2, 2, 1]),
)
@example(TaskInstanceState.RUNNING, [(1, TaskInstanceState.SUCCESS)], 2)
@example(TaskInstanceState.QUEUED, [(2, TaskInstanceState.FAILED)], 2)
@example(TaskInstanceState.QUEUED, [(3, TaskInstanceState.FAILED), (1, TaskInstanceState.SUCCESS)], 2)
def test_only_the_exit_of_the_worker_that_has_the_task_can_end_it(
    dag: Any, state: TaskInstanceState | None, exits: list[tuple[int, TaskInstanceState]], try_number: int
) -> None:
    """A task in any state was in three workers, in this try or the one before; they end in any order."""
    executor = executor_without_workers()
    parts = 3

    def all_of_them(executor: Any, key: Any) -> None:
        executor._given_out[key] = parts
        for part, exit_state in exits:
            reports(executor, key, part, exit_state)

    found = after_exits(dag, executor, state, [(all_of_them, try_number)])
    of_the_last = parts in {part for part, _ in exits}
    can_end = of_the_last and try_number == 2 and state in WORKER_HAS_IT
    assert (found != state) == can_end
    assert found == state or found in ("up_for_retry", None)  # None: it was cleared, and starts again


@settings(max_examples=200)
@given(data=st.data())
def test_each_workload_that_was_given_out_last_makes_one_event(data: st.DataObject) -> None:
    """Tasks are given out again and again, and workers end in any order, or never."""
    from airflow.models.taskinstancekey import TaskInstanceKey

    executor = executor_without_workers()
    work = WorkQueue()
    out: dict[int, Any] = {}
    last: dict[Any, int] = {}
    keys = [TaskInstanceKey(DAG_ID, name, "run", 1) for name in "ab"]
    for _ in range(data.draw(st.integers(0, 12))):
        if bool(out) and data.draw(st.booleans()):
            number = data.draw(st.sampled_from(sorted(out)))
            key, state = out.pop(number), data.draw(st.sampled_from(EXITS))
            reports(executor, key, number, state)
            events = executor.get_event_buffer(dag_ids=[]) or executor.event_buffer
            executor.event_buffer = {}
            assert events == ({key: (state, None)} if last.get(key) == number else {})
        else:
            key = data.draw(st.sampled_from(keys))
            work.number += 1
            executor._given_out[key] = last[key] = work.number
            out[work.number] = key
    assert set(executor._given_out) == {key for number, key in out.items() if last[key] == number}
