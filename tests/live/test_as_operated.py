"""Airflow as a beamline operates it: on PostgreSQL, with DAGs from a git repository, through an upgrade."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cosmic.dag_constants import CANCEL_ABANDONED_WORK
from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from deployment.airflow_settings import git_bundle
from dev.local_airflow.postgres import Postgres, programs, running_postgres
from dev.local_airflow.settings import REPOSITORY, local_environment
from support.live import Pipeline, install_engines, start_live

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.needs("postgresql")]

EARLIER = "3.2.0"  # the last release before this one whose tables differ
RENAMED = "wait_for_job"  # what a later version of the DAG calls the waiting task


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server with an empty database."""
    found = programs()
    assert found is not None
    with running_postgres(found) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this Airflow, its facility and its repository are."""
    return tmp_path_factory.mktemp("operated")


@dataclass(frozen=True)
class Migrated:
    """A database that `airflow db migrate` made from nothing, and looked at a second time."""

    environment: dict[str, str]
    made: str  # its definition after the first time
    again: str


def airflow(environment: dict[str, str], *arguments: str) -> str:
    """Run an `airflow` command; returns what it says."""
    command = [sys.executable, "-m", "airflow", *arguments]
    done = subprocess.run(
        command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"airflow {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def migrated(postgres: Postgres, folder: Path) -> Migrated:
    """The database of this module."""
    extra = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": postgres.address}
    environment = local_environment(folder / "airflow", 9, extra)
    airflow(environment, "db", "migrate")
    made = postgres.schema()
    airflow(environment, "db", "migrate")
    return Migrated(environment, made, postgres.schema())


@dataclass(frozen=True)
class Repository:
    """A bare repository of this one's shape, and a next commit that is not in it yet."""

    path: Path
    commit: str
    git: Callable[..., str]  # where the next commit is

    def upgrade(self) -> None:
        """Bring in the commit that renames a task."""
        self.git("push", "-q", str(self.path), "main")


@pytest.fixture(scope="module")
def repository(folder: Path) -> Repository:
    """The repository of this module."""
    work, bare = folder / "work", folder / "bundle.git"
    for name in ("dags", "plugins", "include"):
        shutil.copytree(REPOSITORY / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))

    def git(*arguments: str) -> str:
        author = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
        command = ["git", "-C", str(work), *author, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "The bundle")
    git("clone", "-q", "--bare", ".", str(bare))
    commit = git("rev-parse", "HEAD")
    for name in (DAG_ID, CANCEL_ABANDONED_WORK):
        path = work / "dags" / f"{name}.py"
        before = path.read_text()
        path.write_text(
            before.replace('task_id="wait"', f'task_id="{RENAMED}"').replace(".wait", f".{RENAMED}")
        )
        assert path.read_text() != before
    git("commit", "-q", "-a", "-m", "A task has another name")
    return Repository(bare, commit, git)


@dataclass(frozen=True)
class Upgraded:
    """What became of a run whose job ran while a new version of its DAG named the waiting task anew."""

    state: str
    cancelled: list[str]
    jobs: list[dict[str, Any]]


@dataclass(frozen=True)
class Finished:
    """What is known of a run when its Airflow has been stopped."""

    run: dict[str, Any]
    report: dict[str, Any]
    scan: str
    transfers: list[dict[str, Any]]
    jobs: list[dict[str, Any]]
    secret: str  # of the Globus connection, which is encrypted in the database
    upgraded: Upgraded


def upgrade_in_mid_wait(pipeline: Pipeline, repository: Repository) -> Upgraded:
    """Upgrade while a job runs, clean up orphans, let the job end."""
    scan = pipeline.new_scan("hold")
    run_id = pipeline.start(scan)
    pipeline.wait_for_task(run_id, "ptychocam.wait", "deferred")
    pipeline.wait_for(lambda: pipeline.job_states(scan) == ["RUNNING"], "the job runs")
    repository.upgrade()
    tasks = f"/api/v2/dags/{DAG_ID}/tasks"

    def renamed() -> bool:
        found = pipeline.rest.call("GET", tasks)["tasks"]
        return f"ptychocam.{RENAMED}" in {task["task_id"] for task in found}

    pipeline.wait_for(renamed, "the new version of the DAG is there")
    cancelled = pipeline.clean_up(run_id)
    pipeline.let_go(scan)
    state = pipeline.finish(run_id)
    return Upgraded(state, cancelled, pipeline.jobs_of(scan))


