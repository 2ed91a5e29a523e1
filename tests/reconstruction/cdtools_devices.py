"""Run by CDTools' own interpreter (see test_cdtools_devices.py): where it computes; prints JSON.

No machine of the tests has a GPU, so torch's answers about them are replaced.

usage: python cdtools_devices.py SCAN.cxi
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from cdtools.datasets import Ptycho2DDataset

from reconstruction import cdtools_engine, fancy, workers
from reconstruction.conventions import sample_moves
from reconstruction.scan import Scan, read_scan
from reconstruction.workers import Team

ARGUMENTS = ["a.cxi"]


def with_gpus(count: int) -> Any:
    return mock.patch.multiple(
        torch.cuda,
        is_available=lambda: count > 0,
        device_count=lambda: count,
        mem_get_info=lambda _: (800, 0),
    )


def choice(count: int) -> dict[str, Any]:
    """Of the device, and of processes, where so many GPUs are seen."""
    with (
        with_gpus(count),
        mock.patch.object(workers, "launch") as launch,
        mock.patch.object(cdtools_engine, "reconstruct") as reconstruct,
    ):
        cdtools_engine.start(ARGUMENTS)
        team = Team()
        return {
            "device": str(team.device),
            "launched": [list(call.args) for call in launch.call_args_list],
            "alone": [str(call.args[2].device) for call in reconstruct.call_args_list],
            "frames": {size: str(team._place(size)) for size in (399, 401)},
        }


def halves(scan: Scan) -> dict[str, Any]:
    """Ours against CDTools' own, which are copies."""
    translations = torch.as_tensor(-scan.translations, dtype=torch.float32)
    theirs = Ptycho2DDataset(translations, torch.as_tensor(scan.frames.copy())).split()
    ours = fancy._halves(scan)
    return {
        "same": [
            bool(
                np.array_equal(half.frames, dataset.patterns)
                and np.allclose(half.translations, -dataset.translations, atol=1e-12)
            )
            for half, dataset in zip(ours, theirs, strict=True)
        ],
        "views": [bool(np.shares_memory(half.frames, scan.frames)) for half in ours],
        "frames": sum(len(half.frames) for half in ours),
    }


def main() -> None:
    scan = sample_moves(read_scan(Path(sys.argv[1])), "probe")
    seen: dict[str, Any] = {f"gpus_{count}": choice(count) for count in (0, 1, 4)}
    print(json.dumps({**seen, "halves": halves(scan)}))


if __name__ == "__main__":
    main()
