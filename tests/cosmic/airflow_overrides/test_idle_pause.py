"""The scheduler's round lasts while nothing changes in the database, and not a look longer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.executors.base_executor import BaseExecutor
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from cosmic.airflow_overrides import idle_pause
from cosmic.airflow_overrides.idle_pause import LONGEST_PAUSE, LOOK_INTERVAL, SETTLE, PausesWhenIdle
from support.stored_dags import new_run, stored

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("dag")]

DAG_ID = "idle_pause"
FULL = round(LONGEST_PAUSE / LOOK_INTERVAL)  # pauses between looks when nothing changes


class Clock:
    """Time that passes only in `sleep`, which may also do something."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps = 0
        self.at: dict[int, Callable[[], None]] = {}  # what happens during which sleep

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + 1e-9
        self.sleeps += 1
        self.at.get(self.sleeps, lambda: None)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(idle_pause, "time", SimpleNamespace(monotonic=made.monotonic, sleep=made.sleep))
    return made


@pytest.fixture
def executor() -> BaseExecutor:
    class Executor(PausesWhenIdle, BaseExecutor):
        pass

    return Executor(parallelism=4)


@pytest.fixture(scope="module")
def dag(airflow_database: None) -> Iterator[Any]:
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG
    from airflow.utils.session import create_session

    with create_session() as session:  # of other tests in this process
        session.execute(text("UPDATE task_instance SET state = 'removed'"))
        session.execute(text("UPDATE dag_run SET state = 'failed'"))
    with DAG(DAG_ID, schedule=None) as written:
        EmptyOperator(task_id="only")
    with stored(written) as found:
        yield found


@pytest.fixture
def add_run(dag: Any) -> Iterator[Callable[..., None]]:
    """Makes a run whose task is in a state; all are removed at the end."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    def make(task_state: str | None, state: str = "running") -> None:
        with create_session() as session:
            (task,) = new_run(dag, session, state).get_task_instances(session=session)
            task.state = task_state

    yield make
    with create_session() as session:
        for run in session.query(DagRun).where(DagRun.dag_id == DAG_ID):
            session.delete(run)


def set_task(state: str | None) -> Callable[[], None]:
    from airflow.utils.session import create_session

    def change() -> None:
        with create_session() as session:
            session.execute(
                text("UPDATE task_instance SET state = :state WHERE dag_id = :dag_id"),
                {"state": state, "dag_id": DAG_ID},
            )

    return change


def settle(executor: BaseExecutor, clock: Clock) -> None:
    """A round that sees the change, and none for so long that the next one may last."""
    executor.heartbeat()
    clock.now += SETTLE


def test_a_round_that_finds_what_the_one_before_has_left_lasts(executor: BaseExecutor, clock: Clock) -> None:
    settle(executor, clock)
    assert clock.sleeps == 0
    executor.heartbeat()
    assert clock.sleeps == FULL
    executor.heartbeat()
    assert clock.sleeps == 2 * FULL


@pytest.mark.parametrize("waits", ["deferred", "scheduled", "awaiting_input"])
@pytest.mark.parametrize("then", ["deferred", "scheduled", "queued", "success", "failed", "removed"])
def test_a_change_of_a_waiting_task_ends_the_pause(
    executor: BaseExecutor, clock: Clock, add_run: Callable[..., None], waits: str, then: str
) -> None:
    if waits == then:
        return
    add_run(waits)
    settle(executor, clock)
    clock.at[3] = set_task(then)
    executor.heartbeat()
    assert clock.sleeps == 3
    executor.heartbeat()  # the round in which the scheduler sees the change, and a pause would be wrong
    assert clock.sleeps == 3


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_new_run_ends_the_pause(
    executor: BaseExecutor, clock: Clock, add_run: Callable[..., None], state: str
) -> None:
    settle(executor, clock)
    clock.at[2] = lambda: add_run(None, state)
    executor.heartbeat()
    assert clock.sleeps == 2


def test_there_is_no_pause_right_after_a_change(
    executor: BaseExecutor, clock: Clock, add_run: Callable[..., None]
) -> None:
    """A run that was posted just now is due in the next second of SQLite's clock."""
    settle(executor, clock)
    add_run(None, "queued")
    for _ in range(11):
        executor.heartbeat()
        clock.now += 0.1  # the scheduler's own pause
    assert clock.sleeps == 0
    clock.now += 0.1
    executor.heartbeat()  # such as one that waits for runs before it
    assert clock.sleeps == FULL


