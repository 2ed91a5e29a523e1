"""The programs take exactly the values that the DAG takes: one bound, whoever checks it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cosmic.parameters import RECONSTRUCTION, Parameter, command_arguments, read_parameters
from reconstruction import cdtools_engine, ptychocam
from reconstruction.program import UsageError

PROGRAMS = {"ptychocam": ptychocam, "cdtools": cdtools_engine}


def numbers_of(section: str) -> list[str]:
    return [name for name, p in RECONSTRUCTION.items() if p.section == section and p.is_number]


def parse(engine: str, **changes: Any) -> None:
    """Give the program the command line that the DAG makes of these values."""
    values = read_parameters(RECONSTRUCTION, {"file_path": "a.cxi"}) | changes
    PROGRAMS[engine].parse(command_arguments(engine, values, "a.cxi", "/root"))  # type: ignore[arg-type]


def beyond(parameter: Parameter) -> tuple[float, float]:
    """The first values outside the bounds."""
    low, high = parameter.rules["minimum"], parameter.rules["maximum"]
    if parameter.type == "integer":
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
    parameter = RECONSTRUCTION[name]
    for value in (parameter.rules["minimum"], parameter.rules["maximum"]):
        parse(engine, **{name: value})
    for value in beyond(parameter):
        with pytest.raises(UsageError):
            parse(engine, **{name: value})


def test_every_number_is_compared() -> None:
    assert len(numbers_of("ptychocam")) == 3
    assert len(numbers_of("CDTools")) == 8
