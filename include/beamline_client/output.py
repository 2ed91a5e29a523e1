"""What became of a request, and how that is shown to a person."""

from __future__ import annotations

import datetime
import json
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from beamline_client.errors import ACCEPTED, worst_exit_code

IDLE_STATES = ("none", "skipped", "upstream_failed")  # of tasks that do not run, or not yet
NO_REASON = "it left no reason: somebody cancelled it, or its worker was ended; see the page"  # of a failure
DONE, WITH_WARNINGS = "done", "done with warnings"  # outcomes of a scan's file
_MAX_TEXT = 600  # characters shown of a sentence
_MAX_LIST = 200  # and of a list of numbers
_MAX_NAMES = 20  # of files with which nothing is to be done


@dataclass(frozen=True)
class Outcome:
    """What became of one request. `exit_code` is what it would end the command with."""

    path: str
    run_id: str
    outcome: str
    exit_code: int = ACCEPTED
    state: str = ""
    since: str = ""
    url: str = ""
    message: str = ""
    tasks: Dict[str, str] = field(default_factory=dict)  # state by task
    results: Dict[str, Any] = field(default_factory=dict)  # return value by task, of a run that has ended
    errors: Dict[str, List[str]] = field(default_factory=dict)  # last errors by failed task
    files: List[Outcome] = field(default_factory=list)  # of a scan that was named as a whole
    stacks: List[Outcome] = field(default_factory=list)  # and the newest run of each engine's stacks


def to_stdout(message: str) -> None:
    """Print a line at once."""
    print(message, flush=True)


def to_stderr(message: str) -> None:
    """Print a line at once, apart from results."""
    print(message, file=sys.stderr, flush=True)


def describe(outcome: Outcome) -> str:
    """An outcome for a person: what matters of it; `--json` has all."""
    if outcome.files:
        return _describe_scan(outcome)
    head = outcome.path or outcome.run_id
    facts = [outcome.since if outcome.outcome == "accepted" else f"accepted {outcome.since}"]
    facts += [f"state {outcome.state}"] if outcome.state != outcome.outcome else []
    state = f" ({', '.join(facts)})" if outcome.since else ""
    message = f". {outcome.message}" if outcome.message else ""
    lines = [f"{head}: {outcome.outcome}{state}{message}"]
    lines += [f"  run    {outcome.run_id}"] if outcome.run_id else []
    lines += [f"  page   {outcome.url}"] if outcome.url else []
    lines += [f"  WARNING  {printable(warning)}" for warning in _warnings(outcome.results.get("report"))]
    tasks = {name: state for name, state in outcome.tasks.items() if state not in IDLE_STATES}
    width = max([len(name) for name in tasks] + [4])
    lines += [f"  task   {name:{width}}  {state}" for name, state in tasks.items()]
    results = {} if outcome.errors else outcome.results
    if "report" in outcome.results:  # of the whole run, with what matters of the other tasks' results
        results = {"report": outcome.results["report"]}
    for name, value in results.items():
        lines += [
            f"  {name}  {key} = {_shortened(item)}"
            for key, item in _rows("", value)
            if not key.endswith(".warnings")
        ]
    lines += [f"  {error}" for error in _errors(outcome)]
    return "\n".join(lines)


def _warnings(report: Any) -> Iterator[str]:
    """Those of a report's reconstructions, whole."""
    found = report.get("reconstructions") if isinstance(report, dict) else None
    for one in found if isinstance(found, list) else []:
        if isinstance(one, dict) and isinstance(one.get("warnings"), list):
            yield from (f"{one.get('engine')}: {warning}" for warning in one["warnings"])


def of_scan(scan: str, files: Sequence[Outcome], first: str, url: str) -> Outcome:
    """The outcomes of a scan's files as one, which has the gravest of their exit codes.

    :param first: the outcome that is counted first, "7 of 80 done"; done with warnings is done.
    """
    counts = Counter(one.outcome for one in files)
    warned = counts.pop(WITH_WARNINGS, 0) if first == DONE else 0
    words = [f"{counts.pop(first, 0) + warned} of {len(files)} {first}"]
    words += [f"{warned} of them with warnings"] if warned else []
    words += [f"{count} {outcome}" for outcome, count in sorted(counts.items())]
    code = worst_exit_code(one.exit_code for one in files)
    return Outcome(scan, "", ", ".join(words), code, url=url, files=list(files))


def _describe_scan(scan: Outcome) -> str:
    """The counts, then the files, those with the same outcome and for the same reason together."""
    message = f". {scan.message}" if scan.message else ""
    lines = [f"{scan.path}: {scan.outcome}{message}"] + ([f"  page   {scan.url}"] if scan.url else [])
    groups: Dict[Tuple[str, ...], List[str]] = {}
    for one in scan.files:
        errors = list(_errors(one))
        key = (one.outcome, *errors, *([printable(one.message)] if one.message else []))
        groups.setdefault(key, []).append(one.run_id or one.path)
    for (outcome, *reasons), names in sorted(groups.items(), key=lambda group: group[0][0] == DONE):
        is_plain = outcome in (DONE, "had ended") and len(names) > _MAX_NAMES
        lines += textwrap.wrap(
            f"{outcome}: {f'{len(names)} files (--json names them)' if is_plain else ', '.join(names)}",
            110,
            initial_indent="  ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
        lines += [f"      {reason}" for reason in reasons]
    lines += [f"  {line}" for one in scan.stacks for line in describe(one).splitlines()]
    return "\n".join(lines)


def _errors(outcome: Outcome) -> Iterator[str]:
    for name, errors in outcome.errors.items():
        task = f"{name}: " if name else ""
        yield from (f"{task}{printable(error)}" for error in errors or [NO_REASON])


def _rows(key: str, value: Any) -> Iterator[Tuple[str, Any]]:
    """A result as (dotted name, plain value) pairs; long lists, such as errors by iteration, stay whole."""
    items: Iterable[Tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = enumerate(value)
    for name, item in items:
        yield from _rows(f"{key}.{name}" if key else str(name), item)
    if not items and value not in ({}, []):
        yield key or "result", value


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, float):
        text = f"{value:.6g}"
    limit = _MAX_TEXT if isinstance(value, str) else _MAX_LIST
    return printable(text if len(text) <= limit else text[:limit] + "...")


def printable(text: str) -> str:
    """Text of a server without what would steer a terminal; further lines indented."""
    lines = ("".join(c if c.isprintable() else " " for c in line) for line in text.splitlines())
    return "\n      ".join(lines)


def local_time(text: Optional[str]) -> str:
    """An ISO time as local time to the second; the text itself when it is something else."""
    try:
        moment = datetime.datetime.fromisoformat((text or "").replace("Z", "+00:00"))
    except ValueError:
        return text or ""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