@pytest.fixture(scope="module")
def finished(migrated: Migrated, folder: Path, repository: Repository) -> Finished:
    """One scan, by an Airflow on this database whose DAGs come from the repository."""
    extra = {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": migrated.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"],
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(
            [git_bundle(str(repository.path), "main")]
        ),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(folder / "checkouts"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "no-dags-here"),
    }
    with contextlib.contextmanager(start_live)(folder, extra=extra) as live:
        install_engines(live.facility)
        pipeline = Pipeline(live)
        scan = pipeline.new_scan()
        run_id = pipeline.start(scan)
        assert pipeline.finish(run_id) == "success"
        return Finished(
            live.rest.run(DAG_ID, run_id),
            live.rest.xcom(DAG_ID, run_id, "report"),
            scan,
            pipeline.transfers_of(run_id),
            pipeline.jobs_of(scan),
            live.facility.description["globus"]["client_secret"],
            upgrade_in_mid_wait(pipeline, repository),
        )


def test_a_database_is_made_from_nothing_and_a_second_migration_changes_nothing(migrated: Migrated) -> None:
    assert "CREATE TABLE public.dag_run " in migrated.made
    assert "CREATE TABLE public.task_state_store " in migrated.made
    assert migrated.again == migrated.made


def test_a_scan_on_postgresql(finished: Finished) -> None:
    assert finished.report["scan"] == finished.scan
    (result,) = finished.report["reconstructions"]
    (job,) = finished.jobs
    assert (result["job_id"], job["state"], job["runs"]) == (str(job["job_id"]), "COMPLETED", 1)
    assert [transfer["status"] for transfer in finished.transfers] == ["SUCCEEDED"]


def test_the_dags_came_from_git(finished: Finished, repository: Repository) -> None:
    assert finished.run["bundle_version"] == repository.commit
    assert [version["bundle_name"] for version in finished.run["dag_versions"]] == ["cosmic"]


def test_a_new_version_of_the_dags_that_renames_a_task_cancels_nothing(finished: Finished) -> None:
    upgraded = finished.upgraded
    assert upgraded.cancelled == []
    assert [(job["state"], job["runs"], job["cancels"]) for job in upgraded.jobs] == [("COMPLETED", 1, [])]
    assert upgraded.state == "success"


def test_an_upgrade_keeps_runs_results_and_connections(
    migrated: Migrated, finished: Finished, postgres: Postgres, folder: Path
) -> None:
    run_id = finished.run["dag_run_id"]
    looks = [
        f"SELECT run_id, state, conf FROM dag_run WHERE run_id = '{run_id}'",
        f"SELECT task_id, state, try_number FROM task_instance WHERE run_id = '{run_id}' ORDER BY 1",
        f"SELECT task_id, key, value FROM xcom WHERE run_id = '{run_id}' ORDER BY 1, 2",
        "SELECT conn_id, host, login, password, extra FROM connection ORDER BY 1",
        "SELECT pool, slots FROM slot_pool ORDER BY 1",
    ]
    before = [postgres.query(look) for look in looks]
    assert [len(rows) > 0 for rows in before] == [True] * len(looks)
    airflow(migrated.environment, "db", "downgrade", "--to-version", EARLIER, "--yes")
    assert postgres.schema() != migrated.made
    airflow(migrated.environment, "db", "migrate")
    assert [postgres.query(look) for look in looks] == before
    exported = folder / "connections.json"
    airflow(migrated.environment, "connections", "export", str(exported))
    assert json.loads(exported.read_text())["globus_default"]["password"] == finished.secret
