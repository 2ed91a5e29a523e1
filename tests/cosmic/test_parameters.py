"""The contract with the beamline computer: names, defaults, bounds, command lines."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.definitions.param import ParamsDict
from hypothesis import given
from hypothesis import strategies as st

from cosmic.parameters import (
    MISSED_SCANS,
    RECONSTRUCTION,
    TRANSFER,
    chosen_engines,
    command_arguments,
    dag_params,
    read_parameters,
)
from facilities.errors import UserError

FILE = "/nersc/7012/2023/02/230216/NS_230216033_ccdframes_0_0.cxi"

# The facts page's table, word for word.
DEFAULTS: dict[str, Any] = {
    "do_cdtools": False,
    "do_ptychocam": False,
    "n_gpu": 1,
    "run_split_reconstructions": False,
    "n_modes": 1,
    "oversampling_factor": 2,
    "propagation_distance": 50e-6,
    "simulate_probe_translation": True,
    "n_init_rounds": 1,
    "n_init_iter": 50,
    "n_final_iter": 50,
    "translation_randomization": 0,
    "probe_initialization": None,
    "init_background": False,
    "probe_support_radius": None,
    "n_iter": 500,
    "period_illu_refine": 0,
    "period_bg_refine": 0,
    "use_illu_mask": False,
}


def values(**changes: Any) -> dict[str, Any]:
    """As a task has them: through Airflow's own check, then ours."""
    params = ParamsDict(dag_params(RECONSTRUCTION))
    params.update({"file_path": "x.cxi", **changes})
    return read_parameters(RECONSTRUCTION, params.validate())


def test_names_and_defaults_are_those_of_the_old_flow() -> None:
    given_values = values()
    assert {name: given_values[name] for name in DEFAULTS} == DEFAULTS
    assert set(given_values) - set(DEFAULTS) == {
        *("file_path", "positions", "distance_follows_energy"),
        *("qos", "time_limit_minutes", "more_resources"),
    }


def test_every_parameter_is_described_and_in_a_section() -> None:
    for name, param in dag_params(RECONSTRUCTION).items():
        assert param.description or param.schema.get("description_md"), name
        assert param.schema.get("section"), name
        assert param.schema.get("title"), name


