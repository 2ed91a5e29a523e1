"""The command that runs a failed scan again asks for more of what the job lacked, within its bounds."""

from __future__ import annotations

from typing import Any

import pytest

from cosmic.beamline import DEFAULT_FILE
from cosmic.failures import reprocess_command, stack_command
from cosmic.parameters import RECONSTRUCTION

SCAN = "2023/02/230216/NS_230216033_ccdframes_0_0.cxi"
COMMAND = f"submit_scan.py reprocess {SCAN}"


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's settings, whose jobs have four hours."""
    monkeypatch.setenv("AIRFLOW__COSMIC__BEAMLINE_FILE", str(DEFAULT_FILE))


def params(**given: Any) -> dict[str, Any]:
    """The parameters of a run of the scan."""
    return {name: parameter.default for name, parameter in RECONSTRUCTION.items()} | {
        "file_path": SCAN,
        **given,
    }


@pytest.mark.parametrize(
    ("given", "state", "more"),
    [
        ({}, "", ""),
        ({}, "FAILED", ""),
        ({}, "TIMEOUT", " --param time_limit_minutes=480"),
        ({"time_limit_minutes": 30}, "TIMEOUT", " --param time_limit_minutes=60"),
        ({"time_limit_minutes": "30"}, "TIMEOUT", " --param time_limit_minutes=60"),
        ({"time_limit_minutes": 2000}, "TIMEOUT", " --param time_limit_minutes=2880"),
        ({"time_limit_minutes": 2880}, "TIMEOUT", ""),
        ({"n_gpu": 1}, "OUT_OF_MEMORY", " --param n_gpu=2"),
        ({"n_gpu": 3}, "OUT_OF_MEMORY", " --param n_gpu=4"),
        ({"n_gpu": 4}, "OUT_OF_MEMORY", ""),
        ({}, "CANCELLED by 80", ""),
    ],
)
def test_the_command_asks_for_what_was_lacking(given: dict[str, Any], state: str, more: str) -> None:
    assert reprocess_command(params(**given), state) == COMMAND + more


@pytest.mark.parametrize("path", ["../x.cxi", "a b.cxi", "$(x).cxi", None, 3])
def test_of_a_path_that_is_none_there_is_no_command(path: Any) -> None:
    assert reprocess_command(params(file_path=path), "FAILED") == ""


def test_of_a_run_that_is_not_of_a_scan_there_is_no_command() -> None:
    assert reprocess_command({"file_path": "2023/02/230216"}, "FAILED") == ""


def test_the_command_for_another_stack() -> None:
    stack = {"scan": "2023/02/230216/NS_230216033_ccdframes_1_0.cxi", "engine": "cdtools", "incomplete": True}
    command = "submit_scan.py stack NS_230216033 --engine cdtools"
    assert stack_command(stack) == f"{command} --param incomplete=true"
    assert stack_command({**stack, "incomplete": False}) == command
    for wrong in ({}, {"scan": "NS_230216033"}, {**stack, "scan": "$(id)"}, {**stack, "engine": "; id"}):
        assert stack_command(wrong) == ""
