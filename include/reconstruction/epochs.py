"""Epochs of CDTools' Adam over frames that stay where they are.

CDTools' own loader copies a whole batch, frame by frame. This one gives the few frames that are computed at
once, straight from the stack; with several processes each gives its part of every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from cdtools.reconstructors import AdamReconstructor

from reconstruction.workers import Team

# Frames computed at once, at most: CDTools' default, and what is three times as fast on an H200, where more gain
# nothing.
AT_ONCE = {"cpu": 10, "cuda": 40}
# Samples of the exit waves computed at once: what stays near a CPU, and what fits a GPU with all that is kept
# for the gradient.
SAMPLES = {"cpu": 2**17, "cuda": 2**24}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Epochs of one kind.

    :param free: for each of the model's parameters, whether it is refined.
    :param seed: of the order of the frames.
    """

    epochs: int
    step: float
    batch: int
    schedule: bool
    free: tuple[bool, ...]
    seed: int


class Epochs:
    """A model on the team's device, with its frames.

    :param frames: this process's (`Team.deal`).
    :param translations: of all frames, float32, (n, 3).
    """

    def __init__(self, model: Any, frames: torch.Tensor, translations: torch.Tensor, team: Team) -> None:
        self.model = model.to(team.device)
        self.frames = frames
        self.translations = translations.to(team.device)
        self.team = team
        modes, rows, columns = model.probe.shape
        kind = team.device.type
        self.at_once = max(1, min(AT_ONCE[kind], SAMPLES[kind] // (modes * rows * columns)))
        # CDTools counts them in the first epoch, in copies of the batches.
        model.loss_normalizer.num_pix = len(translations) * int(model.mask.sum())
        model.loss_normalizer.first_pass_complete = True

    def run(self, stage: Stage) -> Iterator[float]:
        """Yield the loss of each epoch."""
        for parameter, free in zip(self.model.parameters(), stage.free, strict=True):
            parameter.requires_grad = free
            self.team.copy(parameter.data)
        reconstructor = AdamReconstructor(model=self.model, dataset=None)
        if self.team.size > 1:
            step = reconstructor.optimizer.step
            reconstructor.optimizer.step = lambda closure: step(lambda: self._summed(closure))
        losses = reconstructor.optimize(
            stage.epochs,
            batch_size=stage.batch,
            lr=stage.step,
            schedule=stage.schedule,
            custom_data_loader=_Batches(self, stage),
            thread=False,
            calculation_width=self.at_once,
        )
        for loss in losses:
            yield float(loss)

    def _summed(self, closure: Callable[[], Any]) -> torch.Tensor:
        """Gradients and loss of this process's part of a batch, which may be empty, become those of all."""
        loss = torch.as_tensor(closure(), dtype=torch.float32, device=self.team.device)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self.team.add(parameter.grad)
        return self.team.add(loss)


class _Batches:
    """What CDTools takes for a data loader: new batches of all frames in each epoch."""

    def __init__(self, epochs: Epochs, stage: Stage) -> None:
        self.epochs = epochs
        self.batch = stage.batch
        self.random = torch.Generator().manual_seed(stage.seed)

    def __iter__(self) -> Iterator[tuple[tuple[torch.Tensor, torch.Tensor], _Patterns]]:
        team, n = self.epochs.team, len(self.epochs.translations)
        orders = [
            torch.randperm(len(range(rank, n, team.size)), generator=self.random) for rank in range(team.size)
        ]
        mine = orders[team.rank]
        for start in range(0, n, self.batch):
            first, last = (len(mine) * min(n, edge) // n for edge in (start, start + self.batch))
            part = mine[first:last]
            numbers = (part * team.size + team.rank).to(team.device)
            yield (numbers, self.epochs.translations[numbers]), _Patterns(self.epochs, part)


class _Patterns:
    """The measured frames of a batch; a slice of it brings them to the device."""

    def __init__(self, epochs: Epochs, part: torch.Tensor) -> None:
        self.epochs = epochs
        self.part = part

    def __getitem__(self, some: slice) -> torch.Tensor:
        frames = self.epochs.frames
        return frames[self.part[some].to(frames.device)].to(self.epochs.team.device)


def assist(team: Team) -> None:
    """What a process other than the first does: its part of every epoch, until there is no more."""
    while (work := team.share()) is not None:
        model, translations, shape = work
        epochs = Epochs(model, team.deal(None, shape), translations, team)
        while (stage := team.share()) is not None:
            for _ in epochs.run(stage):
                pass
