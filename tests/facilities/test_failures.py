"""Why a task failed is at the end of its log, in short lines, and in its XCom `error`."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from facilities.errors import UserError
from facilities.failures import ERROR_KEY, in_lines, keep_error, kept_error

COMMAND = (
    "submit_scan.py reprocess 2023/02/230216/NS_230216033_ccdframes_0_0.cxi --param time_limit_minutes=480"
)
FAILURE = UserError(
    "The job " + "of a scan with a long name " * 8 + "failed",
    remote_id="80",
    state="FAILED",
    next_step="read the end of its output " + "and think about it " * 10 + "then run it again.",
    details="exit code 3\n" * 1000,
)


class Task:
    """Stands for a running task: takes its XComs."""

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        """Keep a value."""
        self.xcoms[key] = value


def test_a_failure_is_kept_with_its_id_state_and_advice() -> None:
    task = Task()
    keep_error({"exception": FAILURE, "ti": task}, run_again=COMMAND)
    kept = task.xcoms[ERROR_KEY]
    assert (kept["what"], kept["id"], kept["state"]) == (FAILURE.what, "80", "FAILED")
    assert (kept["next_step"], kept["run_again"]) == (FAILURE.next_step, COMMAND)
    assert kept["details"] == FAILURE.details[:4000]


def test_the_log_ends_with_short_lines_and_the_command_on_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        keep_error({"exception": FAILURE, "ti": Task()}, run_again=COMMAND)
    lines = caplog.messages[-1].splitlines()
    assert lines[-2:] == ["To run it again:", f"    {COMMAND}"]
    assert max(map(len, lines[:-1])) <= 100
    words = " ".join(lines)
    for part in (FAILURE.what, "id 80", "last state FAILED", f"What to do: {FAILURE.next_step}"):
        assert part in words


def test_an_unexpected_exception_is_kept_with_its_class_and_first_line() -> None:
    kept = kept_error(KeyError("pixels\nmore"))
    assert kept["what"] == r"The task stopped with KeyError: 'pixels\nmore'"
    assert "maintainers" in kept["next_step"]
    assert kept_error(AssertionError())["what"] == "The task stopped with AssertionError"


def test_a_task_that_was_ended_without_an_exception_leaves_none() -> None:
    for context in ({}, {"exception": None}, {"exception": "killed"}):
        task = Task()
        keep_error(context | {"ti": task})
        assert task.xcoms == {}


def test_what_is_not_known_is_left_out() -> None:
    assert in_lines(kept_error(UserError("It failed"))) == "It failed."