@pytest.mark.parametrize(
    ("name", "value", "must_be"),
    [
        (
            "file_path",
            "../x.cxi",
            "the path of a scan such as 2023/02/230216/NS_230216033_ccdframes_0_0.cxi",
        ),
        ("file_path", "x.cxi\n", "the path of a scan"),
        ("file_path", " x.cxi", "the path of a scan"),
        ("file_path", "$(id).cxi", "the path of a scan"),
        ("file_path", "x.h5", "the path of a scan"),
        ("file_path", "\ud800.cxi", "the path of a scan"),
        ("file_path", "x" * 201 + ".cxi", "the path of a scan"),
        ("file_path", "a/" * 200 + "x.cxi", "the path of a scan"),
        ("file_path", 5, "the path of a scan"),
        ("n_gpu", "8", "a whole number from 1 to 4"),
        ("n_gpu", 400, "a whole number from 1 to 4"),
        ("n_gpu", 0, "a whole number from 1 to 4"),
        ("n_gpu", 1.5, "a whole number from 1 to 4"),
        ("n_gpu", "1.5", "a whole number from 1 to 4"),
        ("n_gpu", "1e0", "a whole number from 1 to 4"),
        ("n_gpu", "", "a whole number from 1 to 4"),
        ("n_gpu", "two", "a whole number from 1 to 4"),
        ("n_gpu", "2 3", "a whole number from 1 to 4"),
        ("n_gpu", "\u0662", "a whole number from 1 to 4"),
        ("n_gpu", "0x2", "a whole number from 1 to 4"),
        ("n_gpu", "9" * 5000, "a whole number from 1 to 4"),
        ("n_gpu", True, "a whole number from 1 to 4"),
        ("n_gpu", None, "a whole number from 1 to 4"),
        ("n_gpu", [1], "a whole number from 1 to 4"),
        ("n_iter", 0, "a whole number from 1 to 100000"),
        ("do_cdtools", "yes", "true or false"),
        ("do_cdtools", 1, "true or false"),
        (
            "propagation_distance",
            "50 um",
            "a distance in meters from -0.01 to 0.01 (50e-6 is 50 micrometers)",
        ),
        ("propagation_distance", "50", "a distance in meters"),
        ("propagation_distance", 1, "a distance in meters"),
        ("propagation_distance", "1e400", "a distance in meters"),
        ("propagation_distance", float("nan"), "a distance in meters"),
        ("propagation_distance", float("inf"), "a distance in meters"),
        ("propagation_distance", "nan", "a distance in meters"),
        ("propagation_distance", "1,5", "a distance in meters"),
        ("propagation_distance", None, "a distance in meters"),
        ("probe_initialization", "/../../etc/passwd", "the path of a file or folder such as"),
        ("probe_initialization", "a b", "the path of a file or folder such as"),
        ("probe_initialization", "", "the path of a file or folder such as"),
        ("probe_support_radius", 0, "a number from 1 to 100000"),
        ("probe_support_radius", float("nan"), "a number from 1 to 100000"),
        ("qos", "regular\n#SBATCH --account=other", "one of regular, realtime, debug, premium, shared"),
        ("qos", "interactive", "one of regular"),
        ("qos", ["regular"], "one of regular"),
        ("positions", "lens", "one of probe, sample"),
        ("positions", "probe\nexport X=1", "one of probe, sample"),
        ("time_limit_minutes", 2881, "a whole number from 1 to 2880"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_in_one_line(name: str, value: object, must_be: str) -> None:
    with pytest.raises(UserError) as refused:
        read_parameters(RECONSTRUCTION, {"file_path": "x.cxi", name: value})
    text = refused.value.what
    assert text.startswith(f"{name} must be {must_be}")
    assert text.isprintable()
    assert len(text) < 600


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("file_path", "/2023/x.cxi", "/2023/x.cxi"),
        ("file_path", "x" * 200 + ".cxi", "x" * 200 + ".cxi"),
        ("n_gpu", 4, 4),
        ("n_gpu", "4", 4),
        ("n_gpu", " 3 ", 3),
        ("n_gpu", 2.0, 2),
        ("n_iter", "+0500", 500),
        ("propagation_distance", "50e-6", 50e-6),
        ("propagation_distance", "5E-5", 5e-5),
        ("propagation_distance", "-.001", -0.001),
        ("propagation_distance", 5e-7, 5e-7),
        ("propagation_distance", 0, 0),
        ("probe_support_radius", None, None),
        ("probe_support_radius", "12.5", 12.5),
        ("qos", "realtime", "realtime"),
        ("qos", None, None),
        ("positions", "sample", "sample"),
        ("positions", None, None),
    ],
)
def test_what_is_typed_is_read_as_what_it_says(name: str, value: object, read: object) -> None:
    assert values(**{name: value})[name] == read
    assert type(values(**{name: value})[name]) is type(read)


@pytest.mark.parametrize(
    "day", ["13/13/2023", "2023-02-30", "2023-2-3", "20230216", "2023-W07-4", "today", 5]
)
def test_a_day_is_refused_when_there_is_none(day: object) -> None:
    with pytest.raises(UserError, match="first_day must be a day such as 2023-02-16, not"):
        read_parameters(MISSED_SCANS, {"first_day": day})


def test_an_unknown_parameter_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError) as refused:
        read_parameters(RECONSTRUCTION, {"file_path": "x.cxi", "propagation_distanse": 5e-5, "\ud800": 1})
    text = str(refused.value)
    near, other = "(did you mean propagation_distance?)", "(there are: file_path, do_ptychocam, "
    assert text.startswith(
        f"There is no parameter 'propagation_distanse' {near}. There is no parameter '\\ud800' {other}"
    )
    with pytest.raises(UserError, match=r"There is no parameter 'script' \(there are: none\)"):
        read_parameters({}, {"script": "x"})


