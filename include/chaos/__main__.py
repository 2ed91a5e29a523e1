"""`make chaos`: print the faults, the table and the seed; the exit code tells whether the promises held."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from chaos.run import Chaos, Result


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--scans", type=int, default=20)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for everything, kept afterwards")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="cosmic-chaos-") as scratch:
        folder = options.keep or Path(scratch)
        chaos = Chaos(folder, scans=options.scans, faults=options.faults, seed=options.seed)
        result = chaos.run()
    print_result(result)
    return 0 if result.reckoning.clean else 1


def print_result(result: Result) -> None:
    """The table."""
    reckoning = result.reckoning
    counts = f"{len(result.scans)} scans, {result.faults.total()} faults, {result.seconds:.0f} s"
    print(f"\nSeed {result.seed}: {counts}")
    for kind, count in result.faults.most_common():
        print(f"  {kind:<22}{count:5}")
    for name in ("survived", "failed_as_meant", "lost", "doubled", "orphaned", "wrong_message"):
        scans: list[str] = getattr(reckoning, name)
        print(f"  {name.replace('_', ' '):<22}{len(scans):5}")
        if name not in ("survived", "failed_as_meant"):
            for line in scans:
                print(f"      {line}")
    if result.triggerer_memory:
        memory = result.triggerer_memory
        spread = f"{min(memory):.0f} to {max(memory):.0f} MiB"
        print(f"  triggerer's memory: {spread}, at the end {memory[-1]:.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
