"""The dialogs that start runs, in a real browser: what is typed arrives in the run's conf, or is refused."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page

from cosmic.dag_constants import FIND_MISSED_SCANS, TRANSFER_AUTO_RECON, WATCH_SCANS
from cosmic.parameters import REQUIRED, Parameter, read_parameters
from cosmic.run_requests import PARAMETERS
from support.browser import TriggerForm
from support.live import Live

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.needs("chromium"), pytest.mark.timeout(1800)]

EACH_TYPE = ["n_gpu", "propagation_distance", "probe_support_radius"]  # all numbers have one kind of field
SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
LONG = "9" * 1000


def fields(*kinds: str) -> list[Any]:
    """All fields of these kinds, as DAG and parameter."""
    return [
        pytest.param(dag, name, marks=pytest.mark.slow if repeats(name, parameter) else ())
        for dag, table in PARAMETERS.items()
        for name, parameter in table.items()
        if kind(parameter) in kinds
    ]


def repeats(name: str, parameter: Parameter) -> bool:
    """Whether a field differs from one that is tested anyway in its bounds only; `make test-slow` has all."""
    return parameter.is_number and name not in EACH_TYPE


def kind(parameter: Parameter) -> str:
    return next((rule for rule in ("enum", "format", "pattern") if rule in parameter.rules), parameter.type)


# What is typed, and whether a field may accept it; numbers by their bounds.
NUMBERS = ["50e-6", "400", "-1", "1.5", "2", ""]
MORE_NUMBERS = ["1e400", " 3 ", "1 2", "1,5", " ", "NaN", "two", "\u0662", LONG]
TYPED = {
    "pattern": {
        "/" + SCAN: True,
        " " + SCAN: False,
        SCAN + "'": False,
        "../x.cxi": False,
        "2023//x.cxi": False,
        "\u00e9.cxi": False,
        LONG + ".cxi": False,
        "": False,
    },
    "format": {
        "2023-02-16": True,
        "2023-02-30": False,
        "13/13/2023": False,
        "16.2.2023": False,
        "20230216": False,
        "today": False,
        LONG: False,
        "": True,
    },
}


def typed(name: str, parameter: Parameter) -> dict[str, bool]:
    if parameter.is_number:
        texts = NUMBERS + (MORE_NUMBERS if name in EACH_TYPE else [])
        return {text: fits(parameter, text) for text in texts}
    return TYPED[kind(parameter)] | ({"": True} if parameter.default is None else {})


def fits(parameter: Parameter, text: str) -> bool:
    """Whether a number may be accepted, by the plain meaning of what was typed."""
    if text in ("", "NaN", "\u0662"):
        return text == "" and parameter.default is None
    try:
        value = float(text)
    except ValueError:
        return False
    whole = parameter.type == "number" or text.strip().lstrip("-").isdigit()
    return whole and bool(parameter.rules["minimum"] <= value <= parameter.rules["maximum"])


@pytest.fixture(scope="module")
def paused(live_airflow: Live) -> Iterator[Live]:
    """An Airflow whose runs are made and not begun; they are deleted afterwards."""
    before = {dag_id: run_ids(live_airflow, dag_id) for dag_id in PARAMETERS}
    for dag_id in PARAMETERS:
        live_airflow.rest.call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": True})
    yield live_airflow
    for dag_id, known in before.items():
        for run_id in run_ids(live_airflow, dag_id) - known:
            path = f"/api/v2/dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id)}"
            live_airflow.rest.call("DELETE", path)
        live_airflow.rest.call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": dag_id == WATCH_SCANS})


def run_ids(live: Live, dag_id: str) -> set[str]:
    found = live.rest.call("GET", f"/api/v2/dags/{dag_id}/dagRuns?limit=100&order_by=-id")
    return {run["dag_run_id"] for run in found["dag_runs"]}


def open_form(page: Page, dag_id: str) -> TriggerForm:
    """The dialog, complete."""
    form = TriggerForm(page, dag_id).open()
    for name in required(dag_id):
        form.type(name, SCAN)
    return form


def required(dag_id: str) -> list[str]:
    """Fields without a default: each takes a scan."""
    return [name for name, parameter in PARAMETERS[dag_id].items() if parameter.default is REQUIRED]


def conf_of(live: Live, run: dict[str, Any]) -> dict[str, Any]:
    path = f"/api/v2/dags/{run['dag_id']}/dagRuns/{urllib.parse.quote(run['dag_run_id'])}"
    conf: dict[str, Any] = live.rest.call("GET", path)["conf"]
    return conf


@pytest.mark.parametrize(("dag_id", "name"), fields("integer", "number", "pattern", "format"))
def test_what_is_typed_arrives_or_is_refused(admin: Page, paused: Live, dag_id: str, name: str) -> None:
    form = open_form(admin, dag_id)
    for text, accepted in typed(name, PARAMETERS[dag_id][name]).items():
        form.type(name, text)
        outcome = form.submit()
        assert outcome.accepted is accepted, f"{text!r}: {outcome}"
        if accepted:
            assert conf_of(paused, outcome.made)[name] == (text or None)
            form = open_form(admin, dag_id)
        elif text == "" and name in required(dag_id):
            assert outcome.shown == "This field is required"
        else:
            assert outcome.shown.startswith(f"400 Bad Request {name} must be ")
            assert "schema" not in outcome.shown


def names_of(dag_id: str, of_kind: str) -> list[str]:
    return [name for name, parameter in PARAMETERS[dag_id].items() if kind(parameter) == of_kind]


def with_a(of_kind: str) -> list[str]:
    return [dag_id for dag_id in PARAMETERS if names_of(dag_id, of_kind)]


@pytest.mark.parametrize("dag_id", with_a("enum"))
def test_what_is_chosen_arrives(admin: Page, paused: Live, dag_id: str) -> None:
    """All fields of a form at once, as often as it takes for each option of each."""
    rules = {name: PARAMETERS[dag_id][name].rules for name in names_of(dag_id, "enum")}
    for number in range(max(len(one["enum"]) for one in rules.values())):
        form = open_form(admin, dag_id)
        chosen = {name: one["enum"][number % len(one["enum"])] for name, one in rules.items()}
        for name, option in chosen.items():
            shown = rules[name].get("values_display", {}).get(str(option or "null"), str(option))
            form.choose(name, shown)
        conf = conf_of(paused, form.submit().made)
        assert {name: conf[name] for name in chosen} == chosen


@pytest.mark.parametrize("dag_id", with_a("boolean"))
def test_what_is_switched_arrives(admin: Page, paused: Live, dag_id: str) -> None:
    """Every other switch, then the others: none moves with its neighbor."""
    names = names_of(dag_id, "boolean")
    for switched in filter(None, (names[::2], names[1::2])):
        form = open_form(admin, dag_id)
        for name in switched:
            form.switch(name)
        conf = conf_of(paused, form.submit().made)
        expected = {name: PARAMETERS[dag_id][name].default is not (name in switched) for name in names}
        assert {name: conf[name] for name in names} == expected


@pytest.mark.parametrize("dag_id", PARAMETERS)
def test_an_untouched_form_sends_the_defaults_and_has_a_field_for_each(
    beamline_user: Page, paused: Live, dag_id: str
) -> None:
    form = open_form(beamline_user, dag_id)
    assert form.names() == set(PARAMETERS[dag_id])
    conf = conf_of(paused, form.submit().made)
    given = dict.fromkeys(required(dag_id), SCAN)
    assert read_parameters(PARAMETERS[dag_id], conf) == read_parameters(PARAMETERS[dag_id], given)


def test_the_propagation_distance_stands_there_as_people_write_it(admin: Page, paused: Live) -> None:
    form = open_form(admin, TRANSFER_AUTO_RECON)
    assert form.field("propagation_distance").input_value() == "50e-6"


@pytest.mark.parametrize("run_id", ["with space", "a/b", "x" * 250])
def test_a_run_id_arrives_or_is_refused(admin: Page, paused: Live, run_id: str) -> None:
    form = open_form(admin, TRANSFER_AUTO_RECON)
    form.retype(form.advanced("Run ID"), run_id)
    assert "dag_run_id must be at most 200 letters, digits and . _ ~ : + -, not" in form.submit().shown
    form.retype(form.advanced("Run ID"), f"typed_{len(run_id)}")
    assert form.submit().made["dag_run_id"] == f"typed_{len(run_id)}"


def test_a_backfill_refuses_and_sends_the_same(admin: Page, paused: Live) -> None:
    form = TriggerForm(admin, FIND_MISSED_SCANS).open(backfill=True)
    form.set_date("From", "2023/02/16")
    form.set_date("To", "2023/02/18")
    form.dialog.get_by_text("Override parameters on existing runs").click()  # without it, none are sent
    for wrong in ("400.5", "401", "1e2", ""):
        form.type("at_once", wrong)
        assert "at_once must be a whole number from 1 to 400, not" in form.submit().shown
    form.type("at_once", "7")
    backfill = form.submit().made
    try:
        assert backfill["dag_run_conf"]["at_once"] == "7"
    finally:
        paused.rest.call("PUT", f"/api/v2/backfills/{backfill['id']}/cancel")
