"""Slurm's job states as a closed set.

Source: Slurm's documentation of job states and our own recordings (NODE_FAIL, PREEMPTED and BOOT_FAIL
are final only if Slurm does not requeue the job, which accounting shows for some seconds as failed).
"""

from __future__ import annotations

from enum import StrEnum


class SlurmState(StrEnum):
    """A job's state; text that is not in here is unknown, and an unknown state is not final."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    DEADLINE = "DEADLINE"
    REVOKED = "REVOKED"
    NODE_FAIL = "NODE_FAIL"
    BOOT_FAIL = "BOOT_FAIL"
    PREEMPTED = "PREEMPTED"
    PENDING = "PENDING"
    CONFIGURING = "CONFIGURING"
    RUNNING = "RUNNING"
    COMPLETING = "COMPLETING"
    SUSPENDED = "SUSPENDED"
    STOPPED = "STOPPED"
    RESIZING = "RESIZING"
    SIGNALING = "SIGNALING"
    STAGE_OUT = "STAGE_OUT"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    SPECIAL_EXIT = "SPECIAL_EXIT"


SUCCEEDED = frozenset({SlurmState.COMPLETED})
CONFIRM = frozenset({SlurmState.NODE_FAIL, SlurmState.BOOT_FAIL, SlurmState.PREEMPTED})
"""Final unless Slurm requeues the job: to be seen again before they are believed."""
OUT_OF_RESOURCES = frozenset({SlurmState.TIMEOUT, SlurmState.OUT_OF_MEMORY})
FAILED = (
    CONFIRM
    | OUT_OF_RESOURCES
    | {SlurmState.FAILED, SlurmState.CANCELLED, SlurmState.DEADLINE, SlurmState.REVOKED}
)
FINAL = SUCCEEDED | FAILED
ACTIVE = frozenset(SlurmState) - FINAL
HELD = frozenset({SlurmState.REQUEUE_HOLD, SlurmState.RESV_DEL_HOLD, SlurmState.SPECIAL_EXIT})
"""Active, but nothing happens until somebody releases the job."""
RUNNING = frozenset({SlurmState.RUNNING, SlurmState.COMPLETING, SlurmState.STAGE_OUT})

HELD_REASONS = frozenset({
    "JobHeldUser", "JobHeldAdmin", "job requeued in held state", "DependencyNeverSatisfied",
})  # fmt: skip
"""Reasons of a pending job that will not start by itself. sacct goes on telling them when it has started."""


def parse_state(text: str | None) -> SlurmState | None:
    """Read a state as squeue and sacct write it: "CANCELLED by 1000", "CANCELLED+", any letter case.

    :return: None for text that names no known state.
    """
    words = (text or "").replace("+", " ").split()
    try:
        return SlurmState(words[0].upper())
    except (IndexError, ValueError):
        return None
