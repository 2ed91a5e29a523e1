"""The command that stacks a scan's energies, and what `status` of the scan says about the stacks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beamline_client.cli import main
from beamline_client.client import Client
from beamline_client.config import Settings
from beamline_client.output import describe
from beamline_client.parameters import STACK_DAG_ID
from beamline_client.scan import Scan
from beamline_client.scan_names import scan_run_id
from beamline_client.stacks import Stacks
from support.airflow_api import AirflowApi
from support.client import offline

NAME = "NS_230216033"
FILE = f"2023/02/230216/{NAME}_ccdframes_0_0.cxi"
STACKS = f"/dags/{STACK_DAG_ID}/dagRuns$"


@pytest.fixture
def command(config: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command; gives its exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main([*arguments, "--config", str(config)])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def stack(api: AirflowApi, run_id: str, state: str, **conf: Any) -> str:
    api.add_run(run_id, state, {"scan": NAME, **conf}, STACK_DAG_ID)
    return run_id


def test_a_stack_is_started(api: AirflowApi, command: Callable[..., tuple[int, str]]) -> None:
    code, text = command("stack", NAME, "--engine", "cdtools", "--param", "incomplete=true")
    assert code == 0
    (run,) = api.runs.values()
    assert run["dag_id"] == STACK_DAG_ID
    assert run["conf"] == {"engine": "cdtools", "incomplete": True, "scan": NAME}
    assert run["dag_run_id"].startswith(f"{NAME}_cdtools_2")
    assert text.startswith(f"stack of {NAME}, cdtools: accepted (")
    assert f"/dags/{STACK_DAG_ID}/runs/{run['dag_run_id']}\n" in text


def test_a_reply_that_is_lost_makes_no_second_stack(
    api: AirflowApi, command: Callable[..., tuple[int, str]]
) -> None:
    api.fault("drop_reply", method="POST", path=STACKS)
    code, text = command("stack", NAME)
    assert (code, len(api.runs)) == (0, 1), text
    assert api.count("POST", STACKS) == 2


def test_that_the_dag_is_paused_is_said(api: AirflowApi, client: Client) -> None:
    api.paused = True
    assert "stack_scan is paused in Airflow" in Stacks(client, NAME).start({}).message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["other"], "'other' is not the name of a scan, as NS_230216033 is"),
        ([FILE], "is not the name of a scan"),
        ([NAME, "--param", "n_iter=5"], "There is no parameter 'n_iter'. There are: engine, incomplete."),
        ([NAME, "--param", "incomplete=2"], "incomplete must be true or false, not '2'"),
        ([NAME, "--param", "engine=cdtools", "--engine", "cdtools"], "engine: given more than once"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_started(
    api: AirflowApi, command: Callable[..., tuple[int, str]], arguments: list[str], words: str
) -> None:
    code, text = command("stack", *arguments)
    assert code == 2
    assert words in text
    assert api.created == []


def test_without_airflow_nothing_is_started_or_kept(settings: Settings, api: AirflowApi) -> None:
    client = offline(settings)
    outcome = Stacks(client, NAME).start({})
    assert (outcome.outcome, outcome.exit_code) == ("not started", 7)
    assert "Nothing was started or kept. " in outcome.message
    assert client.spool.names() == []


def test_what_airflow_refuses_is_said(api: AirflowApi, client: Client) -> None:
    api.fault("status", method="POST", status=400, detail="scan must be a scan such as NS_230216033")
    outcome = Stacks(client, NAME).start({})
    assert (outcome.outcome, outcome.exit_code) == ("not started", 4)
    assert "scan must be a scan such as NS_230216033" in outcome.message


@pytest.fixture
def scan(api: AirflowApi, client: Client) -> Scan:
    """A scan whose only file is done."""
    api.add_run(scan_run_id(FILE), "success", {"file_path": FILE})
    return Scan(client, NAME)


def test_without_stacks_there_is_no_word_about_them(api: AirflowApi, scan: Scan) -> None:
    status = scan.status()
    assert status.stacks == []
    assert "stack" not in describe(status)
    assert api.count("GET", STACKS) == 1


def test_status_ends_with_the_newest_stack_of_each_engine(api: AirflowApi, scan: Scan) -> None:
    stack(api, f"{NAME}_ptychocam_2", "failed")
    made = stack(api, f"{NAME}_ptychocam_3", "success", engine="ptychocam")
    api.xcoms[made, "collect"] = {"message": "/n/a_0.nxs: 3 energies, 1 missing (1)", "stacks": []}
    stack(api, "manual__1", "running", engine="cdtools", scan=f"/{FILE}")
    api.add_run("NS_2302160331_ptychocam_2", "failed", {"scan": "NS_2302160331"}, STACK_DAG_ID)
    status = scan.status()
    assert status.exit_code == 0
    assert [(one.outcome, one.run_id) for one in status.stacks] == [("done", made), ("running", "manual__1")]
    lines = describe(status).splitlines()
    first = lines.index(next(line for line in lines if line.startswith("  stack of")))
    assert f"{lines[first]}".startswith(f"  stack of {NAME}, ptychocam: done (accepted ")
    assert lines[first].endswith("state success). /n/a_0.nxs: 3 energies, 1 missing (1)")
    assert lines[-3].startswith(f"  stack of {NAME}, cdtools: running (accepted ")
    assert f"/dags/{STACK_DAG_ID}/runs/manual__1" in lines[-1]


def test_why_there_is_no_stack(api: AirflowApi, scan: Scan) -> None:
    run_id = stack(api, f"{NAME}_ptychocam_2", "success")
    api.xcoms[run_id, "check", "no_stack"] = "No stack of NS_230216033: 1 failed (0_1)."
    failed = stack(api, f"{NAME}_cdtools_2", "failed", engine="cdtools")
    api.add_task(failed, "check", "failed")
    api.xcoms[failed, "check", "error"] = {"what": "NS_230216033 has no result of cdtools at NERSC"}
    shown = describe(scan.status())
    assert f"stack of {NAME}, ptychocam: no stack (" in shown
    assert ". No stack of NS_230216033: 1 failed (0_1)." in shown
    assert "    check: NS_230216033 has no result of cdtools at NERSC" in shown


def test_an_airflow_without_stacks_is_no_obstacle(api: AirflowApi, scan: Scan, messages: list[str]) -> None:
    api.fault("status", path=STACKS, status=404, detail="Dag with dag_id: 'stack_scan' not found", times=9)
    assert scan.status().outcome == "1 of 1 done"
    assert "Note: what became of its stacks is not known: Airflow has no DAG stack_scan" in messages[-1]


def test_a_programs_answer_has_the_stacks(
    api: AirflowApi, scan: Scan, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack(api, f"{NAME}_ptychocam_1", "queued")
    assert main(["status", NAME, "--json", "--config", str(config)]) == 0
    (status,) = json.loads(capsys.readouterr().out)["results"]
    assert [one["outcome"] for one in status["stacks"]] == ["queued"]
