"""Paths, run ids and parameters: refused by the client exactly when the DAG would refuse them."""

from __future__ import annotations

import math
import re
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cosmic.parameters
from beamline_client.errors import InputError
from beamline_client.naming import normalize_path, unusual_name
from beamline_client.parameters import (
    DAG_ID,
    FILE_PATH,
    PARAMETERS,
    STACK_DAG_ID,
    STACK_PARAMETERS,
    Parameter,
    check_parameter,
    parameters_from_options,
    parse_parameter,
)
from beamline_client.scan_names import generation_of, scan_run_id
from cosmic.dag_constants import STACK_SCAN, TRANSFER_AUTO_RECON
from cosmic.parameters import RECONSTRUCTION, REQUIRED, STACK, read_parameters
from cosmic.scan_names import USUAL_NAMES
from cosmic.scans import parse_scan_path
from dev.build_client import describe_dag
from facilities.errors import UserError

SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
segments = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", fullmatch=True)
paths = st.lists(segments, min_size=1, max_size=6).map(lambda parts: "/".join(parts) + ".cxi")
odd_texts = st.text(st.sampled_from("aZ09._-/ \n\t'\"$(`;é\uff0e\\\0"), max_size=20)


def accepted_by_client(text: str) -> str | None:
    try:
        return normalize_path(text)
    except InputError:
        return None


def accepted_by_dag(text: str) -> str | None:
    try:
        return str(parse_scan_path(text).relative)
    except UserError:
        return None


@given(st.one_of(paths, paths.map("/".__add__), odd_texts, odd_texts.map(lambda text: text + ".cxi")))
def test_a_path_is_taken_exactly_when_the_dag_takes_it(text: str) -> None:
    assert accepted_by_client(text) == accepted_by_dag(text)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        ".cxi",
        "../etc/passwd.cxi",
        "2023/../x.cxi",
        "//a.cxi",
        "a//b.cxi",
        "a b.cxi",
        "a\n.cxi",
        "a.cxi\n",
        "$(reboot).cxi",
        "a';b.cxi",
        "a.h5",
        "a.cxi/",
        "-rf.cxi",
        ".hidden/a.cxi",
        "x" * 400 + ".cxi",
    ],
)
def test_a_dangerous_or_wrong_path_is_refused(path: str) -> None:
    assert accepted_by_dag(path) is None
    with pytest.raises(InputError, match="The path"):
        normalize_path(path)


def test_a_leading_slash_means_the_same() -> None:
    assert normalize_path("/" + SCAN) == SCAN


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (SCAN, None),
        ("2023/02/230214/NS_230214027_ccdframes_0_0_cosmic2.cxi", None),
        ("2023/02/230216/NS_2302161234_ccdframes_10_2.cxi", None),
        ("2023/02/230216/NS_230217033_ccdframes_0_0.cxi", "the folder of its day is 2023/02/230217"),
        ("2023/03/230216/NS_230216033_ccdframes_0_0.cxi", "the folder of its day is 2023/02/230216"),
        ("2024/02/230216/NS_230216033_ccdframes_0_0.cxi", "the folder of its day is 2023/02/230216"),
        ("2023/02/230230/NS_230230033_ccdframes_0_0.cxi", "not named like"),
        ("2023/02/230216/NS_23021633_ccdframes_0_0.cxi", "not named like"),
        ("tests/siemens-star.cxi", "not named like"),
    ],
)
def test_an_unusual_name_has_its_reason(path: str, why: str | None) -> None:
    reason = unusual_name(path)
    assert (why in reason) if why and reason else reason == why


@given(
    st.dates(date(2000, 1, 1), date(2068, 12, 31)),
    st.sampled_from(["{0:%Y}/{0:%m}/{0:%y%m%d}", "{0:%Y}/{0:%m}/{0:%y%d%m}", "2023/02/{0:%y%m%d}"]),
    st.sampled_from(["NS_{0:%y%m%d}033", "NS_{0:%y%d%m}033", "NS_{0:%y%m%d}12", "XX_{0:%y%m%d}033"]),
    st.sampled_from(["_ccdframes_0_0.cxi", "_ccdframes_10_2_cosmic2.cxi", "_ccdframes_0.cxi", "_0_0_.cxi"]),
)
def test_a_name_is_usual_exactly_when_the_dag_takes_it_for_a_scan_of_its_day(
    day: date, folder: str, name: str, ending: str
) -> None:
    path = f"{folder}/{name}".format(day) + ending
    assert (unusual_name(path) is None) == parse_scan_path(path).is_named(USUAL_NAMES)


@given(paths, st.integers(1, 10**6))
def test_a_run_id_is_one_that_airflow_takes_and_can_be_read_back(path: str, generation: int) -> None:
    run_id = scan_run_id(path, generation)
    assert re.fullmatch(r"[A-Za-z0-9_.~:+-]+", run_id)
    assert ".." not in run_id
    assert len(run_id) <= 250
    assert not run_id.endswith(".cxi")
    assert generation_of(run_id, path) == generation


@given(paths, paths, st.integers(1, 20), st.integers(1, 20))
def test_two_scans_never_share_a_run_id(one: str, other: str, m: int, n: int) -> None:
    assert (scan_run_id(one, m) == scan_run_id(other, n)) == (one == other and m == n)
    assert generation_of(scan_run_id(one, m), other) == (m if one == other else 0)


def test_paths_that_look_alike_have_different_run_ids() -> None:
    alike = [
        "a/b.cxi",
        "a__b.cxi",
        "a/b..cxi",
        "a/b.c.cxi",
        "x" * 300 + "1.cxi",
        "x" * 300 + "2.cxi",
        "A/b.cxi",
    ]
    assert len({scan_run_id(path).lower() for path in alike}) == len(alike)


