"""What `.env` becomes: connections that the hooks take, a valid beamline.yaml, and airflow.cfg."""

from __future__ import annotations

import configparser
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.sdk import Connection
from pydantic import SecretStr

from cosmic.beamline import beamline
from deployment.airflow_settings import (
    connections,
    notify_connection,
    standin_connections,
    write_airflow_cfg,
    write_beamline,
)
from deployment.settings import Settings
from facilities.globus.connection import GlobusSettings
from facilities.superfacility.connection import SuperfacilityConfig, read_client_key
from standin.testing import Facility


def connection(fields: dict[str, Any]) -> Connection:
    """A connection as a hook gets it."""
    return Connection(**{"conn_id": "c", **fields, "extra": json.dumps(fields.get("extra") or {})})


def test_the_real_facilities() -> None:
    client_id = "639c49be-604f-423c-9c5d-82a53afe1bf1"
    settings = Settings(
        globus_client_id=client_id,
        globus_client_secret=SecretStr("secret"),
        path_nersc_pri_key=Path("/nersc/k.pem"),
    )
    made = connections(settings)
    globus = GlobusSettings.from_connection(connection(made["globus_default"]), "globus_default")
    assert (globus.client_id, globus.client_secret) == (client_id, "secret")
    assert globus.transfer_url == "https://transfer.api.globus.org/"
    paths = [entry.partition(":")[2] for entry in globus.collections.split()]
    assert paths == ["/", "/global/cfs/cdirs/als/gsharing/data_mover/7012"]
    nersc = SuperfacilityConfig.from_connection(connection(made["superfacility_default"]), "s")
    assert (nersc.key_file, nersc.client_id_file) == ("/nersc/k.pem", "/nersc/clientid.txt")
    assert nersc.api_url == "https://api.nersc.gov/api/v1.2"


def test_the_standins_key_needs_no_file(facility: Facility) -> None:
    made = standin_connections(facility.description)
    fields = made["superfacility_default"]
    config = SuperfacilityConfig.from_connection(connection(fields), "s")
    assert (config.key_file, config.client_id_file) == (None, None)
    key = read_client_key(config, fields["password"])
    assert key.client_id == facility.description["nersc"]["client_id"]


def test_who_is_notified_is_typed_in_or_from_env(airflow_database: None) -> None:
    from airflow.models.connection import Connection as Row
    from airflow.utils.session import create_session
    from sqlalchemy import select

    from deployment.database import prepare_database
    from deployment.prepare import _write_database

    def write(notify: str | None) -> str | None:
        settings = Settings(notify=SecretStr(notify) if notify else None)
        _write_database(notify_connection(settings))
        with create_session() as session:
            row = session.scalar(select(Row).where(Row.conn_id == "notify_default"))
            assert row is not None
            password: str | None = row.password
            return password

    typed_in = {"conn_type": "generic", "password": "json://typed.in"}
    prepare_database({"connections": {"notify_default": typed_in}})
    assert write(None) == "json://typed.in"
    assert write("json://a.org") == "json://a.org"
    assert write(None) is None  # nobody, once it is taken out of .env


def read_beamline(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(path))
    return beamline()


def test_beamline_yaml_has_the_old_agents_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        path_ptychocam_nersc=Path("/global/p.sh"),
        path_stack_nersc=Path("/global/stack.sh"),
        path_job_script=Path("/scripts"),
    )
    site = read_beamline(write_beamline(settings, None, tmp_path), monkeypatch)
    assert site.stack.script == "/global/stack.sh"
    assert site.script("ptychocam") == "/global/p.sh"
    assert site.script("cdtools").startswith("/global/cfs/")  # as in the bundle's own
    assert site.job_script_folder == "/scripts"
    assert site.job.account == "als_g"


def test_beamline_yaml_for_the_standin(
    tmp_path: Path, facility: Facility, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(compose_profiles=frozenset({"standin"}), path_ptychocam_nersc=Path("/global/p.sh"))
    site = read_beamline(write_beamline(settings, facility.description, tmp_path), monkeypatch)
    assert site.script("ptychocam") == str(facility.nersc / "software" / "ptychocam_reconstruction.sh")
    assert site.job_script_folder == "/tmp_job_scripts"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".yaml"] == ["beamline.yaml"]


def cfg(path: Path) -> configparser.ConfigParser:
    """airflow.cfg, read as Airflow reads it: with interpolation."""
    config = configparser.ConfigParser()
    config.read(path)
    return config


def test_airflow_cfg_is_nearly_empty_by_default(tmp_path: Path) -> None:
    config = cfg(write_airflow_cfg(Settings(), tmp_path))
    executor = "cosmic.airflow_overrides.local_executor.KillProofLocalExecutor"
    assert {name: dict(config[name]) for name in config.sections()} == {"core": {"executor": executor}}


def test_airflow_cfg_with_everything(tmp_path: Path) -> None:
    settings = Settings(
        compose_profiles=frozenset({"celery"}),
        statsd=("statsd", 8125),
        dags_git_url="https://example.org/a%20b.git",
        dags_git_ref="v1",
    )
    config = cfg(write_airflow_cfg(settings, tmp_path))
    assert config["core"]["executor"] == "cosmic.airflow_overrides.celery_executor.CeleryExecutor"
    assert config.getboolean("metrics", "statsd_on")
    (bundle,) = json.loads(config["dag_processor"]["dag_bundle_config_list"])
    assert bundle["kwargs"]["repo_url"] == "https://example.org/a%20b.git"
    assert bundle["kwargs"]["tracking_ref"] == "v1"
    write_airflow_cfg(Settings(), tmp_path)  # metrics off again
    assert not cfg(tmp_path / "airflow.cfg").has_section("metrics")


def test_a_beamline_yaml_of_before_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "beamline.yaml"
    path.write_text("not: mine\n" * 1000)
    write_beamline(Settings(), None, tmp_path)
    assert "not" not in yaml.safe_load(path.read_text())
