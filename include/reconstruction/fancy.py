"""CDTools' FancyPtycho model, driven as the beamline's own flow drives it (cdtools-py 0.3.2).

The schedule: `n_init_rounds` rounds (one at least) of `n_init_iter` epochs of Adam find the probe (step 0.05,
batches of 10 frames and in the last round 25, the frames' intensities fixed). Between two rounds the probe is
centered and held, the object is set back to one and found again for three epochs. Then `n_final_iter` epochs
at a tenth of the step, which falls further when the loss no longer does, in batches of 200, refine each
frame's intensity, too.

What differs from that flow, and why: positions are randomised evenly about the measured ones and anew in each
round, in the only round, too (the flow moves all to one side, once, and a single round not at all); a
background can begin without an earlier result; an earlier result with fewer modes than asked for gives the
first ones, and sets the units in which the probe is learned; the object has a margin of 10 pixels around what
the beam reaches instead of 200, which gives the same object in a smaller file; the halves of a split are the
same in every run; one or several GPUs (`reconstruction.workers`) compute without a copy of the frames in host
memory.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")  # CDTools imports matplotlib; there is no screen

import numpy as np
import torch
from cdtools.datasets import Ptycho2DDataset
from cdtools.datasets.random_selection import random_selection
from cdtools.models import FancyPtycho

from reconstruction.arrays import Complex, Int, Real
from reconstruction.cdtools_engine import Geometry, Parameters
from reconstruction.earlier import Earlier
from reconstruction.epochs import Epochs, Stage
from reconstruction.frc import align, ring_correlation
from reconstruction.program import Progress, cpus
from reconstruction.result import SCANNED, lit
from reconstruction.scan import Scan
from reconstruction.solver import Solution, count_scale
from reconstruction.workers import Team

INIT_STEP, OBJECT_STEP, FINAL_STEP = 0.05, 0.02, 0.005
OBJECT_EPOCHS = 3
PADDING = 10  # pixels around the scanned object, so that shifted positions stay within it


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The solution from all frames, those of the two halves, and what they said of its resolution.

    :param computed_with: device and processes, for a person.
    """

    solution: Solution
    computed_with: str
    halves: tuple[tuple[Scan, Solution], ...] = ()
    resolution_m: float | None = None
    warnings: tuple[str, ...] = ()


def reconstruct(
    scan: Scan,
    parameters: Parameters,
    geometry: Geometry,
    earlier: Earlier | None = None,
    *,
    team: Team | None = None,
) -> Outcome:
    """Reconstruct all frames and, when asked to, two halves of them.

    With halves, `scan.frames` has another order afterwards: those of the first half come first, and the
    halves' frames are parts of it.

    :param earlier: what `probe_initialization` names, when it fits.
    :param team: the processes that compute, of which this is the first; the others are in `epochs.assist`.
    """
    torch.manual_seed(0)
    torch.set_num_threads(cpus())
    team = team or Team()
    print(f"computing with {team}", flush=True)
    with warnings.catch_warnings():
        # CDTools calls torch.meshgrid in a way that torch will one day read differently.
        warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
        solution = _Run(scan, parameters, geometry, team, earlier=earlier).solve()
        halves = []
        for number, half in enumerate(_halves(scan) if parameters.run_split_reconstructions else (), start=1):
            label = f"half {number} of 2, "
            halves.append(
                (half, _Run(half, parameters, geometry, team, earlier=earlier, label=label).solve())
            )
    team.share(None)
    if not halves:
        return Outcome(solution=solution, computed_with=str(team))
    resolution = _resolution(*(half for _, half in halves))
    notes = () if resolution else ("The two halves do not agree at any resolution.",)
    return Outcome(
        solution=solution,
        computed_with=str(team),
        halves=tuple(halves),
        resolution_m=resolution,
        warnings=notes,
    )


def _halves(scan: Scan) -> tuple[Scan, Scan]:
    """CDTools' two pseudorandom halves of a scan, without a copy: the frames change places."""
    first = np.resize(np.array(random_selection, dtype=np.bool_), len(scan.frames))
    order = np.argsort(~first, kind="stable")
    _reorder(scan.frames, order)
    middle = int(first.sum())

    def part(some: slice) -> Scan:
        return replace(
            scan,
            frames=scan.frames[some],
            translations=scan.translations[order[some]],
            intensities=None if scan.intensities is None else scan.intensities[order[some]],
        )

    return part(slice(middle)), part(slice(middle, None))