@pytest.mark.parametrize("name", RECONSTRUCTION)
def test_name_type_bounds_default_and_help_of_each_parameter_are_the_dags(name: str) -> None:
    parameter = RECONSTRUCTION[name]
    schema = parameter.schema()
    types = [schema["type"]] if isinstance(schema["type"], str) else list(schema["type"])
    known = {"file_path": FILE_PATH, **PARAMETERS}[name]
    assert known == Parameter(
        type=next(type_ for type_ in types if type_ != "null"),
        optional="null" in types,
        default=None if parameter.default is REQUIRED else parameter.default,
        description=parameter.description,
        minimum=schema.get("minimum", -math.inf),
        maximum=schema.get("maximum", math.inf),
        choices=tuple(choice for choice in schema.get("enum", []) if choice is not None),
        pattern=schema.get("pattern", ""),
        min_length=schema.get("minLength", 0),
        max_length=schema.get("maxLength", math.inf),
    )


def test_the_client_starts_the_dag_and_knows_no_parameter_that_it_does_not_have() -> None:
    assert ["file_path", *PARAMETERS] == list(RECONSTRUCTION)
    assert DAG_ID == TRANSFER_AUTO_RECON


def test_the_parameters_of_a_stack_are_the_dags() -> None:
    assert ["scan", *STACK_PARAMETERS] == list(STACK)
    assert STACK_DAG_ID == STACK_SCAN
    given = parameters_from_options(["incomplete=yes", "engine=cdtools"], table=STACK_PARAMETERS)
    assert read_parameters(STACK, {"scan": "NS_230216033", **given}) == {"scan": "NS_230216033", **given}
    for wrong in ("engine=other", "incomplete=2", "n_iter=5", "scan=NS_230216034"):
        with pytest.raises(InputError):
            parameters_from_options([wrong], table=STACK_PARAMETERS)


def test_a_rule_that_the_client_cannot_check_stops_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = {"n_iter": cosmic.parameters.Parameter("integer", 5, "", "Iterations.", rules={"multipleOf": 5})}
    monkeypatch.setattr("cosmic.parameters.RECONSTRUCTION", odd)
    with pytest.raises(ValueError, match="n_iter: the client cannot check multipleOf"):
        describe_dag()


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 200_000),
    st.sampled_from([0, 1, 2, 4, 5, 8, 9, 32, 33, 1000, 1001, 2880, 2881, 100_000, 100_001]),
    st.floats(-2, 2, allow_nan=False),
    st.sampled_from(
        ["regular", "realtime", "shared", "no such", "", "probes/p.cxi", "../x", "none", "a/", "-x"]
    ),
)


@given(st.sampled_from(sorted(PARAMETERS)), values)
def test_a_value_is_taken_exactly_when_the_dag_takes_it(name: str, value: Any) -> None:
    if isinstance(value, float) and value.is_integer():
        value += 0.5  # JSON does not tell 1.0 from 1; the client wants whole numbers written as such
    try:
        read_parameters(RECONSTRUCTION, {"file_path": "x.cxi", name: value})
        taken = True
    except UserError:
        taken = False
    if taken:
        assert check_parameter(name, value) == value
    else:
        with pytest.raises(InputError, match=name):
            check_parameter(name, value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("do_ptychocam", "true", True),
        ("use_illu_mask", "No", False),
        ("n_iter", "250", 250),
        ("propagation_distance", "50e-6", 50e-6),
        ("propagation_distance", "-0.01", -0.01),
        ("probe_support_radius", "none", None),
        ("probe_initialization", "probes/p1.cxi", "probes/p1.cxi"),
        ("qos", "realtime", "realtime"),
        ("time_limit_minutes", "90", 90),
    ],
)
def test_typed_values(name: str, text: str, value: object) -> None:
    assert parse_parameter(name, text) == value
    assert type(parse_parameter(name, text)) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n_gpu", "5", "n_gpu must be from 1 to 4, not 5"),
        ("n_gpu", "two", "n_gpu must be a whole number, not 'two'"),
        ("n_gpu", "1_0", "n_gpu must be a whole number"),
        ("n_gpu", "٢", "n_gpu must be a whole number"),
        ("n_iter", "none", "n_iter must be a whole number"),
        ("n_iter", "1.5", "n_iter must be a whole number"),
        ("probe_support_radius", "0.5", "from 1 to 100000"),
        ("propagation_distance", "nan", "must be a number"),
        ("propagation_distance", "inf", "must be a number"),
        ("propagation_distance", "1e999", "must be from -0.01 to 0.01"),
        ("do_cdtools", "maybe", "must be true or false"),
        ("qos", "vip", "must be one of regular"),
        ("probe_initialization", "$(reboot)", "must be a path"),
        ("n_iters", "5", "Did you mean n_iter?"),
        ("zzz", "5", "There are: do_ptychocam"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse_parameter(name, text)


def test_engines_are_chosen_whole() -> None:
    assert parameters_from_options([], ["cdtools"], None) == {"do_ptychocam": False, "do_cdtools": True}
    assert parameters_from_options(["n_iter=7"], None, "2") == {"n_iter": 7, "n_gpu": 2}


@pytest.mark.parametrize(
    ("pairs", "engines", "n_gpu", "message"),
    [
        (["n_iter"], None, None, "'n_iter' is not of the form name=value"),
        (["n_iter=1", "n_iter=2"], None, None, "n_iter: given more than once"),
        (["n_gpu=1"], None, "2", "n_gpu: given more than once"),
        (["do_cdtools=no"], ["cdtools"], None, "do_cdtools: given more than once"),
    ],
)
def test_contradicting_options_are_refused(
    pairs: list[str], engines: list[str] | None, n_gpu: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parameters_from_options(pairs, engines, n_gpu)
