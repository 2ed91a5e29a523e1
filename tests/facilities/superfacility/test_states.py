"""Slurm's states are a closed set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilities.superfacility.slurm import (
    CONFIRM,
    FAILED,
    FINAL,
    HELD,
    OUT_OF_RESOURCES,
    RUNNING,
    SUCCEEDED,
    SlurmState,
    parse_state,
)


def test_each_state_is_active_or_succeeded_or_failed() -> None:
    assert not SUCCEEDED & FAILED
    assert not (HELD | RUNNING) & FINAL
    assert CONFIRM < FAILED
    assert OUT_OF_RESOURCES < FAILED
    assert FINAL == SUCCEEDED | FAILED


@pytest.mark.parametrize("state", list(SlurmState))
def test_each_state_is_read_as_squeue_and_sacct_write_it(state: SlurmState) -> None:
    for text in (f"{state}", f"{state} by 1000", f"{state}+", f" {state} ", state.lower()):
        assert parse_state(text) is state


@pytest.mark.parametrize(
    "text", [None, "", " ", "LAUNCH_FAILED", "COMPLETE", "by COMPLETED", "NODE FAIL", "+"]
)
def test_anything_else_is_unknown(text: str | None) -> None:
    assert parse_state(text) is None


@given(st.text())
def test_no_text_is_taken_for_a_final_state_by_chance(text: str) -> None:
    state = parse_state(text)
    assert state is None or text.strip().upper().startswith(state.value)
