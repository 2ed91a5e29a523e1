"""A scan by its name: one view of, and one command for, the files of all its energies and regions."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from beamline_client import scan as scan_module
from beamline_client.cli import main
from beamline_client.client import Client
from beamline_client.config import Settings
from beamline_client.errors import InputError
from beamline_client.output import Outcome, describe
from beamline_client.scan import Scan
from beamline_client.scan_names import scan_run_id
from support.airflow_api import DAG_RUNS, AirflowApi
from support.client import offline

NAME = "NS_230216033"


def file(energy: int, region: int = 0, name: str = NAME) -> str:
    return f"2023/02/230216/{name}_ccdframes_{energy}_{region}.cxi"


def add(api: AirflowApi, path: str, state: str, generation: int = 1, **conf: Any) -> str:
    run_id = scan_run_id(path, generation)
    api.add_run(run_id, state, {"file_path": path, **conf})
    return run_id


def fails(api: AirflowApi, path: str, why: str, generation: int = 1) -> str:
    run_id = add(api, path, "failed", generation)
    api.add_task(run_id, "ptychocam.wait", "failed")
    api.xcoms[run_id, "ptychocam.wait", "error"] = {
        "what": why,
        "id": "4711",
        "state": "TIMEOUT",
        "next_step": "give it more time.",
    }
    return run_id


@pytest.fixture
def stack(api: AirflowApi) -> AirflowApi:
    """4 energies, 2 regions: 4 files done, 2 failed, one running, one queued; and runs of two other scans."""
    for energy in (0, 1):
        for region in (0, 1):
            add(api, file(energy, region), "success", do_ptychocam=True)
    fails(api, file(2, 0), "The job ran out of time")
    fails(api, file(2, 1), "The job has failed")
    add(api, file(3, 0), "running")
    add(api, file(3, 1), "queued")
    add(api, file(0, 0, "NS_2302160331"), "failed")
    add(api, "2023/02/230217/NS_230217001_ccdframes_0_0.cxi", "running", probe_initialization=file(0))
    return api


def by_path(outcome: Outcome) -> dict[str, tuple[str, int]]:
    return {one.path: (one.outcome, one.exit_code) for one in outcome.files}


@pytest.mark.parametrize("name", ["other", "NS_230216033_0_0", "NS_231316033"])
def test_what_is_no_scans_name_is_refused(client: Client, name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is not the name of a scan, as NS_230216033 is"):
        Scan(client, name)


@pytest.mark.parametrize("name", ["CX-7_2302160331", "NS_test.b_230216033"])
@pytest.mark.parametrize("ending", ["_0_0", "_0_0_cosmic2", "_0"])
def test_scans_with_other_names_are_scans(
    api: AirflowApi, config: Path, capsys: pytest.CaptureFixture[str], name: str, ending: str
) -> None:
    """The client does not know the site's forms of names."""
    folder = "2023/02/230216"
    done = add(api, f"{folder}/{name}_ccdframes{ending}.cxi", "success")
    fails(api, f"{folder}/{name}_ccdframes_1_0.cxi", "The job has failed")
    add(api, f"{folder}/{name}_other.cxi", "running")
    add(api, f"2023/02/230217/{name}_ccdframes_2_0.cxi", "running")
    assert main(["status", name, "--config", str(config)]) == 5
    assert f"{name}: 1 of 2 done, 1 failed" in capsys.readouterr().out
    assert main(["reprocess", name, "--config", str(config)]) == 0
    again = scan_run_id(f"{folder}/{name}_ccdframes_1_0.cxi", 2)
    assert api.created[4:] == [again]
    api.runs[done]["state"] = "running"
    assert main(["cancel", name, "--config", str(config)]) == 0
    assert [api.runs[run_id]["state"] for run_id in (done, again)] == ["failed", "failed"]
    assert [run["state"] for run in api.runs.values()].count("running") == 2