def _reorder(frames: Real, order: Int) -> None:
    """`frames[:] = frames[order]` with one frame's memory: each cycle of the permutation by itself."""
    left = set(range(len(order)))
    while left:
        first = at = left.pop()
        held = frames[first].copy()
        while (source := int(order[at])) != first:
            frames[at] = frames[source]
            left.remove(source)
            at = source
        frames[at] = held


def _dataset(scan: Scan) -> Any:
    """The scan as CDTools makes a model from it, which takes no more from the frames than their mean."""
    mean = torch.as_tensor(scan.frames.mean(axis=0, dtype=np.float64), dtype=torch.float32)[None]
    dataset = Ptycho2DDataset(
        (-scan.translations).astype(np.float32),  # CXI moves the sample, CDTools the probe
        mean,
        intensities=scan.intensities,
        wavelength=np.float32(scan.wavelength),
        detector_geometry={
            "basis": torch.as_tensor(scan.basis, dtype=torch.float32),
            "distance": np.float32(scan.distance),
            "corner": None,
        },
        mask=scan.good,
        background=scan.dark,
    )
    dataset.patterns = mean.expand(len(scan.frames), -1, -1)
    return dataset


class _Run:
    """One reconstruction of one scan, or of half of it."""

    def __init__(
        self,
        scan: Scan,
        parameters: Parameters,
        geometry: Geometry,
        team: Team,
        *,
        earlier: Earlier | None = None,
        label: str = "",
    ) -> None:
        self.scan = scan
        self.dataset = dataset = _dataset(scan)
        self.team = team
        self.parameters = parameters
        self.label = label
        self.errors: list[float] = []
        self.rounds = max(1, parameters.n_init_rounds)
        epochs = self.rounds * parameters.n_init_iter + parameters.n_final_iter
        self.progress = Progress(epochs + (self.rounds - 1) * OBJECT_EPOCHS, label)
        lens_moves = parameters.simulate_probe_translation and not geometry.near_field
        self.model = FancyPtycho.from_dataset(
            dataset,
            n_modes=parameters.n_modes,
            oversampling=parameters.oversampling_factor,
            propagation_distance=geometry.distance,
            simulate_probe_translation=lens_moves,
            # Shifts that stay zero: without them cdtools-py 0.3.2 adds pairs to triples and fails.
            allow_probe_fourier_shifts=lens_moves,
            probe_support_radius=parameters.probe_support_radius,
            near_field=geometry.near_field,
            translation_scale=1,
            obj_padding=PADDING + int(np.ceil(parameters.translation_randomization)),
        )
        if lens_moves:
            self.model.probe_fourier_shifts.requires_grad = False
        if geometry.near_field:  # cdtools-py 0.3.2 cannot save a tensor that is conjugated only in name
            backward = self.model.inv_angular_spectrum_propagator
            self.model.inv_angular_spectrum_propagator = backward.resolve_conj()
        if earlier is not None:
            _set_probe(self.model, earlier)
        if parameters.init_background:
            self._set_background(earlier)

    def solve(self) -> Solution:
        parameters, model, team = self.parameters, self.model, self.team
        model.weights.requires_grad = False
        model.translation_offsets.requires_grad = False
        frames, translations = torch.as_tensor(self.scan.frames), self.dataset.translations
        team.share((model, translations, frames.shape))
        self.epochs = Epochs(model, team.deal(frames, tuple(frames.shape)), translations, team)
        for index in range(self.rounds):
            last = index == self.rounds - 1
            self._randomise(last=last)
            self._stage(parameters.n_init_iter, step=INIT_STEP, batch=10 if not last else 25)
            if not last:
                self._begin_again()
        model.translation_offsets.data.zero_()
        model.weights.requires_grad = True
        self._stage(parameters.n_final_iter, step=FINAL_STEP, batch=200, schedule=True)
        team.share(None)
        del self.epochs  # which may hold the frames on a GPU
        model.to("cpu")
        model.tidy_probes()
        return self._solution()

    def _randomise(self, *, last: bool) -> None:
        offsets = self.model.translation_offsets.data
        offsets.zero_()
        if not last or self.rounds == 1:
            shifts = (torch.rand(offsets.shape) - 0.5) * self.parameters.translation_randomization
            offsets += shifts.to(offsets.device)

    def _begin_again(self) -> None:
        """Centre the probe and find the object anew with it."""
        model = self.model
        model.center_probes()
        model.probe.data *= model.probe_support
        model.obj.data[:] = 1
        model.probe.requires_grad = False
        self._stage(OBJECT_EPOCHS, step=OBJECT_STEP, batch=25)
        model.probe.requires_grad = True

    def _stage(self, count: int, *, step: float, batch: int, schedule: bool = False) -> None:
        if not count:
            return
        stage = Stage(
            epochs=count,
            step=step,
            batch=batch,
            schedule=schedule,
            free=tuple(parameter.requires_grad for parameter in self.model.parameters()),
            seed=int(torch.randint(2**31, ())),
        )
        for loss in self.epochs.run(self.team.share(stage)):
            if not np.isfinite(loss):
                raise FloatingPointError(f"{self.label}the loss of epoch {len(self.errors) + 1} is {loss}")
            self.errors.append(loss)
            self.progress(len(self.errors), loss)

    def _set_background(self, earlier: Earlier | None) -> None:
        background = None if earlier is None else earlier.background
        if background is None:
            background = self.scan.dark if self.scan.dark is not None else self.scan.frames.min(axis=0)
        # The model squares it; a little above zero, because the gradient is zero at zero.
        self.model.background.data = torch.as_tensor(
            np.sqrt(np.maximum(background, 1e-6)), dtype=torch.float32
        )

    def _solution(self) -> Solution:
        model = self.model
        # CDTools means over the samples within a detector pixel; divided so, the probe's power is counts.
        probe = (model.probe.detach() * model.probe_norm).numpy() / int(model.oversampling)
        background = model.background.detach().numpy() ** 2
        factor = count_scale(self.scan.frames, background * self.scan.good, probe)
        # The model itself, so that what CDTools saves of it is the solution.
        model.obj.data /= factor
        model.probe_norm *= factor
        obj, probe = model.obj.detach().numpy(), probe * factor
        corner = model.min_translation.numpy().astype(np.float64) - np.array(probe.shape[-2:]) // 2
        return Solution(
            obj=obj,
            probe=probe,
            illuminated=self._illuminated(probe, obj.shape),
            corner=corner,
            pixel=np.linalg.norm(model.obj_basis.numpy().astype(np.float64), axis=0),
            background=background,
            errors=self.errors,
            model=model.save_results(),
        )

    def _illuminated(self, probe: Complex, shape: tuple[int, ...]) -> Real:
        from cdtools.tools.interactions import translations_to_pixel  # noqa: PLC0415

        power = (np.abs(probe) ** 2).sum(axis=0)
        total = np.zeros(shape, dtype=np.float32)
        moved = (
            translations_to_pixel(self.model.obj_basis, self.dataset.translations)
            - self.model.min_translation
        )
        for row, column in np.round(moved.numpy()).astype(int):
            total[row : row + power.shape[0], column : column + power.shape[1]] += power
        return total


