"""`beamline.yaml`: the shipped one holds the facts, a wrong one is refused by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cosmic.beamline import DEFAULT_FILE, beamline
from facilities.errors import UserError


@pytest.fixture
def site_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `beamline.yaml` of the test's own that is in use."""
    path = tmp_path / "beamline.yaml"
    path.write_text(DEFAULT_FILE.read_text())
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(path))
    return path


def test_the_shipped_file_holds_the_facts(site_file: Path) -> None:
    site = beamline()
    assert str(site.collections.source.id) == "741b96e1-1b98-42a8-918d-daacc24c145f"
    assert str(site.collections.destination.id) == "d40248e6-d874-4f7b-badd-2c06c16f1a58"
    assert site.collections.destination.path == "/global/cfs/cdirs/als/gsharing/data_mover/7012"
    assert (site.job.account, site.job.qos, site.job.constraint, site.job.nodes, site.job.time_limit) == (
        *("als_g", "regular", "gpu", 1),
        "04:00:00",
    )
    assert site.positions == "probe"
    assert str(site.defocus) == "1.5e-05@700"
    assert site.script("ptychocam").endswith("/c_ptychocam/ptychocam_reconstruction.sh")


def test_the_bundles_own_file_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW__COSMIC__BEAMLINE_FILE")
    assert beamline().collections.source.name == "data7012"


def test_a_change_is_seen_without_a_restart(site_file: Path) -> None:
    assert beamline().job.account == "als_g"
    site_file.write_text(site_file.read_text().replace("account: als_g", "account: als_other"))
    assert beamline().job.account == "als_other"


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("collections", "source", "id"), "not-a-uuid", "collections.source.id: "),
        (("collections", "destination", "file_system_path"), "../x", "absolute path"),
        (("collections", "source", "scan_names"), ["NS_.*.cxi"], "collections.source.scan_names.0: "),
        (("job", "account"), "als_g\n#SBATCH -A other", "job.account: "),
        (("job", "time_limit"), 14400, "job.time_limit: "),
        (("job", "nodes"), "one", "job.nodes: "),
        (("engines", "ptychocam", "script"), "a.sh", "engines.ptychocam.script: "),
        (("positions",), "lens", "positions: "),
        (("defocus", "distance"), "15 um", "defocus.distance: "),
        (("defocus", "energy_ev"), 0, "defocus.energy_ev: "),
        (("engines", "sharp"), {"script": "/x"}, "engines.sharp: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_key_is_named(site_file: Path, keys: tuple[str, ...], value: Any, said: str) -> None:
    content = yaml.safe_load(site_file.read_text())
    section = content
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    site_file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as refused:
        beamline()
    assert said in str(refused.value)
    assert str(site_file) in str(refused.value)


def test_a_missing_key_is_named(site_file: Path) -> None:
    content = yaml.safe_load(site_file.read_text())
    del content["job"]["account"]
    site_file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"job\.account: Field required"):
        beamline()


@pytest.mark.parametrize("text", ["", "[1, 2", "just words", "- a list"])
def test_a_file_that_is_no_mapping_is_refused(site_file: Path, text: str) -> None:
    site_file.write_text(text)
    with pytest.raises(UserError, match="are wrong"):
        beamline()


def test_a_missing_file_is_said_with_its_setting(site_file: Path) -> None:
    site_file.unlink()
    with pytest.raises(UserError, match=r"(?s)cannot be read: No such file.*\[cosmic\] beamline_file"):
        beamline()
