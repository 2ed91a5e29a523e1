"""Who has ended a run, by what Airflow's own API enters into its audit log and really does."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

import httpx
import pytest
from airflow.models.dagrun import DagRun
from airflow.models.log import Log
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from sqlalchemy import select, update

from cosmic.beamline import DEFAULT_FILE
from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from support.pages import Pages, dags_in_database, set_states

WAIT = "ptychocam.wait"


@pytest.fixture(scope="module")
def pages(airflow_database: None) -> Iterator[Pages]:
    """The API server's app with the DAG."""
    with pytest.MonkeyPatch.context() as patch, dags_in_database("transfer_auto_recon.py"):
        patch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(DEFAULT_FILE))
        with closing(Pages()) as pages:
            yield pages


@pytest.fixture
def run_id(pages: Pages) -> str:
    """A run whose job goes on."""
    path = f"2023/02/230216/NS_230216{uuid.uuid4().int % 10**9:09}_ccdframes_0_0.cxi"
    body = {"logical_date": None, "conf": {"file_path": path, "do_ptychocam": True, "do_cdtools": True}}
    reply = pages.send("POST", "beamline", f"/api/v2/dags/{DAG_ID}/dagRuns", {}, json=body)
    run_id = str(reply.json()["dag_run_id"])
    set_states(
        run_id, "running", copy_to_nersc="success", ptychocam__wait="deferred", cdtools__wait="deferred"
    )
    return run_id


def mark(pages: Pages, user: str, run_id: str, rest: str) -> httpx.Response:
    """Mark a task, or a group of tasks, as failed."""
    path = f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}/{rest}"
    return pages.send("PATCH", user, path, {}, json={"new_state": "failed"})


def end(run_id: str, *, after: timedelta, by_itself: bool = False) -> None:
    """The run's job fails so long after the last entry of the audit log, and with it the run."""
    with create_session(scoped=False) as session:
        asked = session.scalars(
            select(Log.dttm).where(Log.run_id == run_id).order_by(Log.dttm.desc())
        ).first()
        assert asked
        moment = asked + after
        tasks = update(TaskInstance).where(TaskInstance.run_id == run_id)
        failed = {"state": "failed", "end_date": moment, "updated_at": moment}
        session.execute(tasks.where(TaskInstance.task_id == WAIT).values(failed))
        session.execute(update(DagRun).where(DagRun.run_id == run_id).values(state="failed", end_date=moment))
        if by_itself:  # as the worker reports it
            entry = Log(event="failed", owner="COSMIC")
            entry.dag_id, entry.run_id, entry.task_id, entry.dttm = DAG_ID, run_id, WAIT, moment
            session.add(entry)


def ended_by(run_id: str) -> tuple[str, str] | None:
    from cosmic.cancellations import cancellations

    with create_session(scoped=False) as session:
        found = cancellations(session, DagRun.dag_id == DAG_ID).get(run_id)
    return (found.who, found.what) if found else None


def set_failed(run_id: str) -> None:
    with create_session(scoped=False) as session:
        session.execute(update(DagRun).where(DagRun.run_id == run_id).values(state="failed"))


@pytest.mark.parametrize("rest", [f"taskInstances/{WAIT}", "taskGroupInstances/ptychocam"])
def test_who_was_refused_has_ended_nothing(pages: Pages, run_id: str, rest: str) -> None:
    assert mark(pages, "reader", run_id, rest).status_code == 403
    with create_session(scoped=False) as session:
        owners = session.scalars(
            select(Log.owner).where(Log.run_id == run_id, Log.event.like("patch_%"))
        ).all()
    assert owners == ["reader"], "Airflow enters what it refuses"
    end(run_id, after=timedelta(hours=1))  # a worker was lost
    assert ended_by(run_id) is None


def test_a_task_that_fails_by_itself_right_after_a_refusal_was_not_ended(pages: Pages, run_id: str) -> None:
    assert mark(pages, "reader", run_id, f"taskInstances/{WAIT}").status_code == 403
    end(run_id, after=timedelta(seconds=5), by_itself=True)
    assert ended_by(run_id) is None


def test_whose_request_came_too_late_has_ended_nothing(pages: Pages, run_id: str) -> None:
    assert mark(pages, "reader", run_id, f"taskInstances/{WAIT}").status_code == 403
    end(run_id, after=timedelta(0) - timedelta(minutes=5))
    assert mark(pages, "admin", run_id, f"taskInstances/{WAIT}").status_code == 409
    pages.send("PATCH", "ada", f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}", {}, json={"state": "failed"})
    assert ended_by(run_id) is None


@pytest.mark.parametrize(
    ("rest", "what"),
    [
        (f"taskInstances/{WAIT}", "ptychocam: Slurm job"),
        ("taskGroupInstances/ptychocam", "ptychocam"),
    ],
)
def test_whose_request_was_carried_out_is_named(pages: Pages, run_id: str, rest: str, what: str) -> None:
    assert mark(pages, "reader", run_id, rest).status_code == 403
    assert mark(pages, "admin", run_id, rest).status_code == 200
    assert mark(pages, "reader", run_id, rest).status_code == 403
    set_failed(run_id)  # hours later, when the other engine's job has ended
    assert ended_by(run_id) == ("admin", what)


def test_a_task_that_was_tried_before_may_be_ended(pages: Pages, run_id: str) -> None:
    set_states(run_id, "running", ptychocam__wait="up_for_retry")
    with create_session(scoped=False) as session:
        of_before = session.scalar(select(Log.dttm).where(Log.run_id == run_id).limit(1))
        assert of_before
        task = update(TaskInstance).where(TaskInstance.run_id == run_id, TaskInstance.task_id == WAIT)
        session.execute(task.values(end_date=of_before - timedelta(minutes=9)))
    assert mark(pages, "admin", run_id, f"taskInstances/{WAIT}").status_code == 200
    set_failed(run_id)
    assert ended_by(run_id) == ("admin", "ptychocam: Slurm job")


def test_the_run_is_named_before_a_task(pages: Pages, run_id: str) -> None:
    reply = pages.send(
        "PATCH", "ada", f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}", {}, json={"state": "failed"}
    )
    assert reply.status_code == 200
    assert ended_by(run_id) == ("ada", "the run")
