"""The programs take exactly the values that the DAG takes: one bound, whoever checks it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from airflow.sdk import Param

from cosmic.parameters import RECONSTRUCTION, command_arguments, dag_params
from reconstruction import cdtools_engine, ptychocam
from reconstruction.program import UsageError

PARAMS = {name: param for name, param in dag_params(RECONSTRUCTION).items() if name != "file_path"}
PROGRAMS = {"ptychocam": ptychocam, "cdtools": cdtools_engine}


def numbers_of(section: str) -> list[str]:
    return [n for n, p in PARAMS.items() if p.schema["section"] == section and "minimum" in p.schema]


def parse(engine: str, **changes: Any) -> None:
    """Give the program the command line that the DAG makes of these values."""
    values = {name: param.value for name, param in PARAMS.items()} | changes
    PROGRAMS[engine].parse(command_arguments(engine, values, "a.cxi", "/root"))  # type: ignore[arg-type]


def beyond(param: Param) -> tuple[float, float]:
    """The first values outside the bounds."""
    low, high = param.schema["minimum"], param.schema["maximum"]
    if "integer" in param.schema["type"]:
        return low - 1, high + 1
    return math.nextafter(low, -math.inf), math.nextafter(high, math.inf)


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        *(("ptychocam", name) for name in numbers_of("ptychocam")),
        *(("cdtools", name) for name in numbers_of("CDTools")),
    ],
)
def test_the_bounds_of_a_parameter_are_the_dags(engine: str, name: str) -> None:
    param = PARAMS[name]
    for value in (param.schema["minimum"], param.schema["maximum"]):
        parse(engine, **{name: value})
    for value in beyond(param):
        with pytest.raises(UsageError):
            parse(engine, **{name: value})


def test_every_number_is_compared() -> None:
    assert len(numbers_of("ptychocam")) == 3
    assert len(numbers_of("CDTools")) == 8
