"""What a chaos run prints at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dev.chaos.faults import KINDS
from dev.chaos.memory import memory_lines
from dev.chaos.run import Result


def table(result: Result) -> str:
    """Faults by kind, scans by what became of them, the triggerer's memory, the seed."""
    return "\n".join([*_head(result), *_faults(result), *_scans(result), *memory_lines(result.memory)])


def _head(result: Result) -> Iterator[str]:
    counts = f"{len(result.scans)} scans, {len(result.happened)} faults, {result.seconds:.0f} s"
    yield f"\nSeed {result.seed}: {counts}; database: {result.database}"


def _faults(result: Result) -> Iterator[str]:
    """A fault is survived when every scan that was under way ended as it should."""
    injected = Counter(fault.kind for fault in result.happened)
    bad = result.reckoning.bad_runs
    survived = Counter(fault.kind for fault in result.happened if not fault.under_way & bad)
    yield f"\n{'fault':<24}{'injected':>10}{'survived':>10}"
    for name in [kind.name for kind in KINDS if injected[kind.name]]:
        yield f"{name:<24}{injected[name]:>10}{survived[name]:>10}"
    yield f"{'all':<24}{injected.total():>10}{survived.total():>10}"
    if result.killed_in_submit:
        yield f"task processes killed while a submit was on its way: {result.killed_in_submit}"
    if result.died_by_themselves:
        yield f"died by themselves, and were started again: {', '.join(result.died_by_themselves)}"


def _scans(result: Result) -> Iterator[str]:
    reckoning = result.reckoning
    yield f"\n{'scans':<24}{len(result.scans):>10}"
    for name in (
        "succeeded",
        "failed_as_meant",
        "ended_by_a_person",
        "lost",
        "doubled",
        "orphaned",
        "wrong_message",
        "refused",
    ):
        lines: list[str] = getattr(reckoning, name)
        yield f"  {name.replace('_', ' '):<22}{len(lines):>10}"
        if name not in ("succeeded", "ended_by_a_person"):
            yield from (f"      {line}" for line in lines)
    for run_id, lines in reckoning.histories.items():
        yield f"\nWhat happened to {run_id}:"
        yield from (f"  {line}" for line in lines)
