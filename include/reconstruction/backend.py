"""What the solver computes with: NumPy, or torch on the CPU or on a GPU.

The solver is written once, against the array API standard (https://data-apis.org/array-api/).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

import array_api_compat  # torch does not keep to the standard by itself: `dim` for `axis`, other promotions
import numpy as np
from numpy.typing import NDArray

from reconstruction.arrays import Array, Int
from reconstruction.program import cpus

VARIABLE = "COSMIC_ARRAYS"  # auto (or unset), numpy, torch (on the CPU), cuda
CPU_SAMPLES, GPU_SAMPLES = 2**16, 2**24
MAX_THREADS = 4  # more take turns at Python's lock: 14 on 16 cores were no faster than 4, with small parts slower
GPU_SHARE = 0.6  # of its free memory, for the frames: the rest is for the object and what is computed

Item = TypeVar("Item")
Result = TypeVar("Result")


class Compute(Protocol):
    """As `map`: results come in the order of the items."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]: ...


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An array library, and where it computes.

    :param xp: its namespace, as the standard has it.
    :param name: for a person.
    :param threads: that may compute at the same time.
    :param samples: of frames, with which a thread computes at once.
    :param room: bytes that frames may take on the device; others stay on the host, and come part by part.
    """

    xp: Any
    name: str
    device: str = "cpu"
    threads: int = 1
    samples: int = CPU_SAMPLES
    room: float = np.inf

    def asarray(self, array: NDArray[Any]) -> Array:
        """An array of the library on its device; on the CPU it shares its memory with `array`."""
        return self.xp.asarray(array, device=self.device)

    def hold(self, frames: NDArray[Any]) -> Array:
        """The frames where they stay: on the device when it has room for all of them."""
        return self.xp.asarray(frames, device=self.device if frames.nbytes <= self.room else "cpu")

    def take(self, held: Array, indices: Int) -> Array:
        """Some of the frames, on the device."""
        where = self.xp.asarray(indices, device=array_api_compat.device(held))
        return array_api_compat.to_device(self.xp.take(held, where, axis=0), self.device)

    @staticmethod
    def numpy(array: Array) -> NDArray[Any]:
        """An array as NumPy has it, on the host."""
        return np.asarray(array_api_compat.to_device(array, "cpu"))


def choose() -> Backend:
    """What `COSMIC_ARRAYS` asks for; by itself torch where it finds a GPU, and NumPy otherwise.

    On a CPU torch is not faster: it took 0.95 to 1.5 times NumPy's CPU time, and seconds to load.

    :raises ValueError: it is not here.
    """
    wanted = os.environ.get(VARIABLE, "").strip().lower() or "auto"
    if wanted not in ("auto", "numpy", "torch", "cuda"):
        raise ValueError(f"{VARIABLE} is {wanted!r}; it takes auto, numpy, torch or cuda.")
    installed = find_spec("torch") is not None
    if wanted in ("torch", "cuda") and not installed:
        raise ValueError(
            f"{VARIABLE} is {wanted!r}, but {sys.executable} has no torch; "
            f"install it there or set {VARIABLE} to auto."
        )
    if wanted == "numpy" or not installed:
        return _numpy()
    torch = importlib.import_module("torch")
    if wanted != "torch" and torch.cuda.is_available():
        return _torch(torch, "cuda")
    if wanted == "cuda":
        raise ValueError(
            f"{VARIABLE} is 'cuda', but torch finds no GPU here; "
            f"ask for a node with one or set {VARIABLE} to auto."
        )
    return _torch(torch, "cpu") if wanted == "torch" else _numpy()


def _numpy() -> Backend:
    xp = importlib.import_module("array_api_compat.numpy")
    return Backend(xp=xp, name=f"NumPy {np.__version__}", threads=min(cpus(), MAX_THREADS))


def _torch(torch: Any, device: str) -> Backend:
    xp = importlib.import_module("array_api_compat.torch")
    name = f"torch {torch.__version__}"
    if device == "cpu":
        torch.set_num_threads(1)  # of its own in an operation: the solver's threads are enough
        return Backend(xp=xp, name=name, threads=min(cpus(), MAX_THREADS))
    room = GPU_SHARE * torch.cuda.mem_get_info()[0]
    return Backend(xp=xp, name=name, device=device, samples=GPU_SAMPLES, room=room)


@contextmanager
def in_threads(threads: int) -> Iterator[Compute]:
    """`map`, computed in threads, a few results ahead of the one that is waited for."""
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:

        def ahead(function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
            waiting: deque[Future[Result]] = deque()
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        yield ahead
