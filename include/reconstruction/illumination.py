"""The first guess of the probe, tried out before it is used, and where the bare beam may be on the detector.

A solver cannot leave a guess whose curvature has the wrong sign: it ends far from the frames, whatever the
number of iterations. Files hold such guesses (ACME propagates with the conjugate of `geometry.propagate`'s
kernel, and its positions are read in two ways), so each guess is tried beside its mirror image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reconstruction.arrays import Bool, Complex, Real
from reconstruction.backend import Backend
from reconstruction.conventions import mirrored
from reconstruction.geometry import (
    Magnification,
    far_field,
    far_field_pixel,
    focus_to_sample,
    inverse_far_field,
    propagate,
)
from reconstruction.scan import Scan
from reconstruction.solver import Options, Solver

BRIGHT = 0.05  # of the mean frame's peak: what belongs to the beam itself, not to what the sample scattered
IN_FILE = "the illumination in the file"
TRIAL_FRAMES = 64
TRIAL_ITERATIONS = 8
TRIAL_PIXELS = 192
BEAM_AND_MORE = 1.25
CLEARLY = 0.9  # of an earlier guess's error: what a later one's must stay below


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A first probe.

    :param probe: complex64, like a frame.
    :param origin: what it was made from, for a person.
    :param distance: meters from the focus, where it was made with one.
    """

    probe: Complex
    origin: str
    distance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The guess to go on with.

    :param errors: by origin, of every guess after `TRIAL_ITERATIONS`; empty when there was but one.
    """

    guess: Guess
    errors: Mapping[str, float]

    def record(self) -> dict[str, object]:
        """What a result says of its first illumination."""
        return {"first_illumination": self.guess.origin, "first_illuminations_tried": dict(self.errors)}


def first_guesses(scan: Scan, measured: Magnification, *, expected: float) -> list[Guess]:
    """Guesses of the probe at the sample, the likeliest first, each with its mirror image.

    The file's own illumination when it has one. Otherwise the mean frame's amplitude brought back to the
    focus, and from there to the sample: over the distance that the file states, or else that the movement
    of the sample's shadow gives. Last, what is expected.

    :param expected: meters from the focus to the sample, as the beamline is set up.
    """
    distances = [(expected, "as the beamline is set up")]
    if measured.reliable:
        distances.insert(0, (focus_to_sample(scan, measured.value), "measured from the frames"))
    if scan.defocus is not None:
        distances.insert(0, (scan.defocus, "stated in the file"))
    guesses = (
        [] if scan.illumination is None else from_file(scan.illumination, "the illumination in the file")
    )
    return guesses + from_mean_frame(scan, distances)


def from_file(probe: Complex, origin: str) -> list[Guess]:
    """A probe that somebody found, and its mirror image."""
    turned = f"{origin}, conjugated and turned by 180 degrees"
    return [Guess(probe=probe, origin=origin), Guess(probe=mirrored(probe), origin=turned)]


def from_mean_frame(scan: Scan, distances: Sequence[tuple[float, str]]) -> list[Guess]:
    """The mean frame's beam, in focus, brought to the sample over each distance, and the other way.

    :param distances: meters and where they come from; those within a quarter of an earlier one are left out.
    """
    amplitude = np.sqrt(np.where(illumination_mask(scan), _mean_frame(scan), 0.0))
    focus = inverse_far_field(amplitude.astype(np.complex64))
    guesses: list[Guess] = []
    for distance, source in distances:
        for way, words in ((distance, source), (-distance, f"{source}, the other way")):
            if any(abs(way - (guess.distance or 0.0)) <= 0.25 * abs(way) for guess in guesses):
                continue
            probe = propagate(focus, pixel=far_field_pixel(scan), wavelength=scan.wavelength, distance=way)
            origin = f"the mean frame, {way * 1e6:.3g} um from the focus ({words})"
            guesses.append(Guess(probe=probe, origin=origin, distance=way))
    return guesses


def try_out(scan: Scan, guesses: Sequence[Guess], backend: Backend | None = None) -> Trial:
    """A few iterations with each guess; the first goes, unless a later one is clearly better.

    Neighboring frames are enough for that, and of large frames the middle, where the beam is: the same scan
    with larger pixels.

    :param guesses: one or more.
    :param backend: as `reconstruction.solver.Solver`'s.
    """
    if len(guesses) == 1:
        return Trial(guess=guesses[0], errors={})
    away = np.linalg.norm(scan.translations - np.median(scan.translations, axis=0), axis=1)
    near = np.sort(np.argsort(away, kind="stable")[:TRIAL_FRAMES])
    middle = _middle(scan)
    some = replace(
        scan,
        frames=np.stack([scan.frames[index][middle] for index in near]),
        good=scan.good[middle],
        translations=scan.translations[near],
        dark=None if scan.dark is None else scan.dark[middle],
        intensities=None,
        illumination=None,
        illumination_mask=None,
    )
    options, errors = Options(iterations=TRIAL_ITERATIONS, period_illu_refine=1), []
    for guess in guesses:
        probe = inverse_far_field(far_field(guess.probe)[middle])
        errors.append(Solver(some, options, probe=probe, backend=backend).run(lambda *_: None).errors[-1])
    chosen = 0
    for index, error in enumerate(errors):
        chosen = index if error < CLEARLY * errors[chosen] else chosen
    tried = {guess.origin: round(error, 5) for guess, error in zip(guesses, errors, strict=True)}
    return Trial(guess=guesses[chosen], errors=tried)


def _middle(scan: Scan) -> tuple[slice, slice]:
    """The part of a frame around the beam's axis that holds the beam, and `TRIAL_PIXELS` at least."""
    lit = illumination_mask(scan)
    slices = []
    for axis, n in enumerate(scan.detector_shape):
        reach = np.abs(np.flatnonzero(lit.any(axis=1 - axis)) - n // 2).max(initial=0)
        half = min(n // 2, max(TRIAL_PIXELS // 2, int(BEAM_AND_MORE * reach)))
        slices.append(slice(n // 2 - half, n // 2 + half if half < n // 2 else n))
    return slices[0], slices[1]


def illumination_mask(scan: Scan) -> Bool:
    """The file's illumination mask, or the bright field of the mean frame and two pixels around it."""
    if scan.illumination_mask is not None:
        return scan.illumination_mask
    mean = _mean_frame(scan)
    mask: Bool = mean > BRIGHT * float(np.percentile(mean[scan.good], 99.5))
    for _ in range(2):
        grown = mask.copy()
        for axis in (0, 1):
            grown |= np.roll(mask, 1, axis) | np.roll(mask, -1, axis)
        mask = grown
    return mask


def _mean_frame(scan: Scan) -> Real:
    mean: Real = scan.frames.mean(axis=0)
    if scan.dark is not None:
        mean = np.maximum(mean - scan.dark, 0.0)
    return mean
