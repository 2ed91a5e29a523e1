"""One machine, LocalExecutor, the stand-in: the main job with one `up`, roles, secrets, and a power cut."""

from __future__ import annotations

import json
import subprocess

import pytest

from cosmic.dag_constants import TRANSFER_AUTO_RECON as DAG_ID
from dev.local_airflow.rest import Rest, RestError
from support.compose import Stack

pytestmark = pytest.mark.needs("docker")
SETTINGS = {"COMPOSE_PROFILES": "standin"}
SCALE: dict[str, int] = {}
KEYS = (
    "fernet_key",
    "jwt_secret",
    "api_secret_key",
    "postgres_password",
    "redis_password",
    "admin_password",
    "beamline_password",
)


@pytest.mark.timeout(1800)
def test_a_scan_posted_from_outside_is_reconstructed(stack: Stack) -> None:
    scan = stack.run_in("standin", "python", "-m", "standin.example_scan")
    done = stack.submit("submit", scan, "--engine", "ptychocam", "--param", "n_iter=30", "--wait", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    run_id = stack.rest("admin").call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns")["dag_runs"][0]["dag_run_id"]
    report = stack.rest("beamline").xcom(DAG_ID, run_id, "report")
    (result,) = report["reconstructions"]
    stack.run_in("standin", "test", "-s", result["result"])
    assert result["result"].startswith("/standin/nersc/gsharing/7012/20")
    assert result["quality"]["iterations"] == 30
    # As the settings of old say: a copy of the job script in the mounted folder.
    (script,) = (stack.folder / "tmp_job_scripts").iterdir()
    assert "/standin/nersc/software/ptychocam_reconstruction.sh" in script.read_text()
    again = stack.submit("submit", scan, "--engine", "ptychocam")
    assert (again.returncode, "already accepted" in again.stdout) == (0, True)
    assert len(stack.control("nersc", "jobs")["jobs"]) == 1


def test_the_ui_has_forms_for_both_connection_types(stack: Stack) -> None:
    forms = stack.rest("admin").call("GET", "/ui/connections/hook_meta")
    assert {"globus", "superfacility"} <= {form["connection_type"] for form in forms}


@pytest.mark.parametrize("service", ["api-server", "scheduler", "dag-processor", "triggerer"])
def test_no_service_can_import_the_standin_or_the_developers_tools(stack: Stack, service: str) -> None:
    code = "import importlib.util, sys; print(*(n for n in sys.argv[1:] if importlib.util.find_spec(n)))"
    names = ("cosmic", "deployment", "dev", "facilities", "reconstruction", "standin")
    assert stack.run_in(service, "python", "-c", code, *names) == "cosmic deployment facilities"
    assert stack.run_in(service, "ls", "/opt/airflow/include").split() == ["deployment", "job_scripts"]


ALLOWED = [
    ("GET", f"/api/v2/dags/{DAG_ID}"),
    ("GET", f"/api/v2/dags/{DAG_ID}/dagRuns"),
    ("GET", f"/api/v2/dags/{DAG_ID}/dagRuns/RUN"),
    ("GET", f"/api/v2/dags/{DAG_ID}/dagRuns/RUN/taskInstances"),
    ("GET", f"/api/v2/dags/{DAG_ID}/dagRuns/RUN/taskInstances/report/logs/1"),
    ("GET", f"/api/v2/dags/{DAG_ID}/dagRuns/RUN/taskInstances/report/xcomEntries"),
    ("GET", "/api/v2/plugins"),  # with it comes the Result tab
]
FORBIDDEN = [
    ("PATCH", f"/api/v2/dags/{DAG_ID}", {"is_paused": True}),
    ("PATCH", "/api/v2/dags?dag_id_pattern=~", {"is_paused": True}),
    ("DELETE", f"/api/v2/dags/{DAG_ID}", None),
    ("PATCH", "/api/v2/dags/test_cosmicDTN_transfers/dagRuns/RUN", {"state": "failed"}),
    ("DELETE", f"/api/v2/dags/{DAG_ID}/dagRuns/RUN", None),
    ("POST", f"/api/v2/dags/{DAG_ID}/clearTaskInstances", {"dry_run": False, "dag_run_id": "RUN"}),
    ("PATCH", f"/api/v2/dags/{DAG_ID}/dagRuns/RUN/taskInstances/report", {"new_state": "failed"}),
    ("PATCH", "/api/v2/dags/find_missed_scans", {"is_paused": True}),
    ("POST", "/api/v2/dags/watch_scans/dagRuns", {"logical_date": None}),
    ("GET", "/api/v2/dags/watch_scans", None),
    ("GET", "/api/v2/connections", None),
    ("GET", "/api/v2/connections/globus_default", None),
    ("POST", "/api/v2/connections/test", {"connection_id": "globus_default", "conn_type": "globus"}),
    ("GET", "/api/v2/variables", None),
    ("GET", "/api/v2/pools", None),
    ("PATCH", "/api/v2/pools/globus", {"slots": 0}),
    ("GET", "/api/v2/config", None),
    ("GET", "/api/v2/eventLogs", None),
    ("GET", f"/api/v2/dagSources/{DAG_ID}", None),
    ("GET", "/auth/fab/v1/users", None),
    ("POST", "/auth/fab/v1/users", {"username": "x"}),
    ("GET", "/auth/fab/v1/roles", None),
]


def test_the_beamline_may_start_stop_and_read_runs_and_nothing_else(stack: Stack) -> None:
    admin, beamline = stack.rest("admin"), stack.rest("beamline")
    run_id = admin.call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns")["dag_runs"][0]["dag_run_id"]
    for method, path in ALLOWED:
        beamline.call(method, path.replace("RUN", run_id))
    for method, path, body in FORBIDDEN:
        filled = json.loads(json.dumps(body).replace('"RUN"', json.dumps(run_id)))
        with pytest.raises(RestError) as refused:
            beamline.call(method, path.replace("RUN", run_id), filled)
        assert refused.value.status == 403, (method, path, str(refused.value))
    assert admin.call("GET", f"/api/v2/dags/{DAG_ID}")["is_paused"] is False
    beamline.call("PATCH", f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}", {"note": "by hand"})
    stopped = beamline.trigger(DAG_ID, {"file_path": "2023/02/230216/NS_230216997_ccdframes_0_0.cxi"})
    beamline.call("PATCH", f"/api/v2/dags/{DAG_ID}/dagRuns/{stopped}", {"state": "failed"})
    assert admin.run(DAG_ID, stopped)["state"] == "failed"
    started = beamline.trigger("process_newfile_7012_ptycho4", {"file_path": "2023/nothing.cxi"})
    assert admin.wait_for_run("process_newfile_7012_ptycho4", started, 600)["state"] == "failed"
    seen = {run["dag_id"] for run in beamline.call("GET", "/api/v2/dags/~/dagRuns")["dag_runs"]}
    may_see = {"process_newfile_7012_ptycho4", "find_missed_scans", "test_cosmicDTN_transfers"}
    assert seen <= {DAG_ID, *may_see}


def test_people_have_users_and_names_of_their_own(stack: Stack) -> None:
    name = ("--username", "ada", "--firstname", "Ada", "--lastname", "Lovelace", "--email", "ada@localhost")
    password = "first-of-ada"
    stack.run_in("api-server", "airflow", "users", "create", "--role", "beamline", *name, "-p", password)
    ada = Rest(stack.url, "ada", password)
    run_id = ada.trigger(DAG_ID, {"file_path": "2023/02/230216/NS_230216996_ccdframes_0_0.cxi"})
    ada.call("PATCH", f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}", {"state": "failed"})
    log = stack.rest("admin").call("GET", f"/api/v2/eventLogs?run_id={run_id}")["event_logs"]
    assert {entry["owner"] for entry in log if entry["event"].endswith("_dag_run")} == {"ada"}


def test_secrets_are_in_no_layer_no_configuration_and_no_log(stack: Stack) -> None:
    secrets = {key: stack.run_in("api-server", "cat", f"/keys/{key}") for key in KEYS}
    description = json.loads(stack.run_in("standin", "cat", "/standin/standin.json"))
    secrets["Globus secret"] = description["globus"]["client_secret"]
    key = stack.run_in("standin", "cat", description["nersc"]["key_path"])
    secrets["NERSC key"] = key.splitlines()[3]
    visible = {
        "containers": docker("inspect", *stack.all_containers()),
        "layers": docker("history", "--no-trunc", "cosmic-airflow")
        + docker("image", "inspect", "cosmic-airflow"),
        "logs": stack.compose("logs", "--no-color"),
        "task logs": stack.run_in("scheduler", "bash", "-c", "cat $(find /opt/airflow/logs -type f)"),
        "UI": json.dumps(stack.rest("admin").call("GET", "/api/v2/connections")),
    }
    for place, text in visible.items():
        assert len(text) > 500, place
        assert [name for name, secret in secrets.items() if secret in text] == [], place


def test_only_the_ui_is_published_and_nobody_is_root(stack: Stack) -> None:
    containers = json.loads(docker("inspect", *stack.all_containers()))
    published = {
        (c["Config"]["Labels"]["com.docker.compose.service"], port, binding["HostIp"])
        for c in containers
        for port, bindings in (c["NetworkSettings"]["Ports"] or {}).items()
        for binding in bindings or []
    }
    assert published == {("api-server", "8080/tcp", "127.0.0.1")}
    for container in containers:
        service = container["Config"]["Labels"]["com.docker.compose.service"]
        assert container["HostConfig"]["LogConfig"]["Config"] == {"max-size": "1m", "max-file": "3"}, service
        assert container["HostConfig"]["Memory"] > 0, service
        if service != "postgres":  # which gives root away by itself, once its folder is its own
            assert container["Config"]["User"] == "50000:0", service
        code = [
            m
            for m in container["Mounts"]
            if m["Destination"].startswith("/opt/airflow/") and m["Type"] == "bind"
        ]
        assert all(not mount["RW"] for mount in code), service
    assert stack.run_in("postgres", "bash", "-c", "ps -o user= -C postgres | sort -u") == "postgres"


@pytest.mark.timeout(1800)
def test_runs_in_flight_survive_down_and_up(stack: Stack) -> None:
    stack.install_test_engine()
    waiting_for_job = stack.place_scans(1, 3)
    stack.control("nersc", "set", slots=0)  # jobs stay in the queue
    first = stack.send(waiting_for_job)
    stack.wait_for_tasks(first, "ptychocam.wait", "deferred")
    in_transfer = stack.place_scans(11, 3, size=2_000_000)
    stack.control("globus", "bandwidth", bytes_per_second=10_000)  # minutes
    second = stack.send(in_transfer)
    stack.wait_for_tasks(second, "copy_to_nersc", "deferred")
    stack.down()
    stack.up()
    stack.install_test_engine()  # the stand-in installs the real ones at every start
    stack.control("globus", "bandwidth", bytes_per_second=None)
    stack.control("nersc", "set", slots=2)
    stack.wait_for_runs(first + second)
    stack.assert_exactly_once(waiting_for_job + in_transfer, first + second)


@pytest.mark.timeout(1800)
def test_a_backup_makes_the_installation_anew(stack: Stack) -> None:
    folder = stack.folder / "backup"
    saved = stack.script("backup", str(folder))
    assert saved.returncode == 0, saved.stderr
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    refused = stack.script("restore", str(folder))
    assert (refused.returncode, "there is an installation here" in refused.stderr) == (1, True)
    before = stack.rest("admin").call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns?order_by=id")["dag_runs"]
    stack.down()
    docker("volume", "rm", f"{stack.project}_keys", f"{stack.project}_database")
    restored = stack.script("restore", str(folder))
    assert restored.returncode == 0, restored.stderr
    stack.up()
    admin = stack.rest("admin")  # with the password of before
    assert admin.call("GET", f"/api/v2/dags/{DAG_ID}/dagRuns?order_by=id")["dag_runs"] == before
    stack.install_test_engine()
    scans = stack.place_scans(31, 1)
    runs = stack.send(scans)
    stack.wait_for_runs(runs)
    stack.assert_exactly_once(scans, runs)


def docker(*arguments: str) -> str:
    """The output of a docker command."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout
