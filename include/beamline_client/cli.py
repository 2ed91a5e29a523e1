"""The command line: options, commands, and what they print."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import json
import math
import os
import re
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Dict, Iterator, List, Mapping, NoReturn, Optional, Sequence

import beamline_client
from beamline_client.client import Client
from beamline_client.config import DEFAULT_CONFIG, load_settings, seconds
from beamline_client.errors import (
    ACCEPTED,
    INTERRUPTED,
    SPOOLED,
    STILL_RUNNING,
    UNREACHABLE,
    ClientError,
    InputError,
    LockedError,
    RetryLaterError,
    SpoolError,
    UnreachableError,
    worst_exit_code,
)
from beamline_client.listen import ADDRESS, EndedScans, Listener
from beamline_client.output import Outcome, describe, local_time, to_stderr, to_stdout
from beamline_client.parameters import (
    DAG_ID,
    ENGINES,
    PARAMETERS,
    STACK_PARAMETERS,
    VERSION,
    describe_parameters,
    parameters_from_options,
)
from beamline_client.scan import Scan
from beamline_client.scan_names import parse_scan
from beamline_client.sending import FINAL_STATES
from beamline_client.spool import Request
from beamline_client.stacks import Stacks
from beamline_client.watch import Journal, WatchedFolder, Watcher


def _common_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add = options.add_argument
    add("--config", metavar="FILE", help=f"settings (default {DEFAULT_CONFIG})")
    add("--url", help="address of Airflow")
    add("--spool", metavar="FOLDER", help="where requests are kept until Airflow has them")
    add("--timeout", metavar="SECONDS", help="without an answer, until requests are kept (30)")
    add("--json", action="store_true", help="print one JSON object; messages go to stderr")
    return options


def _run_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add = options.add_argument
    n_gpu = PARAMETERS["n_gpu"]
    add("--engine", action="append", choices=ENGINES, help="reconstruct with it; may be repeated")
    add("--n-gpu", metavar="N", help=f"GPUs of the job, {n_gpu.minimum} to {n_gpu.maximum}")
    add("--param", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    add("--any-name", action="store_true", default=None, help="take scans with unusual names too")
    return options


def _wait_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add = options.add_argument
    add("--wait", action="store_true", help="follow the runs to their end")
    add("--wait-limit", metavar="SECONDS", help="stop following after that; the runs go on")
    add("--dry-run", action="store_true", help="check and show what would be sent, send nothing")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="submit_scan.py",
        description=beamline_client.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", required=True)
    common, run, wait = _common_options(), _run_options(), _wait_options()

    def command(name: str, *more: argparse.ArgumentParser, about: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            parents=[common, *more],
            help=about,
            description=about,
            epilog=f"parameters of a run (default):\n{describe_parameters()}" if run in more else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    submit = command("submit", run, wait, about="start a run for each scan")
    submit.add_argument("names", nargs="+", metavar="FILE")
    reprocess = command("reprocess", run, wait, about="start a new run of scans that have run")
    reprocess.add_argument("names", nargs="+", metavar="FILE|SCAN")
    reprocess.add_argument("--all", action="store_true", help="of a SCAN all files, not only what failed")
    status = command("status", about="how far it is")
    status.add_argument("names", nargs="*", metavar="FILE|RUN|SCAN")
    cancel = command("cancel", about="stop runs, withdraw requests")
    cancel.add_argument("names", nargs="+", metavar="FILE|RUN|SCAN")
    add = command("stack", about="make one stack of a scan's energies for each region").add_argument
    add("names", nargs="+", metavar="SCAN")
    add("--engine", choices=ENGINES, help="whose results")
    add("--param", action="append", default=[], metavar="NAME=VALUE", help="such as incomplete=true")
    command("flush", about="send what was kept")
    add = command("watch", run, about="submit each scan in a folder when it is finished").add_argument
    add("folder", metavar="FOLDER", help="data_root or a folder below it; or the collection's root")
    add("--settle", default="30", metavar="SECONDS", help="unchanged for that long is finished (30)")
    add("--done-suffix", default="", metavar="SUFFIX", help="finished when <scan>SUFFIX is there")
    add("--interval", default="5", metavar="SECONDS", help="between looks (5)")
    add("--existing", action="store_true", help="also submit what was there before the first watch")
    add = command(
        "listen", run, about="submit each scan when the processing program reports its end"
    ).add_argument
    add("--address", default=ADDRESS, help=f"where the processing program publishes ({ADDRESS})")
    add("--settle", default="2", metavar="SECONDS", help="unchanged for that long is closed (2)")
    add("--interval", default="1", metavar="SECONDS", help="between looks (1)")
    return parser


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] not in (*COMMANDS, "-h", "--help", "--version"):
        arguments.insert(0, "submit")
    options = _parser().parse_args(arguments)
    try:
        _check_for_mistyped_command(arguments)
        overrides = {key: getattr(options, key) or "" for key in ("url", "spool", "timeout")}
        settings = load_settings(options.config, {key: text for key, text in overrides.items() if text})
        client = Client(settings, log=to_stderr if options.json else to_stdout)
        outcomes = COMMANDS[options.command](options, client)
    except ClientError as error:
        outcomes = [Outcome("", "", "error", error.exit_code, message=str(error))]
    except KeyboardInterrupt:
        to_stderr("Interrupted. What was kept or accepted goes on; see: submit_scan.py status")
        return INTERRUPTED
    code = worst_exit_code(outcome.exit_code for outcome in outcomes)
    _print_outcomes(outcomes, code, options.json)
    return code


def _check_for_mistyped_command(arguments: Sequence[str]) -> None:
    if arguments[0] != "submit" or not re.fullmatch("[a-z]+", arguments[1]):
        return
    near = difflib.get_close_matches(arguments[1], COMMANDS, n=1)
    if near:
        raise InputError(f"There is no command {arguments[1]!r}. Did you mean {near[0]}?")


def _print_outcomes(outcomes: Sequence[Outcome], code: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"exit_code": code, "results": [asdict(outcome) for outcome in outcomes]}, indent=1))
        return
    for outcome in outcomes:
        if outcome.outcome == "error":
            to_stderr(f"submit_scan: {outcome.message}")
        else:
            print(describe(outcome))


def _submit(options: argparse.Namespace, client: Client) -> List[Outcome]:
    given = parameters_from_options(options.param, options.engine, options.n_gpu)
    limit = seconds(options.wait_limit) if options.wait_limit else math.inf
    for scan in filter(None, map(parse_scan, options.names)):
        raise InputError(
            f"{scan.name} is a whole scan, which status, reprocess and cancel take. Submit its files, such "
            f"as {scan.path(0, 0)}."
        )
    requests = client.requests(options.command, options.names, given, options.any_name)
    if options.dry_run:
        return [_dry_run(request, client) for request in requests]
    outcomes = client.sender.deliver(requests)
    if not options.wait:
        return outcomes
    for outcome in outcomes:
        client.log(describe(outcome))
    started = [outcome for outcome in outcomes if outcome.exit_code == ACCEPTED]
    runs = client.wait_for([outcome.run_id for outcome in started], limit) if started else {}
    return [_after_wait(outcome, runs.get(outcome.run_id), client) for outcome in outcomes]


def _reprocess(options: argparse.Namespace, client: Client) -> List[Outcome]:
    scans = [name for name in dict.fromkeys(options.names) if parse_scan(name)]
    options.names = [name for name in options.names if not parse_scan(name)]
    if options.all and not scans:
        raise InputError(
            "--all is for a scan's name, as in NS_230216033: a file that is named runs again anyhow."
        )
    outcomes = _submit(options, client) if options.names else []
    return outcomes + [_reprocess_scan(Scan(client, name), options, client) for name in scans]


def _reprocess_scan(scan: Scan, options: argparse.Namespace, client: Client) -> Outcome:
    given = parameters_from_options(options.param, options.engine, options.n_gpu)
    limit = seconds(options.wait_limit) if options.wait_limit else math.inf
    try:
        requests, left = scan.plan(given, options.all)
    except (UnreachableError, RetryLaterError) as error:
        message = f"{error} Nothing was sent or kept: reprocess it again when Airflow can be reached."
        return Outcome(scan.name, "", "not known", UNREACHABLE, message=message)
    if options.dry_run:
        return scan.reprocessed([_dry_run(request, client) for request in requests], left)
    client.log(f"{scan.name}: {len(requests)} of {len(requests) + len(left)} files are to run again.")
    outcome = scan.reprocessed(client.sender.deliver(requests) if requests else [], left)
    started = [one.run_id for one in outcome.files if one.outcome.endswith("accepted")]
    if not options.wait or not started:
        return outcome
    client.log(describe(outcome))
    scan.wait(started, limit)
    return scan.status()


def _dry_run(request: Request, client: Client) -> Outcome:
    address = f"{client.settings.url}/api/v2/dags/{DAG_ID}/dagRuns"
    if not request.run_id:
        message = f"would POST to {address} the newest run's parameters with {json.dumps(request.conf)}"
    else:
        body = {"dag_run_id": request.run_id, "logical_date": None, "conf": request.conf}
        message = f"would POST to {address} {json.dumps(body)}"
    return Outcome(request.path, request.run_id, "dry run", message=message)


def _after_wait(outcome: Outcome, run: Optional[Mapping[str, Any]], client: Client) -> Outcome:
    if outcome.exit_code != ACCEPTED:
        return outcome
    if run is None or run["state"] not in FINAL_STATES:
        return replace(outcome, exit_code=STILL_RUNNING, message="The wait is over; the run goes on.")
    return client.describe_run(run)


def _status(options: argparse.Namespace, client: Client) -> List[Outcome]:
    if options.names:
        found = [
            [Scan(client, name).status()] if parse_scan(name) else client.status(name)
            for name in options.names
        ]
        return [outcome for outcomes in found for outcome in outcomes]
    outcomes = []
    for request in client.spool.pending():
        message = f"Since {local_time(request.created)}; to send it: submit_scan.py flush"
        outcomes.append(Outcome(request.path, request.run_id, "kept", SPOOLED, message=message))
    for request in client.spool.rejected():
        record = client.spool.rejected_folder / request.name
        message = f"{request.message} (until you remove {record})"
        outcomes.append(Outcome(request.path, request.run_id, "rejected", message=message))
    if not outcomes:
        client.log(f"Nothing waits in {client.spool.folder}.")
    return outcomes


def _cancel(options: argparse.Namespace, client: Client) -> List[Outcome]:
    found = [
        [Scan(client, name).cancel()] if parse_scan(name) else client.cancel(name) for name in options.names
    ]
    return [outcome for outcomes in found for outcome in outcomes]


def _stack(options: argparse.Namespace, client: Client) -> List[Outcome]:
    engine = [f"engine={options.engine}"] if options.engine else []
    given = parameters_from_options([*options.param, *engine], table=STACK_PARAMETERS)
    scans = [Scan(client, name).name for name in dict.fromkeys(options.names)]
    return [Stacks(client, scan).start(given) for scan in scans]


def _flush(_options: argparse.Namespace, client: Client) -> List[Outcome]:
    names = client.spool.names()
    if not names:
        client.log(f"Nothing waits in {client.spool.folder}.")
    return client.sender.with_pause(list(client.sender.flush(own=names).values()))


def _watch(options: argparse.Namespace, client: Client) -> List[Outcome]:
    given = parameters_from_options(options.param, options.engine, options.n_gpu)
    client.requests("submit", [], given)
    interval = seconds(options.interval)
    folder = Path(options.folder).resolve()

    def watch(journal_file: Path) -> NoReturn:
        watched = _open_folder(options, client, folder, journal_file)
        known = f"{len(watched.journal.old)} old files, {len(watched.journal.submitted)} submitted"
        client.log(f"Watching {folder} ({known}).")
        Watcher(client, watched, given).run(interval)

    return _until_stopped(client, f"watch-{_short_hash(str(folder))}", f"{folder} is being watched", watch)


def _listen(options: argparse.Namespace, client: Client) -> List[Outcome]:
    given = parameters_from_options(options.param, options.engine, options.n_gpu)
    client.requests("submit", [], given)
    interval, settle = seconds(options.interval), seconds(options.settle)
    root = client.settings.data_root
    if root is None or not root.is_dir():
        raise InputError(
            f"Where are the scans on this computer? data_root in [client] must name that folder, not {root}."
        )

    def listen(journal_file: Path) -> NoReturn:
        with _journal_errors(journal_file):
            journal = Journal(journal_file)
            if journal.is_new:
                journal.begin({})
        scans = EndedScans(root, journal, settle=settle, log=client.log)
        watcher = Watcher(client, scans, given)
        with Listener(options.address, scans.add, client.log) as listener:
            client.log(f"Listening to {options.address}, for scans in {root}.")
            while True:
                watcher.check()
                listener.wait(interval)

    name = f"listen-{_short_hash(f'{options.address} {root}')}"
    return _until_stopped(client, name, f"{options.address} is being listened to", listen)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _until_stopped(client: Client, name: str, what: str, loop: Callable[[Path], NoReturn]) -> List[Outcome]:
    """Run a loop until Ctrl-C or SIGTERM, in one process at a time; it is given the file for its journal.

    :raises InputError: another process runs it already.
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        with client.spool.lock(name, 1.0):
            loop(client.spool.folder / f"{name}.jsonl")
    except KeyboardInterrupt:
        client.log("Stopped. What was found is kept or sent.")
        return []
    except LockedError as error:
        raise InputError(f"{what} already, by another submit_scan.") from error


@contextlib.contextmanager
def _journal_errors(journal_file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpoolError(
            f"{journal_file}, which records what was submitted, cannot be used: {error}."
        ) from error


def _open_folder(
    options: argparse.Namespace, client: Client, folder: Path, journal_file: Path
) -> WatchedFolder:
    root = (client.settings.data_root or folder).resolve()
    if not folder.is_dir():
        raise InputError(f"There is no folder {options.folder}.")
    if root != folder and root not in folder.parents:
        raise InputError(f"{folder} is not below data_root, {root}.")
    if "/" in options.done_suffix:
        raise InputError("--done-suffix is what comes after the scan's file name, as in .done.")
    with _journal_errors(journal_file):
        watched = WatchedFolder(
            folder,
            Journal(journal_file),
            prefix="" if root == folder else f"{folder.relative_to(root)}/",
            settle=seconds(options.settle),
            done_suffix=options.done_suffix,
            any_name=client.settings.any_name if options.any_name is None else options.any_name,
            log=client.log,
        )
        if watched.journal.is_new:
            watched.journal.begin({} if options.existing else watched.files())
    return watched


def _stop(_number: int, _frame: Optional[FrameType]) -> None:
    raise KeyboardInterrupt


COMMANDS: Dict[str, Callable[[argparse.Namespace, Client], List[Outcome]]] = {
    "submit": _submit,
    "reprocess": _reprocess,
    "status": _status,
    "cancel": _cancel,
    "stack": _stack,
    "flush": _flush,
    "watch": _watch,
    "listen": _listen,
}


def run() -> None:
    """Run the command as a program: ends the process."""
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of our output left; what was kept or accepted stays so
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
