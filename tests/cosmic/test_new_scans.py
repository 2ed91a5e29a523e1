"""What `watch_scans` starts, against a stand-in Globus; only Airflow's runs are made up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from airflow.sdk.definitions.param import ParamsDict

from cosmic import missed_scans, runs
from cosmic.parameters import NEW_SCANS, dag_params
from cosmic.scan_names import day_folder
from cosmic.scans import ScanPath, parse_scan_path
from facilities.errors import CredentialsError, UserError
from standin.testing import Facility
from support.missed import USUAL

Write = Callable[..., Path]
Change = Callable[..., None]


class FakeAirflow:
    """The runs of the DAG, by id, with their states."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.confs: dict[str, dict[str, Any]] = {}
        self.posted_meanwhile: set[str] = set()

    def with_a_run(self, scans: Iterable[ScanPath]) -> set[ScanPath]:
        return {scan for scan in scans if scan.run_id() in self.states}

    def states_by_generation(self, scans: Iterable[ScanPath]) -> dict[ScanPath, dict[int, str]]:
        return {scan: {1: self.states[scan.run_id()]} for scan in self.with_a_run(scans)}

    def start(self, run_id: str, conf: dict[str, Any], note: str) -> bool:
        assert "watch_scans" in note
        if run_id in self.states or run_id in self.posted_meanwhile:
            return False
        self.states[run_id], self.confs[run_id] = "queued", conf
        return True


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> FakeAirflow:
    fake = FakeAirflow()
    for name in ("with_a_run", "states_by_generation", "start"):
        monkeypatch.setattr(runs, name, getattr(fake, name))
    return fake


@pytest.fixture(autouse=True)
def _own_folders(standin: Facility, change_site: Change) -> None:
    """Today is the same day for each test, so each has a folder of its own for it."""
    folder = f"/{os.environ['PYTEST_CURRENT_TEST'].split('::')[-1].split(' ')[0][:60]}"
    for place, name in (("source", "data7012"), ("destination", "nersc7012")):
        (standin.collection(name) / folder.strip("/")).mkdir()
        change_site("collections", **{place: {**_collections()[place], "path": folder}})


def _collections() -> dict[str, Any]:
    import yaml

    site = yaml.safe_load(Path(os.environ["AIRFLOW__COSMIC__BEAMLINE_FILE"]).read_text())
    return dict(site["collections"])


def scan(number: int, *, days_ago: int = 0) -> str:
    day = (datetime.now(ZoneInfo("America/Los_Angeles")) - timedelta(days=days_ago)).date()
    return f"{day_folder(day)}/NS_{day:%y%m%d}{number:03}_ccdframes_0_0.cxi"


def on_disk(path: str) -> str:
    return f"{_collections()['source']['path'].strip('/')}/{path}"


def start(**changes: Any) -> list[str]:
    params = ParamsDict(dag_params(NEW_SCANS))
    params.update(changes)
    started: list[str] = missed_scans.start_new_scans.function(params.validate())
    return started


def test_finished_scans_without_a_run_are_started_once_those_of_yesterday_too(
    write: Write, airflow: FakeAirflow
) -> None:
    for path in (scan(1), scan(1, days_ago=1), scan(2), scan(1, days_ago=2)):
        write(on_disk(path))
    write(on_disk(scan(3)), age=0)
    write(on_disk(scan(4)), content=b"")
    write(f"{on_disk(scan(1))[:-4]}_ptychocam.cxi")  # a reconstruction, copied back
    write(f"{on_disk(scan(1)).rsplit('/', 1)[0]}/notes.cxi")
    airflow.states[parse_scan_path(scan(2)).run_id()] = "failed"  # for people, or find_missed_scans

    assert start() == [scan(1, days_ago=1), scan(1)]
    assert airflow.confs[parse_scan_path(scan(1)).run_id()] == {**USUAL, "file_path": scan(1)}
    assert start() == []
    assert start(min_age_minutes=0) == [scan(3)]


def test_a_scan_that_was_processed_without_a_run_is_not_started(write: Write, airflow: FakeAirflow) -> None:
    write(on_disk(scan(1)))
    for suffix in ("cxi", "json"):
        write(on_disk(scan(1)).replace(".cxi", f"_ptychocam.{suffix}"), at="nersc7012")
    assert start() == []


def test_a_scan_that_is_posted_meanwhile_has_its_run(write: Write, airflow: FakeAirflow) -> None:
    write(on_disk(scan(1)))
    airflow.posted_meanwhile.add(parse_scan_path(scan(1)).run_id())
    assert start() == []


def test_a_file_that_grows_under_an_old_time_waits(
    write: Write, airflow: FakeAirflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        write(on_disk(scan(number)))

    def grow(_: float) -> None:
        write(on_disk(scan(1)), content=b"frames, and more frames")

    with monkeypatch.context() as patched:
        patched.setattr("cosmic.missed_scans.time.sleep", grow)
        assert start() == [scan(2)]
    assert start() == [scan(1)]


def test_with_nothing_new_only_the_beamline_is_listed(
    standin: Facility, write: Write, airflow: FakeAirflow
) -> None:
    write(on_disk(scan(1)))
    assert start() == [scan(1)]
    standin.clear_requests()
    assert start() == []
    source = str(_collections()["source"]["id"])
    listings = [r["path"] for r in standin.requests("globus") if r["path"].endswith("/ls")]
    assert listings
    assert all(source in path for path in listings)


def test_wrong_settings_and_refusals_start_nothing(
    standin: Facility, write: Write, airflow: FakeAirflow, change_site: Change
) -> None:
    write(on_disk(scan(1)))
    change_site("processing", parameters={"n_gpu": 400})
    with pytest.raises(UserError, match=r"processing\.parameters\.n_gpu"):
        start()
    change_site("processing", parameters={})
    standin.control("globus", "client", enabled=False)
    standin.control("globus", "revoke_tokens")
    try:
        with pytest.raises(CredentialsError, match="What to do"):
            start()
    finally:
        standin.control("globus", "client", enabled=True)
    assert airflow.states == {}
