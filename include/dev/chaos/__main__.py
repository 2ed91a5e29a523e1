"""`make chaos`: print the faults, the table and the seed; the exit code tells whether the promises held."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from dev.chaos.run import Chaos
from dev.chaos.table import table


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--scans", type=int, default=20)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", default="", help="sqlite, postgresql, or an empty database's address")
    parser.add_argument("--keep", type=Path, help="a folder for everything, kept afterwards")
    parser.add_argument("--limit", type=float, default=7200.0, help="seconds that it may take")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="cosmic-chaos-") as scratch:
        chaos = Chaos(
            options.keep or Path(scratch),
            scans=options.scans,
            faults=options.faults,
            seed=options.seed,
            database=options.database,
            limit=options.limit,
            say=lambda line: print(line, flush=True),
        )
        result = chaos.run()
    print(table(result))
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
