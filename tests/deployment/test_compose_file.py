"""docker-compose.yaml as text: what must hold whether or not an engine is there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployment.env_file import read_env_file
from deployment.settings import Settings
from dev.local_airflow.settings import REPOSITORY

DEPLOYMENT = REPOSITORY / "include" / "deployment"
MONITORING = ("statsd", "prometheus", "grafana")
LIMITS = {"driver": "json-file", "options": {"max-size": "1m", "max-file": "3"}}


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    """The services, anchors resolved."""
    text = (REPOSITORY / "docker-compose.yaml").read_text()
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


def test_images_are_those_that_are_asked_for(services: dict[str, dict[str, Any]]) -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    assert "apache/airflow:3.3.2-python3.11" in dockerfile
    assert services["postgres"]["image"] == "postgres:16"
    assert services["redis"]["image"] == "redis:7.2-bookworm"
    assert all(re.search(r":v?[0-9.]+", services[name]["image"]) for name in MONITORING)


def test_only_the_ui_and_grafana_have_a_port(services: dict[str, dict[str, Any]]) -> None:
    assert {name for name, service in services.items() if "ports" in service} == {"api-server", "grafana"}
    assert services["grafana"]["ports"] == ["127.0.0.1:${GRAFANA_PORT:-3000}:3000"]  # it has no logins
    assert services["api-server"]["ports"] == ["${UI_ADDRESS:-127.0.0.1}:${UI_PORT:-8080}:8080"]


def test_every_service_has_limits_and_a_restart_policy(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["logging"] == LIMITS, name
        assert "mem_limit" in service, name
        once = name in ("keys", "init")
        assert service["restart"] == ("no" if once else "unless-stopped"), name
        assert once or "healthcheck" in service, name


def test_code_is_mounted_read_only_and_nobody_is_root(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for volume in service["volumes"]:
            if re.match(r"\./(dags|plugins|include|nersc)", volume):
                assert volume.endswith(":ro"), (name, volume)
        if name != "postgres":
            assert service["user"] == "${AIRFLOW_UID:-50000}:0", name
            assert service["cap_drop"] == ["ALL"], name


def test_nobody_can_change_what_monitoring_is_made_from(services: dict[str, dict[str, Any]]) -> None:
    mounted = set()
    for name in MONITORING:
        assert services[name]["profiles"] == ["metrics"]
        mounted |= {v.split(":")[0] for v in services[name]["volumes"] if v.startswith("./")}
    files = (REPOSITORY / "include" / "monitoring").iterdir()
    assert mounted == {f"./{path.relative_to(REPOSITORY)}" for path in files}
    grafana = services["grafana"]["environment"]
    assert (grafana["GF_AUTH_ANONYMOUS_ENABLED"], grafana["GF_AUTH_DISABLE_LOGIN_FORM"]) == ("true", "true")
    assert "GF_AUTH_ANONYMOUS_ORG_ROLE" not in grafana  # which is Viewer


def test_the_old_agents_mounts(services: dict[str, dict[str, Any]]) -> None:
    for name in ("scheduler", "worker", "triggerer"):
        assert "./nersc:/nersc:ro" in services[name]["volumes"]
        assert "./tmp_job_scripts:/tmp_job_scripts" in services[name]["volumes"]
    environment = services["worker"]["environment"]
    assert environment["AIRFLOW__OPERATORS__DEFAULT_QUEUE"] == "transfer_auto_recon"
    assert "--queues transfer_auto_recon" in (DEPLOYMENT / "start-worker").read_text()


def test_no_secret_is_in_a_services_environment(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        environment = service.get("environment") or {}
        for key, value in environment.items():
            if re.search(r"SECRET|PASSWORD|FERNET|BROKER|BACKEND|CONN$", key):
                assert str(value).startswith("cat /keys/"), (name, key)
    assert [name for name, service in services.items() if "secrets" in service] == ["init"]
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert not [line for line in ignored if line.startswith("!") and re.search("env|nersc$|key", line)]


def test_every_variable_of_the_file_is_a_documented_setting() -> None:
    text = (REPOSITORY / "docker-compose.yaml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    assert used <= {name.upper() for name in Settings.model_fields}
    documented = set(read_env_file(REPOSITORY / ".env.example"))
    assert used - {"SETTINGS_FILE"} <= documented


def test_a_proxy_is_not_asked_for_services_of_the_stack(services: dict[str, dict[str, Any]]) -> None:
    airflow = ("api-server", "scheduler", "worker", "triggerer", "dag-processor", "init")
    for name in (*airflow, "standin", "grafana"):
        environment = services[name]["environment"]
        for spelling in ("NO_PROXY", "no_proxy"):
            without = environment[spelling].replace("${NO_PROXY:-localhost}", "hook.example.org").split(",")
            assert set(without) == {"hook.example.org", "127.0.0.1", "api-server", "standin", "prometheus"}, (
                name
            )
    for name in airflow:
        environment = services[name]["environment"]
        assert environment["HTTPS_PROXY"] == environment["https_proxy"] == "${HTTPS_PROXY:-}"


def test_scale_is_possible(services: dict[str, dict[str, Any]]) -> None:
    assert not [name for name, service in services.items() if "container_name" in service]


def test_a_triggerer_may_open_the_log_of_each_wait_that_it_may_hold(
    services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Of what the engine allows its containers; they may begin with 1024."""
    assert services["triggerer"]["command"] == ["bash", "/opt/airflow/include/deployment/start-triggerer"]
    (tmp_path / "airflow").write_text('#!/bin/bash\necho "$*: $(ulimit -Sn)"\n')
    (tmp_path / "airflow").chmod(0o755)
    started = [
        "bash",
        "-c",
        'ulimit -Sn 256; ulimit -Hn; exec bash "$0"',
        str(DEPLOYMENT / "start-triggerer"),
    ]
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(started, env={"PATH": path}, capture_output=True, text=True, check=True)
    allowed, triggerer = done.stdout.splitlines()
    assert triggerer == f"triggerer: {allowed}"


