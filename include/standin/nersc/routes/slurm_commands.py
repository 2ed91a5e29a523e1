"""Answers `sacct` as a command at NERSC, where the built-in runner is the scheduler.

A Slurm that happens to be installed on the stand-in's machine is another cluster's: it is not asked.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from standin.nersc.schedulers.interface import Query, QueryError, Scheduler

SLURM_COMMANDS = frozenset(
    {
        "sacct",
        "sacctmgr",
        "salloc",
        "sbatch",
        "scancel",
        "scontrol",
        "sinfo",
        "sprio",
        "squeue",
        "srun",
        "sstat",
    }
)
FILTERS = ("user", "name", "starttime", "endtime", "state", "account", "qos", "partition", "jobs")
DEFAULT_FORMAT = "JobID,JobName,Partition,Account,AllocCPUS,State,ExitCode"


class CommandError(Exception):
    """The command refuses its arguments; the message is what it writes to stderr."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"sacct: {message}")


async def sacct(scheduler: Scheduler, arguments: Sequence[str]) -> str:
    """What `sacct` prints: one line per job.

    :raises CommandError: an option or a column that it does not have.
    """
    asked = _parser().parse_args(list(arguments))
    filters = {name: value for name in FILTERS if (value := getattr(asked, name)) is not None}
    try:
        rows = await scheduler.sacct(Query(filters))
    except QueryError as error:
        raise CommandError(str(error)) from error
    columns = asked.format.split(",")
    lines = [] if asked.noheader else [columns]
    lines += [[_cell(row, column) for column in columns] for row in rows]
    return "".join(asked.delimiter.join(line) + "\n" for line in lines)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sacct", add_help=False, allow_abbrev=False)
    parser.add_argument("-X", "--allocations", action="store_true")  # the runner has no steps
    parser.add_argument("-n", "--noheader", action="store_true")
    parser.add_argument("-P", "--parsable2", action="store_true", required=True)
    parser.add_argument("--delimiter", default="|")
    parser.add_argument("-o", "--format", default=DEFAULT_FORMAT)
    for short, name in (
        ("-u", "user"),
        ("-S", "starttime"),
        ("-E", "endtime"),
        ("-s", "state"),
        ("-j", "jobs"),
    ):
        parser.add_argument(short, f"--{name}")
    for name in ("name", "account", "qos", "partition"):
        parser.add_argument(f"--{name}")
    return parser


def _cell(row: dict[str, Any], column: str) -> str:
    try:
        return str(row[column.lower()])
    except KeyError as error:
        raise CommandError(f'sacct: error: Invalid field requested: "{column}"') from error
