"""The spool and what is sent from it: nothing lost, nothing twice, in order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from beamline_client import spool
from beamline_client.client import Client
from beamline_client.config import Settings
from beamline_client.errors import InputError
from beamline_client.scan_names import scan_run_id
from beamline_client.spool import Spool
from support.airflow_api import DAG_RUNS, AirflowApi
from support.client import codes, offline, scan


def test_a_scan_is_accepted_once_however_often_it_is_sent(api: AirflowApi, client: Client) -> None:
    (first,) = client.submit([scan(1)], {"do_ptychocam": True, "n_gpu": 4})
    (again,) = client.submit(["/" + scan(1)], {"do_ptychocam": True, "n_gpu": 4})
    assert codes([first, again]) == [("accepted", 0), ("already accepted", 0)]
    assert again.state == "queued"
    assert again.since[:2] == "20"
    assert again.message == ""
    assert api.created == [first.run_id] == [scan_run_id(scan(1))]
    assert api.runs[first.run_id]["conf"] == {"file_path": scan(1), "do_ptychocam": True, "n_gpu": 4}
    assert "submit_scan on" in api.runs[first.run_id]["note"]
    assert client.spool.names() == []


@pytest.mark.parametrize(
    ("state", "said"),
    [("failed", "That run has failed, and is not started again"), ("success", "That run is done.")],
)
def test_a_scan_whose_run_has_ended_is_told_how_to_run_again(
    api: AirflowApi, client: Client, state: str, said: str
) -> None:
    (first,) = client.submit([scan(1)], {"do_ptychocam": True})
    api.runs[first.run_id]["state"] = state
    (again,) = client.submit([scan(1)], {"do_ptychocam": True})
    assert codes([again]) == [("already accepted", 0)]
    assert said in again.message
    assert f"submit_scan.py reprocess {scan(1)}" in again.message
    assert "parameters" not in again.message


def test_a_paused_dag_is_told_of_with_what_was_accepted(api: AirflowApi, client: Client) -> None:
    api.paused = True
    outcomes = client.submit([scan(1), scan(2)], {"do_ptychocam": True})
    outcomes += client.submit([scan(1)], {"do_ptychocam": True})
    assert codes(outcomes) == [("accepted", 0), ("accepted", 0), ("already accepted", 0)]
    for outcome in outcomes:
        assert "transfer_auto_recon is paused in Airflow" in outcome.message
        assert "administrator" in outcome.message
    api.paused = False
    assert client.submit([scan(1)], {"do_ptychocam": True})[0].message == ""


def test_when_it_cannot_be_found_out_whether_the_dag_is_paused_the_scan_is_accepted_all_the_same(
    api: AirflowApi, client: Client
) -> None:
    api.fault("status", method="GET", path="/transfer_auto_recon$", status=500, times=100)
    assert codes(client.submit([scan(1)], {"do_ptychocam": True})) == [("accepted", 0)]


def test_five_at_once_are_one_run(api: AirflowApi, settings: Settings) -> None:
    def send(_: int) -> str:
        return Client(settings, log=lambda _: None).submit([scan(1)])[0].outcome

    with ThreadPoolExecutor(5) as pool:
        outcomes = sorted(pool.map(send, range(5)))
    assert set(outcomes) <= {"accepted", "already accepted"}
    assert len(api.created) == 1


def test_a_second_request_with_other_parameters_says_so(api: AirflowApi, client: Client) -> None:
    client.submit([scan(1)], {"n_gpu": 1})
    (again,) = client.submit([scan(1)], {"n_gpu": 4, "do_cdtools": True})
    assert again.exit_code == 0
    assert again.message.startswith(
        "It has other parameters than were asked for now (n_gpu=1, do_cdtools=null)"
    )
    assert "reprocess" in again.message


def test_without_an_engine_it_says_that_nothing_is_reconstructed(client: Client) -> None:
    assert "copied, not reconstructed" in client.submit([scan(1)])[0].message
    assert client.submit([scan(2)], {"do_cdtools": True})[0].message == ""


def test_an_outage_keeps_requests_and_a_flush_sends_them_in_order(
    api: AirflowApi, settings: Settings
) -> None:
    away = offline(settings)
    for number in (3, 1, 2):
        (outcome,) = away.submit([scan(number)], {"n_iter": number})
        assert (outcome.outcome, outcome.exit_code) == ("kept", 3)
        assert "gave no usable answer" in outcome.message
        assert str(settings.spool) in outcome.message
    assert len(Client(settings).sender.flush()) == 3
    assert api.created == [scan_run_id(scan(number)) for number in (3, 1, 2)]
    assert [run["conf"]["n_iter"] for run in api.runs.values()] == [3, 1, 2]
    assert Spool(settings.spool).names() == []


def test_a_scan_that_waits_already_is_not_kept_twice(api: AirflowApi, settings: Settings) -> None:
    away = offline(settings)
    away.submit([scan(1), scan(1)], {"n_gpu": 1})
    (again,) = away.submit([scan(1)], {"n_gpu": 4})
    assert again.outcome == "kept"
    assert "It has other parameters than were asked for now (n_gpu=1)" in again.message
    assert len(away.spool.names()) == 1


def test_a_submit_sends_what_waits_before_its_own(
    api: AirflowApi, settings: Settings, client: Client, messages: list[str]
) -> None:
    offline(settings).submit([scan(1)])
    (outcome,) = client.submit([scan(2)])
    assert outcome.path == scan(2)
    assert api.created == [scan_run_id(scan(1)), scan_run_id(scan(2))]
    assert any(scan(1) in line and "accepted" in line for line in messages)


def test_order_holds_when_the_clock_goes_back(
    api: AirflowApi, settings: Settings, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = offline(settings)
    away.submit([scan(1)])
    clock = SimpleNamespace(time_ns=lambda: 1)
    monkeypatch.setattr(spool, "time", clock)
    away.submit([scan(2)])
    client.sender.flush()
    assert api.created == [scan_run_id(scan(1)), scan_run_id(scan(2))]


def test_a_request_that_airflow_finds_wrong_does_not_hold_up_the_others(
    api: AirflowApi, settings: Settings, client: Client
) -> None:
    offline(settings).submit([scan(1)])
    offline(settings).submit([scan(2)], {"n_gpu": 3})  # the test's DAG refuses 3
    offline(settings).submit([scan(3)])
    done = list(client.sender.flush().values())
    assert [outcome.outcome for outcome in done] == ["accepted", "rejected", "accepted"]
    assert done[1].exit_code == 4
    assert "400" in done[1].message
    assert "n_gpu: 3 is refused by this DAG" in done[1].message
    (rejected,) = client.spool.rejected()
    assert (rejected.path, rejected.conf["n_gpu"]) == (scan(2), 3)
    assert "n_gpu: 3 is refused" in rejected.message
    assert client.spool.names() == []


def test_a_refusal_that_breaks_off_is_asked_for_again(api: AirflowApi, client: Client) -> None:
    api.fault("truncate", method="POST", path=DAG_RUNS)
    (outcome,) = client.submit([scan(1)], {"n_gpu": 3})
    assert codes([outcome]) == [("rejected", 4)]
    assert "n_gpu: 3 is refused" in outcome.message


def test_a_422_is_rejected_too(api: AirflowApi, client: Client) -> None:
    api.fault("status", method="POST", path=DAG_RUNS, status=422, detail=[{"msg": "Field required"}])
    (outcome,) = client.submit([scan(1)])
    assert codes([outcome]) == [("rejected", 4)]
    assert "Field required" in outcome.message


@pytest.mark.parametrize("problem", ["missing", "import errors"])
def test_a_dag_that_is_not_there_costs_no_request(api: AirflowApi, client: Client, problem: str) -> None:
    api.dag_problem = problem
    outcomes = client.submit([scan(1), scan(2)])
    assert codes(outcomes) == [("kept", 3), ("kept", 3)]
    assert "cannot start transfer_auto_recon at the moment" in outcomes[0].message
    api.dag_problem = ""
    client.sender.flush()
    assert len(api.created) == 2


def test_a_page_of_a_proxy_is_no_verdict_on_the_request(api: AirflowApi, client: Client) -> None:
    api.fault("html", method="POST", path=DAG_RUNS, status=400)
    assert codes(client.submit([scan(1)])) == [("kept", 3)]
    assert codes(client.submit([scan(1)])) == [("accepted", 0)]


@pytest.mark.parametrize("trouble", ["password", "role"])
def test_refused_credentials_stop_everything_and_keep_everything(
    api: AirflowApi, client: Client, trouble: str
) -> None:
    if trouble == "password":
        api.users["beamline"] = "changed"
    else:
        api.forbidden.add(("POST", "any"))
    outcomes = client.submit([scan(number) for number in range(1, 6)])
    assert codes(outcomes) == [("kept", 4)] * 5
    assert "Renew" in outcomes[4].message
    assert api.count("POST", "/auth/token") <= 2
    assert api.count("POST", DAG_RUNS) <= 2
    api.users["beamline"] = "secret"
    api.forbidden.clear()
    client.sender.flush()
    assert api.created == [scan_run_id(scan(number)) for number in range(1, 6)]


def test_one_request_on_which_the_server_fails_is_passed_over(api: AirflowApi, client: Client) -> None:
    api.fault("status", method="POST", path=DAG_RUNS, status=500, times=4)
    assert codes(client.submit([scan(1), scan(2)])) == [("kept", 3), ("accepted", 0)]
    assert codes(client.submit([scan(1)])) == [("accepted", 0)]


def test_a_server_that_fails_on_everything_is_left_alone(api: AirflowApi, client: Client) -> None:
    api.fault("status", method="POST", path=DAG_RUNS, status=500, times=999)
    outcomes = client.submit([scan(number) for number in range(1, 10)])
    assert codes(outcomes) == [("kept", 3)] * 9
    assert api.count("POST", DAG_RUNS) == 3 * 4


def test_a_run_that_vanishes_between_two_answers_is_started_again(api: AirflowApi, client: Client) -> None:
    run_id = scan_run_id(scan(1))
    api.add_run(run_id)
    seen: list[str] = []

    def delete(method: str, path: str) -> None:
        if method == "POST" and path == DAG_RUNS and not seen:
            seen.append(path)
            del api.runs[run_id]

    api.on_request = delete
    assert codes(client.submit([scan(1)])) == [("accepted", 0)]


def test_reprocessing_is_a_new_run_with_the_last_parameters_changed(api: AirflowApi, client: Client) -> None:
    client.submit([scan(1)], {"do_ptychocam": True, "n_iter": 100})
    (second,) = client.reprocess([scan(1)], {"n_iter": 900})
    (third,) = client.reprocess([scan(1)], {"n_gpu": 4})
    assert [second.run_id, third.run_id] == [scan_run_id(scan(1), 2), scan_run_id(scan(1), 3)]
    assert api.runs[third.run_id]["conf"] == {
        "file_path": scan(1),
        "do_ptychocam": True,
        "n_iter": 900,
        "n_gpu": 4,
    }
    assert codes([second, third]) == [("accepted", 0), ("accepted", 0)]


def test_the_same_reprocessing_asked_for_twice_is_two_runs(api: AirflowApi, client: Client) -> None:
    client.submit([scan(1)])
    client.reprocess([scan(1)], {"n_iter": 9})
    client.reprocess([scan(1)], {"n_iter": 9})
    assert api.created == [scan_run_id(scan(1), n) for n in (1, 2, 3)]


@pytest.mark.parametrize("kind", ["drop_reply", "truncate", "reset_reply"])
def test_a_reprocessing_whose_reply_is_lost_is_one_run(api: AirflowApi, client: Client, kind: str) -> None:
    client.submit([scan(1)])
    api.fault(kind, method="POST", path=DAG_RUNS)
    (outcome,) = client.reprocess([scan(1)], {"n_iter": 9})
    assert outcome.exit_code == 0
    assert api.created == [scan_run_id(scan(1), n) for n in (1, 2)]


def test_a_reprocessing_number_that_somebody_else_took_is_left_to_them(
    api: AirflowApi, client: Client
) -> None:
    client.submit([scan(1)])
    theirs = scan_run_id(scan(1), 2)

    def take(method: str, path: str) -> None:
        if method == "GET" and path == DAG_RUNS and theirs not in api.runs:
            api.add_run(theirs, conf={"file_path": scan(1), "n_iter": 1})

    api.on_request = take
    (outcome,) = client.reprocess([scan(1)], {"n_iter": 9})
    assert outcome.run_id == scan_run_id(scan(1), 3)
    assert api.runs[theirs]["conf"]["n_iter"] == 1
    assert api.runs[outcome.run_id]["conf"]["n_iter"] == 9


def test_reprocessing_during_an_outage_takes_the_parameters_of_the_time_of_sending(
    api: AirflowApi, client: Client, settings: Settings
) -> None:
    offline(settings).submit([scan(1)], {"n_iter": 5})
    offline(settings).reprocess([scan(1)], {"n_gpu": 2})
    client.sender.flush()
    assert api.runs[scan_run_id(scan(1), 2)]["conf"] == {"file_path": scan(1), "n_iter": 5, "n_gpu": 2}


def test_reprocessing_what_never_ran_is_rejected(api: AirflowApi, client: Client) -> None:
    (outcome,) = client.reprocess([scan(1)])
    assert codes([outcome]) == [("rejected", 4)]
    assert "no run of" in outcome.message
    assert "Submit it" in outcome.message


def test_reprocessing_while_the_first_run_goes_on_is_logged(
    api: AirflowApi, client: Client, messages: list[str]
) -> None:
    api.add_run(scan_run_id(scan(1)), "running", {"file_path": scan(1)})
    client.reprocess([scan(1)])
    assert any("is still going on" in line for line in messages)


def test_bad_input_among_good_keeps_and_sends_nothing(api: AirflowApi, client: Client) -> None:
    for files, given in (([scan(1), "../x.cxi"], {}), ([scan(1)], {"n_gpu": 9}), ([scan(1), "odd.cxi"], {})):
        with pytest.raises(InputError):
            client.submit(files, given)
    assert api.requests == []
    assert client.spool.names() == []


def test_unusual_names_are_taken_when_asked_for(api: AirflowApi, client: Client, messages: list[str]) -> None:
    with pytest.raises(InputError, match=r"Is odd.cxi a scan\? It is not named like .* --any-name"):
        client.submit(["odd.cxi"])
    client.submit(["odd.cxi"], any_name=True)
    assert len(api.created) == 1
    assert any("odd.cxi: it is not named like" in line for line in messages)


def test_files_are_named_from_the_data_root_or_from_where_one_is(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    root = tmp_path / "data"
    file = root / scan(1)
    file.parent.mkdir(parents=True)
    file.touch()
    client = Client(Settings(**{**settings.__dict__, "data_root": root}), log=messages.append)
    assert client.scan_path(str(file)) == scan(1)
    assert client.scan_path("/" + scan(2)) == scan(2)
    monkeypatch.chdir(file.parent)
    assert client.scan_path(file.name) == scan(1)
    with pytest.raises(InputError):
        client.scan_path(str(tmp_path / "other.cxi" / ".." / ".." / "x.cxi"))
    client.requests("submit", [str(file)])
    assert messages == []
    client.requests("submit", [scan(2)])
    assert "there is no file" in messages[0]


def test_a_submit_with_a_limit_leaves_the_rest_in_the_spool(
    api: AirflowApi, settings: Settings, client: Client
) -> None:
    offline(settings).submit([scan(number) for number in range(1, 6)])
    (outcome,) = client.submit([scan(6)], limit=0.0)
    assert codes([outcome]) == [("kept", 3)]
    assert "There was no time left to send it." in outcome.message
    assert api.created == [scan_run_id(scan(1))]
    client.submit([scan(7)])
    assert api.created == [scan_run_id(scan(number)) for number in range(1, 8)]
