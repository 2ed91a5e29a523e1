"""An installation with docker-compose.yaml, brought up by a Docker engine for tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from deployment.env_file import read_env_file
from dev.build_client import build
from dev.local_airflow.rest import Rest
from dev.local_airflow.stack import free_port, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINE = REPOSITORY / "tests" / "live" / "engine.sh"
UID = 50000
PATIENCE = 600.0  # seconds; the machine may have better things to do


def compose_command() -> list[str]:
    """`docker-compose`, or `docker compose` where there is no such program."""
    return ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]


class Stack:
    """One installation: a project name, a port and settings of its own.

    :param folder: where its `.env` and what is mounted read-write are.
    :param settings: changes of `.env`.
    """

    def __init__(self, folder: Path, *, scale: dict[str, int] | None = None, **settings: str) -> None:
        self.folder = folder
        self.project = f"cosmic-test-{os.getpid()}-{folder.name}".lower()
        self.scale = scale or {}
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env_file = folder / "env"
        self.files = ["docker-compose.yaml", str(self._override())]
        self._passwords: dict[str, str] = {}
        self.configure(UI_PORT=str(self.port), UI_URL=self.url, SETTINGS_FILE=str(self.env_file), **settings)

    def configure(self, **settings: str) -> None:
        """Write `.env` anew: what was there, with these changes."""
        base = self.env_file if self.env_file.exists() else REPOSITORY / ".env.example"
        lines = [line for line in base.read_text().splitlines() if line.partition("=")[0] not in settings]
        self.env_file.write_text("\n".join([*lines, *(f"{k}={v}" for k, v in settings.items())]) + "\n")
        self.env_file.chmod(0o600)
        self._give_away(self.env_file)

    def _override(self) -> Path:
        """What differs from a user's installation: the folders that are mounted are the test's own."""
        scripts, nersc = self.folder / "tmp_job_scripts", self.folder / "nersc"
        for path in (scripts, nersc):
            path.mkdir(parents=True)
            self._give_away(path)
        services = ("api-server", "scheduler", "dag-processor", "triggerer", "worker")
        mounts = [f"{scripts}:/tmp_job_scripts", f"{nersc}:/nersc:ro"]
        override = {"services": {name: {"volumes": mounts} for name in services}}
        override["services"]["init"] = {"volumes": mounts[1:]}
        path = self.folder / "override.json"
        path.write_text(json.dumps(override))
        return path

    @staticmethod
    def _give_away(path: Path) -> None:
        if os.getuid() == 0:
            os.chown(path, UID, 0)

    # The engine

    def compose(self, *arguments: str, check: bool = True, timeout: float = 900.0) -> str:
        """Run a docker-compose command; returns its output."""
        command = [*compose_command(), "-p", self.project, "--env-file", str(self.env_file)]
        for file in self.files:
            command += ["-f", file]
        done = subprocess.run(
            [*command, *arguments],
            cwd=REPOSITORY,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            logs = (
                "" if arguments[0] == "logs" else self.compose("logs", "--tail=25", "--no-color", check=False)
            )
            raise AssertionError(f"{' '.join(arguments)}:\n{done.stdout}\n{done.stderr}\n{logs}")
        return done.stdout

    def script(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of `include/deployment`'s scripts for this installation instead of the checkout's own."""
        settings = read_env_file(self.env_file)
        settings |= {"COMPOSE_PROJECT_NAME": self.project, "COMPOSE_FILE": os.pathsep.join(self.files)}
        return subprocess.run(
            ["bash", str(REPOSITORY / "include" / "deployment" / name), *arguments],
            env=_environment() | settings,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def up(self) -> None:
        """Bring everything up, and wait until the DAGs are there."""
        scale = [f"--scale={service}={count}" for service, count in self.scale.items()]
        self.compose("up", "-d", "--build", *scale)
        self.wait_for(self.is_well, "every container is healthy", 300)
        rest = self.rest("admin")
        rest.wait_for_dag(DAG_ID, PATIENCE)

    def is_well(self) -> bool:
        """Tell whether every container is healthy, or has done its work and ended."""
        states = [container["State"] for container in json.loads(_docker("inspect", *self.all_containers()))]
        return all(
            state["Health"]["Status"] == "healthy" if state["Running"] else state["ExitCode"] == 0
            for state in states
        )

    def down(self, *, volumes: bool = False) -> None:
        """Take everything down."""
        self.compose("down", "--remove-orphans", *(["-v"] if volumes else []))

    def run_in(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command in a service's container; returns its output."""
        return self.compose("exec", "-T", service, *command, check=check).strip()

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers."""
        return self.compose("ps", "-q", service).split()

    def all_containers(self) -> list[str]:
        """Ids of all containers, those that have ended too."""
        label = f"label=com.docker.compose.project={self.project}"
        return _docker("ps", "-aq", "--filter", label).split()

    def kill(self, service: str, index: int = 0) -> str:
        """SIGKILL one container of a service, which stays down as a broken machine does; returns its id."""
        container = self.containers(service)[index]
        _docker("kill", "--signal=KILL", container)
        return container

    # Airflow

    def password(self, user: str) -> str:
        """A user's first password."""
        if user not in self._passwords:
            self._passwords[user] = self.run_in("api-server", "cat", f"/keys/{user}_password")
        return self._passwords[user]

    def rest(self, user: str) -> Rest:
        """The REST API through the published port."""
        return Rest(self.url, user, self.password(user))

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the beamline's client on this machine, outside the stack, as `beamline`."""
        password, config = self.folder / "password", self.folder / "client.ini"
        password.touch(mode=0o600)
        password.write_text(self.password("beamline"))
        config.write_text(
            f"[airflow]\nurl = {self.url}\nuser = beamline\npassword_file = {password}\n"
            f"[client]\nspool = {self.folder / 'spool'}\n"
        )
        command = [sys.executable, str(build()), arguments[0], "--config", str(config), *arguments[1:]]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)

    def send(self, scans: list[str]) -> list[str]:
        """Submit scans with the beamline's client; returns the ids of their runs."""
        done = self.submit("submit", *scans, "--engine", "ptychocam")
        assert done.returncode == 0, done.stdout + done.stderr
        return self.runs_of(scans)

    def runs_of(self, scans: list[str]) -> list[str]:
        """The ids of the scans' runs; every scan has exactly one."""
        runs = self.rest("admin").call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns?limit=100")["dag_runs"]
        found = [[run["dag_run_id"] for run in runs if run["conf"]["file_path"] == scan] for scan in scans]
        assert [len(ids) for ids in found] == [1] * len(scans), dict(zip(scans, found, strict=True))
        return [ids[0] for ids in found]

    def states(self, run_ids: list[str]) -> list[str]:
        """States of runs."""
        rest = self.rest("admin")
        return [str(rest.run(DAG_ID, run_id)["state"]) for run_id in run_ids]

    def wait_for_tasks(self, run_ids: list[str], task_id: str, *states: str) -> None:
        """Wait until a task of every run is in one of these states."""
        rest = self.rest("admin")

        def all_there() -> bool:
            return all(rest.task_instances(DAG_ID, run)[task_id]["state"] in states for run in run_ids)

        self.wait_for(all_there, f"{task_id} is {' or '.join(states)} in {len(run_ids)} runs")

    def wait_for_runs(self, run_ids: list[str]) -> None:
        """Wait until every run has ended, and see that all did well."""
        rest = self.rest("admin")
        for run_id in run_ids:
            run = rest.wait_for_run(DAG_ID, run_id, PATIENCE)
            assert run["state"] == "success", self.story(run_id)

    def story(self, run_id: str) -> str:
        """The states of a run's tasks and the ends of the failed ones' logs."""
        rest = self.rest("admin")
        lines = [run_id]
        for name, task in rest.task_instances(DAG_ID, run_id).items():
            lines.append(f"  {name}: {task['state']}, try {task['try_number']}")
            if task["state"] == "failed":
                lines.append(rest.log(DAG_ID, run_id, name, task["try_number"])[-2000:])
        return "\n".join(lines)

    # The stand-in

    def control(self, service: str, verb: str, **body: Any) -> dict[str, Any]:
        """A control verb of the stand-in, which only the stack's own network reaches."""
        address = f"http://127.0.0.1:8000/control/{service}/{verb}"
        text = self.run_in("standin", "curl", "-fsS", "-X", "POST", "-d", json.dumps(body), address)
        answer: dict[str, Any] = json.loads(text)
        return answer

    def requests(self, service: str) -> list[dict[str, Any]]:
        """The requests that one of the stand-in's services has received, the newest last."""
        address = f"http://127.0.0.1:8000/control/requests?service={service}"
        found: list[dict[str, Any]] = json.loads(self.run_in("standin", "curl", "-fsS", address))["requests"]
        return found

    def install_test_engine(self) -> None:
        """Put an engine that does what its scan says in place of the real ones."""
        software = "/standin/nersc/software"
        for engine in ("ptychocam", "cdtools"):
            install = 'rm -f "$1"; printf %s "$2" >"$1"; chmod 755 "$1"'
            target = f"{software}/{engine}_reconstruction.sh"
            self.run_in("standin", "bash", "-c", install, "-", target, ENGINE.read_text())
        preview = f"from PIL import Image; Image.new('L', (32, 16)).save('{software}/preview.png')"
        self.run_in("standin", "python", "-c", preview)

    def place_scans(self, first: int, count: int, behaviour: str = "ok", size: int = 0) -> list[str]:
        """Put scans for the test engine at the beamline; returns their `file_path`s."""
        folder = "2023/02/230216"
        names = [f"{folder}/NS_230216{n:03}_ccdframes_0_0.cxi" for n in range(first, first + count)]
        script = f'cd /standin/collections/data7012; mkdir -p {folder}; for f in "$@"; do '
        script += f'{{ echo {behaviour} "$f"; head -c {size} /dev/zero; }} >"$f"; done'
        self.run_in("standin", "bash", "-c", script, "-", *names)
        return names

    def let_go(self, scans: list[str]) -> None:
        """Let jobs that hold go on."""
        files = [f"/standin/nersc/gsharing/7012/{scan}.go" for scan in scans]
        self.run_in("standin", "touch", *files)

    def assert_exactly_once(self, scans: list[str], run_ids: list[str]) -> None:
        """Every scan made one transfer that succeeded and one job that ran once, by the facility's books."""
        transfers = self.control("globus", "transfers")["transfers"]
        jobs = self.control("nersc", "jobs")["jobs"]
        for scan, run_id in zip(scans, run_ids, strict=True):
            moved = [t for t in transfers if scan in json.dumps(t["items"])]
            ran = [j for j in jobs if f"-{run_id}-" in j["name"]]
            assert [t["status"] for t in moved] == ["SUCCEEDED"], (run_id, moved)
            assert [(j["state"], j["runs"]) for j in ran] == [("COMPLETED", 1)], (run_id, ran)

    @staticmethod
    def wait_for(condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
        """Wait until a condition holds."""
        assert wait_until(condition, timeout, every=1.0), f"not within {timeout:.0f} s: {what}"


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "COMPOSE", "PYTHON"))}


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout
