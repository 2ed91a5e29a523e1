"""The device that computes, and one reconstruction by several processes, a GPU each.

cdtools-py 0.3.2 computes on one device. Here the frames are dealt out to the processes, each computes the
gradient of its part of a batch, and the sum of the gradients moves the same model in all of them. torch's own
launcher (torchrun's) starts them, its collectives add up: NCCL between GPUs, Gloo between CPUs.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from reconstruction.program import FAILED, cpus

PATIENCE = timedelta(days=7)  # the job has a limit of its own, and the launcher ends all when one has died
BLOCK_BYTES = 32 * 1024**2
RESIDENT = 0.5  # of a GPU's free memory: what frames may take


class Team:
    """The processes that compute one reconstruction; by default this one alone.

    :param rank: of this process; the one of rank 0 reads, prints and writes.
    """

    def __init__(self, *, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank = rank
        self.size = size
        self.device = device or (torch.device("cuda", 0) if gpus() else torch.device("cpu"))

    def __str__(self) -> str:
        """For a person: `NVIDIA A100-SXM4-40GB, 4 processes`."""
        if self.device.type == "cuda":
            name = str(torch.cuda.get_device_name(self.device))
        else:
            name = f"CPU, {torch.get_num_threads()} threads"
        return name if self.size == 1 else f"{name}, {self.size} processes"

    def share(self, value: Any = None) -> Any:
        """The first process's value, in all."""
        if self.size == 1:
            return value
        held = [value]
        with self._others():
            dist.broadcast_object_list(held, src=0)
        return held[0]

    def copy(self, tensor: torch.Tensor) -> None:
        """Make it in all processes what it is in the first."""
        if self.size > 1:
            with self._others():
                dist.broadcast(_real(tensor), src=0)

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Make it in all processes the sum over all."""
        if self.size > 1:
            with self._others():
                dist.all_reduce(_real(tensor))
        return tensor

    def deal(self, frames: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
        """This process's share of the first one's frames: every `size`-th, beginning with its rank.

        On the GPU when they fit there; in the first process otherwise without a copy.

        :param frames: in the first process, float32, of `shape` (n, rows, columns), in host memory.
        """
        shares = [len(range(rank, shape[0], self.size)) for rank in range(self.size)]
        place = self._place(4 * shares[self.rank] * shape[1] * shape[2])
        if frames is not None and place == frames.device:
            mine = frames[:: self.size]
        else:
            mine = torch.empty((shares[self.rank], *shape[1:]), dtype=torch.float32, device=place)
        for rank, count in enumerate(shares):
            for block in _blocks(count, shape):
                if frames is not None:
                    self._hand(frames[rank :: self.size][block], rank, mine[block])
                elif rank == self.rank:
                    received = torch.empty(mine[block].shape)
                    with self._others():
                        dist.recv(received, src=0)
                    mine[block] = received
        return mine

    def _place(self, size: int) -> torch.device:
        """Where frames of so many bytes are kept."""
        if self.device.type == "cuda" and size < RESIDENT * torch.cuda.mem_get_info(self.device)[0]:
            return self.device
        return torch.device("cpu")

    def _hand(self, block: torch.Tensor, rank: int, own: torch.Tensor) -> None:
        if rank > 0:
            with self._others():
                dist.send(block.contiguous(), dst=rank)
        elif own.device != block.device:
            own.copy_(block)

    @contextmanager
    def _others(self) -> Iterator[None]:
        """What fails in here does so because another process has ended; it or the launcher says why."""
        try:
            yield
        except RuntimeError:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, for one that is ending
            raise SystemExit(FAILED) from None


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _blocks(count: int, shape: tuple[int, ...]) -> Iterator[slice]:
    size = max(1, BLOCK_BYTES // (4 * shape[1] * shape[2]))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def gpus() -> int:
    """How many GPUs this process sees: those of its job."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined() -> Iterator[Team]:
    """The team of this process, as the launcher's environment says."""
    if not launched():
        yield Team()
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    if gpus():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus() else "gloo", timeout=PATIENCE)
    dist.barrier()  # so that nobody waits for one that has ended before it was there
    try:
        yield Team(rank=rank, size=size, device=device)
    finally:
        dist.destroy_process_group()


def launch(processes: int, module: str, arguments: list[str]) -> None:
    """Run a module in several processes of this machine, each with its share of the CPUs, and wait for them.

    :raises SystemExit: one failed, and has said why.
    :raises OSError: one was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # noqa: PLC0415

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ["OMP_NUM_THREADS"] = str(max(1, cpus() // processes))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", module, *arguments)
    except ChildFailedError as error:
        for failure in error.failures.values():
            if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:
                raise OSError(
                    f"process {failure.local_rank + 1} of {processes} was killed "
                    f"({signal.Signals(-failure.exitcode).name}); was there enough memory?"
                ) from None
        raise SystemExit(FAILED) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
