"""Reads a batch script as sbatch does: its checks, its #SBATCH lines, its options."""

from __future__ import annotations

import shlex

from standin.nersc.schedulers.interface import RejectedError

MAGIC = "#SBATCH"

SHORT = {
    "A": "account", "a": "array", "b": "begin", "C": "constraint", "c": "cpus-per-task", "d": "dependency",
    "D": "chdir", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold", "i": "input", "J": "job-name",
    "k": "no-kill", "L": "licenses", "M": "clusters", "m": "distribution", "N": "nodes", "n": "ntasks",
    "o": "output", "O": "overcommit", "p": "partition", "Q": "quiet", "q": "qos", "s": "oversubscribe",
    "S": "core-spec", "t": "time", "v": "verbose", "W": "wait", "w": "nodelist", "x": "exclude",
}  # fmt: skip
FLAGS = frozenset({
    "hold", "no-kill", "overcommit", "quiet", "verbose", "wait", "requeue", "no-requeue", "parsable",
    "contiguous", "spread-job", "use-min-nodes", "ignore-pbs", "oversubscribe", "reboot", "test-only",
})  # fmt: skip
OPTIONAL_VALUE = frozenset({"exclusive", "nice", "get-user-env", "kill-on-invalid-dep", "propagate"})
VALUED = frozenset({
    "account", "array", "begin", "constraint", "cpus-per-task", "dependency", "chdir", "error", "gpus",
    "gpus-per-node", "gpus-per-task", "gpu-bind", "gpu-freq", "gres", "input", "job-name", "licenses",
    "clusters", "distribution", "nodes", "ntasks", "ntasks-per-node", "output", "partition", "qos",
    "core-spec", "time", "time-min", "nodelist", "exclude", "mem", "mem-per-cpu", "mem-per-gpu",
    "comment", "export", "signal", "mail-type", "mail-user", "reservation", "open-mode", "deadline",
    "wckey", "image", "module", "volume", "nodefile", "export-file", "tmp", "switches", "threads-per-core",
    "sockets-per-node", "cores-per-socket", "hint", "cpu-freq", "priority", "power", "profile", "bb", "bbf",
    "ntasks-per-gpu", "ntasks-per-core", "ntasks-per-socket", "cpus-per-gpu", "delay-boot", "mincpus",
})  # fmt: skip
_LONG = FLAGS | OPTIONAL_VALUE | VALUED
_HELP = 'Try "sbatch --help" for more information'


def check_text(text: str) -> None:
    """Refuse what sbatch refuses to take for a batch script.

    :raises RejectedError: with sbatch's words.
    """
    if not text:
        raise RejectedError("sbatch: error: Batch script is empty!")
    if not text.strip():
        raise RejectedError("sbatch: error: Batch script contains only whitespace!")
    if not text.startswith("#!"):
        raise RejectedError(
            "sbatch: error: This does not look like a batch script.  The first\n"
            "sbatch: error: line must start with #! followed by the path to an interpreter.\n"
            "sbatch: error: For instance: #!/bin/sh"
        )
    if "\0" in text:
        raise RejectedError(
            "sbatch: error: The Slurm controller does not allow scripts that\n"
            "sbatch: error: contain a NULL character '\\0'."
        )
    if "\r\n" in text:
        raise RejectedError(
            "sbatch: error: Batch script contains DOS line breaks (\\r\\n)\n"
            "sbatch: error: instead of expected UNIX line breaks (\\n)."
        )


def directives(text: str) -> dict[str, str]:
    """The options in a script's #SBATCH lines; of several of the same, the last counts.

    Lines that are indented are comments to sbatch, and it stops reading at the first command.

    :raises RejectedError: for an option that sbatch does not know.
    """
    options: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.startswith(MAGIC):
            options.update(parse_options(_words(line[len(MAGIC) :], number)))
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return options


def _words(text: str, number: int) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        rest, quote = _unmatched(text)
        raise RejectedError(
            f"sbatch: fatal: stdin: line {number}: Unmatched `{quote}` in [{rest}]"
        ) from error


def _unmatched(text: str) -> tuple[str, str]:
    """What is left from the blank before a quote that is never closed, and the quote."""
    start, quote = 0, ""
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character.isspace():
            start = position
    return text[start:], quote or "\\"


def parse_options(words: list[str]) -> dict[str, str]:
    """Options of a command line: long ones may be shortened as far as they stay unique.

    :raises RejectedError: for an unknown option or a missing value.
    """
    options: dict[str, str] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word.startswith("--") and len(word) > 2:
            typed, given, value = word[2:].partition("=")
            name = _full_name(typed)
            options[name] = _value(name, f"--{name}", value if given else None, queue)
        elif word.startswith("-") and len(word) > 1:
            if word[1] not in SHORT:
                raise RejectedError(f"sbatch: invalid option -- '{word[1]}'\n{_HELP}")
            name = SHORT[word[1]]
            options[name] = _short(name, word, queue)
        else:
            raise RejectedError(f"sbatch: error: Invalid directive found in batch script: {word}")
    return options


def _short(name: str, word: str, queue: list[str]) -> str:
    if name in FLAGS:
        if len(word) > 2:  # flags may be bundled: -Hk
            queue.insert(0, f"-{word[2:]}")
        return "yes"
    return _value(name, f"-{word[1]}", word[2:] or None, queue)


def _full_name(typed: str) -> str:
    if typed in _LONG:
        return typed
    meant = sorted(name for name in _LONG if name.startswith(typed))
    if len(meant) == 1:
        return meant[0]
    if meant:
        possible = " ".join(f"'--{name}'" for name in meant)
        raise RejectedError(f"sbatch: option '--{typed}' is ambiguous; possibilities: {possible}\n{_HELP}")
    raise RejectedError(f"sbatch: unrecognized option '--{typed}'\n{_HELP}")


def _value(name: str, shown: str, given: str | None, queue: list[str]) -> str:
    if name in FLAGS:
        if given is not None:
            raise RejectedError(f"sbatch: option '{shown}' doesn't allow an argument\n{_HELP}")
        return "yes"
    if name in OPTIONAL_VALUE:
        return given if given is not None else "yes"
    if given is not None:
        return given
    if not queue:
        problem = (
            f"option '{shown}' requires an argument"
            if shown.startswith("--")
            else f"option requires an argument -- '{shown[1:]}'"
        )
        raise RejectedError(f"sbatch: {problem}\n{_HELP}")
    return queue.pop(0)
