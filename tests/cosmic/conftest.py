"""A stand-in Globus with the beamline's collections, and a `beamline.yaml` that fits it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from cosmic import missed_scans
from cosmic.dag_constants import GLOBUS_CONN_ID
from deployment.standin_settings import standin_beamline
from standin.testing import Facility, running
from support.globus import CONN_ID, use_connection


@pytest.fixture(scope="package")
def package_standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    """One stand-in for all tests here; each uses days of its own."""
    with running(tmp_path_factory.mktemp("cosmic") / "standin") as facility:
        yield facility


@pytest.fixture
def standin(package_standin: Facility, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Facility]:
    """The stand-in without faults, in use."""
    use_connection(package_standin, monkeypatch)
    path = standin_beamline(package_standin.description, tmp_path / "beamline.yaml", tmp_path / "scripts")
    monkeypatch.setenv(
        f"AIRFLOW_CONN_{GLOBUS_CONN_ID.upper()}", os.environ[f"AIRFLOW_CONN_{CONN_ID.upper()}"]
    )
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(path))
    package_standin.clear_requests()
    monkeypatch.setattr(missed_scans, "SECOND_LISTING_AFTER", 0.0)
    yield package_standin
    package_standin.clear_faults()


@pytest.fixture
def change_site(standin: Facility) -> Callable[..., None]:
    """Change one section of `beamline.yaml`."""

    def change(section: str, **values: object) -> None:
        path = Path(os.environ["AIRFLOW__COSMIC__BEAMLINE_FILE"])
        site = yaml.safe_load(path.read_text())
        site[section] = {**site[section], **values}
        new = path.with_suffix(".new")
        new.write_text(yaml.safe_dump(site))
        new.replace(path)

    return change


@pytest.fixture
def write(standin: Facility) -> Callable[..., Path]:
    """Write a file on a collection, as of some seconds ago."""

    def make(path: str, *, at: str = "data7012", content: bytes = b"frames", age: float = 7200.0) -> Path:
        file = standin.collection(at) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        then = time.time() - age
        os.utime(file, (then, then))
        return file

    return make