@pytest.mark.parametrize("script", ["start-worker", "start-standin"])
def test_a_profile_on_the_command_line_only_is_refused(script: str) -> None:
    done = subprocess.run(
        ["bash", str(DEPLOYMENT / script)],
        env={"PATH": os.environ["PATH"], "COMPOSE_PROFILES": "", "STANDIN_SLOTS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    profile = {"start-worker": "celery", "start-standin": "standin"}[script]
    assert done.returncode == 1
    assert f"set COMPOSE_PROFILES={profile} in .env" in done.stderr


def test_requirements_are_pinned_around_what_the_image_has(tmp_path: Path) -> None:
    """The install script, with a `pip` that records its arguments."""
    pip = tmp_path / "pip"
    pip.write_text(
        "#!/bin/bash\n"
        'case $1 in freeze) printf "Foo_Bar==1.0\\nshared==3\\nlocal @ file:///x\\n" ;;\n'
        f'install) echo "$@" >{tmp_path}/arguments; cp "$6" {tmp_path}/constraints ;; esac\n'
    )
    pip.chmod(0o755)
    (tmp_path / "constraints.in").write_text("# pins\nfoo-bar==2.0\nmine==5\nNew.Thing==7\nshared==4\n")
    (tmp_path / "wanted.txt").write_text("mine==5  # ours\nextra[x]>=1\n-r other.txt\n")
    subprocess.run(
        ["bash", str(DEPLOYMENT / "install-requirements"), str(tmp_path / "constraints.in"), "wanted.txt"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=tmp_path,
        check=True,
    )
    # What the image has keeps its version; what is asked for decides itself; the rest is pinned.
    assert (tmp_path / "constraints").read_text().splitlines() == [
        "Foo_Bar==1.0",
        "shared==3",
        "New.Thing==7",
    ]
    assert (tmp_path / "arguments").read_text().split()[-1] == "-rwanted.txt"