def test_many_mistakes_make_one_short_line() -> None:
    with pytest.raises(UserError) as refused:
        read_parameters(RECONSTRUCTION, {f"account{n}" * 100: n for n in range(1000)})
    assert refused.value.what.endswith("And 996 more")  # `file_path` is missing, too
    assert len(str(refused.value)) < 4000


def test_file_path_is_required() -> None:
    for table in (RECONSTRUCTION, TRANSFER):
        with pytest.raises(Exception, match="file_path"):
            ParamsDict(dag_params(table)).validate()
        with pytest.raises(UserError, match=r"^file_path is missing: it must be the path of a "):
            read_parameters(table, {})


@given(
    st.sampled_from([name for name, parameter in RECONSTRUCTION.items() if parameter.is_number]),
    st.one_of(st.text("0123456789.-+eE naif_", max_size=8), st.floats(), st.integers()),
)
def test_whatever_is_sent_is_within_bounds_or_refused(name: str, value: object) -> None:
    rules = RECONSTRUCTION[name].rules
    try:
        read = read_parameters(RECONSTRUCTION, {"file_path": "x.cxi", name: value})[name]
    except UserError:
        return
    assert rules["minimum"] <= read <= rules["maximum"]
    assert read == float(value)  # type: ignore[arg-type]


def test_engines_are_chosen_by_their_flags() -> None:
    assert chosen_engines(values()) == []
    assert chosen_engines(values(do_ptychocam=True)) == ["ptychocam"]
    assert chosen_engines(values(do_ptychocam=True, do_cdtools=True)) == ["cdtools", "ptychocam"]


def test_ptychocam_takes_options_before_the_file() -> None:
    assert command_arguments("ptychocam", values(), FILE, "/nersc/7012") == ["-i", "500", FILE]
    changed = values(n_iter=7, period_illu_refine=2, period_bg_refine=3, use_illu_mask=True)
    assert command_arguments("ptychocam", changed, FILE, "/nersc/7012") == [
        *("-i", "7", "-r", "2", "-T", "3", "-M"),
        FILE,
    ]


def test_cdtools_takes_twelve_arguments_after_the_file() -> None:
    assert command_arguments("cdtools", values(), FILE, "/nersc/7012") == [
        FILE,
        *("false", "1", "2", "5e-05", "true", "1", "50", "50", "0", "none", "false", "none"),
    ]


def test_a_distance_that_follows_the_energy_is_left_to_the_program() -> None:
    chosen = values(distance_follows_energy=True, propagation_distance=20e-6)
    assert command_arguments("cdtools", chosen, FILE, "/nersc/7012")[4] == "none"


def test_a_probe_file_is_looked_for_below_the_beamlines_folder() -> None:
    arguments = command_arguments("cdtools", values(probe_initialization="/2023/p.cxi"), FILE, "/nersc/7012")
    assert arguments[10] == "/nersc/7012/2023/p.cxi"


@given(
    st.integers(0, 9),
    st.integers(0, 9),
    st.booleans(),
    st.booleans(),
    st.floats(-0.01, 0.01, allow_nan=False),
)
def test_command_lines_have_the_right_number_of_words(
    refine: int, background: int, mask: bool, split: bool, distance: float
) -> None:
    chosen = values(
        period_illu_refine=refine,
        period_bg_refine=background,
        use_illu_mask=mask,
        run_split_reconstructions=split,
        propagation_distance=distance,
    )
    assert len(command_arguments("cdtools", chosen, FILE, "/x")) == 13
    words = 3 + 2 * bool(refine) + 2 * bool(background) + mask
    assert len(command_arguments("ptychocam", chosen, FILE, "/x")) == words
    assert float(command_arguments("cdtools", chosen, FILE, "/x")[4]) == distance