def _set_probe(model: Any, earlier: Earlier) -> None:
    """Replace the first modes of the model's probe by those of an earlier result."""
    modes = min(len(earlier.probe), model.probe.shape[0])
    modelled = torch.as_tensor(earlier.probe[:modes], dtype=torch.complex64)
    if earlier.in_counts:
        modelled *= int(model.oversampling)
    # The model learns in units of the probe's peak, which may be far from that of the guess it replaces.
    model.probe.data *= model.probe_norm
    model.probe_norm = modelled[0].abs().max()
    model.probe.data /= model.probe_norm
    model.probe.data[:modes] = modelled / model.probe_norm
    model.probe.data *= model.probe_support


def _resolution(first: Solution, second: Solution) -> float | None:
    """Half period at which the halves' Fourier ring correlation meets the half-bit threshold, meters."""
    # The halves have different corners; cut the same place out of both.
    start = np.ceil(np.maximum(first.corner, second.corner)).astype(int)
    stop = np.floor(np.minimum(*(half.corner + np.array(half.obj.shape) for half in (first, second)))).astype(
        int
    )
    views, bright = [], []
    for half in (first, second):
        low = np.round(start - half.corner).astype(int)
        window = np.s_[low[0] : low[0] + stop[0] - start[0] - 1, low[1] : low[1] + stop[1] - start[1] - 1]
        views.append(half.obj[window])
        bright.append(lit(half.illuminated, SCANNED)[window])
    both = bright[0] & bright[1]
    rows, columns = (np.flatnonzero(n > 0.5 * n.max()) for n in (both.sum(axis=1), both.sum(axis=0)))
    if len(rows) < 16 or len(columns) < 16:
        return None
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    aligned, _ = align(views[0][box], views[1][box])
    rings = ring_correlation(aligned, views[1][box], first.pixel)
    return rings.resolution(rings.half_bit())
