"""The contract with the beamline computer: names, defaults, bounds, command lines."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.definitions.param import ParamsDict
from hypothesis import given
from hypothesis import strategies as st

from cosmic.parameters import RECONSTRUCTION, TRANSFER, chosen_engines, command_arguments, dag_params

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
    params = ParamsDict(dag_params(RECONSTRUCTION))
    params.update({"file_path": "x.cxi", **changes})
    checked: dict[str, Any] = params.validate()
    return checked


def test_names_and_defaults_are_those_of_the_old_flow() -> None:
    given_values = values()
    assert {name: given_values[name] for name in DEFAULTS} == DEFAULTS
    assert set(given_values) - set(DEFAULTS) == {"file_path", "qos", "time_limit_minutes", "more_resources"}


def test_every_parameter_is_described_and_in_a_section() -> None:
    for name, param in dag_params(RECONSTRUCTION).items():
        assert param.description or param.schema.get("description_md"), name
        assert param.schema.get("section"), name
        assert param.schema.get("title"), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("file_path", "../x.cxi"),
        ("file_path", "x.cxi\n"),
        ("file_path", "$(id).cxi"),
        ("file_path", "x.h5"),
        ("n_gpu", "8"),
        ("n_gpu", 0),
        ("n_gpu", 5),
        ("n_gpu", 1.5),
        ("n_iter", 0),
        ("n_modes", 0),
        ("oversampling_factor", 0),
        ("do_cdtools", "yes"),
        ("propagation_distance", "50 um"),
        ("probe_initialization", "/../../etc/passwd"),
        ("probe_initialization", "a b"),
        ("probe_support_radius", 0),
        ("qos", "regular\n#SBATCH --account=other"),
        ("qos", "interactive"),
        ("time_limit_minutes", 0),
        ("time_limit_minutes", 48 * 60 + 1),
    ],
)
def test_values_that_do_not_fit_are_refused(name: str, value: object) -> None:
    with pytest.raises(Exception, match="Invalid input for param " + name):
        values(**{name: value})


def test_file_path_is_required() -> None:
    for params in (dag_params(RECONSTRUCTION), dag_params(TRANSFER)):
        with pytest.raises(Exception, match="file_path"):
            ParamsDict(params).validate()


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


def test_a_probe_file_is_looked_for_below_the_beamlines_folder() -> None:
    arguments = command_arguments("cdtools", values(probe_initialization="/2023/p.cxi"), FILE, "/nersc/7012")
    assert arguments[10] == "/nersc/7012/2023/p.cxi"


@given(
    st.integers(0, 9),
    st.integers(0, 9),
    st.booleans(),
    st.booleans(),
    st.floats(-1, 1, allow_nan=False),
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
