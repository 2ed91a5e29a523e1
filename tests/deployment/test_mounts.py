"""What the services of docker-compose.yaml can import, with their mounts as a folder tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.local_airflow.settings import REPOSITORY

OURS = (
    "beamline_client",
    "cosmic",
    "deployment",
    "dev",
    "facilities",
    "reconstruction",
    "standin",
)
# What .venv has on its own path (plugins/) is not in the image.
FIND = f"""
import importlib.util, os
specs = [importlib.util.find_spec(name) for name in {OURS}]
print(*(spec.name for spec in specs if spec and spec.origin.startswith(os.getcwd())))
"""

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((REPOSITORY / "docker-compose.yaml").read_text())[
    "services"
]
PYTHON_SERVICES = sorted(name for name, service in SERVICES.items() if "cosmic-airflow" in service["image"])
AIRFLOW = "cosmic deployment facilities"
IMPORTABLE = {"keys": "deployment", "standin": "deployment reconstruction standin"}


def mounted(service: str, root: Path) -> Path:
    """Put a service's code, as it is mounted, under `root`; returns `root`."""
    for volume in SERVICES[service]["volumes"]:
        source, target, *_ = volume.split(":")
        if source.startswith(("./dags", "./plugins", "./include")):
            place = root / target.removeprefix("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(REPOSITORY / source)
    return root


def python(root: Path, code: str, *arguments: str) -> str:
    """Run Python code with the image's PYTHONPATH moved to `root`; returns what it prints."""
    (path,) = re.findall(r"PYTHONPATH=(\S+)", (REPOSITORY / "Dockerfile").read_text())
    moved = os.pathsep.join(f"{root}{folder}" for folder in path.split(":"))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={"PATH": os.environ["PATH"], "AIRFLOW_HOME": str(root / "home"), "PYTHONPATH": moved},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("service", PYTHON_SERVICES)
def test_a_service_can_import_what_it_needs_and_no_more(service: str, tmp_path: Path) -> None:
    assert python(mounted(service, tmp_path), FIND) == IMPORTABLE.get(service, AIRFLOW)


def test_init_imports_its_modules_and_finds_its_files(tmp_path: Path) -> None:
    code = """
import deployment.prepare, deployment.database, deployment.health
from deployment.airflow_settings import write_beamline
from deployment.settings import Settings
from deployment.standin_settings import pools
import pathlib, sys
print(*pools(), write_beamline(Settings(), None, pathlib.Path(sys.argv[1])).name)
"""
    root = mounted("init", tmp_path)
    assert python(root, code, str(tmp_path)) == "globus nersc missed_scans beamline.yaml"


@pytest.mark.parametrize("service", ["scheduler", "worker", "dag-processor"])
def test_the_dags_find_their_job_scripts(service: str, tmp_path: Path) -> None:
    """The path is that of `template_searchpath`: beside the DAGs."""
    root = mounted(service, tmp_path) / "opt" / "airflow"
    assert (root / "dags" / "transfer_auto_recon.py").exists()
    assert sorted(path.name for path in (root / "include" / "job_scripts").iterdir()) == [
        "cdtools.sh.j2",
        "ptychocam.sh.j2",
        "stack.sh.j2",
    ]


def test_the_standin_makes_an_example_scan_and_starts(tmp_path: Path) -> None:
    code = """
import pathlib, sys, standin.__main__
from standin.example_scan import add_scan
print(add_scan(pathlib.Path(sys.argv[1]), n_frames=9))
"""
    scan = python(mounted("standin", tmp_path), code, str(tmp_path))
    assert (tmp_path / scan).stat().st_size > 10_000
