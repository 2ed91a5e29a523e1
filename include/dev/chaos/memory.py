"""The triggerer's memory over a chaos run: it waits for months, and must not grow while it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

SETTLED = 60.0  # seconds after which a triggerer has imported what it needs
WATCHED = 300.0  # seconds that a life must go on after that, for growth to be told from noise
MOST_GROWTH = 1.1  # last third of a life over its first third


@dataclass(frozen=True)
class MemorySample:
    """Memory of the triggerer, in MiB, at a moment (seconds since the beginning)."""

    at: float
    pid: int
    size: float


@dataclass(frozen=True)
class Life:
    """The settled part of a triggerer's life: how long (seconds), and its memory (MiB) early and late."""

    seconds: float
    early: float
    late: float

    @property
    def grows(self) -> bool:
        """Whether memory has grown; a life that was short tells nothing."""
        return self.seconds >= WATCHED and self.late > MOST_GROWTH * self.early


def longest_life(samples: Sequence[MemorySample]) -> Life | None:
    """The longest settled life among those of the triggerers that were killed and started again."""
    lives: dict[int, list[MemorySample]] = {}
    for sample in samples:
        lives.setdefault(sample.pid, []).append(sample)
    settled = [rest for life in lives.values() if (rest := [s for s in life if s.at - life[0].at >= SETTLED])]
    if not settled:
        return None
    life = max(settled, key=lambda seen: seen[-1].at - seen[0].at)
    third = -(-len(life) // 3)
    early, late = (median(sample.size for sample in part) for part in (life[:third], life[-third:]))
    return Life(life[-1].at - life[0].at, early, late)


def memory_lines(samples: Sequence[MemorySample]) -> Iterator[str]:
    """What the table tells of it."""
    if not samples:
        return
    first, last, peak = samples[0].size, samples[-1].size, max(sample.size for sample in samples)
    yield f"\ntriggerer's memory: {first:.0f} MiB at the beginning, {last:.0f} at the end, {peak:.0f} at most"
    if life := longest_life(samples):
        verdict = "IT GROWS" if life.grows else "it does not grow" if life.seconds >= WATCHED else "too short"
        sizes = f"{life.early:.0f} MiB in the first third, {life.late:.0f} in the last"
        yield f"in its longest life, {life.seconds / 60:.1f} min once settled: {sizes} ({verdict})"
