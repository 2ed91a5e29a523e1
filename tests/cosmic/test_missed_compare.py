"""Listing and comparing against a real (stand-in) Globus; only the runs are made up."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.definitions.param import ParamsDict

from cosmic import missed_scans, runs
from cosmic.beamline import beamline
from cosmic.comparison import list_beamline, list_nersc
from cosmic.parameters import MISSED_SCANS, dag_params
from cosmic.runs import DayToStart
from cosmic.scan_names import day_folder
from cosmic.scans import ScanPath, parse_scan_path
from facilities.errors import CredentialsError, NotFoundError, UserError
from facilities.globus.hook import GlobusHook
from standin.testing import Facility
from support.globus import CONN_ID

Write = Callable[..., Path]
Known = dict[ScanPath, dict[int, str]]


class Store(dict[str, Any]):
    """A task state store."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value


class Case:
    """One run of the DAG's first task; the store stays from one to the next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, day: date) -> None:
        self.day = day
        self.known: Known = {}
        self.store = Store()
        monkeypatch.setattr(missed_scans, "get_current_context", lambda: {"task_state_store": self.store})
        monkeypatch.setattr(runs, "states_by_generation", self.states)

    def states(self, scans: list[ScanPath]) -> Known:
        return {scan: states for scan, states in self.known.items() if scan in scans}

    def path(self, number: int) -> str:
        return f"{day_folder(self.day)}/NS_{self.day:%y%m%d}{number:03}_ccdframes_0_0.cxi"

    def set_run(self, number: int, state: str, generation: int = 1) -> None:
        self.known.setdefault(parse_scan_path(self.path(number)), {})[generation] = state

    def compare(self, **changes: Any) -> tuple[dict[str, int], list[tuple[str, int]]]:
        params = ParamsDict(dag_params(MISSED_SCANS))
        params.update({"first_day": self.day.isoformat(), **changes})
        found = missed_scans.compare.function(params.validate())
        (row,) = found["rows"]
        assert row.pop("day") == self.day.isoformat()
        chosen = [tuple(scan) for day in found["days"] for scan in day["scans"]]
        return {name: number for name, number in row.items() if number}, chosen


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_what_is_on_disk_is_compared_and_chosen(
    standin: Facility, write: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case(monkeypatch, date(2024, 5, 1))
    for number in range(1, 7):
        write(case.path(number))
    write(case.path(7), age=60)
    write(case.path(8), content=b"")
    for ending in ("ptychocam", "ptychocam_r2", "ptychocam_r2_old", "cdtools_half_1", "full", "half_2"):
        write(f"{day_folder(case.day)}/NS_240501001_ccdframes_0_0_{ending}.cxi")  # copied back
        for suffix in ("mat", "h5", "json"):
            write(f"{day_folder(case.day)}/NS_240501001_ccdframes_0_0_{ending}.{suffix}")
    for name in ("NS_240502009_ccdframes_0_0.cxi", "my scan.cxi", "$(id).cxi", "notes.txt", ".NS.cxi"):
        write(f"{day_folder(case.day)}/{name}")
    (standin.collection("data7012") / day_folder(case.day) / "folder.cxi").mkdir()
    case.set_run(1, "success")
    write(case.path(1), at="nersc7012")
    case.set_run(2, "running")
    case.set_run(3, "failed")
    for suffix in ("cxi", "json"):
        write(case.path(4).replace(".cxi", f"_ptychocam.{suffix}"), at="nersc7012")
    case.set_run(5, "success")  # and nothing of it at NERSC

    row, chosen = case.compare()
    assert row == {
        "on_disk": 8,
        "processed": 2,
        "running": 1,
        "failed": 1,
        "missing": 2,
        "left_alone": 2,
        "odd_names": 3,
    }
    assert chosen == [(case.path(5), 2), (case.path(6), 1)]
    assert case.compare(which="failed")[1] == [(case.path(3), 2), (case.path(5), 2), (case.path(6), 1)]
    everything = case.compare(which="everything")[1]
    assert everything == [
        (case.path(1), 2),
        (case.path(3), 2),
        (case.path(4), 2),
        (case.path(5), 2),
        (case.path(6), 1),
    ]
    said = caplog.text
    assert "'my scan.cxi'" in said
    assert "'$(id).cxi'" in said


def test_a_dry_run_names_all_and_keeps_no_plan(
    standin: Facility, write: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case(monkeypatch, date(2024, 5, 2))
    for number in range(1, 25):
        write(case.path(number))
    assert len(case.compare(which="everything", dry_run=True)[1]) == 24
    assert case.store == {}
    said = caplog.text
    assert all(case.path(number) in said for number in range(1, 25))
    days = [DayToStart(day="2024-05-02", parameters={}, scans=[(case.path(1), 1)])]
    assert missed_scans.start_or_not.function(days, {"dry_run": True}) == "report"
    assert missed_scans.start_or_not.function(days, {"dry_run": False}) == "start_runs"
    assert missed_scans.start_or_not.function([], {"dry_run": False}) == "report"


def test_other_names_of_the_beamline_are_a_setting(
    standin: Facility, write: Write, change_site: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(monkeypatch, date(2024, 5, 20))
    files = ["NS_240520001_ccdframes_0_0", "NS_240520001_ccdframes_0_0_cosmic2"]
    files += ["NS_240520002_ccdframes_0", "XS_240520003_ccdframes_0_0"]
    usual, cosmic2, old, other = paths = [f"{day_folder(case.day)}/{file}.cxi" for file in files]
    for path in paths:
        write(path)
    row, chosen = case.compare()
    assert row == {"on_disk": 2, "missing": 2, "odd_names": 2}
    assert chosen == [(usual, 1), (cosmic2, 1)]
    source = beamline().collections.source.model_dump(mode="json")
    names = [
        "NS_<yymmdd><number>_ccdframes_<energy>_<region>.cxi",
        "NS_<yymmdd><number>_ccdframes_<energy>.cxi",
        "XS_<yymmdd><number>_ccdframes_<energy>_<region>.cxi",
    ]
    change_site("collections", source={**source, "scan_names": names})
    row, chosen = case.compare()
    assert row == {"on_disk": 3, "missing": 3, "odd_names": 1}
    assert chosen == [(usual, 1), (old, 1), (other, 1)]


def test_a_file_that_grows_while_we_look_is_left_alone(
    standin: Facility, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(monkeypatch, date(2024, 5, 3))
    write(case.path(1))
    growing = write(case.path(2))

    def states(scans: list[ScanPath]) -> Known:
        stat = growing.stat()
        growing.write_bytes(b"frames, and more frames")
        os.utime(growing, (stat.st_atime, stat.st_mtime))  # as a copy that preserves times does
        return {}

    monkeypatch.setattr(runs, "states_by_generation", states)
    row, chosen = case.compare()
    assert row == {"on_disk": 2, "missing": 1, "left_alone": 1}
    assert chosen == [(case.path(1), 1)]


def test_any_number_of_scans_is_listed_page_by_page(standin: Facility, write: Write) -> None:
    day = date(2024, 5, 4)
    folder = standin.collection("data7012") / day_folder(day)
    folder.mkdir(parents=True)
    count = 10_050
    for number in range(count):
        (folder / f"NS_240504{number:05}_ccdframes_0_0.cxi").touch()
    hook = GlobusHook(CONN_ID)
    scans, _ = list_beamline(hook, beamline().collections.source, day)
    hook.close()
    assert len({scan.path for scan in scans}) == count
    listings = [request for request in standin.requests("globus") if request["path"].endswith("/ls")]
    assert len(listings) == 2


def test_a_day_without_beam_has_no_folder_but_a_wrong_root_is_told(
    standin: Facility, change_site: Callable[..., None]
) -> None:
    hook = GlobusHook(CONN_ID)
    collections = beamline().collections
    assert list_beamline(hook, collections.source, date(2024, 5, 5)) == ([], [])
    assert list_nersc(hook, collections.destination, date(2024, 5, 5)).sizes == {}
    wrong = collections.source.model_copy(update={"path": "/no/such/root"})
    with pytest.raises(NotFoundError, match="/no/such/root"):
        list_beamline(hook, wrong, date(2024, 5, 5))
    hook.close()


def test_wrong_settings_stop_it_before_anything_is_listed(
    standin: Facility, write: Write, change_site: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(monkeypatch, date(2024, 5, 6))
    write(case.path(1))
    change_site("processing", parameters={"n_gpu": 400})
    standin.clear_requests()
    with pytest.raises(UserError, match=r"processing\.parameters\.n_gpu"):
        case.compare()
    assert standin.requests("globus") == []


def test_globus_refusing_is_told(standin: Facility, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(monkeypatch, date(2024, 5, 7))
    write(case.path(1))
    standin.control("globus", "client", enabled=False)
    standin.control("globus", "revoke_tokens")
    try:
        with pytest.raises(CredentialsError, match="What to do"):
            case.compare()
    finally:
        standin.control("globus", "client", enabled=True)
    standin.fault(service="globus", path="/ls", kind="status", status=503, times=2)
    assert case.compare()[0] == {"on_disk": 1, "missing": 1}