def test_status_counts_all_and_says_why_some_failed(stack: AirflowApi, client: Client) -> None:
    status = Scan(client, NAME).status()
    assert status.outcome == "4 of 8 done, 2 failed, 1 queued, 1 running"
    assert status.exit_code == 5
    shown = describe(status)
    assert shown.splitlines()[0] == (
        f"{NAME}: 4 of 8 done, 2 failed, 1 queued, 1 running. "
        f"What to do about a failure: submit_scan.py status {NAME}_2_0"
    )
    assert f"runs?run_id_pattern={NAME}_" in shown
    failure = (
        f"  failed: {NAME}_2_0\n      ptychocam.wait: The job ran out of time; id 4711; last state TIMEOUT."
    )
    assert failure in shown
    assert shown.splitlines()[-1] == f"  done: {NAME}_0_0, {NAME}_0_1, {NAME}_1_0, {NAME}_1_1"
    assert "2302160331" not in shown


def test_the_exit_code_of_status_says_whether_all_is_done(api: AirflowApi, client: Client) -> None:
    scan = Scan(client, NAME)
    nothing = scan.status()
    assert (nothing.outcome, nothing.exit_code) == ("no such scan", 6)
    assert "no run of any file of it" in nothing.message
    first = add(api, file(0), "queued")
    assert scan.status().exit_code == 8
    api.runs[first]["state"] = "success"
    assert (scan.status().outcome, scan.status().exit_code) == ("1 of 1 done", 0)
    add(api, file(1), "failed")
    assert scan.status().exit_code == 5
    assert "no task of it failed: it was ended from outside" in describe(scan.status())


def test_of_a_task_that_left_no_reason_status_says_so(api: AirflowApi, client: Client) -> None:
    run_id = add(api, file(0), "failed")
    api.add_task(run_id, "wait", "failed")
    api.logs[run_id, "wait"] = []
    shown = describe(Scan(client, NAME).status())
    assert "wait: it left no reason: somebody cancelled it, or its worker was ended; see the page" in shown


def test_the_newest_run_of_a_file_counts(api: AirflowApi, client: Client) -> None:
    fails(api, file(0), "x")
    add(api, file(0), "success", 2)
    status = Scan(client, NAME).status()
    assert (status.outcome, status.files[0].run_id) == ("1 of 1 done", f"{NAME}_0_0__r2")


def test_runs_with_ids_of_any_kind_belong_to_the_scan(api: AirflowApi, client: Client) -> None:
    api.add_run("somebody's.own", "running", {"file_path": "/" + file(0)})
    add(api, "2023/02/230216/NS_230216033_ccdframes_0.cxi", "success")
    assert Scan(client, NAME).status().outcome == "1 of 2 done, 1 running"
    cancelled = Scan(client, NAME).cancel()
    assert cancelled.outcome == "1 of 2 cancelled, 1 had ended"
    assert api.runs["somebody's.own"]["state"] == "failed"


def test_results_with_warnings_are_counted_and_named(
    stack: AirflowApi, client: Client, messages: list[str]
) -> None:
    stack.xcoms[f"{NAME}_1_0", "report", "warnings"] = 2
    stack.xcoms["NS_2302160331_0_0", "report", "warnings"] = 1
    stack.xcoms[f"{NAME}_0_1", "report", "warnings"] = 1
    add(stack, file(0, 1), "success", 2)  # without
    stack.add_run("own", "success", {"file_path": file(3, 0)})
    stack.xcoms["own", "report", "warnings"] = 1
    status = Scan(client, NAME).status()
    assert status.outcome == "5 of 8 done, 2 of them with warnings, 2 failed, 1 queued"
    assert status.exit_code == 5
    assert by_path(status)[file(1, 0)] == ("done with warnings", 0)
    assert status.message == (
        f"What to do about a failure: submit_scan.py status {NAME}_2_0. "
        f"Warnings in whole: submit_scan.py status {NAME}_1_0"
    )
    assert f"  done with warnings: {NAME}_1_0, own\n" in describe(status)

    stack.fault("status", path="~", status=403, detail="Forbidden", times=100)
    status = Scan(client, NAME).status()
    assert status.outcome == "5 of 8 done, 2 failed, 1 queued"
    assert "which results have warnings is not known: " in messages[-1]


