"""The command: what a person or a script sees, and the exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beamline_client.cli import main
from beamline_client.client import Client
from beamline_client.parameters import PARAMETERS
from beamline_client.scan_names import scan_run_id
from support.airflow_api import DAG_RUNS, AirflowApi
from support.client import PROGRAM

SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
OTHER = "2023/02/230216/NS_230216034_ccdframes_0_0.cxi"
RUN = scan_run_id(SCAN)


class Command:
    """Runs the command in this process."""

    def __init__(self, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.config = config
        self.capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str) -> int:
        code = main([*arguments, "--config", str(self.config)])
        self.out, self.err = self.capsys.readouterr()
        return code

    def json(self, *arguments: str) -> dict[str, Any]:
        code = self(*arguments, "--json")
        answer: dict[str, Any] = json.loads(self.out)
        assert answer["exit_code"] == code
        return answer


@pytest.fixture
def command(api: AirflowApi, config: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(config, capsys)


@pytest.fixture
def down(config: Path) -> Path:
    """Settings with which Airflow cannot be reached."""
    away = config.with_name("down.ini")
    text = "".join(
        f"{line}\n" for line in config.read_text().splitlines() if not line.startswith(("url", "timeout"))
    )
    away.write_text(text.replace("[airflow]", "[airflow]\nurl = http://127.0.0.1:1") + "timeout = 0.1\n")
    return away


@pytest.mark.parametrize("command_name", ["submit", "reprocess", "watch"])
def test_the_help_lists_each_parameter_with_bounds_and_default(
    command_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command_name, "--help"])
    shown = capsys.readouterr().out
    for name, parameter in PARAMETERS.items():
        assert f"  {name} (" in shown
        assert parameter.description in shown
    assert "  n_modes (1)\n      a whole number from 1 to 32. Incoherent probe modes." in shown
    assert '  propagation_distance ("50e-6")\n      a number from -0.01 to 0.01. In meters' in shown
    assert "      regular, realtime, debug, premium, shared, or none. " in shown
    assert "GPUs of the job, 1 to 4" in shown


def test_the_help_is_the_manual(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for words in (
        "Exit codes: 0 accepted",
        "~/.config/cosmic/client.ini",
        "COSMIC_AIRFLOW_URL",
        "data_root =",
    ):
        assert words in shown


def test_submit_shows_run_page_and_state(api: AirflowApi, command: Command) -> None:
    assert command(SCAN, "--engine", "ptychocam", "--n-gpu", "4", "--param", "n_iter=250") == 0
    assert command.out.startswith(f"{SCAN}: accepted (20")
    assert ", state queued)" in command.out
    assert f"  run    {RUN}\n" in command.out
    assert f"  page   {api.url}/dags/transfer_auto_recon/runs/{RUN}\n" in command.out
    conf = {"file_path": SCAN, "do_ptychocam": True, "do_cdtools": False, "n_gpu": 4, "n_iter": 250}
    assert api.runs[RUN]["conf"] == conf


def test_submit_again_says_since_when_and_its_state(api: AirflowApi, command: Command) -> None:
    command("submit", SCAN)
    api.runs[RUN] |= {"state": "success", "run_after": "2023-02-16T10:00:00.123456Z"}
    answer = command.json("submit", SCAN)["results"][0]
    assert (answer["outcome"], answer["state"], answer["exit_code"]) == ("already accepted", "success", 0)
    assert answer["since"].startswith("2023-02-16 ")


def test_json_is_alone_on_stdout(api: AirflowApi, command: Command) -> None:
    answer = command.json(SCAN, "odd.cxi", "--any-name")
    assert [result["outcome"] for result in answer["results"]] == ["accepted", "accepted"]
    assert "odd.cxi: it is not named like" in command.err


def test_a_dry_run_sends_and_keeps_nothing(api: AirflowApi, command: Command) -> None:
    assert command(SCAN, "--dry-run", "--engine", "cdtools") == 0
    assert f'"dag_run_id": "{RUN}", "logical_date": null' in command.out
    assert '"do_cdtools": true' in command.out
    assert command("reprocess", SCAN, "--dry-run", "--param", "n_iter=3") == 0
    assert '{"n_iter": 3}' in command.out
    assert api.requests == []
    assert command("status") == 0
    assert "Nothing waits" in command.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["../x.cxi"], "The path '../x.cxi' cannot be a scan"),
        (["statsu", SCAN], "There is no command 'statsu'. Did you mean status?"),
        (["nonsense", SCAN], "The path 'nonsense' cannot be a scan"),
        ([f"/data/{SCAN}"], "Is its beginning a folder of this computer? Name that: data_root in [client]."),
        ([SCAN, "--param", "n_gpu=9"], "n_gpu must be from 1 to 4, not 9"),
        ([SCAN, "--n-gpu", "many"], "n_gpu must be a whole number, not 'many'"),
        ([SCAN, "--wait", "--wait-limit", "x"], "'x' is not a positive number of seconds"),
        (["status", "not a run"], "'not a run' is neither a scan's path"),
        (["cancel", "a/../b"], "neither a scan's path"),
        (["watch", "/no/such/folder"], "There is no folder /no/such/folder"),
        (["watch", ".", "--settle", "0"], "'0' is not a positive number"),
        (["watch", ".", "--done-suffix", "/x"], "--done-suffix is what comes after"),
    ],
)
def test_bad_input_ends_with_2(api: AirflowApi, command: Command, arguments: list[str], message: str) -> None:
    assert command(*arguments) == 2
    assert message in command.err
    assert not [request for request in api.requests if request[0] == "POST"]


@pytest.mark.parametrize(
    "arguments", [[], ["submit"], [SCAN, "--engine", "other"], [SCAN, "--eng", "cdtools"]]
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_an_outage_ends_with_3_and_flush_sends(api: AirflowApi, command: Command, down: Path) -> None:
    assert main([SCAN, "--config", str(down)]) == 3
    assert command("status") == 3
    assert f"{SCAN}: kept. Since 20" in command.out
    assert command("status", SCAN) == 3
    assert "Kept here since" in command.out
    assert command("flush") == 0
    assert f"{SCAN}: accepted" in command.out
    assert command("flush") == 0
    assert "Nothing waits" in command.out


def test_a_refusal_ends_with_4(api: AirflowApi, command: Command) -> None:
    api.users.clear()
    assert command(SCAN) == 4
    assert "kept. It waits in" in command.out
    assert "for: submit_scan.py flush" in command.out
    assert "Airflow refuses to log in 'beamline' (401: Invalid credentials)" in command.out
    api.users["beamline"] = "secret"
    assert command(OTHER, "--n-gpu", "3") == 4
    assert "rejected. It was moved to" in command.out
    assert "Airflow finds the request wrong (400): Invalid input for param n_gpu" in command.out
    assert command("status") == 0
    assert "n_gpu: 3 is refused" in command.out


def _step(api: AirflowApi, *steps: Any) -> None:
    """Take a step each time the run is looked at."""
    to_come: Iterator[Any] = iter(steps)

    def on_request(method: str, path: str) -> None:
        if method == "GET" and path == f"{DAG_RUNS}/{RUN}":
            step = next(to_come, None)
            if step:
                step()

    api.on_request = on_request


def _set(thing: dict[str, Any], **values: Any) -> Any:
    return lambda: thing.update(values)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "poll_pauses", (0.02, 0.05))


def _a_run_with_tasks(api: AirflowApi) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    run = api.add_run(RUN, "queued", {"file_path": SCAN})
    return run, api.add_task(RUN, "transfer", None), api.add_task(RUN, "collect", None, map_index=0)


def test_wait_follows_to_the_result(api: AirflowApi, command: Command, quick: None) -> None:
    run, transfer, collect = _a_run_with_tasks(api)
    api.xcoms[RUN, "collect"] = {"result": "/global/x.cxi", "error": 0.0123456789, "note": "a\x1b[2Jb"}
    api.xcoms[RUN, "transfer"] = {
        "files": 1,
        "rates": [1.5, 2],
        "engines": [{"name": "a"}],
        "none": [],
        "": {},
    }
    _step(
        api,
        None,  # read after the 409
        None,
        _set(run, state="running"),
        _set(transfer, state="deferred"),
        lambda: api.fault("drop_before", method="GET"),
        _set(transfer, state="success"),
        lambda: (_set(collect, state="success")(), _set(run, state="success")()),
    )
    assert command(SCAN, "--wait") == 0
    lines = [line[10:].replace(RUN, "RUN") for line in command.out.splitlines() if RUN + "  " in line]
    assert [line for line in lines if line.startswith("RUN  run")] == [
        "RUN  run: queued",
        "RUN  run: queued -> running",
        "RUN  run: running -> success",
    ]
    assert "RUN  transfer: deferred -> success" in lines
    assert f"{SCAN}: success" in command.out
    assert "  task   collect[0]  success" in command.out
    assert "  collect[0]  error = 0.0123457" in command.out
    assert "  collect[0]  result = /global/x.cxi" in command.out
    assert "\x1b" not in command.out
    shown = [line.strip() for line in command.out.splitlines() if line.startswith("  transfer  ")]
    assert shown == ["transfer  files = 1", "transfer  rates = [1.5, 2]", "transfer  engines.0.name = a"]


def test_a_failed_run_is_shown_with_the_reason_and_advice_that_its_task_left(
    api: AirflowApi, command: Command
) -> None:
    api.add_run(RUN, "failed", {"file_path": SCAN})
    api.add_task(RUN, "wait", "failed")
    again = f"submit_scan.py reprocess {SCAN} --param time_limit_minutes=480"
    api.xcoms[RUN, "wait", "error"] = {
        "what": "The Slurm job ended as TIMEOUT",
        "id": "80",
        "state": "TIMEOUT",
        "next_step": "give it more time.",
        "run_again": again,
        "details": "exit code 0",
    }
    assert command("status", SCAN) == 5
    assert "wait: The Slurm job ended as TIMEOUT; id 80; last state TIMEOUT." in command.out
    assert "wait: What to do: give it more time." in command.out
    assert f"wait: To run it again: {again}" in command.out
    assert api.count("GET", "/logs/") == 0


def test_who_may_not_cancel_learns_who_may(api: AirflowApi, command: Command) -> None:
    api.add_run(RUN, "running", {"file_path": SCAN})
    api.forbidden.add(("PATCH", "any"))
    assert command("cancel", SCAN) == 4
    assert "The user needs a role that may stop runs" in command.out + command.err


def test_of_a_run_with_a_report_a_person_sees_the_report_and_a_program_everything(
    api: AirflowApi, command: Command
) -> None:
    api.add_run(RUN, "success", {"file_path": SCAN})
    for task, state in (("plan", "success"), ("other", "skipped"), ("report", "success")):
        api.add_task(RUN, task, state)
        api.xcoms[RUN, task] = {"name": task}
    assert command("status", SCAN) == 0
    shown = [line.strip() for line in command.out.splitlines()]
    assert "report  name = report" in shown
    assert "task   plan    success" in shown
    assert not any("name = plan" in line or "skipped" in line for line in shown)
    (outcome,) = command.json("status", SCAN)["results"]
    assert outcome["results"] == {"plan": {"name": "plan"}, "report": {"name": "report"}}
    assert outcome["tasks"]["other"] == "skipped"


def test_a_results_warnings_stand_first_and_whole(api: AirflowApi, command: Command) -> None:
    warning = "The picture is probably wrong. " * 20 + "Set positions to probe.\x1b[2J"
    api.add_run(RUN, "success", {"file_path": SCAN})
    api.add_task(RUN, "report", "success")
    api.xcoms[RUN, "report"] = {
        "reconstructions": [
            {"engine": "cdtools"},
            {"engine": "ptychocam", "warnings": [warning, "Hot pixels."]},
        ]
    }
    assert command("status", SCAN) == 0
    shown = [line.strip() for line in command.out.splitlines()]
    at = shown.index(f"WARNING  ptychocam: {warning}".replace("\x1b", " "))
    assert shown[at + 1] == "WARNING  ptychocam: Hot pixels."
    assert at < shown.index("task   report  success")
    assert not any("warnings =" in line for line in shown)


def test_wait_ends_with_5_when_the_run_fails_and_shows_why(
    api: AirflowApi, command: Command, quick: None
) -> None:
    run, transfer, collect = _a_run_with_tasks(api)
    transfer["state"], collect["state"] = "failed", "upstream_failed"
    api.logs[RUN, "transfer"] = [
        {"level": "info", "event": "hello"},
        {
            "level": "error",
            "event": "Task failed with exception",
            "error_detail": [
                {"exc_type": "UserError", "exc_value": "The file is missing.\nWhat to do: look."}
            ],
        },
    ]
    _step(api, None, _set(run, state="failed"))
    assert command(SCAN, "--wait") == 5
    assert f"{SCAN}: failed" in command.out
    assert "  transfer: UserError: The file is missing.\n      What to do: look." in command.out
    assert "hello" not in command.out
    assert command.json("status", SCAN)["exit_code"] == 5
    assert command("status", RUN) == 5


def test_wait_has_a_limit(api: AirflowApi, command: Command, quick: None) -> None:
    assert command(SCAN, "--wait", "--wait-limit", "0.2") == 8
    assert "The wait is over; the run goes on" in command.out


def test_wait_through_an_outage(api: AirflowApi, command: Command, quick: None, config: Path) -> None:
    run, *_ = _a_run_with_tasks(api)
    config.write_text(config.read_text().replace("timeout = 5.0", "timeout = 0.2"))
    outage = api.fault("status", method="GET", path=f"{DAG_RUNS}/.*", status=503, times=0)

    def begin() -> None:
        outage.times = 40

    _step(api, begin, _set(run, state="success"))
    assert command(SCAN, "--wait") == 0
    assert "not known, Airflow cannot be reached" in command.out
    assert outage.hits == 40


def test_wait_does_not_wait_for_what_was_kept(command: Command, down: Path) -> None:
    assert main([SCAN, "--wait", "--config", str(down)]) == 3


def test_status_of_all_runs_of_a_scan_counts_the_newest(api: AirflowApi, command: Command) -> None:
    api.add_run(RUN, "failed", {"file_path": SCAN})
    for generation in range(2, 120):
        api.add_run(scan_run_id(SCAN, generation), "success", {"file_path": SCAN})
    api.add_run(scan_run_id(OTHER), "failed")
    answer = command.json("status", SCAN)
    assert answer["exit_code"] == 0
    assert [result["run_id"] for result in answer["results"]] == [scan_run_id(SCAN, n) for n in range(1, 120)]
    assert command("status", scan_run_id(SCAN, 5)) == 0


def test_status_finds_a_run_with_an_id_of_its_own_and_cancel_stops_it(
    api: AirflowApi, command: Command
) -> None:
    api.add_run("manual__2026-01-01T00:00:00+00:00", "running", {"file_path": "/" + SCAN})
    api.add_run("of_another", "running", {"file_path": SCAN.replace("033", "034"), "note": SCAN})
    api.add_run("without_a_scan", "running")
    (found,) = command.json("status", SCAN)["results"]
    assert (found["run_id"], found["path"]) == ("manual__2026-01-01T00:00:00+00:00", SCAN)
    assert [one["outcome"] for one in command.json("cancel", SCAN)["results"]] == ["cancelled"]
    assert [run["state"] for run in api.runs.values()] == ["failed", "running", "running"]


def test_status_of_what_is_not_there_ends_with_6(command: Command) -> None:
    assert command("status", SCAN) == 6
    assert "Airflow has no run of it, and none waits here" in command.out
    assert command("status", "nothing_of_this_id") == 6


def test_status_without_airflow_ends_with_7(command: Command, down: Path) -> None:
    assert main(["status", SCAN, "--config", str(down)]) == 7


def test_status_of_a_result_that_cannot_be_read_says_so(api: AirflowApi, command: Command) -> None:
    run, transfer, collect = _a_run_with_tasks(api)
    run["state"], transfer["state"], collect["state"] = "success", "success", "success"
    api.fault("status", path="xcomEntries", status=403, times=2)
    assert command("status", SCAN) == 0
    assert "transfer: its result or log cannot be read: Airflow does not let us do this" in command.out


def test_cancel_stops_what_goes_on_and_nothing_else(api: AirflowApi, command: Command) -> None:
    api.add_run(RUN, "success", {"file_path": SCAN})
    second = scan_run_id(SCAN, 2)
    api.add_run(second, "running", {"file_path": SCAN})
    answer = command.json("cancel", SCAN)
    assert [result["outcome"] for result in answer["results"]] == ["had ended", "cancelled"]
    assert (api.runs[RUN]["state"], api.runs[second]["state"]) == ("success", "failed")
    assert api.count("PATCH", ".*") == 1
    assert command("cancel", second) == 0
    assert api.count("PATCH", ".*") == 1
    assert command("cancel", "nothing_of_this_id") == 6


def test_cancel_withdraws_what_was_not_sent(api: AirflowApi, command: Command, down: Path) -> None:
    main([SCAN, "--config", str(down)])
    assert main(["cancel", SCAN, "--config", str(down)]) == 7  # whether it had been sent is not known
    assert command("flush") == 0
    assert api.created == []
    assert command("status") == 0
    assert "withdrawn by cancel" in command.out
    assert command("cancel", SCAN) == 6


def test_reprocess(api: AirflowApi, command: Command) -> None:
    command(SCAN, "--engine", "ptychocam")
    assert command("reprocess", SCAN, "--engine", "cdtools", "--param", "n_modes=3") == 0
    assert api.runs[scan_run_id(SCAN, 2)]["conf"] == {
        "file_path": SCAN,
        "do_ptychocam": False,
        "do_cdtools": True,
        "n_modes": 3,
    }


def test_the_worst_exit_code_counts(api: AirflowApi, command: Command) -> None:
    api.fault("status", method="POST", path=DAG_RUNS, status=500, times=4)
    assert command(SCAN, OTHER) == 3


def test_interrupted_while_waiting(api: AirflowApi, command: Command, quick: None) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "wait_for", interrupt)
        assert command(SCAN, "--wait") == 130
    assert "Interrupted. What was kept or accepted goes on" in command.err
    assert api.created == [RUN]


def test_a_reader_that_leaves_is_no_traceback(api: AirflowApi, config: Path) -> None:
    command = [sys.executable, str(PROGRAM), SCAN, "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        error = process.stderr.read().decode()
    process.wait()
    assert "Traceback" not in error
    assert api.created == [RUN]