def test_what_a_person_does_ends_the_pause(executor: BaseExecutor, clock: Clock) -> None:
    """A task that is cleared in a run which goes on, a DAG that is turned on: no count has them."""
    from airflow.models.log import Log
    from airflow.utils.session import create_session

    def click() -> None:
        with create_session() as session:
            session.add(Log("post_clear_task_instances", owner="ada"))

    settle(executor, clock)
    clock.at[4] = click
    executor.heartbeat()
    assert clock.sleeps == 4
    executor.heartbeat()
    assert clock.sleeps == 4


@pytest.mark.parametrize("state", ["queued", "running", "restarting"])
def test_there_is_no_pause_while_a_task_is_with_a_worker(
    executor: BaseExecutor, clock: Clock, add_run: Callable[..., None], state: str
) -> None:
    add_run(state)
    for _ in range(3):
        settle(executor, clock)
    assert clock.sleeps == 0


def test_there_is_no_pause_before_the_scheduler_has_seen_what_the_executor_has(
    executor: BaseExecutor, clock: Clock
) -> None:
    event: Any = ("key", ("success", None))
    for _ in range(3):
        executor.event_buffer = dict([event])
        settle(executor, clock)
    assert clock.sleeps == 0
    executor.event_buffer = {}
    settle(executor, clock)
    assert clock.sleeps == 0  # what the event was of may have changed something
    executor.heartbeat()
    assert clock.sleeps == FULL


def test_there_is_no_pause_before_all_runs_have_had_their_turn(
    executor: BaseExecutor, clock: Clock, add_run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round of Airflow's scheduler looks at some of the runs only."""
    monkeypatch.setattr("airflow.models.dagrun.DagRun.DEFAULT_DAGRUNS_TO_EXAMINE", 2)
    for _ in range(5):
        add_run("deferred")
    sleeps = []
    for _ in range(4):
        settle(executor, clock)
        sleeps.append(clock.sleeps)
    assert sleeps == [0, 0, 0, FULL]


def test_a_database_that_does_not_answer_is_the_schedulers_business(
    executor: BaseExecutor, clock: Clock, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails() -> Any:
        raise OperationalError("connect", {}, Exception("gone"))

    monkeypatch.setattr("airflow.settings.get_engine", fails)
    executor.heartbeat()
    executor.heartbeat()
    assert clock.sleeps == 0
    assert "goes on without a pause" in capfd.readouterr().out


def test_the_look_reads_only_indexes() -> None:
    """It takes as long with a million tasks that have ended as with none."""
    from airflow import settings

    with settings.get_engine().connect() as connection:  # type: ignore[no-untyped-call]
        plan = connection.execute(text(f"EXPLAIN QUERY PLAN {idle_pause._COUNTS.text}"))
        steps = [row.detail for row in plan if "task_instance" in row.detail or "dag_run" in row.detail]
    assert len(steps) == 3
    assert all("USING COVERING INDEX" in step for step in steps)
    assert {step.split()[0] for step in steps} <= {"SEARCH", "SCAN"}
    assert not [
        step for step in steps if step.startswith("SCAN") and "_dags" not in step
    ]  # partial: no end in it


def test_airflow_still_needs_it() -> None:
    """When this fails, the scheduler's pause is another: see whether it is long when nothing happens."""
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

    loop = inspect.getsource(SchedulerJobRunner._run_scheduler_loop)
    assert "time.sleep(min(self._scheduler_idle_sleep_time, next_event or 0))" in loop
