"""Reading a stack of frames, and what in it cannot be used: pixels, frames, or all of it.

The frames are read once, in blocks, into the one array that is reconstructed; what is left out is closed up
within it. So the peak of memory is that array.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import h5py
import numpy as np

from reconstruction.arrays import Bool, Int, Real
from reconstruction.errors import ScanError

BLOCK_BYTES = 2 * 1024**2
MIN_FRAMES = 9  # three by three: fewer do not determine an object and a probe
HUGE = 1e12  # counts: no detector has them
FEW = 0.01  # of the pixels: a frame in which more are not numbers is left out
LIT = 0.1  # of the mean frame's 99th percentile: the beam
EMPTY = 0.02  # of a well lit frame's signal: the shutter was shut
BURST = 8.0  # times the brightest of the others: neighboring frames of a scan overlap and are alike
FEW_BRIGHT = 0.05  # of the frames that can be so
NOISE = 0.2  # correlation of a pixel of the mean frame with the next; optics make it smooth
SPIKE = 8.0  # times the median of its neighbors: a speckle is at least two pixels wide
SPIKE_COUNTS = 20.0  # in all frames: fewer can be chance
CEILING = 20.0  # counts: below, equal values are no sign of saturation
PILE = 3  # times as many values at the ceiling as just below it
MANY_SATURATED = 0.1  # of the lit pixels


@dataclass(kw_only=True)
class Stack:
    """Frames and what is known of them.

    :param frames: float32, (n, rows, columns), not negative, zero where not `good`.
    :param good: (rows, columns), True where a pixel can be used.
    :param kept: indices of `frames` in the file.
    """

    frames: Real
    good: Bool
    kept: Int
    warnings: list[str] = field(default_factory=list)

    def drop(self, unusable: Bool) -> None:
        """Leave out frames, in place."""
        left = np.flatnonzero(~unusable)
        for new, old in enumerate(left):
            if new != old:
                self.frames[new] = self.frames[old]
        self.frames = self.frames[: len(left)]
        self.kept = self.kept[left]

    def blocks(self) -> Iterator[slice]:
        """Ranges of frames that are small in memory."""
        size = max(1, int(BLOCK_BYTES // max(1, self.frames[:1].nbytes)))
        for start in range(0, len(self.frames), size):
            yield slice(start, min(start + size, len(self.frames)))


def read_stack(dataset: h5py.Dataset, count: int, bad: Bool) -> Stack:
    """Read the first `count` frames, and leave out what cannot be used.

    :param bad: (rows, columns), what the file itself masks.
    :raises ScanError: without the file's name, when nothing can be made of the frames.
    """
    shape = (count, *dataset.shape[1:])
    stack = Stack(frames=np.empty(shape, dtype=np.float32), good=~bad, kept=np.arange(count))
    failing = _Failures(pixels=np.zeros(shape[1:], dtype=np.int64), frames=np.zeros(count, dtype=np.int64))
    for block in stack.blocks():
        dataset.read_direct(stack.frames, np.s_[block], np.s_[block])
        wrong = _not_counts(stack.frames[block]) & stack.good
        failing.pixels += wrong.sum(axis=0)
        failing.frames[block] = wrong.sum(axis=(1, 2))
    _leave_out_what_is_no_number(stack, failing)
    for block in stack.blocks():
        part = stack.frames[block]
        part[_not_counts(part)] = 0.0  # in pixels that are masked
        np.maximum(part, 0.0, out=part)
    _leave_out_bright_frames(stack)
    _check_mask(stack)
    _mask_spikes(stack)
    _leave_out_empty_frames(stack)
    _check_beam(stack)
    _mask_saturated(stack)
    stack.frames[:, ~stack.good] = 0.0
    return stack


def _not_counts(frames: Real) -> Bool:
    with np.errstate(invalid="ignore"):
        wrong: Bool = ~(np.abs(frames) < HUGE)  # NaN is not smaller than anything
    return wrong


@dataclass(kw_only=True)
class _Failures:
    """How often a pixel is no number, and in how many pixels a frame is none."""

    pixels: Int
    frames: Int


def _leave_out_what_is_no_number(stack: Stack, failing: _Failures) -> None:
    """Mask the pixels that fail in frames that are otherwise sound, and leave out the other frames."""
    if not failing.pixels.any():
        return
    n, pixels = len(stack.frames), int(stack.good.sum())
    always = failing.pixels == n
    unusable = failing.frames - always.sum() > FEW * pixels
    lost = int(unusable.sum())
    if always.all() or n - lost < MIN_FRAMES:
        raise ScanError(
            f"{lost or n} of {n} frames hold values that are not numbers or not counts (NaN, infinite, or "
            f"above {HUGE:g}); the file is damaged, or this is no scan. Preprocess it or copy it again"
        )
    for index in np.flatnonzero(unusable):
        failing.pixels -= _not_counts(stack.frames[index]) & stack.good
    if lost:
        stack.drop(unusable)
        stack.warnings.append(
            f"{lost} of {n} frames hold values that are not numbers or not counts; they were left out."
        )
    broken = failing.pixels > 0
    if broken.sum() > 0.5 * pixels:
        raise ScanError(
            f"{int(broken.sum())} of {pixels} pixels hold values that are not numbers or not counts (NaN, "
            f"infinite, or above {HUGE:g}); the file is damaged, or this is no scan"
        )
    if broken.any():
        stack.good &= ~broken
        stack.warnings.append(f"{int(broken.sum())} pixels are not numbers in some frame; masked.")


def _mean(stack: Stack) -> Real:
    mean: Real = stack.frames.mean(axis=0, dtype=np.float64)
    return mean


def _check_mask(stack: Stack) -> None:
    """A mask that hides the light and leaves the dark has its values the wrong way round."""
    hidden = float((~stack.good).mean())
    if hidden == 0.0:
        return
    mean = _mean(stack)
    light = float(mean[~stack.good].sum()) / max(float(mean.sum()), 1e-30)
    if hidden > 0.5 and light > 0.9:
        stack.good = ~stack.good
        stack.warnings.append(
            f"The detector's mask marks {hidden:.0%} of the pixels, with {light:.0%} of the light, as bad; "
            "CXI's mask is 0 for a good pixel, so it was used the other way round."
        )
    elif light > 0.5:
        stack.warnings.append(
            f"The detector's mask hides {light:.0%} of the light ({hidden:.0%} of the pixels); "
            "look whether the frames are saturated, or the mask is that of another detector."
        )


def _leave_out_bright_frames(stack: Stack) -> None:
    """Frames that alone are far brighter than all others; the sample cannot do that, as neighbors overlap."""
    n = len(stack.frames)
    signal = np.empty(n)
    for block in stack.blocks():
        signal[block] = stack.frames[block].sum(axis=(1, 2), where=stack.good, dtype=np.float64)
    ordered = np.sort(signal)
    few = max(1, int(FEW_BRIGHT * n))
    ratios = ordered[n - few :] / np.maximum(ordered[n - few - 1 : n - 1], 1e-30)
    steps = np.flatnonzero(ratios > BURST)
    if not steps.size or not ordered[n - few - 1] > 0:
        return
    bright = signal >= ordered[n - few + int(steps[0])]
    count = int(bright.sum())
    if n - count < MIN_FRAMES:
        return
    stack.drop(bright)
    are, times = "is" if count == 1 else "are", float(ratios[steps[0]])
    stack.warnings.append(
        f"{count} of {n} frames {are} {times:.3g} times as bright as the brightest of the others "
        "(another exposure, or a fault of the detector); they were left out."
    )


def _beam(mean: Real, good: Bool) -> Bool:
    bright: Bool = good & (mean > LIT * float(np.percentile(mean[good], 99)))
    return bright


def _leave_out_empty_frames(stack: Stack) -> None:
    """Frames that the shutter missed: no light where the others have it."""
    n = len(stack.frames)
    mean = _mean(stack)
    if not mean[stack.good].any():
        raise ScanError("has no counts in any good pixel; was the shutter open")
    bright = _beam(mean, stack.good)
    dim = stack.good & ~bright
    signal = np.empty(n)
    for block in stack.blocks():
        part = stack.frames[block]
        level = part.mean(axis=(1, 2), where=dim) if dim.any() else 0.0
        signal[block] = part.mean(axis=(1, 2), where=bright) - level
    empty = signal < EMPTY * float(np.percentile(signal, 98))
    if not empty.any():
        return
    left = n - int(empty.sum())
    if left < MIN_FRAMES:
        raise ScanError(
            f"{n - left} of {n} frames are empty; {left} with light are too few to reconstruct. "
            "Look whether the shutter opened, and scan again"
        )
    stack.drop(empty)
    stack.warnings.append(
        f"{n - left} of {n} frames are empty (the shutter did not open, or nothing came through the sample); "
        "they were left out."
    )


def _check_beam(stack: Stack) -> None:
    """Optics make the mean frame smooth; random bytes do not."""
    mean = np.where(stack.good, _mean(stack), 0.0)
    pairs = [
        (mean[1:], mean[:-1], stack.good[1:] & stack.good[:-1]),
        (mean[:, 1:], mean[:, :-1], stack.good[:, 1:] & stack.good[:, :-1]),
    ]
    alike = [_correlation(a[both], b[both]) for a, b, both in pairs]
    if max(alike) < NOISE:
        raise ScanError(
            "the frames are noise: their mean has no beam in it, neighboring pixels differ as if by chance "
            f"(correlation {max(alike):.2f}). The shutter was shut, the file is damaged, or these are no "
            "diffraction frames"
        )


def _correlation(first: Real, second: Real) -> float:
    a, b = first - first.mean(), second - second.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / norm if norm else 0.0


def _mask_spikes(stack: Stack) -> None:
    """Hot pixels: alone among darker ones. Light cannot be so; it spreads over two pixels and more."""
    n = len(stack.frames)
    mean = _mean(stack)
    around = _median_of_neighbors(np.where(stack.good, mean, np.nan))
    spikes = stack.good & (mean > SPIKE * around) & ((mean - SPIKE * around) * n > SPIKE_COUNTS)
    if not spikes.any():
        return
    stack.good &= ~spikes
    stack.warnings.append(
        f"{int(spikes.sum())} hot pixels, more than {SPIKE:g} times as bright as those around them; masked."
    )


def _median_of_neighbors(values: Real) -> Real:
    rows, columns = values.shape
    padded = np.pad(values, 1, mode="constant", constant_values=np.nan)
    steps = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    around = np.stack([padded[i : i + rows, j : j + columns] for i, j in steps])
    alone = np.isnan(around).all(axis=0)
    around[:, alone] = 0.0
    median: Real = np.nanmedian(around, axis=0)
    return median


def _mask_saturated(stack: Stack) -> None:
    """Values pile up at the detector's ceiling; what is above it is lost."""
    top = max(float(stack.frames[block][:, stack.good].max()) for block in stack.blocks())
    if top < CEILING:
        return
    at_top = np.zeros(stack.good.shape, dtype=np.int64)
    below = 0
    for block in stack.blocks():
        part = stack.frames[block]
        at_top += (part >= top).sum(axis=0)
        below += int(((part >= 0.97 * top) & (part < top) & stack.good).sum())
    at_top[~stack.good] = 0
    if at_top.sum() < max(8, PILE * below):
        return
    saturated = at_top > 0
    lit = _beam(_mean(stack), stack.good)
    share = float((saturated & lit).sum() / max(1, lit.sum()))
    if share > MANY_SATURATED:
        stack.warnings.append(
            f"The frames are saturated: {share:.0%} of the lit pixels reach the highest value, {top:g}, in "
            "some frame. The picture may be wrong; scan again with a shorter exposure."
        )
        return
    stack.good &= ~saturated
    stack.warnings.append(
        f"{int(saturated.sum())} pixels are saturated (the highest value, {top:g}) in some frame; masked."
    )