def test_energies_and_regions_are_sorted_as_numbers(api: AirflowApi, client: Client) -> None:
    for energy in (10, 9, 100):
        add(api, file(energy), "success")
    assert [one.run_id for one in Scan(client, NAME).status().files] == [
        f"{NAME}_{energy}_0" for energy in (9, 10, 100)
    ]


def test_files_that_were_not_submitted_are_counted_where_they_can_be_seen(
    stack: AirflowApi, settings: Settings, tmp_path: Path
) -> None:
    for path in (file(0), file(4), file(4).replace(".cxi", "_ptychocam.cxi"), file(5, 0, "NS_2302160331")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    client = Client(replace(settings, data_root=tmp_path), log=lambda _: None)
    status = Scan(client, NAME).status()
    assert status.outcome == "4 of 9 done, 2 failed, 1 not submitted, 1 queued, 1 running"
    assert by_path(status)[file(4)] == ("not submitted", 8)
    assert "It has no run. To start one: submit_scan.py submit FILE" in describe(status)
    _, left = Scan(client, NAME).plan({}, everything=True)
    assert ("not submitted", 0) in [(one.outcome, one.exit_code) for one in left]


def test_requests_that_wait_here_are_counted(api: AirflowApi, settings: Settings, client: Client) -> None:
    offline(settings).submit([file(0), file(1)])
    offline(settings).submit([file(0, 0, "NS_230216034")])
    away = Scan(offline(settings), NAME).status()
    assert (away.outcome, away.exit_code, len(away.files)) == ("not known", 7, 2)
    assert "gave no usable answer" in describe(away)
    assert f"  kept: {NAME}_0_0, {NAME}_1_0\n      To send what is kept" in describe(away)
    status = Scan(client, NAME).status()
    assert (status.outcome, status.exit_code) == ("0 of 2 done, 2 kept", 3)


def test_800_files_take_few_requests(api: AirflowApi, client: Client) -> None:
    for energy in range(200):
        for region in range(4):
            fails(api, file(energy, region), f"failure {energy} {region}")
    for energy in range(100, 200):
        run_id = add(api, file(energy), "success", 2)
        api.xcoms[run_id, "report", "warnings"] = 1
    status = Scan(client, NAME).status()
    assert status.outcome == "100 of 800 done, 100 of them with warnings, 700 failed"
    assert api.count("GET", f"{DAG_RUNS}$") == 9
    assert api.count("GET", "/~/") == 1
    assert len(api.requests) <= 9 + 3 * scan_module.MAX_REASONS + 3
    shown = describe(status)
    assert "failure 4 3" in shown
    assert "failure 5 0" not in shown
    assert f"why it failed is read of {scan_module.MAX_REASONS} files: submit_scan.py status RUN" in shown


def test_many_files_with_which_nothing_is_to_be_done_are_not_listed(api: AirflowApi, client: Client) -> None:
    for energy in range(21):
        add(api, file(energy), "success")
    failed = [add(api, file(energy, 1), "failed") for energy in range(30)]
    shown = describe(Scan(client, NAME).status())
    assert shown.splitlines()[-1] == "  done: 21 files (--json names them)"
    assert all(run_id in shown for run_id in failed)
    assert describe(Scan(client, NAME).cancel()).splitlines()[-1] == (
        "  had ended: 51 files (--json names them)"
    )


def test_when_airflow_goes_away_while_reasons_are_read(stack: AirflowApi, settings: Settings) -> None:
    stack.fault("status", path="taskInstances", status=503, times=1000)
    client = Client(replace(settings, timeout=0.3), log=lambda _: None)
    status = Scan(client, NAME).status()
    assert status.outcome.startswith("4 of 8 done, 2 failed")
    assert describe(status).count("why it failed cannot be read: Airflow at") == 1
    assert f"failed: {NAME}_2_0, {NAME}_2_1" in describe(status)


def test_a_reason_that_cannot_be_read_is_shown(stack: AirflowApi, client: Client) -> None:
    stack.fault("status", path=f"{NAME}_2_0/taskInstances", status=418, times=1000)
    shown = describe(Scan(client, NAME).status())
    assert f"failed: {NAME}_2_0\n      why it failed cannot be read: Airflow answered 418" in shown
    assert "The job has failed" in shown


def test_reprocess_runs_what_failed_again_and_nothing_twice(stack: AirflowApi, client: Client) -> None:
    scan = Scan(client, NAME)
    stack.runs[scan_run_id(file(2, 0))]["conf"]["n_gpu"] = 2
    requests, left = scan.plan({"n_iter": 7})
    assert [request.run_id for request in requests] == [f"{NAME}_2_0__r2", f"{NAME}_2_1__r2"]
    first = scan.reprocessed(client.sender.deliver(requests), left)
    assert first.outcome == "2 of 8 accepted, 4 done, 1 queued, 1 running"
    assert first.exit_code == 0
    assert stack.runs[f"{NAME}_2_0__r2"]["conf"] == {"file_path": file(2, 0), "n_gpu": 2, "n_iter": 7}
    again, left = scan.plan({"n_iter": 7})
    assert again == []
    assert scan.reprocessed([], left).outcome == "0 of 8 accepted, 4 done, 3 queued, 1 running"
    assert "Not run again: it is still going on." in describe(scan.reprocessed([], left))
    # The same plan sent by two people is one run each.
    repeated = client.sender.deliver(requests)
    assert [one.outcome for one in repeated] == ["already accepted"] * 2
    assert stack.created.count(f"{NAME}_2_0__r2") == 1
    assert not [run_id for run_id in stack.created if run_id.endswith("__r3")]


def test_two_at_once_are_one_run_a_file(stack: AirflowApi, settings: Settings) -> None:
    both = threading.Barrier(2)

    def run(_: int) -> list[str]:
        client = Client(settings, log=lambda _: None)
        requests, _left = Scan(client, NAME).plan({})
        both.wait()
        return [one.outcome for one in client.sender.deliver(requests)]

    with ThreadPoolExecutor(2) as pool:
        outcomes = [outcome for found in pool.map(run, range(2)) for outcome in found]
    assert set(outcomes) <= {"accepted", "already accepted"}
    assert sorted(run_id for run_id in stack.created if "__r" in run_id) == [
        f"{NAME}_2_0__r2",
        f"{NAME}_2_1__r2",
    ]


def test_reprocess_all_leaves_what_is_going_on(stack: AirflowApi, client: Client) -> None:
    scan = Scan(client, NAME)
    requests, left = scan.plan({}, everything=True)
    assert len(requests) == 6
    outcome = scan.reprocessed(client.sender.deliver(requests), left)
    assert (outcome.outcome, outcome.exit_code) == ("6 of 8 accepted, 1 queued, 1 running", 8)
    assert scan.plan({}, everything=True)[0] == []


def test_reprocess_while_airflow_goes_away_keeps_what_is_left(
    stack: AirflowApi, settings: Settings, client: Client
) -> None:
    requests, left = Scan(client, NAME).plan({})
    away = offline(settings)
    outcome = Scan(away, NAME).reprocessed(away.sender.deliver(requests), left)
    assert (outcome.outcome, outcome.exit_code) == ("0 of 8 accepted, 4 done, 2 kept, 1 queued, 1 running", 3)
    away.sender.deliver(requests)  # asked for again meanwhile
    assert len(client.spool.names()) == 2
    assert Scan(client, NAME).plan({})[0] == []
    client.sender.flush()
    assert [run_id for run_id in stack.created if "__r" in run_id] == [f"{NAME}_2_0__r2", f"{NAME}_2_1__r2"]


def test_a_request_that_airflow_finds_wrong_holds_up_no_other(stack: AirflowApi, client: Client) -> None:
    stack.runs[scan_run_id(file(2, 0))]["conf"]["n_gpu"] = 3  # which this API refuses
    requests, left = Scan(client, NAME).plan({})
    outcome = Scan(client, NAME).reprocessed(client.sender.deliver(requests), left)
    assert (by_path(outcome)[file(2, 0)], outcome.exit_code) == (("rejected", 4), 4)
    assert by_path(outcome)[file(2, 1)] == ("accepted", 0)
    assert "n_gpu: 3 is refused by this DAG" in describe(outcome)


def test_cancel_stops_all_that_is_active(stack: AirflowApi, settings: Settings, client: Client) -> None:
    offline(settings).submit([file(5), file(0, 0, "NS_230216034")])
    outcome = Scan(client, NAME).cancel()
    assert (outcome.outcome, outcome.exit_code) == ("2 of 9 cancelled, 6 had ended, 1 withdrawn", 0)
    assert {stack.runs[scan_run_id(file(3, region))]["state"] for region in (0, 1)} == {"failed"}
    assert stack.runs["NS_230217001_0_0"]["state"] == "running"
    assert [request.path for request in client.spool.pending()] == [file(0, 0, "NS_230216034")]
    assert stack.count("PATCH", "") == 2
    again = Scan(client, NAME).cancel()
    assert (again.outcome, again.exit_code) == ("0 of 8 cancelled, 8 had ended", 0)
    assert stack.count("PATCH", "") == 2


def test_a_run_that_ends_before_its_turn_keeps_its_result(stack: AirflowApi, client: Client) -> None:
    def end(method: str, path: str) -> None:
        if method == "PATCH":
            stack.runs[scan_run_id(file(3, 1))]["state"] = "success"

    stack.on_request = end
    assert by_path(Scan(client, NAME).cancel())[file(3, 1)] == ("had ended", 0)
    assert stack.runs[scan_run_id(file(3, 1))]["state"] == "success"


def test_a_run_that_cannot_be_cancelled_is_named_and_holds_up_no_other(
    stack: AirflowApi, client: Client
) -> None:
    stack.fault("status", method="PATCH", path=f"{NAME}_3_0", status=409, detail="locked", times=99)
    outcome = Scan(client, NAME).cancel()
    assert outcome.outcome == "1 of 8 cancelled, 6 had ended, 1 not cancelled"
    assert by_path(outcome)[file(3, 0)] == ("not cancelled", 4)
    assert (
        f"not cancelled: {NAME}_3_0\n      Airflow answered 409 about the run {NAME}_3_0: locked."
        in describe(outcome)
    )


def test_without_the_right_to_cancel_nothing_more_is_tried(stack: AirflowApi, client: Client) -> None:
    stack.forbidden.add(("PATCH", "any"))
    outcome = Scan(client, NAME).cancel()
    assert (outcome.outcome, outcome.exit_code) == ("0 of 8 cancelled, 6 had ended, 2 not cancelled", 4)
    assert "The user needs a role that may stop runs" in describe(outcome)
    assert stack.count("PATCH", "") == 2  # once, and once more with a new token


def test_cancel_while_airflow_is_away_withdraws_and_says_what_it_does_not_know(
    stack: AirflowApi, settings: Settings
) -> None:
    away = offline(settings)
    away.submit([file(5)])
    outcome = Scan(away, NAME).cancel()
    assert (outcome.outcome, outcome.exit_code) == ("not known", 7)
    assert "Runs that had started go on: cancel it again when Airflow can be reached." in describe(outcome)
    assert f"withdrawn: {NAME}_5_0" in describe(outcome)


def test_what_another_process_is_sending_is_not_withdrawn_and_named(
    stack: AirflowApi, settings: Settings
) -> None:
    offline(settings).submit([file(5)])
    client = Client(replace(settings, timeout=0.2), log=lambda _: None)
    with client.spool.lock("sending", 1.0):
        outcome = Scan(client, NAME).cancel()
    assert (by_path(outcome)[file(5)], outcome.exit_code) == (("not withdrawn", 3), 3)
    assert "Cancel the scan again when it has ended." in describe(outcome)
    assert outcome.outcome.startswith("2 of 9 cancelled")


def test_nothing_is_there_to_cancel_or_reprocess(api: AirflowApi, client: Client) -> None:
    assert Scan(client, NAME).cancel().exit_code == 6
    assert Scan(client, NAME).plan({}) == ([], [])
    assert Scan(client, NAME).reprocessed([], []).exit_code == 6


def run_command(config: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main([*arguments, "--config", str(config)])
    return code, capsys.readouterr().out


def test_the_commands(stack: AirflowApi, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run_command(config, capsys, "status", NAME, file(0))
    assert (code, out.startswith(f"{NAME}: 4 of 8 done, 2 failed")) == (5, True)
    assert f"{file(0)}: success" in out
    code, out = run_command(config, capsys, "reprocess", NAME, "--dry-run", "--param", "n_iter=9")
    assert code == 0
    assert f"{NAME}: 0 of 8 accepted, 4 done, 2 dry run, 1 queued, 1 running" in out
    assert f'"dag_run_id": "{NAME}_2_0__r2"' in out
    assert len(stack.created) == 10
    code, out = run_command(config, capsys, "reprocess", NAME, "--param", "n_iter=9")
    assert (code, out.splitlines()[0]) == (0, f"{NAME}: 2 of 8 files are to run again.")
    assert f"  accepted: {NAME}_2_0__r2, {NAME}_2_1__r2\n" in out
    code, out = run_command(config, capsys, "cancel", NAME, "--json")
    answer = json.loads(out)["results"]
    assert (code, answer[0]["path"], len(answer[0]["files"])) == (0, NAME, 8)
    assert answer[0]["outcome"] == "4 of 8 cancelled, 4 had ended"


def test_reprocess_and_wait(stack: AirflowApi, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def end(method: str, path: str) -> None:
        reads = stack.count("GET", f"{DAG_RUNS}$")
        if reads >= 3 and method == "GET":
            for run_id in (f"{NAME}_2_0__r2", f"{NAME}_2_1__r2"):
                stack.runs[run_id]["state"] = "success"

    stack.on_request = end
    code, out = run_command(config, capsys, "reprocess", NAME, "--wait")
    assert f"{NAME}: 0 of 2 runs have ended" in out
    assert f"{NAME}: 2 of 2 runs have ended" in out
    assert (code, out.count(f"{NAME}: 6 of 8 done, 1 queued, 1 running")) == (8, 1)


def test_a_wait_goes_on_through_an_outage_and_ends_at_its_limit(
    stack: AirflowApi, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "poll_pauses", (0.05, 0.1))
    requests_before = len(stack.requests)
    wait = Scan.wait

    def wait_in_an_outage(self: Scan, run_ids: list[str], limit: float) -> None:
        stack.fault("status", method="GET", path=f"{DAG_RUNS}$", status=500, times=4)
        wait(self, run_ids, limit)

    monkeypatch.setattr(Scan, "wait", wait_in_an_outage)
    code, out = run_command(config, capsys, "reprocess", NAME, "--wait", "--wait-limit", "1")
    assert f"{NAME}: not known, Airflow cannot be reached" in out
    assert f"{NAME}: 0 of 2 runs have ended" in out
    assert code == 8
    assert len(stack.requests) > requests_before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", NAME], f"{NAME} is a whole scan, which status, reprocess and cancel take."),
        (["reprocess", file(0), "--all"], "--all is for a scan's name, as in NS_230216033"),
        (["reprocess", NAME, "--param", "n_gpu=9"], "n_gpu must be from 1 to 4, not 9"),
    ],
)
def test_what_the_commands_refuse(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*arguments, "--config", str(config)]) == 2
    assert message in capsys.readouterr().err


def test_reprocess_while_airflow_is_away_says_that_nothing_was_sent(
    api: AirflowApi, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ("--url", "http://127.0.0.1:1", "--timeout", "0.1")
    assert main(["reprocess", NAME, "--config", str(config), *url]) == 7
    assert (
        "Nothing was sent or kept: reprocess it again when Airflow can be reached." in capsys.readouterr().out
    )
    assert main(["status", NAME, "--config", str(config), *url]) == 7
    api.dag_problem = "missing"
    assert main(["reprocess", NAME, "--config", str(config)]) == 7
    assert "Airflow has no DAG transfer_auto_recon at the moment" in capsys.readouterr().out
